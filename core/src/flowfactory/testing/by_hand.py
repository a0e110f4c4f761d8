"""The two-parameter flow worked out by hand in float64: velocities, errors, recorded steps, and their gradients by (p, q)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowfactory.flow.timesteps import NoisedBatch
from flowfactory.testing.learning_bench import Weights
from flowfactory.types import Step


class FlowByHand:
    """Rows of noisy latents x [b, n] at sigma [b, 1], where the velocity is p x + q sigma. All is float64."""

    def __init__(self, x: Tensor, sigma: Tensor) -> None:
        self.x, self.sigma = x.double().flatten(1), sigma.double().reshape(-1, 1)

    def velocity(self, weights: Weights) -> Tensor:
        """[b, n]; differentiable where ``weights`` are."""
        return weights[0] * self.x + weights[1] * self.sigma

    def by_weights(self, elements: Tensor) -> Tensor:
        """[b, 2]: the mean over elements of a derivative by the velocity, times dv/dp = x and dv/dq = sigma."""
        return torch.stack([(elements * self.x).mean(1), (elements * self.sigma).mean(1)], dim=1)

    def distance(self, one: Weights, other: Weights) -> Tensor:
        """[b]: mean squared difference of two velocities."""
        return (self.velocity(one) - self.velocity(other)).square().mean(1)

    def distance_gradient(self, one: Weights, other: Weights) -> Tensor:
        """[b, 2]: of :meth:`distance` by ``one``."""
        return self.by_weights(2 * (self.velocity(one) - self.velocity(other)))


class NoisedByHand(FlowByHand):
    """The rows of a noised batch, whose velocity should be ``target`` [b, n].

    ``lengths`` [b] are what the model ``guided`` multiplies sigma by.
    """

    def __init__(self, at: NoisedBatch, lengths: Tensor | float = 1.0) -> None:
        super().__init__(at.step.latents, at.step.sigma.double() * lengths)
        self.clean, self.target = at.samples.latents.double().flatten(1), at.target.double().flatten(1)
        self.advantages = at.samples.advantages.double()

    def error(self, weights: Weights) -> Tensor:
        """[b]: mean squared difference of velocity and target."""
        return (self.velocity(weights) - self.target).square().mean(1)

    def error_gradient(self, weights: Weights) -> Tensor:
        """[b, 2]: of :meth:`error`."""
        return self.by_weights(2 * (self.velocity(weights) - self.target))


class StepByHand(FlowByHand, ABC):
    """A recorded step x -> y, from sigma s to t: a Gaussian of some std.

    ``slope`` is how far the mean moves with the velocity, and ``steepness`` how fast the log-density falls with the square of
    an element's error.
    """

    std: float
    slope: float
    steepness: float
    constant: float

    def __init__(self, step: Step) -> None:
        assert step.next_latents is not None
        assert step.next_sigma is not None
        super().__init__(step.latents, step.sigma)
        self.y = step.next_latents.double().flatten(1)
        self.s, self.t = float(step.sigma[0]), float(step.next_sigma[0])

    @abstractmethod
    def mean(self, weights: Weights) -> Tensor:
        """[b, n]: of y."""

    def log_density(self, weights: Weights) -> Tensor:
        """[b]: of y, a mean over elements."""
        return (self.constant - self.steepness * (self.y - self.mean(weights)).square()).mean(1)

    def score(self, weights: Weights) -> Tensor:
        """[b, 2]: gradient of the log-density."""
        return self.by_weights(2 * self.steepness * (self.y - self.mean(weights)) * self.slope)

    def divergence(self, weights: Weights, reference: Weights) -> Tensor:
        """[b]: KL of the two Gaussian steps, a mean over elements."""
        return (self.mean(weights) - self.mean(reference)).square().mean(1) / (2 * self.std**2)

    def divergence_gradient(self, weights: Weights, reference: Weights) -> Tensor:
        """[b, 2]: of :meth:`divergence` by ``weights``."""
        return self.by_weights((self.mean(weights) - self.mean(reference)) / self.std**2 * self.slope)


class SDEByHand(StepByHand):
    """dx = [v + g²/(2 s) (x + (1 - s) v)] ds + g dw, whose log-density is the Gaussian's.

    g = a sqrt(s / (1 - s)) for ``flow-sde``, eq. 9 of arXiv:2505.05470, and a for ``dance-sde``, arXiv:2505.07818.
    """

    def __init__(self, step: Step, dynamics: str, noise_level: float) -> None:
        super().__init__(step)
        clean = 1 - self.s
        if clean < 0.015 and 4 * clean < self.s - self.t:
            clean = 1 - self.t  # sigma 1, and what is just below, borrows it from the next, as the authors' code does at 1
        self.g = noise_level * (math.sqrt(self.s / clean) if dynamics == "flow-sde" else 1.0)
        self.std = self.g * math.sqrt(self.s - self.t)
        self.slope = (1 + self.g**2 * (1 - self.s) / (2 * self.s)) * (self.t - self.s)
        self.steepness = 1 / (2 * self.std**2)
        self.constant = -math.log(2 * math.pi * self.std**2) / 2

    def mean(self, weights: Weights) -> Tensor:
        velocity = self.velocity(weights)
        drift = velocity + self.g**2 / (2 * self.s) * (self.x + (1 - self.s) * velocity)
        return self.x + drift * (self.t - self.s)


class CPSByHand(StepByHand):
    """(1 - t)(x - s v) + sqrt(t² - std²)(x + (1 - s) v), std = t sin(a pi / 2): arXiv:2509.05952.

    The log-density is minus the squared error.
    """

    def __init__(self, step: Step, noise_level: float) -> None:
        super().__init__(step)
        self.std = self.t * math.sin(noise_level * math.pi / 2)
        self.kept = math.sqrt(self.t**2 - self.std**2)
        self.slope = self.kept * (1 - self.s) - (1 - self.t) * self.s
        self.steepness, self.constant = 1.0, 0.0

    def mean(self, weights: Weights) -> Tensor:
        velocity = self.velocity(weights)
        return (1 - self.t) * (self.x - self.s * velocity) + self.kept * (self.x + (1 - self.s) * velocity)


def step_by_hand(step: Step, dynamics: str, noise_level: float) -> StepByHand:
    """A recorded step of ``flow-sde``, ``dance-sde`` or ``cps``, all of whose rows are at one sigma."""
    return CPSByHand(step, noise_level) if dynamics == "cps" else SDEByHand(step, dynamics, noise_level)


@dataclass(frozen=True)
class ClippedByHand:
    """A clipped surrogate: its ``loss`` [b] and ``gradient`` [b, 2], the ``ratio`` [b], and whether it is ``cut`` [b]."""

    loss: Tensor
    gradient: Tensor
    ratio: Tensor
    cut: Tensor


def clip_by_hand(
    ratio: Tensor, score: Tensor, advantages: Sequence[float], clip_range: float | tuple[float, float]
) -> ClippedByHand:
    """-min(r A, clip(r) A), where ``score`` [b, 2] is the gradient of log r.

    A good sample is pushed up until its ratio is 1 + c, a bad one down until it is 1 - c; or c above and below as a pair
    (below, above) says.
    """
    advantage = torch.tensor(advantages, dtype=torch.float64)
    below, above = clip_range if isinstance(clip_range, tuple) else (clip_range, clip_range)
    good = advantage > 0
    cut = torch.where(good, ratio > 1 + above, ratio < 1 - below)
    bound = torch.where(good, 1 + above, 1 - below)
    gradient = torch.where(cut[:, None], 0.0, -(advantage * ratio)[:, None] * score)
    return ClippedByHand(-advantage * torch.where(cut, bound, ratio), gradient, ratio, cut)


def autograd_by_hand(losses: Callable[[Tensor], Tensor], weights: Weights) -> Tensor:
    """[b, 2]: the gradient of each of ``losses(weights)`` [b] by (p, q), from float64 autograd."""
    pair = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    return torch.stack([torch.autograd.grad(row, pair, retain_graph=True)[0] for row in losses(pair)])
