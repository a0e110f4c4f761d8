"""How scores are written for people."""

from __future__ import annotations


def format_score(value: float, decimals: int = 4, sign: str = "") -> str:
    """``0.2500``: with ``decimals``, and as ``1e+300`` or ``2.5e-05`` where those would be all zeros or a million and more.

    ``sign`` is "+" where that of a positive one is written too.
    """
    plain = value == 0 or 10.0 ** (1 - decimals) <= abs(value) < 1e6
    return f"{value:{sign}.{decimals}f}" if plain else f"{value:{sign}.4g}"
