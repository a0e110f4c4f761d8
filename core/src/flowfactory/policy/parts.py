"""The parts of a transformer, from what goes in to what comes out, by which figures of its weights are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from flowfactory.policy.blocks import find_blocks

PARTS = ("embedders", "first_blocks", "middle_blocks", "last_blocks", "output")


def parts_of(modules: Mapping[str, nn.Module], names: Sequence[str] = ()) -> dict[str, str]:
    """{parameter: its part} of ``modules`` by name, whose repeated blocks are those of :func:`find_blocks`.

    That is the third of the blocks that it is in, or ``embedders`` where it is registered before all blocks, else ``output``.
    Modules without blocks have no parts.
    """
    found: dict[str, str] = {}
    for name, module in modules.items():
        blocks = find_blocks(module, names)
        thirds: dict[int, str] = {}
        for number, block in enumerate(blocks):
            # of nested blocks the inner one's third
            thirds |= {id(parameter): PARTS[1 + 3 * number // len(blocks)] for parameter in block.parameters()}
        begun = False
        for key, parameter in module.named_parameters() if blocks else ():
            begun = begun or id(parameter) in thirds
            found[f"{name}.{key}"] = thirds.get(id(parameter), "output" if begun else "embedders")
    return found
