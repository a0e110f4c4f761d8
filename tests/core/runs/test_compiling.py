"""A compiler that nobody asked for: what it is used for, and that it gives way where preflight finds fault with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowfactory.config.schema import TrainingConfig
from flowfactory.errors import RunError
from flowfactory.policy import blocks
from flowfactory.policy.policy import Policy
from flowfactory.runs.directory import RunDirectory

NET = {"model": {"name": "net"}}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


def stack(width: int) -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.ModuleList([Block(width), Block(width)]))


@pytest.mark.parametrize(
    ("width", "names", "kind", "trains", "able", "compiles"),
    [
        (8000, ("Block",), "cuda", True, True, True),
        (8000, ("Block",), "cpu", True, True, False),
        (8000, ("Block",), "cuda", False, True, False),
        (8000, ("Block",), "cuda", True, False, False),
        (8000, ("Other",), "cuda", True, True, False),
        (800, ("Block",), "cuda", True, True, False),
    ],
)
def test_what_is_compiled_unasked_is_large_trains_on_cuda_and_has_blocks(
    width: int, names: tuple[str, ...], kind: str, trains: bool, able: bool, compiles: bool
) -> None:
    assert blocks.compiles_by_default(stack(width), names, kind, trains, able) is compiles


@pytest.mark.filterwarnings("ignore")  # of torch's own modules, as they are imported
def test_what_was_compiled_can_be_run_as_it_was() -> None:
    module = stack(4)
    found = blocks.find_blocks(module, ["Block"])
    undo = blocks.compile_blocks(module, ["Block"])
    assert all(block.forward.__func__ is not Block.forward for block in found)  # type: ignore[attr-defined]
    undo()
    assert all(block.forward.__func__ is Block.forward for block in found)  # type: ignore[attr-defined]


@pytest.fixture
def miscompiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[str]]:
    """``miscompiled(asked)``: from then on nets are off by a percent where they have a gradient. What was undone."""
    undone: list[str] = []

    def make(asked: bool) -> list[str]:
        distribute = Policy.distribute

        def compiling(policy: Policy, *given: Any, **options: Any) -> None:
            distribute(policy, *given, **options)
            module = policy.modules["transformer"]
            plain = module.forward

            def undo() -> None:
                undone.append("transformer")
                module.forward = plain  # type: ignore[method-assign]

            module.forward = lambda x: plain(x) * (1.01 if torch.is_grad_enabled() else 1)  # type: ignore[method-assign]
            if not asked:
                policy._transformers._compiled.append(undo)

        monkeypatch.setattr(Policy, "distribute", compiling)
        return undone

    return make


def test_a_compiler_that_nobody_asked_for_gives_way(
    trained: Callable[..., RunDirectory],
    figures: Callable[[RunDirectory], list[dict[str, Any]]],
    miscompiled: Callable[[bool], list[str]],
) -> None:
    expected = figures(trained(NET, "plain"))
    undone = miscompiled(False)
    assert figures(trained(NET, "compiled")) == expected
    assert undone == ["transformer"]


def test_one_that_was_asked_for_is_refused(
    trained: Callable[..., RunDirectory], miscompiled: Callable[[bool], list[str]]
) -> None:
    undone = miscompiled(True)
    with pytest.raises(RunError, match=r"^preflight: replaying .*torch\.compile"):
        trained(NET)
    assert not undone


def test_compile_takes_auto_and_truth_values() -> None:
    assert TrainingConfig.model_validate({}).compile == "auto"
    assert TrainingConfig.model_validate({"compile": True}).compile is True
