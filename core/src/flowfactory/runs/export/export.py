"""``export``: a run's weights in the format of a loader, with a model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from flowfactory.atomic_files import disk_fault, make_temporary_folder, remove_leftovers, system_error
from flowfactory.config.schema import RunConfig
from flowfactory.errors import RunError, UserError
from flowfactory.policy.policy import FULL, Policy
from flowfactory.runs import trust
from flowfactory.runs.checkpoints import load, lookup
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.export.adapters import choose_format, write_adapters
from flowfactory.runs.export.card import Exported, write_card
from flowfactory.runs.export.origin import find_origin
from flowfactory.runs.export.pipeline import complete_pipeline
from flowfactory.training.assembly import Assembly
from flowfactory.types import DTYPES, Runtime


def export(
    directory: RunDirectory,
    out: Path,
    iteration: int | None,
    weights: str | None,
    precision: str | None,
    form: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    plugins: Sequence[Path] = (),
    trusted: bool = False,
) -> Path:
    """Write ``out`` and return it: of a LoRA run the adapters, of a full one the whole pipeline; and a model card, README.md.

    ``weights`` are those kept under that name, the trained ones when None. ``precision`` is that of fully trained weights,
    the run's own when None. ``form`` is the format of adapters, see :func:`choose_format`. Written under a temporary name and
    renamed; ``say`` hears of damaged checkpoints that are passed over. ``plugins`` and ``trusted`` are as load_config of a run
    directory takes them; no link out of a model is followed that was neither trained with here nor is ``trusted``.

    UserError: ``out`` exists, there is no such checkpoint, nothing is kept under that name, or the model has nothing in that
    format. RunError: the disk is full.
    """
    if out.exists():
        raise UserError(f"{out} already exists; choose another folder")
    config = directory.load_config(plugins=plugins, trusted=trusted)
    origin = find_origin(config.model)
    chosen = choose_format(form, config.model, origin)
    saved = lookup.find(directory.checkpoints, iteration, say)
    temporary = _make_beside(out.absolute())
    try:
        policy = _restore(config, saved, weights)
        with policy.using(weights):
            if config.model.train == "full":
                policy.save_trained(temporary)
                files = [Path(name) / FULL for name in policy.modules]
            else:
                files = write_adapters(policy, temporary, chosen, config.model, origin, out.absolute().name)
        if config.model.train == "full" and origin.pipeline:
            dtype = DTYPES[precision or config.training.precision]
            path: str = config.model.path  # type: ignore[attr-defined]
            complete_pipeline(temporary, path, list(policy.modules), dtype, trusted or trust.is_known(trust.model_mark(path)))
        exported = Exported(int(saved.name), weights, chosen, dict(zip(policy.modules, files, strict=True)))
        write_card(temporary, directory, config, origin, exported, say)
        temporary.chmod(0o755)
        os.rename(temporary, out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if disk_fault(error):
            told = f"{out} cannot be written ({system_error(error).strerror})"  # type: ignore[union-attr]
            raise RunError(f"{told}; make room, or choose another folder") from error
        raise
    return out


def _make_beside(out: Path) -> Path:
    """A new folder of a temporary name beside ``out``, without those of killed exports. UserError: there can be none."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out.parent)
        return make_temporary_folder(out.parent)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another folder") from error


def _restore(config: RunConfig, saved: Path, weights: str | None) -> Policy:
    """The policy of a checkpoint, in host memory; no prompt is encoded for it."""
    assembly = Assembly(config, trackers=False)
    device = torch.device("cpu")
    trainable = assembly.hooks.load(Runtime(device, torch.float32 if config.model.train == "full" else DTYPES["bf16"]))
    policy = Policy(trainable, assembly.hooks.log_prob, device, seed=config.seed)
    load.load(saved, policy)
    if weights is not None and weights not in policy.kept:
        known = ", ".join(policy.kept) or "none"
        raise UserError(f"{saved} keeps no weights called {weights!r}; there is {known}")
    return policy
