"""Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Literal

from pydantic import Field

from flowfactory.errors import UserError
from flowfactory.hooks.evaluated_sample import EvaluatedSample
from flowfactory.runs.trackers.config import TrackerConfig
from flowfactory.runs.trackers.identity import identify
from flowfactory.runs.trackers.samples import caption, is_video
from flowfactory.types import RunInfo

REFUSED = ("permission denied", "unauthorized", "401", "403", "invalid", "no api key")
"""What the library's own sentence has where the service refuses a key; where it does not answer it says something else."""
PATIENCE = 30.0
"""Seconds that a service is given to answer before training goes on without it."""


class WandbConfig(TrackerConfig):
    """A run of Weights & Biases; its files are in ``<run>/wandb``."""

    known_as = ("weights and biases", "weights_and_biases", "wb")
    called: ClassVar[str] = "wandb"
    modules: ClassVar[tuple[str, ...]] = ("wandb",)
    secrets: ClassVar[str] = "run wandb login, or set WANDB_API_KEY"

    project: str = Field("flowfactory", min_length=1, description="the project that the run is put in")
    entity: str | None = Field(None, description="the team or user it belongs to; the account's own when left out")
    run_name: str | None = Field(None, description="what the run is called; the run directory's name when left out")
    group: str | None = Field(None, description="runs that are shown together")
    tags: tuple[str, ...] = Field((), description="of the run")
    mode: Literal["online", "offline"] | None = Field(
        None, description="offline: nothing is sent until wandb sync; left out: WANDB_MODE, or online"
    )

    def service(self) -> Wandb:
        return Wandb(self)


class Wandb:
    """A run there."""

    def __init__(self, config: WandbConfig) -> None:
        self._config = config
        self._run: Any = None

    @property
    def _mode(self) -> str:
        return self._config.mode or os.environ.get("WANDB_MODE") or "online"

    def _library(self) -> Any:
        """wandb; where nothing is to be sent, without what it tells its makers of itself."""
        if self._mode in ("offline", "disabled"):
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        return import_module("wandb")

    def check(self) -> None:
        """UserError: there is no key, or the service refuses it."""
        wandb = self._library()
        if self._mode not in ("online", "shared"):
            return
        if not wandb.api.api_key and not os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
            raise UserError("tracker 'wandb' has no API key; run wandb login, set WANDB_API_KEY, or choose mode: offline")
        try:
            wandb.login(verify=True)
        except Exception as error:
            if any(word in str(error).lower() for word in REFUSED):
                told = "run wandb login again, or choose mode: offline"
                raise UserError(f"tracker 'wandb' is refused ({' '.join(str(error).split())}); {told}") from error

    def start(self, run: RunInfo) -> None:
        """Open the run, or go on with it."""
        wandb = self._library()
        chosen, offline = self._config, self._mode == "offline"
        self._run = wandb.init(
            project=chosen.project,
            entity=chosen.entity,
            name=chosen.run_name or run.directory.resolve().name,
            group=chosen.group,
            tags=chosen.tags or None,
            mode=self._mode,
            id=identify(run, f"wandb:{chosen.entity or ''}/{chosen.project}"),
            # where nothing is sent there is nothing to look for; wandb sync joins what has one id
            resume=None if offline else "allow",
            dir=str(run.directory),
            config=run.config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off", init_timeout=PATIENCE),
        )
        # steps of its own could only grow, and a resumed run makes some iterations again
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        if not offline and self._run.url:
            run.say(f"wandb: {self._run.url}")

    def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[EvaluatedSample]) -> None:
        """One step, with the samples as a gallery."""
        told: dict[str, Any] = {"iteration": iteration, **metrics}
        if samples:
            told["heldout"] = [_medium(sample) for sample in samples]
        self._run.log(told)

    def end(self, how: str) -> None:
        """Send what is left, and close the run."""
        self._run.finish(exit_code=0 if how == "finished" else 1)


def _medium(sample: EvaluatedSample) -> Any:
    wandb: Any = import_module("wandb")
    if is_video(sample):
        return wandb.Video(str(sample.path), caption=caption(sample), format="mp4")
    return wandb.Image(str(sample.path), caption=caption(sample))
