"""The option that names a file of a transformer's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Discriminator, Field, Tag, field_validator

from flowfactory.config.component import ModelConfig
from flowfactory.config.paths import LocalPath, file_error
from flowfactory.config.warm_start import SUFFIX
from flowfactory.models.family import Family


def _kind(value: object) -> str:
    return "files" if isinstance(value, Mapping) else "file"


Files = Annotated[Annotated[LocalPath, Tag("file")] | Annotated[dict[str, LocalPath], Tag("files")], Discriminator(_kind)]
"""A file, or one for each transformer by its name."""


class SingleFileConfig(ModelConfig):
    """The option of a model over a pipeline to have its transformer's weights from one file."""

    family: ClassVar[Family]

    weights: Files | None = Field(
        None,
        examples=["a path", "{transformer: a path}"],
        description="a file of the transformer's weights, in place of those in path; by its name where there are several",
    )

    @property
    def single_files(self) -> dict[str, Path]:
        """The file of each transformer that has one, by name: a path alone is that of the first."""
        return _by_name(self.weights, self.family.transformers)

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: Path | dict[str, Path] | None) -> Path | dict[str, Path] | None:
        there = cls.family.transformers
        for name, file in _by_name(weights, there).items():
            if name not in there:
                raise ValueError(f"unknown transformer {name!r}; there is {' and '.join(there)}")
            if reason := file_error(file):
                raise ValueError(reason)
            if file.suffix.lower() != SUFFIX:
                raise ValueError(f"{file} is no {SUFFIX} file, and no other is read; convert it first")
        return weights


def _by_name(weights: Path | dict[str, Path] | None, transformers: Sequence[str]) -> dict[str, Path]:
    if weights is None:
        return {}
    return weights if isinstance(weights, dict) else {transformers[0]: weights}
