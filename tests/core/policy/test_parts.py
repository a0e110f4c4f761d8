"""The parts that figures of weights are told by."""

from __future__ import annotations

from collections import Counter

from torch import nn

from flowfactory.policy.parts import PARTS, parts_of
from flowfactory.testing.tiny_checkpoints import flux_transformer


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(2, 2, bias=False)


class Net(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.take_in = nn.Linear(2, 2, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.give = nn.Linear(2, 2, bias=False)


def test_blocks_are_told_in_thirds_between_what_is_before_and_after_them() -> None:
    found = parts_of({"net": Net(7)}, ["Block"])
    assert [found[f"net.blocks.{i}.inside.weight"] for i in range(7)] == [
        *["first_blocks"] * 3,
        *["middle_blocks"] * 2,
        *["last_blocks"] * 2,
    ]
    assert (found["net.take_in.weight"], found["net.give.weight"]) == ("embedders", "output")


def test_one_block_is_the_first_third_and_none_has_no_parts() -> None:
    assert parts_of({"net": Net(1)}, ["Block"])["net.blocks.0.inside.weight"] == "first_blocks"
    assert parts_of({"net": Net(0)}, ["Block"]) == {}


def test_every_weight_of_a_transformer_of_diffusers_is_in_a_part() -> None:
    module = flux_transformer(8, (1, 2), (2, 16), 32, 32, axes_dims_rope=(4, 6, 6))
    found = parts_of({"transformer": module})
    assert len(found) == len(list(module.parameters()))
    assert set(Counter(found.values())) == set(PARTS)
    assert found["transformer.x_embedder.weight"] == "embedders"
    assert found["transformer.single_transformer_blocks.1.attn.to_q.weight"] == "last_blocks"
    assert found["transformer.proj_out.weight"] == "output"
