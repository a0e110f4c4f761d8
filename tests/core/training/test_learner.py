from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from flowfactory.config.schema import TrainingConfig
from flowfactory.errors import RunError
from flowfactory.experience import Loss
from flowfactory.flow.dynamics import ODE
from flowfactory.policy.policy import Policy
from flowfactory.training.learner import Learner
from flowfactory.training.metrics import UpdateMetrics
from flowfactory.types import Conditions, Evaluation, Step, Trainable

X = torch.tensor([1.0, -2.0, 0.5, 3.0, 2.5, -1.0, 0.25])


class Line(nn.Module):
    """a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))
        self.b = nn.Parameter(torch.tensor(-0.25))


def made(beyond: Mapping[str, float] = MappingProxyType({}), **training: Any) -> tuple[Line, Learner]:
    """``beyond`` are options of the optimizer that no config may have."""
    line = Line()
    policy = Policy(
        Trainable({"line": line}, "full", (), (), "", guided=False), lambda s: Evaluation(s.latents), torch.device("cpu")
    )
    options = {"optimizer": {"lr": 0.1}, "max_grad_norm": 1e9, "iterations": 10, **training}
    config = TrainingConfig.model_validate(options)
    optimizer = config.optimizer.model_copy(update=dict(beyond))
    return line, Learner(policy, config.model_copy(update={"optimizer": optimizer}))


def squared(line: Line, x: Tensor) -> Tensor:
    return (line.a * x + line.b).square()


@pytest.mark.parametrize("pieces", [[7], [1, 6], [3, 3, 1], [1] * 7])
def test_unequal_pieces_give_the_mean_of_one_batch(pieces: list[int]) -> None:
    line, learner = made()
    gathered = UpdateMetrics()
    norm = learner.backward((Loss(squared(line, x)) for x in torch.split(X, pieces)), gathered)

    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, -0.25))
    loss = (a * X.double() + b).square().mean()
    expected = torch.autograd.grad(loss, [a, b])
    assert [float(p.grad) for p in (line.a, line.b) if p.grad is not None] == pytest.approx(
        [float(g) for g in expected], rel=1e-5
    )
    assert norm == pytest.approx(math.hypot(*map(float, expected)), rel=1e-5)
    assert gathered.metrics() == {"loss": pytest.approx(float(loss.detach()), rel=1e-6)}
    learner.apply()
    # AdamW's first step is the learning rate against the sign of the gradient
    assert float(line.a.detach()) == pytest.approx(0.5 - 0.1 * math.copysign(1, float(expected[0])), abs=1e-5)
    assert float(line.b.detach()) == pytest.approx(-0.25 - 0.1 * math.copysign(1, float(expected[1])), abs=1e-5)


def test_several_steps_are_adamws() -> None:
    line, learner = made(optimizer={"lr": 0.05, "betas": [0.8, 0.95], "weight_decay": 0.1, "eps": 1e-6})
    for _ in range(5):
        learner.step([Loss(squared(line, X))], UpdateMetrics())
    a, b, m, v = 0.5, -0.25, [0.0, 0.0], [0.0, 0.0]
    x = X.double().tolist()
    for t in range(1, 6):
        residual = [a * value + b for value in x]
        gradients = [sum(2 * r * value for r, value in zip(residual, x, strict=True)) / 7, sum(2 * r for r in residual) / 7]
        updated = []
        for i, (weight, gradient) in enumerate(zip((a, b), gradients, strict=True)):
            m[i] = 0.8 * m[i] + 0.2 * gradient
            v[i] = 0.95 * v[i] + 0.05 * gradient**2
            step = (m[i] / (1 - 0.8**t)) / (math.sqrt(v[i] / (1 - 0.95**t)) + 1e-6)
            updated.append(weight * (1 - 0.05 * 0.1) - 0.05 * step)
        a, b = updated
    assert float(line.a.detach()) == pytest.approx(a, abs=1e-5)
    assert float(line.b.detach()) == pytest.approx(b, abs=1e-5)


def test_gradients_do_not_pile_up_from_step_to_step() -> None:
    line, learner = made(optimizer={"lr": 1e-12})
    norms = [learner.step([Loss(squared(line, X))], UpdateMetrics()) for _ in range(3)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-6)


def test_a_step_leaves_no_gradient_behind() -> None:
    line, learner = made()
    bytes_held: list[int] = []
    parameters = (line.a, line.b)

    def held() -> int:
        return sum(p.grad.untyped_storage().nbytes() for p in parameters if p.grad is not None)

    step = learner._optimizer.step
    learner._optimizer.step = lambda rate: (bytes_held.append(held()), step(rate))[1]  # type: ignore[method-assign]
    learner.step([Loss(squared(line, X))], UpdateMetrics())
    assert (bytes_held, held()) == ([8], 0)


def test_one_graph_is_alive_at_a_time() -> None:
    line, learner = made()
    freed = []

    def losses() -> Any:
        for x in torch.split(X, 3):
            values = squared(line, x)
            yield Loss(values)
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                values.sum().backward()  # type: ignore[no-untyped-call]
            freed.append(True)

    learner.step(losses(), UpdateMetrics())
    assert len(freed) == 3


def test_the_norm_is_told_before_clipping_and_the_gradient_is_clipped() -> None:
    line, learner = made(max_grad_norm=0.5)
    norm = learner.backward([Loss(squared(line, X))], UpdateMetrics())
    clipped = math.hypot(*(float(p.grad) for p in (line.a, line.b) if p.grad is not None))
    assert norm > 1
    assert clipped == pytest.approx(0.5, rel=1e-4)


def test_metrics_are_means_over_samples_and_extremes_maxima() -> None:
    line, learner = made()
    gathered = UpdateMetrics()
    pieces = [
        Loss(
            squared(line, X[:1]),
            metrics={"m": torch.tensor([4.0])},
            extremes={"e": torch.tensor([-3.0])},
            terms={"kl": torch.tensor([1.0])},
        ),
        Loss(
            squared(line, X[1:4]),
            metrics={"m": torch.tensor([0.0, 1.0, 3.0])},
            extremes={"e": torch.tensor([-9.0, -1.0, -5.0])},
            terms={"kl": torch.tensor([5.0, 0.0, 0.0])},
        ),
    ]
    learner.step(pieces, gathered)
    learner.step([Loss(squared(line, X[:1]), metrics={"m": torch.tensor([2.0])})], gathered)
    metrics = gathered.metrics()
    assert metrics["m"] == pytest.approx(10 / 5)
    assert metrics["kl"] == pytest.approx(6 / 4)
    assert metrics["e"] == -1.0


def test_a_loss_that_is_not_finite_stops_and_names_its_term() -> None:
    line, learner = made()
    bad = torch.tensor([1.0, math.nan])
    values = squared(line, X[:2])
    with pytest.raises(RunError, match=r"^the loss is not finite: its term 'kl' is not$"):
        learner.step([Loss(values + bad, terms={"fine": values, "kl": bad})], UpdateMetrics())
    with pytest.raises(RunError, match=r"^the loss is not finite$"):
        learner.step([Loss(squared(line, X[:2]) * math.inf)], UpdateMetrics())
    assert (float(line.a.detach()), float(line.b.detach())) == (0.5, -0.25)


@pytest.mark.parametrize(("value", "slope"), [("nan", math.nan), ("inf", math.inf)])
def test_a_gradient_that_is_not_finite_stops_and_names_its_weight_alone(value: str, slope: float) -> None:
    line, learner = made(max_grad_norm=1.0)
    line.b.register_hook(lambda gradient: gradient * slope)  # type: ignore[no-untyped-call]
    with pytest.raises(RunError, match=r"^the gradient of line\.b is not finite \(1 of 2 weights\)$"):
        learner.step([Loss(squared(line, X))], UpdateMetrics())
    assert (float(line.a.detach()), float(line.b.detach())) == (0.5, -0.25)


@pytest.mark.parametrize(
    ("weight", "moment", "named"),
    [(1.0, 1.0, None), (1e10, 1.0, "line.a"), (1.0, torch.inf, "optimizer/line.a/exp_avg_sq")],
)
def test_weights_and_moments_that_overflow_are_named(weight: float, moment: float, named: str | None) -> None:
    # AdamW multiplies a weight by one less the rate times the decay
    line, learner = made({"lr": 1e30, "weight_decay": 1e8})
    with torch.no_grad():
        line.a.fill_(weight)
        learner.state()["optimizer/line.a/exp_avg_sq"].fill_(moment)
    learner.step([Loss(line.a * torch.ones(2) + line.b)], UpdateMetrics())
    if named is None:
        learner.check_weights()
        return
    with pytest.raises(RunError, match=rf"^the update left {named} not finite \(1 of 9 tensors of weights and "):
        learner.check_weights()


def test_gradients_whose_norm_alone_overflows_are_an_error() -> None:
    line, learner = made()
    with pytest.raises(RunError, match=r"^the gradient's norm is more than float32 holds, though every part"):
        learner.step([Loss(1e30 * line.a * torch.ones(2) + line.b)], UpdateMetrics())


class Waits(TorchDispatchMode):
    """Counts how often the host asks a tensor for its number, for which a device is waited for."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return function(*args, **(kwargs or {}))


