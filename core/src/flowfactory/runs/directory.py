"""The run directory: what a run leaves behind, and how it is read again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from flowfactory.atomic_files import remove_leftovers, write_atomically, write_json_atomically
from flowfactory.checkpoint_names import FOLDER, list_checkpoints
from flowfactory.config import loading, yaml
from flowfactory.config.schema import RunConfig
from flowfactory.config.text_files import decode
from flowfactory.data.media import write_media
from flowfactory.errors import UserError
from flowfactory.hooks.evaluated_sample import EvaluatedSample
from flowfactory.runs import metrics_file, sample_index, trust
from flowfactory.runs.checkpoints import lookup
from flowfactory.runs.facts import FACTS
from flowfactory.runs.report import small_copies
from flowfactory.runs.resume import config_changes, fixed_config
from flowfactory.runs.sample_index import INDEX, TRAINING, folder_of
from flowfactory.training.extremes import Extreme
from flowfactory.types import Say
from flowfactory.untrusted_files import Refused, leads_into, read_bytes

LARGEST_CONFIG = 2**19
"""In bytes: a config with all defaults written out is several times as long as it was."""

UNREAD, OF_SCORING = ("prompts.train", "output.trackers"), ("prompts.heldout", "rewards", "evaluation.rewards")
"""Keys of a run's config that nothing reads once it has ended, and those that are read to score alone."""


