"""The share of samples that as many of equal ratios would be: Kish's effective sample size by the number of samples."""

from __future__ import annotations

import pytest
import torch

from flowfactory.distributed.ranks import Ranks
from flowfactory.experience import Loss
from flowfactory.training.metrics import UpdateMetrics


def metrics_of(*ratios: list[float]) -> UpdateMetrics:
    metrics = UpdateMetrics()
    for own in ratios:
        metrics.add(Loss(torch.zeros(len(own)), ratios=torch.tensor(own)))
    return metrics


@pytest.mark.parametrize(
    ("ratios", "share"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1),
        ([0.25, 0.25], 1),  # all equal, whatever they are
        ([1.0, 0.0, 0.0, 0.0], 1 / 4),
        ([1.0, 2.0, 3.0], 36 / (3 * 14)),
    ],
)
def test_it_is_the_square_of_the_sum_by_the_sum_of_squares_and_the_number(ratios: list[float], share: float) -> None:
    assert metrics_of(ratios).metrics()["effective_sample_size"] == pytest.approx(share, rel=1e-12)
    assert metrics_of(*([ratio] for ratio in ratios)).metrics()["effective_sample_size"] == pytest.approx(share, rel=1e-12)


def test_without_ratios_and_without_weight_there_is_none() -> None:
    metrics = UpdateMetrics()
    metrics.add(Loss(torch.zeros(3)))
    assert "effective_sample_size" not in metrics.metrics()
    assert "effective_sample_size" not in metrics_of([0.0, 0.0]).metrics()
    assert "effective_sample_size" not in metrics_of([float("inf"), 1.0]).metrics()


class Two(Ranks):
    """The leading one of two ranks, of which the other gathers what ``other`` has."""

    def __init__(self, other: UpdateMetrics) -> None:
        super().__init__()
        self._other = other

    def gather(self, value):  # type: ignore[no-untyped-def]
        class Told(Ranks):
            def gather(self, value):  # type: ignore[no-untyped-def]
                self.value = value
                return [value]

        told = Told()
        self._other.metrics(told)
        return [value, told.value]


def test_ranks_share_sums_and_not_shares() -> None:
    mine, other = metrics_of([1.0, 1.0]), metrics_of([5.0])
    assert mine.metrics()["effective_sample_size"] == other.metrics()["effective_sample_size"] == 1
    assert mine.metrics(Two(other))["effective_sample_size"] == pytest.approx(49 / (3 * 27))


def test_an_empty_loss_weighs_nothing() -> None:
    metrics = metrics_of([1.0, 1.0])
    metrics.add(Loss(torch.zeros(2), ratios=torch.tensor([9.0, 1.0])).empty())
    assert metrics.metrics()["effective_sample_size"] == 1