def test_the_host_does_not_wait_for_the_device_once_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for pieces in ([7], [1] * 7):
        line, learner = made()
        with Waits() as waits:
            given = torch.split(X, pieces)
            learner.step(
                (Loss(y := squared(line, x), {"m": y}, {"e": y}, {"kl": y}, {"cut": y}) for x in given), UpdateMetrics()
            )
        counts.append(waits.count)
    assert counts[1] - counts[0] <= 2 * 6, "two flags a loss, asked for at once"
    assert counts[0] < 12


def test_an_update_without_losses_is_refused() -> None:
    _, learner = made()
    with pytest.raises(RunError, match="yielded no loss"):
        learner.step([], UpdateMetrics())


def test_a_loss_that_is_already_a_mean_is_refused() -> None:
    line, learner = made()
    with pytest.raises(RunError, match=r"^a loss has shape \[\]; yield one value a sample, \[b\]$"):
        learner.step([Loss(squared(line, X).mean())], UpdateMetrics())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"decay": "constant"}, [1.0] * 8),
        ({"decay": "constant", "warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"decay": "linear"}, [1 - i / 8 for i in range(8)]),
        ({"decay": "linear", "warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ({"decay": "cosine"}, [0.5 + 0.5 * math.cos(math.pi * i / 8) for i in range(8)]),
    ],
)
def test_the_learning_rate_follows_its_schedule(options: dict[str, Any], expected: list[float]) -> None:
    line, learner = made(**options, iterations=2, updates=2, epochs=2)
    rates = []
    for _ in range(8):
        learner.step([Loss(squared(line, X))], UpdateMetrics())
        rates.append(learner.rate)
    assert rates == pytest.approx([0.1 * part for part in expected])


def test_a_restored_learner_goes_on_where_it_was() -> None:
    options = {"decay": "linear", "warmup": 2, "iterations": 6}
    line, learner = made(**options)
    for _ in range(3):
        learner.step([Loss(squared(line, X))], UpdateMetrics())
    other, restored = made(**options)
    other.load_state_dict(line.state_dict())
    restored.load_state(copy.deepcopy(learner.state()))  # as a file would
    for _ in range(3):
        norms = [one.step([Loss(squared(at, X))], UpdateMetrics()) for one, at in ((learner, line), (restored, other))]
        assert norms[0] == norms[1]
        assert learner.rate == restored.rate
    assert torch.equal(line.a, other.a)
    assert torch.equal(line.b, other.b)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor([1.0, 2.0]))


class Blocks(Line):
    """A transformer's form: a block, and what is before it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block()])


def at(latents: Tensor) -> Step:
    return Step(latents, torch.ones(len(latents)), Conditions(({},) * len(latents)), 1.0, ODE())


def with_blocks() -> tuple[Blocks, Policy, Learner]:
    net = Blocks()
    trainable = Trainable({"net": net}, "full", (), ("Block",), "", guided=False)
    policy = Policy(trainable, lambda step: Evaluation(step.latents), torch.device("cpu"))
    return net, policy, Learner(policy, TrainingConfig.model_validate({"optimizer": {"lr": 0.1}}))


def test_the_norms_of_the_parts_are_those_before_clipping_and_their_mean_over_steps() -> None:
    net, _, learner = with_blocks()
    metrics = UpdateMetrics()
    for scale in (1.0, 3.0):
        losses = [Loss(scale * (3 * net.a + 4 * net.b + 12 * net.blocks[0].c[0]).expand(2))]
        assert learner.backward(losses, metrics) == pytest.approx(13 * scale)
        learner.apply()
    found = metrics.metrics()
    assert found["grad_norm/embedders"] == pytest.approx(5 * 2)
    assert found["grad_norm/first_blocks"] == pytest.approx(12 * 2)
    assert not [name for name in found if name in ("grad_norm/middle_blocks", "grad_norm/output")]


def test_the_velocities_that_count_are_those_of_losses_that_do() -> None:
    net, policy, learner = with_blocks()

    def losses() -> Any:
        for velocity, counts in (([[3.0, 4.0]], True), ([[100.0, 100.0]], False), ([[0.0, 0.0], [6.0, 8.0]], True)):
            given = torch.tensor(velocity)
            with torch.no_grad():
                policy.evaluate(at(50 * given))
            found = policy.evaluate(at(given)).velocity
            loss = Loss((net.a * found).sum(1) + sum(p.sum() for p in net.parameters()))
            yield loss if counts else loss.empty()

    metrics = UpdateMetrics()
    with policy.dropping_graphs():
        policy.evaluate(at(torch.ones(4, 2)))
    learner.backward(losses(), metrics)
    assert metrics.metrics()["velocity_rms"] == pytest.approx((5 + 0 + 10) / 3 / math.sqrt(2))