class RunDirectory:
    """config.yaml, metrics.jsonl, run.json, samples/, checkpoints/ and report.html below ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.facts = path / FACTS
        self.samples = path / "samples"
        self.checkpoints = path / FOLDER
        self.report = path / "report.html"

    def open(self, config: RunConfig, resume: bool) -> None:
        """Make the directory, or take up the run in it.

        UserError: it holds a run and ``resume`` is off, the run in it was made with another config or other prompts, or samples
        would be written elsewhere. OSError: it cannot be written to.
        """
        self._require_samples_within()
        if self.config.exists() and self.has_begun():
            # before --resume is advised, which is none where they are of another version
            before = lookup.saved_fixed_config(self.checkpoints)
            if not resume:
                raise UserError(f"{self.path} already holds a run; continue it with --resume, or choose another --out")
            self._require_same_config(config, before)
        self.path.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.path / TRAINING, *self.samples.glob("[0-9]*")):
            remove_leftovers(folder)
        write_atomically(self.config, yaml.dump(config))

    def _require_samples_within(self) -> None:
        for folder in (self.samples, self.path / TRAINING, *self.samples.glob("[0-9]*")):
            if not leads_into(folder, self.path):
                raise UserError(f"{folder} leads out of {self.path}; put the whole run directory there, or link that")

    def has_begun(self) -> bool:
        """Whether there is something to lose: a run that failed before its first update is not in the way of the next."""
        return metrics_file.has_begun(self.metrics) or bool(list_checkpoints(self.checkpoints))

    def require_run(self) -> None:
        """UserError: this is no run directory."""
        if not self.config.is_file():
            raise UserError(f"{self.path} is no run directory: it has no config.yaml")

    def load_config(
        self, overrides: Sequence[str] = (), plugins: Sequence[Path] = (), trusted: bool = False, scores: bool = False
    ) -> RunConfig:
        """The run's resolved config, for drawing or, with ``scores``, for scoring; its ``output.dir`` is this directory.

        What it trained with need not be on this machine: prompts, trackers, and rewards where nothing is scored.
        ``plugins``, given by hand, stand in the place of those of the same names. How ranks share the weights is not what
        it was in training, but as ``overrides`` say. UserError: this is no run directory, or
        one that is not ``trusted`` would act as :mod:`flowfactory.runs.trust` does not let it.
        """
        raw = {key: value for key, value in self._read_config().items() if key != "distributed"}  # of ranks that are gone
        listed = trust.replace_plugins(raw.get("plugins"), loading.check_given(plugins))
        approve = None if trusted else trust.check_plugin
        unread = UNREAD if scores else (*UNREAD, *OF_SCORING)
        config = loading.resolve({**raw, "plugins": listed}, self.config, overrides, plugins, self.path, approve, unread)
        if not trusted:
            trust.check_config(config, raw, overrides, scores)
        return config

    def _read_config(self) -> dict[str, Any]:
        self.require_run()
        try:
            content = read_bytes(self.config, LARGEST_CONFIG, within=self.path)
        except Refused as error:
            raise UserError(f"{self.config} {error}; it is not read") from error
        except OSError as error:
            raise UserError(f"{self.config} cannot be read: {error.strerror}") from error
        return loading.parse(decode(content, self.config.name), self.config.name)

    def _require_same_config(self, config: RunConfig, saved: dict[str, Any] | None) -> None:
        # what a checkpoint says counts, since the config beside it may have been edited
        before = saved or fixed_config(self._config_with(config.plugins))
        if changed := config_changes(before, config):
            told = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise UserError(f"{self.path} was run with another config: {told}; resume with the same, or choose another --out")

    def _config_with(self, plugins: Sequence[Path]) -> RunConfig:
        """The run's config, its components from ``plugins``, whatever it lists itself."""
        raw = {**self._read_config(), "plugins": list(plugins)}
        return loading.resolve(raw, self.config, out=self.path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl. RunError: the disk takes no more."""
        metrics_file.append(self.metrics, record)

    def records(self, say: Say = lambda _: None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; ``say`` hears of those that cannot be read, which are left out."""
        return metrics_file.read_records(self.metrics, say)

    def rewind(self, iteration: int) -> int:
        """Forget the metrics after ``iteration``, which are about to be made again; how many lines were put aside unread.

        OSError: they cannot be written.
        """
        return metrics_file.rewind(self.metrics, iteration)

    def write_samples(
        self,
        iteration: int,
        media: Tensor,
        prompts: Sequence[str],
        scores: Mapping[str, Tensor],
        frame_rate: float | None = None,
    ) -> tuple[EvaluatedSample, ...]:
        """What was written: ``samples/<iteration>/<number>.png``, or ``.mp4`` of what moves, and ``index.json``.

        Pictures have small copies beside them, see :mod:`.report.small_copies`. OSError: they cannot be written.
        """
        folder = self.path / folder_of(iteration)
        folder.mkdir(parents=True, exist_ok=True)
        index, written = [], []
        for i, (medium, prompt) in enumerate(zip(media, prompts, strict=True)):
            file = write_media(medium, folder / f"{i:03d}", frame_rate)
            if file.suffix == ".png":
                small_copies.write(file)
            told = {label: float(score[i]) for label, score in scores.items()}
            index.append({"file": file.name, "prompt": prompt, "scores": told})
            known = {label: score for label, score in told.items() if math.isfinite(score)}
            written.append(EvaluatedSample(file, prompt, known))
        write_json_atomically(folder / INDEX, index)
        return tuple(written)

    def write_extremes(self, iteration: int, extremes: Sequence[Extreme]) -> None:
        """Write the best and the worst samples of ``iteration`` to ``samples/training``, in the place of those before.

        OSError: they cannot be written.
        """
        folder = self.path / TRAINING
        folder.mkdir(parents=True, exist_ok=True)
        index = []
        for i, each in enumerate(extremes):
            file = write_media(each.picture / 255, folder / f"{iteration:06d}{i:03d}")
            told = {"file": file.name, "prompt": each.prompt, "scores": each.scores}
            index.append({**told, "which": each.which, "iteration": iteration})
        write_json_atomically(folder / INDEX, index)
        named = {told["file"] for told in index}
        for path in folder.glob("[0-9]*.png"):
            if path.name not in named:
                path.unlink()

    def drawn(self) -> Path:
        """Where ``sample`` writes to. UserError: a link leads out of this directory there."""
        folder = self.samples / "drawn"
        if not leads_into(folder, self.path):
            raise UserError(f"{folder} leads out of {self.path}; choose where to write with --out")
        return folder

    def read_samples(self, iteration: int, say: Say = lambda _: None) -> list[dict[str, Any]]:
        """What :meth:`write_samples` wrote, with ``path`` in place of ``file``; ``say`` hears of what nobody wrote so."""
        return sample_index.read(self.path, folder_of(iteration), say)
