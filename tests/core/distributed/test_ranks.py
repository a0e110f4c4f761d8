"""How work is divided, and what ranks tell one another; that they learn the same is shown in tests/distributed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flowfactory.config.schema import DistributedConfig
from flowfactory.distributed.exchange import Holders
from flowfactory.distributed.mesh import mesh_sizes
from flowfactory.distributed.partition import assign_rounds, split_with_padding
from flowfactory.distributed.ranks import ALONE
from flowfactory.distributed.sharding import as_shard, full_tensor, local_shard
from flowfactory.errors import UserError
from flowfactory.flow import forward_by_kind


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7), st.integers(1, 5))
def test_every_unit_is_dealt_once_whole_and_as_even_as_it_comes(units: int, size: int, count: int, length: int) -> None:
    rows = [[unit * length + i for i in range(length)] for unit in range(units)]
    rounds = list(assign_rounds(rows, size, count))
    assert len(rounds) == -(-units // (size * count)), "no more rounds than it takes"
    assert all(len(given) == count for given in rounds)
    pieces = [piece for given in rounds for piece in given]
    assert sorted(row for piece in pieces for row in piece) == list(range(units * length))
    lengths = {len(piece) // length for piece in pieces}
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    for piece in pieces:
        assert all(rows[row // length][0] in piece for row in piece), "a unit was split"
    assert all(given[0] for given in rounds), "the first rank has work in every round, which the idle ones work on"


@given(st.integers(1, 50), st.integers(1, 9))
def test_samples_are_evened_over_ranks_in_order(samples: int, count: int) -> None:
    rows = [7 + i for i in range(samples)]
    given = split_with_padding(rows, count)
    assert len(given) == count
    assert len({len(mine) for mine in given}) == 1, "every rank draws as many"
    assert len(given[0]) == -(-samples // count)
    flat = [row for mine in given for row in mine]
    assert list(dict.fromkeys(flat)) == rows
    assert set(flat[samples:]) <= {rows[-1]}


@pytest.mark.parametrize(
    ("options", "count", "expected"),
    [
        ({}, 1, (1, 1)),
        ({}, 6, (1, 6)),
        ({"shard": 1}, 6, (6, 1)),
        ({"shard": 2}, 6, (3, 2)),
        ({"replicate": 2}, 6, (2, 3)),
        ({"shard": 8, "replicate": 2}, 16, (2, 8)),
    ],
)
def test_ranks_are_divided_as_the_config_says(options: dict[str, int], count: int, expected: tuple[int, int]) -> None:
    assert mesh_sizes(DistributedConfig.model_validate(options), count) == expected


@pytest.mark.parametrize(
    ("options", "count"), [({"shard": 4}, 6), ({"shard": 8}, 1), ({"replicate": 4}, 2), ({"shard": 2, "replicate": 2}, 2)]
)
def test_ranks_that_cannot_be_divided_so_are_refused(options: dict[str, int], count: int) -> None:
    with pytest.raises(UserError, match=rf"^distributed: shard .* and replicate .* do not divide {count} rank"):
        mesh_sizes(DistributedConfig.model_validate(options), count)


def test_a_process_alone_is_all_there_is() -> None:
    values = torch.arange(12.0).reshape(4, 3)
    assert ALONE.leads
    assert ALONE.gather("x") == ["x"]
    assert ALONE.broadcast("x") == "x"
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.agree(["b", "a"]) == ["b", "a"]
    (found,) = ALONE.exchange([values], Holders([[10, 11, 12, 13]]), [[12, 10, 12]])
    assert torch.equal(found, values[[2, 0, 2]])
    ALONE.sum_in_place([values])
    assert torch.equal(values, torch.arange(12.0).reshape(4, 3))
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert float(ALONE.norm(gradients)) == 5.0


def test_what_is_whole_is_its_own_shard() -> None:
    tensor = nn.Parameter(torch.ones(3))
    assert local_shard(tensor) is tensor
    assert full_tensor(tensor) is tensor
    assert as_shard(tensor, tensor) is tensor


def test_kinds_that_only_other_ranks_have_run_and_count_for_nothing() -> None:
    weights = {kind: torch.tensor(2.0 + i, requires_grad=True) for i, kind in enumerate("abc")}
    asked: list[str] = []

    def velocity(rows: object, kind: object) -> torch.Tensor:
        asked.append(str(kind))
        return weights[str(kind)] * torch.tensor([row + 1.0 for row in rows])  # type: ignore[attr-defined]

    result = forward_by_kind("cca", velocity, lambda kinds: ["a", "b", "c"])
    assert asked == ["a", "b", "c"], "in the order that all ranks have"
    assert result.tolist() == [4.0, 8.0, 6.0]
    result.sum().backward()
    assert {kind: float(weight.grad) for kind, weight in weights.items() if weight.grad is not None} == {
        "a": 3.0,
        "b": 0.0,  # reached, so that its collectives happen here too
        "c": 3.0,
    }
