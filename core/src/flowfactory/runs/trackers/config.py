"""What the options of all trackers share, and what none of them may be: a secret."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, ClassVar

from pydantic import Field, model_validator

from flowfactory.config.component import ComponentConfig
from flowfactory.errors import UserError
from flowfactory.runs.trackers.tracker import Service, Tracker

_SECRET = re.compile(r"key|token|password|passwd|secret|credential", re.IGNORECASE)


class TrackerConfig(ComponentConfig):
    """What the options of every tracker share."""

    called: ClassVar[str]
    """The name that it is registered under, which is that of the extra that brings its library too."""
    modules: ClassVar[tuple[str, ...]] = ()
    """What must be there to be imported."""
    secrets: ClassVar[str] = "leave it out"
    """How its service is told a key, in words that end a sentence."""
    stays_in_run: ClassVar[bool] = False
    """Whether all that it writes is in the run directory, so that it may be tried without being asked for."""

    media: bool = Field(True, description="whether the pictures and videos of evaluations go there too")

    @model_validator(mode="before")
    @classmethod
    def _refuse_secrets(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in (key for key in values if key not in cls.model_fields and _SECRET.search(str(key))):
                raise ValueError(f"{key} is no option: a config is saved with the run for others to read; {cls.secrets}")
        return values

    def lacking(self) -> str | None:
        missing = next((module for module in self.modules if not _is_there(module)), None)
        if missing is None:
            return None
        return f"tracker {self.called!r} needs {missing}: pip install 'flowfactory[{self.called}]'"

    def build(self, label: str) -> Tracker:
        if sentence := self.lacking():
            raise UserError(sentence)
        return Tracker(f"{label} ({self.called})", self.service(), self.media)

    @abstractmethod
    def service(self) -> Service:
        """What passes on; nothing is opened yet."""


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it would be in
        return False
