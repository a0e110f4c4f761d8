"""When a figure of the drift panel is far from where it began, and what is said then."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from flowfactory.data.batches import make_batch
from flowfactory.distributed.ranks import ALONE
from flowfactory.drift.alarm import DriftWatch, Figure, Rise, drift_alarms, is_far, pooled, z_score
from flowfactory.drift.panel import Panel
from flowfactory.types import Prompt

GROUPS, MEMBERS = 16, 2
Change = Callable[[Tensor, float], Tensor]


def scenes(iteration: int) -> Tensor:
    """Pictures [B, 3, 32, 32] of two shapes on a ground each, of colours and places that differ from prompt to prompt."""
    source = torch.Generator().manual_seed(iteration)
    pictures = []
    for _ in range(GROUPS):
        ground, one, other = (torch.rand(3, 1, 1, generator=source) for _ in range(3))
        for _ in range(MEMBERS):
            picture = ground.expand(3, 32, 32) + 0.02 * torch.randn(3, 32, 32, generator=source)
            for colour in (one, other):
                y, x = torch.randint(0, 22, (2,), generator=source).tolist()
                picture[:, y : y + 10, x : x + 10] = colour
            pictures.append(picture)
    return torch.stack(pictures).clamp(0, 1)


def to_grey(pictures: Tensor, share: float) -> Tensor:
    return torch.lerp(pictures, torch.full_like(pictures, 0.5), share)


def to_checkerboard(pictures: Tensor, share: float) -> Tensor:
    place = torch.arange(32) // 2
    board = ((place[:, None] + place) % 2).float().expand_as(pictures)
    return torch.lerp(pictures, board, share * 0.5)


def to_one_picture(pictures: Tensor, share: float) -> Tensor:
    return torch.lerp(pictures, pictures[::MEMBERS].repeat_interleave(MEMBERS, 0), share)


def to_white(pictures: Tensor, share: float) -> Tensor:
    return torch.lerp(pictures, torch.ones_like(pictures), share)


def to_clean(pictures: Tensor, share: float) -> Tensor:
    """What honest learning does: shapes become crisp, their colours stronger, and a few come closer to one another."""
    return (pictures + share * 0.1 * (pictures - 0.5)).clamp(0, 1)


@cache
def course(change: Change, iterations: int = 30, begins: int = 6) -> list[dict[str, Any]]:
    """The records of a run that, from ``begins`` on, comes to ``change`` within 20 iterations, as its reward rises."""
    return list(records_of(change, iterations, begins))


def records_of(change: Change, iterations: int, begins: int) -> Iterator[dict[str, Any]]:
    batch = make_batch([Prompt("", i) for i in range(GROUPS)], MEMBERS)
    source = torch.Generator().manual_seed(0)
    for iteration in range(1, iterations + 1):
        share = min(1.0, max(0.0, (iteration - begins) / 20))
        panel = Panel(batch.groups, ALONE)
        media = change(scenes(iteration), share)
        panel.add(media, torch.zeros(len(media), 4, 8, 8), [range(len(media))], range(len(media)))
        noise = 0.02 * float(torch.randn((), generator=source))
        reward = noise + 0.01 * iteration
        yield {"iteration": iteration, "reward/r/mean": reward, "advantage/r/share": 1.0, **panel.metrics()}


@pytest.mark.parametrize(
    ("change", "figure", "by"),
    [
        (to_grey, "drift/colour_entropy", 26),
        (to_grey, "drift/diversity", 26),
        (to_checkerboard, "drift/grid_energy", 14),
        (to_one_picture, "drift/diversity", 26),
        (to_white, "drift/luma", 26),
    ],
)
def test_a_collapse_raises_an_alarm_before_it_is_whole(change: Change, figure: str, by: int) -> None:
    records = course(change)
    found = {alarm.name: alarm for alarm in drift_alarms(records)}
    assert figure in found
    assert 6 < found[figure].iteration <= by
    assert abs(found[figure].z) > 3
    assert found[figure].reward == "r"


def test_pictures_that_only_differ_by_their_prompts_raise_none() -> None:
    assert drift_alarms(course(lambda pictures, _: pictures, 60)) == []


def test_an_honest_run_raises_none() -> None:
    assert drift_alarms(course(to_clean, 60)) == []


def test_a_collapse_without_a_rising_reward_raises_none() -> None:
    records = [record | {"reward/r/mean": -record["reward/r/mean"]} for record in course(to_grey)]
    watch = DriftWatch()
    added = [watch.add(record) for record in records]
    assert max(found.get("drift/z", 0.0) for found in added) > 3  # all the same it is in the metrics
    assert all(found.get("drift/alarm", 0.0) == 0 for found in added)


def test_a_reward_that_is_only_watched_is_none_that_rises() -> None:
    records = [{k: v for k, v in record.items() if not k.startswith("advantage/")} for record in course(to_grey)]
    assert drift_alarms(records) == []


def test_each_figure_is_warned_of_once_and_counted_while_it_is_far() -> None:
    told: list[str] = []
    watch = DriftWatch((), told.append)
    added = [watch.add(record) for record in course(to_grey)]
    assert len(told) == len(watch.alarms) == len({sentence.partition(" went")[0].split("the ", 1)[1] for sentence in told})
    assert all(sentence.startswith("warning: drift: by iteration ") and "\n" not in sentence for sentence in told)
    assert added[-1]["drift/alarm"] == len(told) > 1
    assert "drift/alarm" not in added[4]  # which are what the others are compared with


@pytest.mark.parametrize("stopped", [3, 8, 20])
def test_a_resumed_run_goes_on_as_one_that_was_not_stopped(stopped: int) -> None:
    records = course(to_grey)
    told: list[str] = []
    whole = DriftWatch((), told.append)
    expected = [whole.add(record) for record in records]
    lines = [json.loads(json.dumps(record | added)) for record, added in zip(records, expected, strict=True)]
    again: list[str] = []
    resumed = DriftWatch(lines[:stopped], again.append)
    assert [resumed.add(record) for record in records[stopped:]] == expected[stopped:]
    assert again == told[len(told) - len(again) :]
    assert resumed.alarms == whole.alarms


def test_the_first_evaluation_is_what_held_out_figures_are_compared_with() -> None:
    def record(iteration: int, luma: float, groups: int) -> dict[str, Any]:
        held = {"drift/heldout/luma": luma, "drift/heldout/luma/std": 0.2, "drift/heldout/groups": groups}
        return {"iteration": iteration, "reward/r/mean": 0.1 * iteration, "advantage/r/share": 1.0, **held}

    assert drift_alarms([record(0, 0.4, 32)]) == []
    found = drift_alarms([record(0, 0.4, 32), record(1, 0.4, 32), record(2, 0.9, 32)])
    assert [(alarm.name, alarm.iteration, alarm.before, alarm.after) for alarm in found] == [
        ("drift/heldout/luma", 2, 0.4, 0.9)
    ]
    assert found[0].z == pytest.approx(0.5 / math.sqrt(2 * 0.04 / 32))
    assert "held-out samples went from 0.4 to 0.9" in found[0].sentence()
    assert drift_alarms([record(0, 0.4, 3), record(1, 0.4, 3), record(2, 0.9, 3)]) == []  # whose spread nobody knows


def test_far_is_beyond_chance_and_beyond_what_samples_differ_by() -> None:
    first = Figure(0.5, 0.2, 16)
    assert z_score(first, Figure(0.8, 0.2, 16)) == pytest.approx(0.3 / math.sqrt(2 * 0.04 / 16))
    assert is_far(first, Figure(0.8, 0.2, 16))
    assert not is_far(first, Figure(0.74, 0.2, 16))  # 3.4 standard deviations, but 1.2 of the samples'
    assert not is_far(Figure(0.5, 0.2, 2), Figure(0.8, 0.2, 2))  # 1.5 of the samples', but chance
    assert not is_far(Figure(0.0, 0.0, 16), Figure(0.002, 0.0, 16))  # what nobody sees
    assert is_far(Figure(0.0, 0.0, 16), Figure(0.1, 0.0, 16))


def test_a_reward_rose_where_its_last_quarter_is_above_the_first_by_two_standard_errors() -> None:
    def ends(*means: float) -> tuple[float, float] | None:
        rise = Rise()
        for mean in means:
            rise.add(mean)
        return rise.ends()

    assert ends() is None
    assert ends(1.0) is None
    assert ends(1.0, 2.0) == (1.0, 2.0)
    assert ends(2.0, 1.0) is None
    flat = [5.0] * 4
    # means 1000.1 and 1000.4, each of a variance of 0.01: two standard errors are 0.2
    assert ends(1000.0, 1000.2, *flat, 1000.3, 1000.5) == pytest.approx((1000.1, 1000.4))
    assert ends(1000.0, 1000.2, *flat, 1000.15, 1000.35) is None


def test_what_is_pooled_has_the_spread_of_all_samples() -> None:
    samples = torch.tensor([[0.0, 0.2, 0.4], [0.7, 0.8, 1.5]], dtype=torch.float64)
    parts = [Figure(float(part.mean()), float(part.std(correction=0)), 3) for part in samples]
    whole = pooled(parts)
    assert whole.mean == pytest.approx(float(samples.mean()))
    assert whole.std == pytest.approx(float(samples.std(correction=0)))


def test_the_velocity_is_told_by_what_it_was_at_first_unless_an_algorithm_knows_better() -> None:
    watch = DriftWatch([{"iteration": 0}, {"iteration": 1, "velocity_rms/fixed": 0.8, "velocity_norm": 1.0}])
    assert watch.add({"iteration": 2, "velocity_rms/fixed": 1.0}) == {"velocity_norm": 1.25}
    assert watch.add({"iteration": 3, "velocity_rms/fixed": 1.0, "velocity_norm": 1.1}) == {}
    assert DriftWatch().add({"iteration": 1, "velocity_rms/fixed": 0.0}) == {}
