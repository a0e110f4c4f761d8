"""Adapters that others saved, as factors by layer: diffusers' names, peft's, and what a model converts others to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flowfactory.config.warm_start import FIRST, PEFT_FILE
from flowfactory.errors import UserError
from flowfactory.suggestions import nearest
from flowfactory.untrusted_files import Refused, parse_json, read_json

PEFT_PREFIX, COMFYUI_PREFIX = "base_model.model.", "diffusion_model."
FACTORS = re.compile(
    r"(?P<layer>.+)\.(?:(?P<down>lora_A|lora_down|lora\.down)|(?P<up>lora_B|lora_up|lora\.up))(?:\.default)?\.weight"
    r"|(?P<embedding>.+)\.lora_embedding_(?P<which>[AB])(?:\.default)?"
)
ALPHA = re.compile(r"(?P<layer>.+)\.alpha")
OF_AN_ENCODER = re.compile(r"(lora_te|text_encoder|te\d?_).*")
MAGNITUDES = re.compile(r".*(dora_scale|lora_magnitude_vector).*")
LARGEST_CONFIG = 2**20

Convert = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""From the names and layout of another program's file to those of diffusers: ``transformer.<layer>.lora_A.weight``, and
``<layer>.alpha`` where alpha is not the rank. ValueError: it cannot; why."""


class Factors(NamedTuple):
    """What an adapter adds to a layer's weight: ``scale`` times ``up`` [out, rank, ...] times ``down`` [rank, in, ...].

    embedding: the layer is one, whose weight is [entries, out] and whose ``down`` is [rank, entries].
    """

    down: Tensor
    up: Tensor
    scale: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        """Of the product."""
        return len(self.down)

    def product(self) -> Tensor:
        """[out, in, ...] in float32; of an embedding [entries, out]."""
        down, up = self.down.float(), self.up.float()
        found = self.scale * (up.flatten(1) @ down.flatten(1))
        return found.T if self.embedding else found.view(len(up), *down.shape[1:])


class _Half(NamedTuple):
    """One tensor of a file: the module and the layer that it is of, and what it is there."""

    module: str
    layer: str
    kind: str


def read_factors(
    file: Path, name: str, layers: Mapping[str, Mapping[str, nn.Module]], convert: Convert | None
) -> dict[str, dict[str, Factors]]:
    """{module: {layer: factors}} of a file of adapters of the ``layers`` of each module, of ``name`` where its names tell none.

    UserError: it is damaged, or holds what is of no layer; one sentence that names it. Nothing in it is passed over.
    """
    tensors, told = _read(file)
    _refuse_others(file, tensors)
    places = {key: _place(key, name, layers) for key in tensors}
    if convert is not None and any(place is None for place in places.values()):
        try:
            tensors = dict(convert(tensors))
        except ValueError as error:
            raise UserError(f"{file}: {error}") from error
        places = {key: _place(key, name, layers) for key in tensors}
    for key, place in places.items():
        if place is None:
            raise UserError(f"{file}: {_unplaced(key, name, layers)}")
    halves = {place: tensors[key] for key, place in places.items() if place is not None}
    if len(halves) < len(tensors):
        raise UserError(f"{file} has one layer under two names; save it with one")
    found: dict[str, dict[str, Factors]] = {}
    for place in halves:
        joined = found.setdefault(place.module, {})
        if place.layer not in joined:
            joined[place.layer] = _join(file, place, halves, told)
    return found


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and what is said of rank and alpha there or beside it."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            header = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}; get it again, whole") from error
    if not tensors:
        raise UserError(f"{file} holds no tensors; name another file")
    if other := next((key for key, tensor in tensors.items() if not tensor.is_floating_point()), None):
        raise UserError(
            f"{file}: {other} is of {tensors[other].dtype}, and adapters are floating-point numbers; name another file"
        )
    if bad := next((key for key, tensor in tensors.items() if not tensor.float().isfinite().all()), None):
        raise UserError(f"{file}: {bad} is not finite; name another file")
    beside = file.with_name("adapter_config.json")
    try:
        if file.name == PEFT_FILE and beside.is_file():
            return tensors, dict(read_json(beside, LARGEST_CONFIG))
        return tensors, dict(parse_json(header.get("lora_adapter_metadata", "{}")))
    except (Refused, OSError, TypeError, ValueError) as error:
        where = beside if file.name == PEFT_FILE else file
        raise UserError(f"{where}: what it says of rank and alpha cannot be read: {error}") from error


