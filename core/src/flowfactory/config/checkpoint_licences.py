"""The checkpoints that components name by themselves, with the licences of their weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flowfactory.config.component import ComponentConfig
from flowfactory.config.component_slots import config_class
from flowfactory.config.paths import HUB_ID, CheckpointPath
from flowfactory.discovery.catalogue import Catalogue, Component
from flowfactory.errors import UserError

SEE_ITS_PAGE = "see its page"
HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that a component names: in a default of its options, or in an example."""

    kind: str
    component: str
    distribution: str
    name: str
    """Its hub id; or what it is, where it comes with a package."""
    licence: str

    @property
    def page(self) -> str | None:
        """Where its authors state the licence; None where it is on no hub."""
        return HUB + self.name if re.fullmatch(HUB_ID, self.name) else None


def find_checkpoints(catalogue: Catalogue) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints of all components of ``catalogue``; and a sentence for each component that cannot be loaded."""
    found: list[Checkpoint] = []
    failed: list[str] = []
    for component in catalogue.found:
        if component.kind == "example":
            continue
        try:
            found += _of_component(component)
        except UserError as error:
            failed.append(str(error))
    return sorted(found, key=lambda each: (each.kind, each.component, each.distribution)), failed


def _of_component(component: Component) -> Iterator[Checkpoint]:
    for name, licence in named_checkpoints(config_class(component)).items():
        yield Checkpoint(component.kind, component.name, component.distribution, name, licence)


def named_checkpoints(options: type[ComponentConfig]) -> Mapping[str, str]:
    """{checkpoint: licence} of what ``options`` declares itself, and of its defaults that it says nothing about."""
    declared: Mapping[str, str] = vars(options).get("checkpoint_licences", {})  # not its base's, which is another model
    return {**declared, **{name: SEE_ITS_PAGE for name in default_checkpoints(options) if name not in declared}}


def default_checkpoints(options: type[ComponentConfig]) -> list[str]:
    """The hub ids that options for checkpoints have when they are left out."""
    reader = CheckpointPath.__metadata__[0]  # type: ignore[attr-defined] # of Annotated
    return [
        field.default
        for field in options.model_fields.values()
        if isinstance(field.default, str) and reader in field.metadata and re.fullmatch(HUB_ID, field.default)
    ]
