"""SwanLab."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any, ClassVar, Literal

from pydantic import Field

from flowfactory.errors import UserError
from flowfactory.hooks.evaluated_sample import EvaluatedSample
from flowfactory.runs.trackers.config import TrackerConfig
from flowfactory.runs.trackers.identity import identify
from flowfactory.runs.trackers.samples import caption, is_video, to_gif
from flowfactory.types import RunInfo

ENDS = {"finished": "success", "stopped": "aborted", "failed": "crashed"}


class SwanLabConfig(TrackerConfig):
    """An experiment of SwanLab; its files are in ``<run>/swanlab``."""

    called: ClassVar[str] = "swanlab"
    modules: ClassVar[tuple[str, ...]] = ("swanlab",)
    secrets: ClassVar[str] = "run swanlab login, or set SWANLAB_API_KEY"

    project: str = Field("flowfactory", min_length=1, description="the project that the experiment is put in")
    workspace: str | None = Field(None, description="whose it is; the account's own when left out")
    run_name: str | None = Field(None, description="what the experiment is called; the run directory's name when left out")
    group: str | None = Field(None, description="experiments that are shown together")
    tags: tuple[str, ...] = Field((), description="of the experiment")
    mode: Literal["online", "offline", "local"] | None = Field(
        None, description="offline: nothing is sent until swanlab sync; local: never; left out: SWANLAB_MODE, or online"
    )

    def service(self) -> SwanLab:
        return SwanLab(self)


class SwanLab:
    """An experiment there."""

    def __init__(self, config: SwanLabConfig) -> None:
        self._config = config
        self._run: Any = None

    @property
    def _mode(self) -> str:
        return self._config.mode or os.environ.get("SWANLAB_MODE") or "online"

    def check(self) -> None:
        """UserError: there is no key, or the service refuses it."""
        swanlab: Any = import_module("swanlab")
        if self._mode != "online":
            return
        if not swanlab.Settings().api_key:
            raise UserError("tracker 'swanlab' has no API key; run swanlab login, set SWANLAB_API_KEY, or choose mode: offline")
        try:
            with redirect_stdout(io.StringIO()):
                swanlab.login(timeout=10)
        except Exception as error:
            if any(word in str(error).lower() for word in ("401", "403", "unauthorized", "invalid", "incorrect")):
                told = "run swanlab login again, or choose mode: offline"
                raise UserError(f"tracker 'swanlab' is refused ({' '.join(str(error).split())}); {told}") from error

    def start(self, run: RunInfo) -> None:
        """Open the experiment, or go on with it."""
        chosen = self._config
        with redirect_stdout(io.StringIO()):
            self._run = import_module("swanlab").init(
                project=chosen.project,
                workspace=chosen.workspace,
                name=chosen.run_name or run.directory.resolve().name,
                group=chosen.group,
                tags=list(chosen.tags) or None,
                mode=self._mode,
                id=identify(run, f"swanlab:{chosen.workspace or ''}/{chosen.project}"),
                resume="allow",
                reinit=True,  # one that was opened by a start that failed later
                log_dir=str(run.directory / "swanlab"),
                config=run.config.model_dump(mode="json"),
            )
        if self._mode == "online":
            run.say(f"swanlab: {self._run.url}")

    def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[EvaluatedSample]) -> None:
        """One step, with the samples as a gallery."""
        told: dict[str, Any] = dict(metrics)
        if samples:
            told["heldout"] = [_medium(sample) for sample in samples]
        import_module("swanlab").log(told, step=iteration)

    def end(self, how: str) -> None:
        """Send what is left, and close the experiment."""
        with redirect_stdout(io.StringIO()):
            if how == "finished":
                self._run.finish()
            else:
                self._run.finish(ENDS[how], how)


def _medium(sample: EvaluatedSample) -> Any:
    swanlab: Any = import_module("swanlab")
    if is_video(sample):
        return swanlab.Video(io.BytesIO(to_gif(sample.path)), caption=caption(sample))  # it takes no MP4
    return swanlab.Image(str(sample.path), caption=caption(sample))
