"""Teachers: who they are, where their weights lie, and which of them the prompts of each source have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationInfo, field_validator

from flowfactory.config.component import AlgorithmConfig
from flowfactory.config.paths import LocalPath
from flowfactory.config.warm_start import find_error, pinned, whole_weights
from flowfactory.suggestions import did_you_mean

if TYPE_CHECKING:
    from flowfactory.config.schema import PromptsConfig, RunConfig


class TeachersConfig(AlgorithmConfig):
    """Options of algorithms with teachers: other weights over the same base, each for the prompts of some sources."""

    teachers: dict[str, LocalPath] = Field(
        min_length=1,
        examples=["{text: text.safetensors, people: runs/people}"],
        description="by names of choice: files or folders of adapters on the same base, or run directories, whose last "
        "checkpoint counts",
    )

    @field_validator("teachers")
    @classmethod
    def _check_teachers(cls, teachers: dict[str, Path], info: ValidationInfo) -> dict[str, Path]:
        context = info.context or {}
        if context.get("anywhere") or "prompts.train" in context.get("unread", ()):  # nothing is going to train
            return teachers
        for name, path in teachers.items():
            if whole_weights(path) is None and (reason := find_error(path)):
                raise ValueError(f"{name}: {reason}")
        return {name: pinned(path) for name, path in teachers.items()}  # a run directory may go on

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """Those of ``teachers``."""
        return tuple(self.teachers)

    def by_source(self, prompts: PromptsConfig) -> dict[str, str]:
        """The teacher of each source of training prompts, by the source's name, "" for prompts of a file without one."""
        chosen = {name: source.teacher for name, source in prompts.named.items()} or {"": None}
        return {name: teacher or _own(name, self.teacher_names) or "" for name, teacher in chosen.items()}


def _own(source: str, teachers: tuple[str, ...]) -> str | None:
    """The teacher of a source that names none: its namesake, or the only one."""
    if source in teachers:
        return source
    return teachers[0] if len(teachers) == 1 else None


def teacher_errors(config: RunConfig) -> Iterator[str]:
    """One sentence for each source and each teacher that has no other, and for what keeps teachers from being heard."""
    algorithm, sources = config.algorithm, config.prompts.named
    teachers, name = algorithm.teacher_names, getattr(config.algorithm, "name", "")
    if not teachers:
        for source in (source for source, each in sources.items() if each.teacher is not None):
            yield f"prompts.train.{source}.teacher: algorithm {name} has no teachers; leave it out"
        return
    heard = set[str]()
    for source, each in sources.items():
        if each.teacher is not None and each.teacher not in teachers:
            told = f"{each.teacher!r} is no teacher of the config{did_you_mean(each.teacher, teachers)}"
            yield f"prompts.train.{source}.teacher: {told}"
        elif (own := each.teacher or _own(source, teachers)) is None:
            yield f"prompts.train.{source}: names no teacher, and there are {', '.join(teachers)}; write teacher: NAME"
        else:
            heard.add(own)
    if not sources and len(teachers) > 1:
        yield (
            f"algorithm.teachers: there are {', '.join(teachers)}, and prompts.train is one file; write sources with a teacher "
            "each, prompts.train: {NAME: {file: …, teacher: NAME}}"
        )
    elif sources:
        for teacher in (teacher for teacher in teachers if teacher not in heard):
            yield f"algorithm.teachers.{teacher}: no source of prompts has this teacher; name it in one, or leave it out"
    yield from _without_adapters(config)


def _without_adapters(config: RunConfig) -> Iterator[str]:
    """What is said of teachers that are all weights of a run, and of blocks that would not see what teachers add."""
    if config.training.compile is True:
        yield "training.compile: teachers add to layers inside the blocks, which compiled ones do not see; leave it out"
    if config.model.train == "full" or not isinstance(config.algorithm, TeachersConfig):
        return
    for teacher, path in config.algorithm.teachers.items():
        if whole_weights(path):
            told = f"{path} is of a run that trained all weights, which are no addition to those below adapters"
            yield f"algorithm.teachers.{teacher}: {told}; take model.train: full, or a teacher with adapters"