def _refuse_others(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for key in tensors:
        if MAGNITUDES.fullmatch(key):
            raise UserError(f"{file}: {key} is of DoRA, whose magnitudes adapters here have none of; save it as plain LoRA")
        if OF_AN_ENCODER.fullmatch(key.removeprefix(PEFT_PREFIX)):
            raise UserError(f"{file}: {key} is of a text encoder, which is not trained here; save the transformer's alone")


def _place(key: str, name: str, layers: Mapping[str, Mapping[str, nn.Module]]) -> _Half | None:
    """What the tensor called ``key`` is; None where none of the ``layers`` of each module is meant."""
    rest, module = key.removeprefix(PEFT_PREFIX).removeprefix(COMFYUI_PREFIX), name
    prefix = next((prefix for prefix in sorted({*layers, FIRST}, key=len, reverse=True) if rest.startswith(f"{prefix}.")), None)
    if prefix is not None:  # of a second transformer, in a folder of its own, diffusers has the first one's name
        rest, module = rest.removeprefix(f"{prefix}."), name if prefix == FIRST else prefix
    half = _half(rest)
    if half is None or half[0] not in layers.get(module, {}):
        return None
    return _Half(module, *half)


def _half(rest: str) -> tuple[str, str] | None:
    if found := FACTORS.fullmatch(rest):
        if found["embedding"]:
            return found["embedding"], f"embedding {found['which']}"
        return found["layer"], "A" if found["down"] else "B"
    if found := ALPHA.fullmatch(rest):
        return found["layer"], "alpha"
    return None


def _unplaced(key: str, name: str, layers: Mapping[str, Mapping[str, nn.Module]]) -> str:
    half = _half(key)
    if half is None:
        return f"{key} is no factor of a low-rank adapter, and would be left out"
    near = nearest(half[0].removeprefix(f"{name}."), [layer for there in layers.values() for layer in there])
    meant = f"; did you mean {near[0]!r}?" if near else "; the adapters are of another model"
    return f"{key} is of no layer of {' and '.join(layers)}{meant}"


def _join(file: Path, place: _Half, halves: Mapping[_Half, Tensor], told: Mapping[str, Any]) -> Factors:
    embedding = place._replace(kind="embedding A") in halves or place._replace(kind="embedding B") in halves
    kinds = ("embedding A", "embedding B") if embedding else ("A", "B")
    down, up = (halves.get(place._replace(kind=kind)) for kind in kinds)
    if down is None or up is None:
        raise UserError(f"{file}: of {place.layer} there is but one of the two factors; get it again, whole")
    if down.dim() < 2 or up.dim() < 2 or len(down) != up.shape[1]:
        raise UserError(f"{file}: the factors of {place.layer}, {list(down.shape)} and {list(up.shape)}, have no common rank")
    alpha, rank = halves.get(place._replace(kind="alpha")), len(down)
    scale = float(alpha) / rank if alpha is not None else _told_scale(file, place, rank, told)
    return Factors(down, up, scale, embedding)


def _told_scale(file: Path, place: _Half, rank: int, told: Mapping[str, Any]) -> float:
    """alpha / rank as ``told``; 1 where nothing is."""
    says = {key.removeprefix(f"{place.module}.").removeprefix(f"{FIRST}."): value for key, value in told.items()}
    if says.get("use_dora"):
        raise UserError(f"{file} is of DoRA, whose magnitudes adapters here have none of; save it as plain LoRA")
    alpha = next(_matching(says.get("alpha_pattern"), place.layer), says.get("lora_alpha", rank))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise UserError(f"{file}: its alpha is {alpha!r}, which is no number; get it again, whole")
    return alpha / (math.sqrt(rank) if says.get("use_rslora") else rank)


def _matching(patterns: Any, layer: str) -> Iterator[Any]:
    """The values of those names of ``patterns`` that are ``layer``, or its end, as peft matches them."""
    for name, value in patterns.items() if isinstance(patterns, dict) else ():
        end = str(name).removeprefix("^")
        if layer == end or (layer.endswith(f".{end}") and not str(name).startswith("^")):
            yield value
