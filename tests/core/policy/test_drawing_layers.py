"""A copy of the weights in fewer bits, which draws and does nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowfactory.config.component import LoraConfig, LoraTraining
from flowfactory.policy.policy import Policy
from flowfactory.policy.quantization import Fp8Linear, Int8Linear, multiplies_fp8, multiply_rounded, round_rows
from flowfactory.types import Evaluation, Trainable

CPU = torch.device("cpu")
KINDS = ("fp8", "int8", "nf4")
STEP = {"fp8": 2**-4, "int8": 1 / 254, "nf4": 0.16}
"""The most that a weight is rounded by: fp8 relative to itself, else to the largest of its row or block."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block()])
        self.outside = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.outside(self.blocks[0](x))
        return found


Make = Callable[[bool], tuple[Net, Policy]]


@pytest.fixture
def make() -> Make:
    def made(full: bool) -> tuple[Net, Policy]:
        net = Net()
        training = "full" if full else LoraTraining(lora=LoraConfig(rank=2))
        trainable = Trainable({"net": net}, training, ("inner",), ("Block",), "", guided=False)
        return net, Policy(trainable, lambda step: Evaluation(step.latents), CPU)

    return made


def given() -> Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


def drawn(net: Net, policy: Policy, kind: str | None, weights: str | None = None) -> Tensor:
    with torch.no_grad(), policy.sampling_weights(weights, kind):
        return net(given())


def move(policy: Policy, by: float = 0.5) -> None:
    with torch.no_grad():
        for number, weight in enumerate(policy.parameters.values()):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)), alpha=by)
    policy.mark_changed()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("full", [True, False])
def test_the_copy_draws_what_the_weights_draw_but_for_its_rounding_and_follows_them(kind: str, full: bool, make: Make) -> None:
    net, policy = make(full)
    for _ in range(3):
        exact, copied = drawn(net, policy, None), drawn(net, policy, kind)
        apart = float((copied - exact).abs().max())
        # of 64 products, each off by at most a step, through one more layer
        assert 0 < apart < STEP[kind] * float(exact.abs().max()) * 4
        assert torch.equal(drawn(net, policy, kind), copied)
        move(policy)
        assert float((drawn(net, policy, kind) - copied).abs().max()) > apart, "the copy does not follow the weights"


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_of_an_adapter_is_lost_in_the_rounding_of_the_weights(kind: str, make: Make) -> None:
    """A change of a ten thousandth of the weights, which none of these kinds can store, is there as it is drawn."""
    net, policy = make(False)
    before = drawn(net, policy, None), drawn(net, policy, kind)
    with torch.no_grad():
        for name, weight in policy.parameters.items():
            if "lora_B" in name:
                weight.fill_(1e-5)
    policy.mark_changed()
    exact, copied = (drawn(net, policy, each) - then for each, then in zip((None, kind), before, strict=True))
    assert float(exact.abs().max()) > 0
    torch.testing.assert_close(copied, exact, rtol=0.05, atol=1e-6)


def test_kept_weights_are_copied_where_they_draw(make: Make) -> None:
    net, policy = make(True)
    policy.keep("old")
    old = drawn(net, policy, "int8")
    move(policy)
    assert torch.equal(drawn(net, policy, "int8", "old"), old)
    assert not torch.equal(drawn(net, policy, "int8"), old)
    assert torch.equal(drawn(net, policy, "int8", "old"), old)


@pytest.mark.parametrize("full", [True, False])
def test_nothing_but_drawing_sees_the_copy(full: bool, make: Make) -> None:
    net, policy = make(full)
    names, exact = [name for name, _ in net.named_parameters()], drawn(net, policy, None)

    def fail() -> None:
        with policy.sampling_weights(None, "fp8"):
            assert Fp8Linear in [type(layer) for layer in net.modules()]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [name for name, _ in net.named_parameters()] == names
    assert torch.equal(drawn(net, policy, None), exact)
    net(given()).sum().backward()
    assert all(weight.grad is not None for weight in policy.parameters.values())


def test_weights_that_do_not_train_are_copied_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    begin = Int8Linear.__init__

    def counting(layer: Int8Linear, *arguments: nn.Linear | torch.dtype | torch.device) -> None:
        made.append(1)
        begin(layer, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Int8Linear, "__init__", counting)
    for full, copies in ((False, 1), (True, 2)):
        net, policy = make(full)
        made.clear()
        for _ in range(2):
            drawn(net, policy, "int8")
            drawn(net, policy, "int8")
            move(policy)
        assert len(made) == copies


def test_float8_is_off_by_half_a_step_of_three_bits_at_most() -> None:
    rows = torch.randn(7, 33, generator=torch.Generator().manual_seed(2)) * torch.logspace(-6, 6, 7)[:, None]
    rounded, scale = round_rows(rows)
    assert rounded.dtype == torch.float8_e4m3fn
    back = rounded.double() * scale
    # below 2**-6 of the format it has fixed steps of 2**-9
    assert bool(((back - rows).abs() <= (rows.abs() * 2**-4 + scale * 2**-10) * 1.001).all())


def test_a_row_of_zeros_stays_zero() -> None:
    rounded, scale = round_rows(torch.zeros(2, 8))
    assert not (rounded.float() * scale).any()


@pytest.mark.parametrize("bias", [True, False])
def test_products_of_float8_are_those_of_what_was_rounded(bias: bool) -> None:
    """As a GPU multiplies them, here by the same operation of the CPU."""
    source = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(shape, generator=source) for shape in ((2, 5, 32), (16, 32)))
    added = torch.randn(16, generator=source) if bias else None
    rounded, scale = round_rows(weight)
    found = multiply_rounded(x, rounded, scale, added)
    own, own_scale = round_rows(x.reshape(-1, 32))
    exact = (own.double() * own_scale) @ (rounded.double() * scale).t()
    expected = exact.reshape(2, 5, 16) + (0 if added is None else added)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "capability", "dtype", "sizes", "multiplied"),
    [
        ("cuda", (9, 0), torch.bfloat16, (64, 32), True),
        ("cuda", (10, 0), torch.bfloat16, (64, 32), True),
        ("cuda", (8, 9), torch.bfloat16, (64, 32), False),
        ("cuda", (8, 0), torch.bfloat16, (64, 32), False),
        ("cuda", (9, 0), torch.float32, (64, 32), False),
        ("cuda", (9, 0), torch.bfloat16, (64, 40), False),
        ("cpu", None, torch.bfloat16, (64, 32), False),
    ],
)
def test_devices_that_multiply_float8(
    kind: str, capability: tuple[int, int] | None, dtype: torch.dtype, sizes: tuple[int, int], multiplied: bool
) -> None:
    assert multiplies_fp8(kind, capability, dtype, *sizes) == multiplied
