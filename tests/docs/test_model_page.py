"""The page on models tells of all that a family may say."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from flowfactory.models import Family
from flowfactory.models.family_options import FamilyOptions

PAGE = (Path(__file__).parents[2] / "docs/model.md").read_text(encoding="utf-8").partition("## A family over")[2]
CODE = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", PAGE))


def test_every_field_of_a_family_is_on_its_page() -> None:
    assert {field.name for field in fields(Family)} - CODE == set()


def test_every_option_of_a_family_is_on_its_page() -> None:
    assert set(vars(FamilyOptions)["__annotations__"]) - {"caches_features", "detaches_negatives"} - CODE == set()
