"""The branch of guidance that may go without a gradient."""

import torch
from torch import nn

from flowfactory import Conditions, flow


def negative(detached: bool) -> Conditions:
    return Conditions(({},), detached=detached)


def test_a_detached_branch_has_the_same_numbers_and_no_graph():
    layer, x = nn.Linear(3, 3), torch.randn(4, 3)
    with flow.negative_branch(negative(detached=False)):
        kept = layer(x)
    with flow.negative_branch(negative(detached=True)):
        dropped = layer(x)
    assert torch.equal(kept, dropped)
    assert kept.requires_grad
    assert not dropped.requires_grad
    assert torch.is_grad_enabled()


def test_weights_that_autocast_rounded_for_it_have_a_gradient_in_the_other_branch():
    layer, x = nn.Linear(3, 3), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        with flow.negative_branch(negative(detached=True)):
            layer(x)
        given = layer(x)
    (gradient,) = torch.autograd.grad(given.float().sum(), [layer.weight])
    torch.testing.assert_close(gradient, x.bfloat16().float().sum(0).expand(3, 3), rtol=1e-2, atol=1e-2)


def test_a_forward_without_guidance_is_given_no_negative_conditions():
    both = Conditions(({},), negative(detached=True))
    assert both.under(1.0).negative is None
    assert both.under(1.5) is both
    assert both.rows([0, 0]).negative.detached
