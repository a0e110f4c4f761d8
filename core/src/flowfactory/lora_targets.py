"""Which layers LoRA targets name, and whether adapters can go on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn

ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
"""What peft puts adapters on."""
SHOWN = 4
"""Names that a message has room for."""


def is_named(layer: str, target: str) -> bool:
    """Whether ``target`` is the end of the name of ``layer``."""
    return layer == target or layer.endswith(f".{target}")


def unadaptable(layers: Mapping[str, nn.Module], targets: Iterable[str]) -> str | None:
    """Which of the ``layers`` that ``targets`` name no adapter can go on, and what to write instead; None: there is none.

    ``layers`` are all modules of a transformer by name.
    """
    for target in targets:
        named = {name: layer for name, layer in layers.items() if is_named(name, target)}
        wrong = {name: layer for name, layer in named.items() if not isinstance(layer, ADAPTABLE)}
        if wrong:
            name, layer = next(iter(wrong.items()))
            inside = [f"{target}.{inner}" for each in wrong.values() for inner in adaptable_layers(each)]
            others = [*dict.fromkeys(inside), *(name for name in named if name not in wrong)]
            told = f"{target!r} names {name} ({type(layer).__name__}), which LoRA cannot adapt"
            if not others:
                return f"{told}; leave it out"
            some = [*others[:SHOWN], *("…" for _ in others[SHOWN : SHOWN + 1])]
            return f"{told}; write {'some of ' if len(some) > 1 else ''}{', '.join(some)} instead"
    return None


def adaptable_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers of ``module`` that adapters can go on, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, ADAPTABLE)}


def linear_endings(layers: Mapping[str, nn.Module]) -> set[str]:
    """Targets that name linear layers and nothing that takes no adapter: ``to_q``, ``to_out.0``."""
    endings = {_ending(name) for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    return {ending for ending in endings if unadaptable(layers, [ending]) is None}


def _ending(layer: str) -> str:
    """The end of a layer's name that says which it is."""
    *before, last = layer.rsplit(".", 2)
    return f"{before[-1]}.{last}" if last.isdecimal() and before else last


def kinds_of(layers: Iterable[str]) -> list[str]:
    """The endings that ``layers`` share, each once: ``to_q``; ``ff.net.2``, and not ``2``, where a number is part of one."""
    parts = [tuple(layer.split(".")) for layer in layers]
    repeated = Counter(place for each in parts for place in _numbered(each))
    return sorted({_kind(each, repeated) for each in parts})


def _numbered(parts: tuple[str, ...]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What stands before and after each number in a layer's name that is not its end."""
    return [(parts[:i], parts[i + 1 :]) for i, part in enumerate(parts[:-1]) if part.isdecimal()]


def _kind(parts: tuple[str, ...], repeated: Mapping[tuple[tuple[str, ...], tuple[str, ...]], int]) -> str:
    """What stands after the last number that counts blocks, and of that the last word where it has no number in it."""
    after = next((rest for before, rest in reversed(_numbered(parts)) if repeated[before, rest] > 1), parts)
    return ".".join(after) if any(part.isdecimal() for part in after) else after[-1]
