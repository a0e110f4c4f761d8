"""Runs of DMD2, TDM and TDM-R1: what they prove, report and resume to."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from flowfactory import testing
from flowfactory.config.loading import validate
from flowfactory.runs.train import train
from flowfactory.testing.run_suite import cache_of, read_checkpoint

ALGORITHMS: dict[str, dict[str, Any]] = {
    "dmd2": {"name": "dmd2", "fake": {"steps": 3, "lr": 0.01}},
    "tdm": {"name": "tdm", "fake": {"steps": 2}},
    "tdm-r1": {"name": "tdm-r1", "fake": {"steps": 2}},
}
every = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)


def settings(folder: Path, algorithm: dict[str, Any], **training: Any) -> dict[str, Any]:
    return testing.settings(
        folder,
        algorithm,
        model={"name": "guided"},
        prompts={"negative": "seven l"},
        sampling={"groups": 3, "group_size": 2, "steps": 4},
        training={"updates": 2, "batch_size": 3, **training},
    )


@every
def test_preflight_proves_each_role_and_the_record_has_its_figures(tmp_path: Path, algorithm: dict[str, Any]) -> None:
    trained = testing.train(settings(tmp_path, algorithm))
    roles = ["fake", "surrogate"] if algorithm["name"] == "tdm-r1" else ["fake"]
    assert "preflight: 4 recorded steps are places to learn at: no log-density is compared" in trained.said
    for role in roles:
        assert any(line.startswith(f"preflight: {role}: a finite gradient reaches all 2") for line in trained.said)
        for record in trained.records:
            assert math.isfinite(record[f"{role}/loss"])
            assert record[f"{role}/grad_norm"] > 0
    assert any("reward/light/mean" in record for record in trained.records) == (algorithm["name"] == "tdm-r1")


@every
def test_a_resumed_run_gives_the_weights_of_one_that_was_not_stopped(tmp_path: Path, algorithm: dict[str, Any]) -> None:
    whole = testing.check_resumes_bit_for_bit(settings(tmp_path, algorithm))
    kept = whole.kept(3)
    assert {name.partition("/")[0] for name in kept} >= {"fake", "reference"}
    assert (kept["fake/transformer.p"] != kept["reference/transformer.p"]).any()


def test_a_role_makes_so_many_steps_at_its_own_rate(tmp_path: Path) -> None:
    raw = settings(tmp_path, ALGORITHMS["dmd2"])
    with cache_of(raw):
        directory = train(validate(raw), say=lambda _: None)
    state = read_checkpoint(directory.path / "checkpoints" / "000003", "role/fake/")
    assert int(state["steps"]) == 3 * 2 * 3
    assert int(state["optimizer/transformer.p/step"]) == 18


@every
def test_the_page_names_every_metric_of_its_own(tmp_path: Path, algorithm: dict[str, Any]) -> None:
    (found,) = (set(record) for record in testing.train(settings(tmp_path, algorithm)).records[:1])
    page = (Path(__file__).parents[3] / "docs" / "algorithms" / f"{algorithm['name']}.md").read_text(encoding="utf-8")
    table = page.partition("## What it reports")[2].partition("\n## ")[0]
    own = {name for name in found if name.startswith(("fake/", "surrogate/")) or name in ("gap", "preference")}
    assert own <= set(re.findall(r"`([^`]+)`", table))
