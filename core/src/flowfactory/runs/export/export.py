"""``export``: a run's weights in the format of a loader, with a model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from flowfactory.atomic_files import disk_fault, make_temporary_folder, remove_leftovers, system_error
from flowfactory.config.component import LoraConfig
from flowfactory.config.schema import RunConfig
from flowfactory.config.warm_start import is_base, started_from
from flowfactory.config.wording import written
from flowfactory.errors import RunError, UserError
from flowfactory.models.family_config import FamilyConfig
from flowfactory.policy.lora import Adapters
from flowfactory.runs import trust
from flowfactory.runs.checkpoints import lookup
from flowfactory.runs.checkpoints.load import reading
from flowfactory.runs.checkpoints.roles import WEIGHTS, kept_role
from flowfactory.runs.checkpoints.stored_modules import StoredModule, read_modules
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.export.adapters import PEFT, choose_format, write_formatted
from flowfactory.runs.export.card import Exported, write_card
from flowfactory.runs.export.origin import Origin, find_origin
from flowfactory.runs.export.pipeline import complete_pipeline
from flowfactory.runs.export.weights import MAX_SHARD_SIZE, write_whole
from flowfactory.runs.held_out_scores import choose_checkpoint
from flowfactory.types import DTYPES

FILE = ".safetensors"


def export(
    directory: RunDirectory,
    out: Path,
    checkpoint: int | str | None,
    weights: str | None,
    precision: str | None,
    form: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    plugins: Sequence[Path] = (),
    trusted: bool = False,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> Path:
    """Write ``out`` and return it: of a LoRA run the adapters, of a full one the whole pipeline; and a model card, README.md.
    An ``out`` that ends in .safetensors is the file of the adapters alone.

    ``checkpoint`` is an iteration, ``best``, or None for the newest. ``weights`` are those kept under that name, the trained
    ones when None. ``precision`` is that of fully trained weights, the run's own when None. ``form`` is the format of adapters,
    see :func:`choose_format`. Written under a temporary name and renamed; ``say`` hears of damaged checkpoints that are passed
    over. ``plugins`` and ``trusted`` are as load_config of a run directory takes them; no link out of a model is followed that
    was neither trained with here nor is ``trusted``.

    Weights go from the checkpoint's files to those in ``out`` one tensor after the other; a pipeline's are divided into files
    of at most ``max_shard_size``. No model is made, and nothing else is read: neither moments nor other kept weights.

    UserError: ``out`` exists, there is no such checkpoint, nothing is kept under that name, or the model has nothing in that
    format, or more than the one file that ``out`` is. RunError: the disk is full, or the checkpoint is of another kind of
    training.
    """
    if out.exists():
        raise UserError(f"{out} already exists; choose another {'file' if _is_file(out) else 'folder'}")
    config = directory.load_config(plugins=plugins, trusted=trusted)
    origin = find_origin(config.model)
    chosen = choose_format(form, config.model, origin)
    roles = [WEIGHTS, *([] if weights is None else [kept_role(weights)])]
    iteration = choose_checkpoint(directory, config, checkpoint, say)
    saved = lookup.find(directory.checkpoints, iteration, say, roles)
    temporary = _make_beside(out.absolute())
    try:
        with reading(saved):
            modules = read_modules(saved, weights)
            _require_same_training(saved, modules, config)
            if _is_file(out):
                _require_one_file(out, chosen, config, [module.name for module in modules])
            if config.model.train == "full":
                follows = trusted or trust.is_known(trust.model_mark(str(getattr(config.model, "path", ""))))
                files = _write_full(modules, temporary, config, origin, precision, follows, max_shard_size)
            else:
                files = write_formatted(
                    modules, temporary, chosen, config.model, origin, out.absolute().name.removesuffix(FILE)
                )
        if not _is_file(out):
            exported = Exported(int(saved.name), weights, chosen, dict(zip((m.name for m in modules), files, strict=True)))
            write_card(temporary, directory, config, origin, exported, say)
        _put_in_place(temporary, files[0], out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if disk_fault(error):
            told = f"{out} cannot be written ({system_error(error).strerror})"  # type: ignore[union-attr]
            raise RunError(f"{told}; make room, or choose another folder") from error
        raise
    return out


def _is_file(out: Path) -> bool:
    return out.suffix == FILE


def _put_in_place(temporary: Path, file: Path, out: Path) -> None:
    """Have ``out`` be the folder ``temporary``, or the ``file`` in it alone."""
    if _is_file(out):
        os.rename(temporary / file, out)
        shutil.rmtree(temporary)
    else:
        temporary.chmod(0o755)
        os.rename(temporary, out)


def _require_one_file(out: Path, chosen: str, config: RunConfig, modules: Sequence[str]) -> None:
    """UserError: what is exported is more than one file."""
    if config.model.train == "full":
        what = "all weights are"
    elif chosen == PEFT:
        what = f"adapters for {PEFT} are"
    elif len(modules) > 1:
        what = f"the adapters of {' and '.join(modules)} are"
    else:
        return
    raise UserError(f"{out}: {what} several files; name a folder, without {FILE}")


def _require_same_training(saved: Path, modules: Sequence[StoredModule], config: RunConfig) -> None:
    """RunError: ``config`` trains something else than what there is of ``modules``."""
    model = config.model
    lora = None if model.train == "full" else model.train.lora
    names = [module.name for module in modules]
    if isinstance(model, FamilyConfig):
        names += model.family.trained_transformers(model.checkpoint, model)
    told = {module.name: module.adapters for module in modules}
    if other := next((name for name in names if name not in told or not _is_trained_so(told[name], lora)), None):
        raise RunError(
            f"{saved} holds other weights than the config trains: {written(other)}; choose the run directory that it is of"
        )


def _is_trained_so(adapters: Adapters | None, lora: LoraConfig | None) -> bool:
    """Whether ``adapters`` are what a run of ``lora`` trains; None of both: all weights."""
    if adapters is None or lora is None:
        return adapters is None and lora is None
    brings_own = started_from(lora) is not None and not is_base(lora)  # rank and alpha, as its file says
    return brings_own or (adapters.rank, adapters.alpha) == (lora.rank, lora.alpha)


def _write_full(
    modules: Sequence[StoredModule],
    folder: Path,
    config: RunConfig,
    origin: Origin,
    precision: str | None,
    follows_links: bool,
    max_shard_size: str,
) -> list[Path]:
    """Write all weights of ``modules``, and the rest of the pipeline where they are of one; each module's first file."""
    if not origin.pipeline:
        # its loader is the plugin's, of which nobody knows that it takes anything but one file of what was trained
        return [write_whole(module, folder, DTYPES[precision or "float32"], (), None)[0] for module in modules]
    path: str = config.model.path  # type: ignore[attr-defined]
    exact = complete_pipeline(folder, path, [module.name for module in modules], follows_links)
    dtype = DTYPES[precision or config.training.precision]
    return [write_whole(module, folder, dtype, exact[module.name], max_shard_size)[0] for module in modules]


def _make_beside(out: Path) -> Path:
    """A new folder of a temporary name beside ``out``, without those of killed exports. UserError: there can be none."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out.parent)
        return make_temporary_folder(out.parent)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another folder") from error
