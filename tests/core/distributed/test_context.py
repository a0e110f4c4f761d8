"""Groups of ranks that share a forward; that they compute what one does is shown in tests/distributed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory.config.schema import DistributedConfig
from flowfactory.distributed.context import Context, check_count, make_context
from flowfactory.distributed.context_exchange import gather_tokens, heads_to_tokens, tokens_to_heads
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.errors import UserError


class Side(Context):
    """One of ranks that are all asked for one thing after the other: it gets what the others would have sent."""

    def __init__(self, rank: int, count: int, sent: list[Tensor]) -> None:
        super().__init__(rank, count)
        object.__setattr__(self, "sent", sent)

    def swap(self, parts: Tensor) -> Tensor:
        return torch.stack([other[self.rank] for other in self.sent])  # type: ignore[attr-defined]

    def collect(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.sent)  # type: ignore[attr-defined]


def swapped(parts: list[Tensor], count: int, change: Any) -> list[Tensor]:
    """What ``change`` makes of each rank's part, where all ranks exchange with one another."""
    sent: list[Tensor] = []

    class Keeps(Context):
        def swap(self, parts: Tensor) -> Tensor:
            sent.append(parts)
            return parts

    for rank, part in enumerate(parts):
        change(part, Keeps(rank, count))
    return [change(part, Side(rank, count, sent)) for rank, part in enumerate(parts)]


@pytest.mark.parametrize("count", [2, 3])
def test_each_rank_gets_all_tokens_of_its_heads_and_gives_them_back(count: int) -> None:
    whole = torch.randn(2, 6, 6, 5)
    parts = list(whole.chunk(count, 1))
    heads = swapped(parts, count, tokens_to_heads)
    for found, expected in zip(heads, whole.chunk(count, 2), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(swapped(heads, count, heads_to_tokens), parts, strict=True):
        assert torch.equal(found, expected)


def test_of_the_gradient_of_what_was_gathered_the_own_part_goes_back() -> None:
    parts = list(torch.randn(2, 6, 3).chunk(3, 1))
    own = parts[1].clone().requires_grad_()
    found = gather_tokens(own, 1, Side(1, 3, parts))
    assert torch.equal(found, torch.cat(parts, 1))
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    assert own.grad is not None
    assert torch.equal(own.grad, weights[:, 2:4])


def test_what_cannot_be_divided_is_refused_in_one_line() -> None:
    context = Context(0, 2)
    assert context.own_part(torch.arange(4), 0).tolist() == [0, 1]
    with pytest.raises(
        UserError, match=r"^distributed\.context 2 does not divide the 5 tokens of a forward; choose another size"
    ):
        context.own_part(torch.zeros(1, 5, 3), 1)
    with pytest.raises(UserError, match=r"^distributed\.context 2 does not divide the 3 heads of the transformer"):
        tokens_to_heads(torch.zeros(1, 4, 3, 2), context)
    chosen = DistributedConfig.model_validate({"context": 2})
    check_count(chosen, 4)
    with pytest.raises(UserError, match=r"^distributed\.context 2 does not divide 1 rank; start a multiple of it \(--nproc\)"):
        check_count(chosen, 1)
    assert make_context(DistributedConfig.model_validate({}), 1, 3) is None


def test_samples_are_dealt_to_one_rank_of_each_context() -> None:
    ranks = [Ranks(rank, 6, context=Context(rank % 3, 3)) for rank in range(6)]
    assert [(each.workers.rank, each.workers.count) for each in ranks] == [(0, 2)] * 3 + [(1, 2)] * 3
    assert [each.speaks for each in ranks] == [True, False, False] * 2
    assert [each.leads for each in ranks] == [True] + [False] * 5
    assert ALONE.workers is ALONE
    assert ALONE.speaks
