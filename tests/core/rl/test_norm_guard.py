"""NormGuard's term against float64 by hand. arXiv:2606.27771."""

from __future__ import annotations

import torch

from flowfactory import Loss
from flowfactory.rl import guard_norm, norm_excess


def test_the_excess_and_its_gradient_are_those_of_the_paper() -> None:
    v = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    excess = norm_excess(v, reference)
    # rho is 5/2 against 1/2, and 1/4 against 1/2
    torch.testing.assert_close(excess, torch.tensor([4.0, 0.0], dtype=torch.float64))
    excess.sum().backward()
    # 2 (rho - rho_ref) v / (d rho)
    wanted = torch.tensor([[4 * 3 / 10, 4 * 4 / 10, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(v.grad, wanted)


def test_a_velocity_of_zero_has_a_finite_gradient() -> None:
    v = torch.zeros(2, 4, requires_grad=True)
    norm_excess(v, torch.zeros(2, 4)).sum().backward()
    assert v.grad is not None
    assert torch.equal(v.grad, torch.zeros(2, 4))


def test_the_term_is_weighed_and_the_ratio_reported() -> None:
    v, reference = torch.full((2, 4), 3.0, requires_grad=True), torch.full((2, 4), 2.0)
    loss = guard_norm(Loss(torch.ones(2), metrics={"a": torch.ones(2)}), 0.5, v, reference)
    assert loss.values.tolist() == [1.5, 1.5]
    assert loss.terms["norm_guard"].tolist() == [1.0, 1.0]
    assert loss.metrics["velocity_norm"].tolist() == [1.5, 1.5]
    assert loss.metrics["a"].tolist() == [1.0, 1.0]
