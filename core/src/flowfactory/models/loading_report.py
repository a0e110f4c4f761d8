"""Modules from checkpoints, refused unless each of their weights was there and each of the file's was used."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flowfactory.errors import UserError
from flowfactory.models.building import check_count
from flowfactory.models.checkpoint_files import AGAIN, check_files, is_local, read_settings, reading, variants, weight_files
from flowfactory.models.file_modules import can_stay, leave_in_files
from flowfactory.stored_weights import read_stored

REMEDY = "get the folder again, whole, or a config.json that goes with its weights"

MOST_ZEROS = 0.2
"""The share of a model's matrices that may be zeros: released ones may have a few in a last block, that nothing reads, and
untrained ones begin with some."""


def load_module(
    kind: Any,
    path: Path | str | None,
    source: str,
    unused: Collection[str] = (),
    variant: str | None = None,
    stays: bool = False,
    **options: Any,
) -> Any:
    """The module of class ``kind``, of diffusers or transformers, in the folder or hub id ``path``.

    Without a path, ``options`` have its ``config`` and its ``state_dict``, as transformers takes them.
    source: what messages begin with. unused: see :func:`refuse_gaps`. stays: whether its weights are to stay in their files
    until :func:`flowfactory.stored_weights.place`, where they can. options: of its ``from_pretrained``.
    UserError: a file is damaged or not there, its weights are not those of the config beside them, or many are zeros.
    """
    local = Path(path) if path is not None and is_local(path) else None
    packed, files = False, []
    if local is not None:
        check_files(local, variant)
        settings = read_settings(local / "config.json")  # transformers makes do with its defaults
        files = weight_files(local, variant)
        if not files:
            of_variant = "" if variant is None else f" of the variant {variant}"
            alone = "".join(f", and has those of the variant {found}" for found in variants(local)[:1])
            raise UserError(f"{source} has no weights{of_variant} in {path}{alone}; {AGAIN}")
        packed = "quantization_config" in settings
        check_count(kind, local, source, files, packed)
    options |= {} if variant is None else {"variant": variant}
    options |= {"trust_remote_code": False} if kind.__module__.startswith("transformers.") else {}  # which may ask the user
    # shapes that differ are told with the names, where the libraries' own errors name none or hide them in a table;
    # packed numbers have other shapes than the weights they stand for
    options |= {} if packed else {"ignore_mismatched_sizes": True}
    with reading(source), _reports_left_out():
        if stays and local is not None and not packed and can_stay(kind, files):
            module, told = leave_in_files(kind, local, files, options["dtype"])
        else:
            module, told = kind.from_pretrained(path, output_loading_info=True, **options)
    refuse_gaps(source, module, told, unused)
    if getattr(module, "hf_quantizer", None) is None:
        _refuse_zeros(source, module, told["missing_keys"])
    return module


def refuse_gaps(
    source: str, module: nn.Module, told: Mapping[str, Any], unused: Collection[str] = (), remedy: str = REMEDY
) -> None:
    """UserError: a weight of ``module`` was not in the checkpoint or had another shape there, or one there was not used.

    told: what ``from_pretrained`` says beside the module with ``output_loading_info=True``, of diffusers or transformers.
    remedy: what to do then.
    unused: patterns of whole names that make no difference: the file may lack them, or have them where the class does not.
    """
    kind, own = type(module).__name__, module.state_dict()
    if mismatched := sorted(told["mismatched_keys"]):
        name, found, wanted = mismatched[0][0], *(list(shape) for shape in mismatched[0][1:3])
        shapes = "a weight of another shape" if len(mismatched) == 1 else f"{len(mismatched)} weights of other shapes"
        raise UserError(f"{source} holds {shapes} than its config.json says: {name} is {found}, not {wanted}; {remedy}")
    # an index may name weights that its files lack: diffusers leaves those without memory
    never_read = {name for name, tensor in own.items() if tensor.is_meta}
    missing = sorted({*_counted(told["missing_keys"], unused), *never_read})
    spare = _counted(told["unexpected_keys"], unused)
    if getattr(module, "hf_quantizer", None) is not None:  # which keeps its numbers under the names of weights
        spare = [name for name in spare if not any(name.startswith(f"{weight}.") for weight in own)]
    of_others = f", and holds {_count(spare)} that it does not know, the first {spare[0]}" if spare else ""
    if missing:
        raise UserError(f"{source} lacks {_count(missing)} that {kind} needs, the first {missing[0]}{of_others}; {remedy}")
    if spare:
        raise UserError(f"{source} holds {_count(spare)} that its config.json has no place for, the first {spare[0]}; {remedy}")
    if told["error_msgs"]:
        raise UserError(f"{source} cannot be read: {' '.join(str(told['error_msgs'][0]).split())}; {remedy}")


def _refuse_zeros(source: str, module: nn.Module, missing: Collection[str]) -> None:
    """UserError: of too many matrices that were read there are but zeros, as in a file that was not written to its end."""
    read: dict[str, Tensor] = {name: weight for name, weight in module.named_parameters() if name not in missing}
    read |= {name: numbers for name, _, numbers in read_stored(module)}
    matrices = {name: weight for name, weight in read.items() if weight.dim() > 1 and min(weight.shape[:2]) > 1}
    zeros = [name for name, weight in matrices.items() if not _has_numbers(weight)]
    if len(zeros) > MOST_ZEROS * len(matrices):
        count = f"{len(zeros)} of its {len(matrices)} matrices"
        raise UserError(f"{source} holds nothing but zeros in {count}, the first {zeros[0]}; {AGAIN}")


def _has_numbers(tensor: Tensor) -> bool:
    return bool(tensor[0].any()) or bool(tensor.any())  # a row is enough nearly always, and takes no time


def _counted(names: Collection[str], unused: Collection[str]) -> list[str]:
    return sorted(name for name in names if not any(re.fullmatch(pattern, name) for pattern in unused))


@contextmanager
def _reports_left_out() -> Iterator[None]:
    """Within it the libraries write no tables of names, which are said in one line afterwards."""
    loggers = [logging.getLogger(name) for name in ("transformers.modeling_utils", "diffusers.models.modeling_utils")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _count(names: Collection[str]) -> str:
    return "a weight" if len(names) == 1 else f"{len(names)} weights"
