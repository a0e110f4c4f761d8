"""Trackio, which keeps runs on this machine."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from typing import Any, ClassVar

from pydantic import Field

from flowfactory.errors import UserError
from flowfactory.hooks.evaluated_sample import EvaluatedSample
from flowfactory.runs.trackers.config import TrackerConfig
from flowfactory.runs.trackers.identity import recall, remember
from flowfactory.runs.trackers.samples import caption, is_video
from flowfactory.types import RunInfo


class TrackioConfig(TrackerConfig):
    """A run of Trackio, in ``TRACKIO_DIR`` on this machine; ``trackio show`` shows it."""

    called: ClassVar[str] = "trackio"
    modules: ClassVar[tuple[str, ...]] = ("trackio",)
    secrets: ClassVar[str] = "run hf auth login, or set HF_TOKEN"

    project: str = Field("flowfactory", min_length=1, description="the project that the run is put in")
    run_name: str | None = Field(
        None, description="what the run is called; the run directory's name and letters of chance when left out"
    )
    group: str | None = Field(None, description="runs that are shown together")
    space: str | None = Field(None, description="a Space of the Hugging Face Hub that it is sent to as well, as user/space")

    def service(self) -> Trackio:
        return Trackio(self)


class Trackio:
    """A run there."""

    def __init__(self, config: TrackioConfig) -> None:
        self._config = config
        self._run: Any = None

    def check(self) -> None:
        """UserError: it is to be sent to a Space, and nobody is logged in."""
        import_module("trackio")
        if self._config.space or os.environ.get("TRACKIO_SPACE_ID"):
            hub: Any = import_module("huggingface_hub")
            if not hub.get_token():
                raise UserError(
                    "tracker 'trackio' sends to a Space, and nobody is logged in; run hf auth login, or set HF_TOKEN"
                )

    def start(self, run: RunInfo) -> None:
        """Open the run, or go on with it."""
        chosen = self._config
        place = f"trackio:{chosen.project}"
        known = recall(run, place)
        name = chosen.run_name or known or f"{_sound(run.directory.resolve().name)}-{secrets.token_hex(3)}"
        remember(run, place, _sound(name))
        with redirect_stdout(io.StringIO()):  # where it says how it is called by hand
            self._run = import_module("trackio").init(
                project=chosen.project,
                name=name,
                group=chosen.group,
                space_id=chosen.space,
                config=run.config.model_dump(mode="json"),
                resume="allow" if known else "never",  # another run may have the name
                embed=False,
            )
        run.say(f"trackio: trackio show --project {chosen.project}")

    def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[EvaluatedSample]) -> None:
        """One step, each sample under a name of its own."""
        trackio: Any = import_module("trackio")
        told: dict[str, Any] = dict(metrics)
        for number, sample in enumerate(samples):
            kind = trackio.Video if is_video(sample) else trackio.Image
            told[f"heldout/{number:03d}"] = kind(str(sample.path), caption=caption(sample))
        trackio.log(told, step=iteration)

    def end(self, how: str) -> None:
        """Write what is left, and close the run."""
        with redirect_stdout(io.StringIO()):
            import_module("trackio").finish()


def _sound(name: str) -> str:
    """``name`` of letters that are kept in run.json."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_.-") else "_" for letter in name)[:100]
