"""Weights of pretrained models: read from a folder or the hub, all there, and frozen."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from flowfactory import UserError
from flowfactory.models import check_file, check_settings, load_module, reading

AGAIN = "get it again, whole"
BUFFERS = (r"(.*\.)?position_ids", r"(.*\.)?relative_position_index", r"(.*\.)?num_batches_tracked")
"""Names that older releases of many models have among their weights, and newer classes work out or never read."""
TWO_PROMPTS = ("a red cat", "a big dog")
"""Prompts of one length that no model with its vocabulary and its weights takes for the same."""


def grey() -> Tensor:
    """A picture [1, 3, 64, 64] that every model can look at, through a picture processor that goes with it."""
    return torch.full((1, 3, 64, 64), 0.5)


def from_pretrained(part: Any, path: str, **options: Any) -> Any:
    """``part.from_pretrained(path)``, of a class of transformers without weights. UserError: its files are not there."""
    if Path(path).is_dir():
        check_settings(Path(path))
    # what chooses a class by its files would ask the user whether code among them may run
    options |= {"trust_remote_code": False} if part.__name__.startswith("Auto") else {}
    with reading(path):
        return part.from_pretrained(path, **options)


def load_config(part: Any, path: str) -> Any:
    """The config of class ``part`` in ``path``. UserError: it is not there."""
    if Path(path).is_dir():
        check_file(Path(path) / "config.json")  # without one transformers tells of all that it knows
    return from_pretrained(part, path)


def load_pretrained(
    model: Any, path: str, device: torch.device, dtype: torch.dtype, unread: Collection[str] = BUFFERS, **options: Any
) -> Any:
    """The ``model``, a class of transformers, in ``path``, to score with.

    unread: patterns of names that ``path`` may lack or have besides. UserError: another is there, or not all of it.
    """
    from transformers import AutoConfig

    config = load_config(AutoConfig, path)
    wanted = getattr(model, "config_class", None)  # the automatic classes have none
    if wanted is not None and config.model_type != wanted.model_type:
        raise UserError(f"{path} holds a model of type {config.model_type!r}; this reward reads {wanted.model_type!r}")
    return _freeze(load_module(model, path, path, unread, dtype=dtype, **options), device)


def from_state_dict(
    model: Any,
    config: Any,
    state: Mapping[str, Tensor],
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    unread: Collection[str] = BUFFERS,
    **options: Any,
) -> Any:
    """The ``model``, a class of transformers, with the weights ``state``, to score with.

    unread: as for :func:`load_pretrained`. UserError: ``state`` lacks some, or has others.
    """
    # without a path it is made without memory of its own, and takes these tensors
    options |= {"config": config, "state_dict": dict(state), "dtype": dtype}
    return _freeze(load_module(model, None, source, unread, **options), device)


def _freeze(model: Any, device: torch.device) -> Any:
    return model.eval().requires_grad_(False).to(device)


def refuse_one_answer(answer: Callable[[str], Tensor], source: str) -> None:
    """UserError, which begins with ``source``: ``answer`` is the same for different prompts, or not finite."""
    first, second = (answer(prompt) for prompt in TWO_PROMPTS)
    if not bool(first.isfinite().all() and second.isfinite().all()):
        raise UserError(f"{source} makes of {TWO_PROMPTS[0]!r} what is not finite; get its weights again, whole")
    if torch.equal(first, second):
        raise UserError(
            f"{source} makes the same of {TWO_PROMPTS[0]!r} and {TWO_PROMPTS[1]!r}: it does not read prompts; "
            "get its weights and its tokenizer again, whole"
        )


def read_tensors(path: str, file: str, inner: str | None = None) -> dict[str, Tensor]:
    """The weights by name that ``file`` in the folder or hub id ``path`` holds, or has under ``inner``, on the CPU.

    UserError: there is no such file, it is damaged, or it holds something else.
    """
    place = Path(path) / file
    if Path(path).is_dir():
        check_file(place)
    else:
        from huggingface_hub import hf_hub_download

        with reading(f"{file} in {path}"):
            place = Path(hf_hub_download(path, file))
    found = _read_safetensors(place) if place.suffix == ".safetensors" else _read_pickled(place)
    if isinstance(found, dict) and inner in found:
        found = found[inner]
    if not isinstance(found, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise UserError(f"{place} holds other things than weights by name; {AGAIN}")
    return dict(found)


def _read_safetensors(place: Path) -> Any:
    from safetensors.torch import load_file

    with reading(str(place)):
        return load_file(place)


def _read_pickled(place: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the protocol, before the error about the file
            return torch.load(place, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if "GLOBAL" in str(error):  # of a function or a class
            raise UserError(f"{place} holds more than tensors and is not read: it could run code") from error
        raise UserError(f"{place} is no file that torch saved; {AGAIN}") from error
    except (EOFError, RuntimeError, OSError) as error:
        if "TorchScript" in str(error):
            raise UserError(f"{place} holds a program and is not read: it could run code") from error
        raise UserError(f"{place} is cut off or damaged; {AGAIN}") from error


def refuse_other_names(names: Collection[str], read: Sequence[str], unread: Sequence[str], source: str) -> None:
    """UserError: ``source`` has weights of ``names`` that match neither ``read`` nor ``unread``, patterns of whole names."""
    known = re.compile("|".join(f"(?:{pattern})" for pattern in (*read, *unread)))
    if others := sorted(name for name in names if not known.fullmatch(name)):
        count = "a weight" if len(others) == 1 else f"{len(others)} weights"
        raise UserError(f"{source} holds {count} that this reward does not know, the first {others[0]}; {AGAIN}")


def count_parameters(path: str) -> int | None:
    """How many numbers the ``.safetensors`` in the folder or hub id ``path`` hold; None where they are not on this machine."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(path, "config.json")
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    count = 0
    for file in folder.glob("[!.]*.safetensors"):
        check_file(file)
        with safe_open(file, framework="pt") as held:
            count += sum(math.prod(held.get_slice(name).get_shape()) for name in held.keys())  # noqa: SIM118 it is no mapping
    return count or None


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What of ``state`` has names that begin with ``prefix``, under the rest of them."""
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}


def build_linear_layers(state: Mapping[str, Tensor], numbers: Sequence[int], width: int, source: str) -> list[nn.Linear]:
    """The layers ``0.weight``, ``0.bias`` and so on in ``state``, float32, from ``width`` features to one or two numbers.

    UserError: it has layers of other ``numbers``, or they do not go with one another.
    """
    wanted = {f"{number}.{kind}" for number in numbers for kind in ("weight", "bias")}
    if differing := sorted(state.keys() ^ wanted):
        found = sorted({int(number) for number in (name.split(".")[0] for name in state) if number.isdecimal()})
        raise UserError(
            f"{source} has the layers {found} in its predictor; the released one has {[*numbers]}, each with a weight and a "
            f"bias, and the first that differs is {differing[0]}"
        )
    layers = []
    for number in numbers:
        weight, bias = state[f"{number}.weight"], state[f"{number}.bias"]
        if weight.dim() != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise UserError(
                f"{source} has a predictor whose layer {number} is {list(weight.shape)} with a bias {list(bias.shape)}, "
                f"and {width} features come to it; {AGAIN}"
            )
        width = len(weight)
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float32)
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer.requires_grad_(False))
    return layers


LINEAR_PREDICTOR = (0, 2, 4, 6, 7)
"""The layers of LAION's predictor and ImageReward's, which dropout alone stands between: with activations they are others."""
