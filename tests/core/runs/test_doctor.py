from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from flowfactory.cli.run import _print_summary
from flowfactory.config import loading
from flowfactory.errors import RunError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.doctor import watch as watching
from flowfactory.runs.doctor.diagnosis import diagnose
from flowfactory.runs.doctor.finding import Finding, Rule
from flowfactory.runs.doctor.hacked import hacking_warnings
from flowfactory.runs.doctor.reading import read_table
from flowfactory.runs.doctor.supply import describe_dominance, dominant_reward
from flowfactory.runs.doctor.table import Table, best_to_last, first_to_last
from flowfactory.runs.doctor.watch import WINDOW, Watch
from flowfactory.runs.lock import held
from flowfactory.runs.train import train

Records = list[dict[str, Any]]
Invoke = Callable[..., tuple[int, str, str]]
HERE = Path(__file__).parent
FROM_GENERATOR = HERE / "doctor_runs"
"""What the quickstart of the bundled generator wrote: with a learning rate of 6e-4 and guidance 3 in 30 iterations, trained at
that guidance, which unlearned; and as it is in 40, which learned. With 30 times its rate it collapsed in one iteration, and nft
with a KL of 0.01 ran away. Of a toy, the rate at 30 and at 300 times what it learns with: it drifted, and it exploded."""
COLLAPSED: dict[str, Any] = {
    "algorithm": {"name": "nft", "kl": 0.0, "norm_guard": 0.0, "timesteps": {"name": "uniform", "count": 2}},
    "sampling": {"groups": 8, "group_size": 8},
    "training": {"updates": 4, "epochs": 1, "optimizer": {"lr": 6e-3}},
}
RAN_AWAY: dict[str, Any] = {
    "algorithm": {**COLLAPSED["algorithm"], "kl": 0.01},
    "sampling": {"groups": 16, "group_size": 12},
    "training": {"updates": 4, "epochs": 1, "optimizer": {"lr": 4e-4}},
}
EXPLODED: dict[str, Any] = {
    "algorithm": {"name": "score", "clip_range": 0.1},
    "sampling": {"groups": 4, "group_size": 4},
    "training": {"updates": 2, "epochs": 1, "optimizer": {"lr": 0.3}},
}
GUIDED: dict[str, Any] = {
    "algorithm": {"name": "crd", "kl": 0.0, "timesteps": {"name": "uniform", "count": 2}},
    "sampling": {"groups": 18, "group_size": 12, "guidance": 3.0},
    "training": {"updates": 2, "epochs": 1, "optimizer": {"lr": 6e-4}},
}
TOY: dict[str, Any] = {
    "model": {"name": "toy", "p": 0.1, "q": 0.2},
    "algorithm": {"name": "score", "pull": 0.1},
    "rewards": {"bright": {"name": "bright"}},
    "prompts": {"train": "train.txt", "heldout": "heldout.txt"},
    "sampling": {"groups": 4, "group_size": 4, "size": [4, 4], "steps": 4, "batch_size": 16, "dynamics": {"name": "flow-sde"}},
    "training": {"iterations": 30, "updates": 2, "batch_size": 16, "optimizer": {"lr": 0.02}},
    "evaluation": {"every": 5, "members": 16, "rewards": {"dark": {"name": "bright", "scale": -1.0}}},
    "plugins": [str(HERE.parent / "toy_plugin.py")],
    "device": "cpu",
    "seed": 7,
}
HONEST_RUNS = 300
LATER = ("drift/", "weights/", "groups/")
ENOUGH = {"sampling": {"groups": 16, "group_size": 8}}


class Trained:
    """A run of the toy, what it said and what a reader of its directory sees."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        (folder / "train.txt").write_text("red\nblue\ngreen\nyellow\nwhite\n")
        (folder / "heldout.txt").write_text("black\norange\n")
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        self.said: list[str] = []
        self.directory = train(loading.load(folder / "config.yaml", (), (), folder / "run"), say=self.said.append)
        self.path = self.directory.path
        # as runs had them that wrote fewer figures; brightness is the very thing that is rewarded, and drifts
        lines = [json.loads(line) for line in self.directory.metrics.read_text().splitlines()]
        fewer = [{name: value for name, value in line.items() if not name.startswith(LATER)} for line in lines]
        self.directory.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in fewer))
        self.records = self.directory.records()
        self.config = yaml.safe_load(self.directory.config.read_text())
        self.facts = json.loads(self.directory.facts.read_text())

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.said if line.startswith("warning: ") and not line.startswith("warning: drift: ")]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Mapping[str, Any]], Trained]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWFACTORY_PLUGINS", "")
        torch.set_num_threads(1)

        def run(name: str, changes: Mapping[str, Any]) -> Trained:
            folder = tmp_path_factory.mktemp(name)
            patch.setenv("FLOWFACTORY_CACHE", str(folder / "cache"))
            return Trained(folder, laid_over(TOY, changes))

        yield run


@pytest.fixture(scope="module")
def learned(make: Callable[..., Trained]) -> Trained:
    """Brightness is trained on and rises; held out is darkness, which falls."""
    return make("learned", {})


@pytest.fixture(scope="module")
def still(make: Callable[..., Trained]) -> Trained:
    """Its learning rate is next to nothing."""
    return make("still", {"training": {"iterations": 24, "optimizer": {"lr": 1e-9}}, "evaluation": {"every": 0}})


@pytest.fixture(scope="module")
def clipped(make: Callable[..., Trained]) -> Trained:
    """Its clip range is far too small for its steps."""
    training = {"iterations": 20, "updates": 4, "epochs": 2, "optimizer": {"lr": 1e-3}}
    return make("clipped", {"algorithm": {"clip_range": 1e-7}, "training": training, "evaluation": {"every": 0}})


def laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = {
        key: laid_over(base[key], value) if isinstance(value, Mapping) and isinstance(base.get(key), Mapping) else value
        for key, value in changes.items()
    }
    return {**base, **merged}


def altered(records: Sequence[Mapping[str, Any]], **changes: Any) -> Records:
    """``records`` with metrics set, dots for slashes in their names: a number, or a function of iteration and old value."""
    result = []
    for record in records:
        new = dict(record)
        for key, value in changes.items():
            name = key.replace("__", "/")
            if record["iteration"]:
                new[name] = value(record["iteration"], record.get(name)) if callable(value) else value
        result.append(new)
    return result


def from_generator(name: str) -> Records:
    return [json.loads(line) for line in (FROM_GENERATOR / f"{name}.jsonl").read_text().splitlines()]


def found(
    records: Sequence[Mapping[str, Any]], config: Mapping[str, Any], facts: Mapping[str, Any] | None = None
) -> dict[str, Finding]:
    return {finding.rule: finding for finding in diagnose(Table(records, config, facts or {}))}


def without_evaluations(run: Trained) -> Records:
    return [{key: value for key, value in record.items() if not key.startswith("eval/")} for record in run.records]


def reversed_reward(records: Records) -> Records:
    means = [record["reward/bright/mean"] for record in records if record["iteration"]]
    return altered(records, reward__bright__mean=lambda iteration, _: means[-iteration], velocity_norm=1.0)


def warnings_of(name: str, config: Mapping[str, Any]) -> dict[str, int]:
    """The rules that a run of the generator is warned by while it goes on, and after which iteration."""
    watch, told = Watch(config, {}), dict[str, int]()
    for record in from_generator(name):
        told |= {sentence.rsplit("#", 1)[1].rstrip(")"): record["iteration"] for sentence in watch.add(record)}
    return told


# what moves


def test_a_stretch_is_compared_by_the_noise_of_neighbours() -> None:
    points = [(n, 10.0 + (n % 2)) for n in range(1, 33)]  # neighbours differ by 1, so that their noise is 1 / sqrt 2
    move = first_to_last(points)
    assert move is not None
    assert (move.before, move.after) == ((1, 8, 10.5), (25, 32, 10.5))
    assert move.error == pytest.approx((0.5 * 2 / 8) ** 0.5)
    assert move.errors == 0
    assert first_to_last(points[:15]) is None
    peak = [(n, float(n if n <= 20 else 40 - n)) for n in range(1, 41)]
    best = best_to_last(peak)
    assert best is not None
    assert (best.before.first, best.before.last) == (16, 25)
    assert best.difference == best.after.mean - best.before.mean < 0


@pytest.mark.parametrize("iterations", [16, 20, 30, 60, 200])
def test_noise_is_no_reason_for_a_warning(iterations: int) -> None:
    config = {**GUIDED, "sampling": {"groups": 16, "group_size": 8, "guidance": 3.0}}
    for seed in range(60):
        source = random.Random(seed)
        rewards = [source.gauss(0.5, 0.07) for _ in range(iterations)]
        records = [
            {"iteration": n, "reward/a/mean": value, "reward/a/std": 0.4, "reward/a/flat": 0.2, "advantage/a/share": 1.0}
            for n, value in enumerate(rewards, 1)
        ]
        assert not [finding for finding in diagnose(Table(records, config)) if finding.solid]


def honest(source: random.Random) -> tuple[Records, dict[str, Any]]:
    """A run that learns: a reward that rises and levels off, wanders a little, and is as noisy as its prompts and pictures."""
    count = source.choice((6, 8, 12, 16, 24, 40, 80))
    groups, size, prompts = source.choice((4, 8, 16, 48)), source.choice((4, 8, 24)), source.choice((60, 240))
    start, between, pace = source.uniform(0.05, 0.6), source.uniform(0.1, 0.7), source.uniform(0.15, 1.5) * count
    top, scale, wanders, wander = source.uniform(start + 0.15, start + 0.38), source.choice((0.1, 1, 20)), 0.02, 0.0
    records: Records = [{"iteration": 0}]
    for number in range(1, count + 1):
        done = 1 - math.exp(-number / pace)
        wander = 0.95 * wander + source.gauss(0, wanders) * 0.31
        level = min(0.99, max(0.01, start + (top - start) * done + wander))
        spread = 0.9 * math.sqrt(level * (1 - level))
        noise = spread * math.sqrt(between / groups + (1 - between) / groups / size)
        hard = [source.random() < level**4 for _ in range(groups)]  # a strict reward, of which prompts decide
        right = sum(hard) / groups
        record = {
            "iteration": number,
            "reward/a/mean": scale * (level + source.gauss(0, noise)),
            "reward/a/std": scale * spread * source.uniform(0.9, 1.1),
            "reward/a/flat": 0.1,
            "reward/strict/mean": right,
            "reward/strict/std": math.sqrt(right * (1 - right)),
            "reward/strict/flat": 0.3,
            "advantage/a/share": 0.6,
            "advantage/strict/share": 0.4,
            "groups/equal": sum(source.random() < level**8 for _ in range(groups)) / groups,
            "velocity_norm": 1 + 0.2 * done + source.gauss(0, 0.003),
        }
        if number % 5 == 0:
            kept = 0.1 + 0.8 * level
            error = math.sqrt(kept * (1 - kept) / prompts)
            record |= {"eval/kept/mean": kept + source.gauss(0, error), "eval/kept/std": error * math.sqrt(prompts)}
            record |= {"eval/samples": prompts}
        records.append(record)
    return records, laid_over(COLLAPSED, {"sampling": {"groups": groups, "group_size": size}})


FLAT = {"reward-flat", "few-groups", "small-groups", "reward-saturated"}
"""Of a run that learned too little to be seen, or has learned all there is."""


def test_fewer_than_one_in_a_hundred_honest_runs_are_blamed() -> None:
    source = random.Random(5)
    blamed = [0, 0]
    for _ in range(HONEST_RUNS):
        records, config = honest(source)
        found = diagnose(Table(records, config, {"prompts": {"train": 100}}))
        blamed[0] += any(finding.rule not in FLAT for finding in found)
        watch = Watch(config, {"prompts": {"train": 100}})
        blamed[1] += any(watch.add(record) for record in records)
    assert max(blamed) < HONEST_RUNS / 100


# each rule: a run that shows it, and one that does not


def test_a_run_that_learns_has_nothing_wrong(learned: Trained) -> None:
    assert diagnose(Table(without_evaluations(learned), learned.config, {})) == []
    assert diagnose(Table(from_generator("honest"), laid_over(GUIDED, {"sampling": {"guidance": 1.0}}))) == []


def test_small_updates_are_told_by_the_ratio_or_by_the_weights(still: Trained, learned: Trained) -> None:
    told = found(still.records, still.config)
    assert told["updates-too-small"].keys == {"training.optimizer.lr": 1e-8}
    assert "moves from 1 by 0 at most, of a clip range of 0.1" in told["updates-too-small"].what
    pair = laid_over(still.config, {"algorithm": {"clip_range": [0.2, 0.1]}})
    assert "of a clip range of 0.1" in found(still.records, pair)["updates-too-small"].what
    assert "updates-too-small" not in found(altered(still.records, ratio__max_deviation=0.05), pair)
    one = laid_over(still.config, {"training": {"updates": 1}})
    assert "updates-too-small" not in found(still.records, one)
    for size, wrong in ((1e-8, True), (1e-4, False)):
        assert ("updates-too-small" in found(altered(still.records, weights__update=size), one)) is wrong
    assert "updates-too-small" not in found(altered(learned.records, weights__update=1e-8), learned.config)  # it rises
    warming = laid_over(one, {"training": {"warmup": 1000, "optimizer": {"lr": 1e-3}}})
    assert found(altered(still.records, weights__update=1e-8), warming)["updates-too-small"].change.startswith(
        "lower training.warmup"
    )


def test_few_and_small_groups_are_told_where_nothing_rises(still: Trained, learned: Trained) -> None:
    told = found(still.records, still.config)
    assert told["few-groups"].keys == {"sampling.groups": 16}
    assert told["small-groups"].keys == {"sampling.group_size": 8}
    assert not {"few-groups", "small-groups"} & set(found(still.records, laid_over(still.config, ENOUGH)))
    assert not {"few-groups", "small-groups"} & set(found(learned.records, learned.config))


def test_a_trust_region_that_cuts_most_losses_is_told(clipped: Trained, still: Trained) -> None:
    told = found(clipped.records, clipped.config)["nearly-all-clipped"]
    assert told.evidence["clip_fraction"] > 0.5
    assert told.keys == {"training.optimizer.lr": 0.00033}
    assert not told.solid  # yet
    twice = [*clipped.records, *({**record, "iteration": record["iteration"] + 20} for record in clipped.records[1:])]
    assert found(twice, clipped.config)["nearly-all-clipped"].solid
    assert "nearly-all-clipped" not in found(altered(clipped.records, clip_fraction=0.3), clipped.config)
    assert "nearly-all-clipped" not in found(still.records, still.config)


def test_a_trust_region_that_nothing_reaches_is_told(still: Trained, learned: Trained) -> None:
    moving = {"ratio__max_deviation": 0.05}
    assert "nothing-clipped" in found(altered(still.records, **moving), still.config)
    assert "nothing-clipped" not in found(altered(still.records, **moving, clip_fraction=0.1), still.config)
    assert "nothing-clipped" not in found(learned.records, learned.config)


COIN = """
import torch

from flowfactory import ComponentConfig, hookimpl


class CoinConfig(ComponentConfig):
    def build(self, label):
        return Coin(label)


class Coin:
    def __init__(self, label):
        self.label = label
        self.random = torch.Generator().manual_seed(0)  # nothing that another processor rounds otherwise

    @hookimpl
    def compute_reward(self, samples):
        return {self.label: torch.rand(len(samples.prompts), generator=self.random)}


@hookimpl
def register_components(register):
    register("reward", "coin", CoinConfig)
"""


@pytest.mark.parametrize(("rate", "wrong"), [(10.0, True), (0.2, False)])
def test_samples_whose_ratios_differ_much_are_told(
    rate: float, wrong: bool, make: Callable[..., Trained], tmp_path: Path
) -> None:
    """No picture is better than another, so that the reward stays flat; with the large rate each step goes far."""
    (tmp_path / "coin.py").write_text(COIN)
    changes = {
        "algorithm": {"pull": 0.0, "clip_range": 10.0},
        "plugins": [*TOY["plugins"], str(tmp_path / "coin.py")],
        "training": {"iterations": 20, "updates": 8, "batch_size": 128, "optimizer": {"lr": rate}},
        "sampling": {"groups": 16, "group_size": 8, "batch_size": 128},
        "evaluation": {"every": 0},
    }
    run = make("coin", {**changes, "rewards": {"bright": {"weight": 0.0}, "coin": {"name": "coin"}}})
    told = found(run.records, run.config)
    assert all((record["effective_sample_size"] < 0.6) is wrong for record in run.records[1:])
    assert ("few-effective-samples" in told) is wrong
    if wrong:
        assert told["few-effective-samples"].keys == {"training.optimizer.lr": 3.3}
        half = altered(run.records, effective_sample_size=0.5)  # of two updates, the second has no sample left
        assert "few-effective-samples" in found(half, run.config)
        assert "nothing-clipped" not in told  # whose advice is to make larger steps


def test_a_flat_reward_without_another_reason_is_told_as_such(still: Trained, learned: Trained) -> None:
    config = laid_over(still.config, ENOUGH)
    moving = altered(still.records, ratio__max_deviation=0.05, clip_fraction=0.1)
    assert list(found(moving, config)) == ["reward-flat"]
    assert found(moving[:19], config) == {}  # too early
    assert "reward-flat" not in found(learned.records, laid_over(learned.config, ENOUGH))


def test_groups_without_spread_are_told(still: Trained, learned: Trained) -> None:
    told = found(altered(still.records, reward__bright__flat=0.8), still.config)["no-spread-in-groups"]
    assert told.keys == {"sampling.group_size": 8}
    assert told.solid
    assert not found(altered(still.records, reward__bright__flat=0.6), still.config)["no-spread-in-groups"].solid
    assert "no-spread-in-groups" not in found(still.records, still.config)
    assert "no-spread-in-groups" not in found(altered(learned.records, reward__bright__flat=0.8), learned.config)  # it rises


def test_a_reward_that_is_used_up_is_told_from_one_that_is_too_hard(learned: Trained) -> None:
    narrowing = altered(learned.records, reward__bright__flat=0.8, reward__bright__std=lambda iteration, std: std / iteration)
    told = found(narrowing, learned.config)
    assert "reward-saturated" in told
    assert "no-spread-in-groups" not in told
    assert "reward-saturated" not in found(altered(narrowing, reward__bright__flat=0.1), learned.config)


def test_a_guided_velocity_that_is_regressed_is_told_where_the_reward_does_not_rise() -> None:
    records = from_generator("guided")
    told = diagnose(Table(records, GUIDED))[0]
    assert (told.rule, told.keys) == ("guided-velocity", {"algorithm.guidance": 1})
    for changes in (
        {"algorithm": {"guidance": 1.0}},
        {"algorithm": {"guidance": None}},  # off where velocities are regressed
        {"sampling": {"guidance": 1.0}},
    ):
        assert "guided-velocity" not in found(records, laid_over(GUIDED, changes))
    assert "guided-velocity" in found(records, laid_over(GUIDED, {"algorithm": {"guidance": 3.0}}))
    assert "guided-velocity" not in found(records, GUIDED, {"guidance": "given"})  # a model that is given it as a number
    assert "guided-velocity" not in found(from_generator("honest"), GUIDED)


def test_steps_under_guidance_are_smaller_by_what_its_branches_add_up_to() -> None:
    coupled = laid_over(GUIDED, {"algorithm": {"timesteps": None}})
    told = found(from_generator("guided"), coupled)["steps-under-guidance"]
    assert told.keys == {"training.optimizer.lr": 1.2e-4}  # a fifth: the branches enter with 3 and -2
    assert "steps-under-guidance" not in found(from_generator("honest"), coupled)


def test_a_reward_that_fell_is_told_with_what_helps(learned: Trained) -> None:
    records = reversed_reward(without_evaluations(learned))
    config = laid_over(learned.config, {"algorithm": {"kl": 0.0}})
    told = found(records, config)
    assert list(told) == ["rate-too-high", "no-kl"]
    assert told["rate-too-high"].keys == {"training.optimizer.lr": 0.0067}
    assert (told["rate-too-high"].solid, told["no-kl"].solid) == (True, False)
    assert told["rate-too-high"].evidence["standard_errors"] < -6
    assert "no-kl" not in found(records, laid_over(config, {"algorithm": {"kl": 0.1}}))
    assert "no-kl" not in found(records, learned.config)  # an algorithm without the key


def test_what_is_to_fall_or_is_given_up_for_another_reward_is_not_unlearned(learned: Trained) -> None:
    records = reversed_reward(without_evaluations(learned))
    assert found(records, laid_over(learned.config, {"rewards": {"bright": {"weight": -1.0}}})) == {}
    means = [record["reward/bright/mean"] for record in without_evaluations(learned) if record["iteration"]]
    both = altered(records, reward__other__mean=lambda iteration, _: means[iteration - 1], advantage__other__share=0.5)
    assert not {"rate-too-high", "no-kl"} & set(found(both, learned.config))


def test_a_collapse_within_an_iteration_is_told_first_and_while_it_happens() -> None:
    records = from_generator("collapsed")
    for count in (6, 7, 10, 16, 24):  # iterations, of which the first one alone was before
        told = diagnose(Table(records[: count + 1], COLLAPSED))
        assert (told[0].rule, told[0].keys) == ("rate-too-high", {"training.optimizer.lr": 0.0006})
        assert told[0].what.startswith("reward 'scene' fell at once: 0.3879 (iteration 1), 0.0")
        assert "no-spread-in-groups" not in {finding.rule for finding in told}
    assert warnings_of("collapsed", COLLAPSED) == {"rate-too-high": 10}
    tail = [{**record, "iteration": 24 + n} for n, record in enumerate(records[13:] * 3, 1)]
    longer = altered([*records, *tail], groups__equal=0.1)
    assert diagnose(Table(longer, COLLAPSED))[0].what.startswith("reward 'scene' fell at once")


def test_a_collapse_after_long_learning_is_told_as_one_at_first() -> None:
    learned = from_generator("honest")
    config = laid_over(GUIDED, {"sampling": {"guidance": 1.0}})
    last = learned[-1]
    for steps in (1, 2, 3):  # in so many iterations
        parts = [(steps - min(n, steps)) / steps for n in range(1, 9)]
        fallen = [{**last, "iteration": 40 + n, "reward/scene/mean": 0.6 * part} for n, part in enumerate(parts, 1)]
        assert found([*learned, *fallen], config)["rate-too-high"].what.startswith("reward 'scene' fell at once")
        dip = [*learned, *fallen[:3], *({**record, "iteration": record["iteration"] + 32} for record in learned[12:])]
        assert "rate-too-high" not in found(dip, config)  # it came back


def test_a_success_that_was_rare_is_no_collapse() -> None:
    rare = [
        {"iteration": n, "reward/a/mean": 0.125 * (n == 1), "reward/a/std": 0.33 * (n == 1), "advantage/a/share": 1.0}
        for n in range(1, 31)
    ]
    assert "rate-too-high" not in found(rare, COLLAPSED)


def test_groups_that_lost_their_spread_are_told_from_ones_that_had_none() -> None:
    told = diagnose(Table(from_generator("exploded"), EXPLODED))
    assert (told[0].rule, told[0].keys) == ("rate-too-high", {"training.optimizer.lr": 0.03})
    assert "up to iteration 1 0% of them had none, of the last 10 iterations 100%" in told[0].what
    assert "no-spread-in-groups" not in {finding.rule for finding in told}
    never = found(altered(from_generator("exploded"), groups__equal=1.0), EXPLODED)
    assert "no-spread-in-groups" in never
    assert "rate-too-high" not in never
    won = altered(from_generator("exploded"), reward__bright__mean=lambda n, _: 0.1 * n)  # it is higher
    assert not {"no-spread-in-groups", "rate-too-high"} & set(found(won, EXPLODED))


def test_velocities_that_run_away_are_told_before_the_reward_falls(learned: Trained) -> None:
    assert warnings_of("ran_away", RAN_AWAY) == {"velocities-grow": 95}
    told = found(from_generator("ran_away")[:96], RAN_AWAY)["velocities-grow"]
    assert told.keys == {"algorithm.norm_guard": 10.0}
    guarded = laid_over(RAN_AWAY, {"algorithm": {"norm_guard": 20.0}})
    assert found(from_generator("ran_away"), guarded)["velocities-grow"].keys == {"algorithm.norm_guard": 200.0}
    for until in range(1, 91):
        assert "velocities-grow" not in found(from_generator("ran_away")[:until], RAN_AWAY)
    assert warnings_of("exploded", EXPLODED)["velocities-grow"] == 5
    assert found(from_generator("exploded"), EXPLODED)["velocities-grow"].keys == {"training.optimizer.lr": 0.1}
    assert "velocities-grow" not in warnings_of("drifted", EXPLODED)  # they grow as it learns, to five times the size
    assert max(record["velocity_norm"] for record in learned.records[1:]) > 1.2
    assert "velocities-grow" not in found(learned.records, learned.config)


def test_reward_hacking_is_told_while_it_happens_and_after(learned: Trained) -> None:
    told = found(learned.records, learned.config, learned.facts)["reward-hacking"]
    assert told.what.startswith("bright rose from ")
    assert "while held-out dark fell from " in told.what
    assert told.solid
    warned = [line for line in learned.warnings if "#reward-hacking" in line]
    assert len(warned) == 1
    wanted = laid_over(learned.config, {"rewards": {"dark": {"name": "bright", "weight": -1.0}}})  # it is to fall
    assert "reward-hacking" not in found(learned.records, wanted)


def test_prompts_that_are_used_up_are_told(learned: Trained) -> None:
    told = found(learned.records, learned.config, learned.facts)["prompts-used-up"]
    assert told.what.startswith("the 5 prompts were gone through 24 times: training rose, and held-out dark fell from ")
    late = altered(learned.records, eval__samples=100)
    scores = {5: 0.1, 10: 0.2, 15: 0.3, 20: 0.4, 25: 0.5, 30: 0.2}  # the best is late, and the last far below
    late = [
        record | ({"eval/dark/mean": scores.get(record["iteration"], 0.0)} if "eval/dark/mean" in record else {})
        for record in late
    ]
    assert "(after iteration 25) to 0.2 (after 30)" in found(late, learned.config, learned.facts)["prompts-used-up"].what
    level = [record | ({"eval/dark/mean": 0.3} if "eval/dark/mean" in record else {}) for record in learned.records]
    told = found(level, learned.config, learned.facts)["prompts-used-up"]
    assert told.what.endswith("training rises on, and held-out dark has had no better score in the second half of the run")
    levelled = [
        {**r, **({"reward/bright/mean": 0.55 + 0.001 * (r["iteration"] % 2)} if r["iteration"] > 14 else {})} for r in level
    ]
    assert "prompts-used-up" not in found(
        levelled, learned.config, learned.facts
    )  # neither rises, which is no fault of prompts
    assert "prompts-used-up" not in found(learned.records, learned.config, {"prompts": {"train": 1000}})
    rising = [
        record | ({"eval/dark/mean": record["iteration"]} if "eval/dark/mean" in record else {}) for record in learned.records
    ]
    assert "prompts-used-up" not in found(rising, learned.config, learned.facts)
    few = {"prompts": {"train": 1}}
    assert "prompts-used-up" in found(without_evaluations(learned), learned.config, few)


def test_pictures_that_drift_as_the_reward_rises_are_told(learned: Trained, still: Trained) -> None:
    drifted = altered(without_evaluations(learned), drift__alarm=lambda n, _: 2.0 if n > 20 else 0.0, drift__z=4.5)
    told = found(drifted, learned.config)["drift"]
    assert "by 4.5 standard deviations at most, since iteration 21" in told.what
    assert "drift" not in found(altered(drifted, drift__alarm=0.0), learned.config)
    assert "drift" in found(altered(still.records, drift__alarm=2.0), still.config)  # what the run said is said again
    told = found(from_generator("drifted"), EXPLODED)["drift"]
    assert told.what.startswith("bright rose in training, and 3 statistics of the pictures are far")


def test_fresh_samples_that_are_clipped_are_told(learned: Trained) -> None:
    fresh = "clip_fraction__first_update"
    records = without_evaluations(learned)
    told = found(altered(records, **{fresh: 0.05}), learned.config)["first-ratio"]
    assert (told.keys, told.solid) == ({"training.recompute_log_prob": True}, False)
    assert found(altered(records, **{fresh: 0.2}), learned.config)["first-ratio"].solid
    grown = found(altered(records, **{fresh: lambda n, _: 0.002 * n}), learned.config)["first-ratio"]
    assert "; it was 1.1% in the first 10 iterations" in grown.what
    recomputed = laid_over(learned.config, {"training": {"recompute_log_prob": True}})
    assert found(altered(records, **{fresh: 0.05}), recomputed)["first-ratio"].keys == {"training.precision": "float32"}
    averaged = laid_over(learned.config, {"sampling": {"ema": {"name": "constant", "decay": 0.9}}})
    assert "first-ratio" not in found(altered(records, **{fresh: 0.05}), averaged)
    one = laid_over(learned.config, {"training": {"updates": 1}})  # then all of an iteration is its first update
    whole = [{name: value for name, value in record.items() if "first" not in name} for record in records]
    assert "first-ratio" in found(altered(whole, clip_fraction=0.05), one)


def test_a_coefficient_at_its_bound_is_told(learned: Trained) -> None:
    records = without_evaluations(learned)
    told = found(altered(records, kl_coefficient=lambda n, _: min(2.0**n, 1024.0)), learned.config)["at-a-bound"]
    assert told.what.startswith("kl_coefficient has stood at 1024 since iteration 10, its upper bound")
    lower = altered(records, kl_coefficient=lambda n, _: max(0.5**n, 1e-3))
    assert found(lower, learned.config)["at-a-bound"].change.startswith("raise training.optimizer.lr")
    for steady in (lambda n, _: 2.0**n, lambda n, _: 0.5, lambda n, _: 1.0 + n % 2):
        assert "at-a-bound" not in found(altered(records, kl_coefficient=steady), learned.config)


def test_a_reference_that_is_always_taken_anew_is_told(learned: Trained) -> None:
    records = without_evaluations(learned)
    told = found(altered(records, kl_reference__refreshed=1.0), learned.config)["reference-that-follows"]
    assert "was taken anew in each of the last 10 iterations" in told.what
    watch = Watch(learned.config, {})
    told_on_the_way = [sentence for record in altered(records, kl_reference__refreshed=1.0) for sentence in watch.add(record)]
    assert any("#reference-that-follows" in sentence for sentence in told_on_the_way)
    for now_and_then in (0.0, lambda n, _: float(n % 3 > 0), lambda n, _: float(n < 29)):
        assert "reference-that-follows" not in found(altered(records, kl_reference__refreshed=now_and_then), learned.config)


@pytest.mark.parametrize(
    ("kl", "way"),
    [
        (0.1, "raise algorithm.kl, or"),
        ({"name": "adaptive", "target": 1e-3}, "lower algorithm.kl.target, or"),
        ({"coefficient": 0.1, "gate": {"share": 0.1}}, "raise algorithm.kl.coefficient or raise algorithm.kl.gate.share, or"),
        (
            {"coefficient": {"name": "adaptive", "target": 1e-3}, "gate": None, "refresh": {"above": 1e-4}},
            "lower algorithm.kl.coefficient.target or take its reference anew less often (algorithm.kl.refresh), or",
        ),
    ],
)
def test_what_holds_the_policy_closer_is_told_by_the_keys_of_its_kl(learned: Trained, kl: Any, way: str) -> None:
    config = {**learned.config, "algorithm": {**learned.config["algorithm"], "kl": kl}}
    assert f"; {way} stop by training.early_stop" in found(learned.records, config)["reward-hacking"].change


def test_a_reward_that_supplies_nearly_all_of_the_advantage_is_told(learned: Trained) -> None:
    shares = {"advantage__bright__share": 0.97, "advantage__other__share": 0.03, "reward__other__flat": 0.5}
    records = altered(without_evaluations(learned), **shares, reward__bright__flat=0.5)
    told = found(records, learned.config)["one-reward-dominates"]
    assert told.keys == {"advantages.aggregate": "gdpo"}
    assert "one-reward-dominates" not in found(altered(records, advantage__bright__share=0.9), learned.config)
    twice = altered(records, advantage__bright__share=lambda n, _: 0.97 if n > 28 else 0.6)
    assert "one-reward-dominates" not in found(twice, learned.config)


def test_a_dominant_reward_is_one_of_several_that_differ() -> None:
    def metrics(**shares: float) -> dict[str, float]:
        named = {f"advantage/{label}/share": share for label, share in shares.items()}
        return named | {f"reward/{label}/flat": 0.75 for label in shares}

    assert dominant_reward(metrics(loud=0.97, quiet=0.03)) == "loud"
    assert describe_dominance("loud", 1.2, "sum")[0].startswith("reward 'loud' supplies 100% of the advantage")
    assert "gdpo" in describe_dominance("loud", 0.97, "sum")[1]
    assert "gdpo" not in describe_dominance("loud", 0.97, "gdpo")[1]
    assert dominant_reward(metrics(loud=0.9, quiet=0.1)) is None
    assert dominant_reward(metrics(only=1.0)) is None
    assert dominant_reward({}) is None


def test_a_judge_that_takes_most_of_the_time_is_told(learned: Trained) -> None:
    slow = altered(without_evaluations(learned), seconds__sample=1.0, seconds__update=1.0, seconds__reward=18.0)
    told = found(slow, learned.config)["slow-judge"]
    assert told.what == "rewards take 90% of the time, 18 seconds of an iteration"
    assert told.solid
    assert not found(altered(slow, seconds__reward=3.0), learned.config)["slow-judge"].solid
    assert "slow-judge" not in found(altered(slow, seconds__reward=1.0), learned.config)


def record(iteration: int, train: float, held: float | None = None, std: float = 0.1) -> dict[str, Any]:
    made: dict[str, Any] = {"iteration": iteration}
    if iteration:
        made |= {"reward/proxy/mean": train, "advantage/proxy/share": 1.0, "reward/watched/mean": train}
    if held is not None:
        made |= {"eval/taste/mean": held, "eval/taste/std": std, "eval/samples": 100}
    return made


def test_a_held_out_reward_that_falls_while_training_rises_is_told() -> None:
    records = [record(0, 0, 0.5), record(1, 0.1), record(2, 0.2, 0.6), record(3, 0.5), record(4, 0.6, 0.3)]
    told = list(hacking_warnings(records))
    assert len(told) == 1
    assert told[0].startswith(
        "proxy rose from 0.2 to 0.6 in training while held-out taste fell from 0.6 (after iteration 2) to 0.3 (after 4)"
    )
    assert "checkpoint of iteration 2" in told[0]


@pytest.mark.parametrize(
    "records",
    [
        [record(0, 0, 0.5), record(1, 0.1), record(2, 0.4, 0.6)],  # both rise
        [record(0, 0, 0.5), record(1, 0.4), record(2, 0.1, 0.3)],  # both fall
        [record(0, 0, 0.5, 1.0), record(1, 0.1), record(2, 0.4, 0.3, 1.0)],  # within two standard errors: 0.28
        [record(0, 0, 0.5)],
        [],
    ],
)
def test_what_is_no_hacking_is_not_called_so(records: list[Mapping[str, Any]]) -> None:
    assert list(hacking_warnings(records)) == []


# the page


def test_every_rule_has_a_heading_on_the_page() -> None:
    page = HERE.parents[2] / "docs" / "when_it_does_not_learn.md"
    lines = page.read_text().splitlines()
    headings = {line.lstrip("# ").lower().replace(" ", "-") for line in lines if line.startswith("### ")}
    assert headings == set(get_args(Rule))


# while a run goes on


def test_a_finding_is_warned_of_once_from_a_bounded_window(learned: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    monkeypatch.setattr(watching, "diagnose", lambda table: looked.append(len(table.records)) or diagnose(table))
    watch = Watch(learned.config, {})
    falling = reversed_reward(without_evaluations(learned))
    said = [sentence for record in falling for sentence in watch.add(record)]
    assert len(said) == 1
    assert said[0].startswith("reward 'bright' fell")
    assert said[0].endswith("(docs/when_it_does_not_learn.md#rate-too-high)")
    assert looked == [6, 11, 16, 21, 26, 31]
    for number in range(31, 1000):
        watch.add({"iteration": number, "loss": 1.0, "reward/bright/mean": float("nan")})
    assert max(looked) == WINDOW


def test_a_run_that_learns_is_not_warned(learned: Trained) -> None:
    assert [line for line in learned.warnings if "#reward-hacking" not in line] == []
    watch = Watch(laid_over(GUIDED, {"sampling": {"guidance": 1.0}}), {})
    assert [sentence for record in from_generator("honest") for sentence in watch.add(record)] == []


# the command


def test_the_command_ranks_and_says_what_to_change(learned: Trained, invoke: Invoke) -> None:
    code, out, err = invoke("doctor", learned.path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{learned.path}: 30 of 30 iterations, finished"
    assert lines[1].startswith("1. bright rose from ")
    assert lines[2].startswith("   look at the pictures")
    assert lines[3] == "   docs/when_it_does_not_learn.md#reward-hacking"
    assert lines[4].startswith("2. the 5 prompts were gone through 24 times")


def test_a_run_that_ends_names_the_likeliest(learned: Trained) -> None:
    said: list[str] = []
    _print_summary(learned.directory, said.append)
    (line,) = [line for line in said if line.startswith("doctor: ")]
    assert line.startswith("doctor: bright rose from ")
    assert line.endswith(f"; run flowfactory doctor {learned.path} for all 2 findings")


def test_programs_get_one_object(learned: Trained, invoke: Invoke) -> None:
    code, out, _ = invoke("doctor", learned.path, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["state"] == "30 of 30 iterations, finished"
    assert [finding["rule"] for finding in told["findings"]] == ["reward-hacking", "prompts-used-up"]
    assert {"rule", "about", "weight", "what", "change", "keys", "evidence", "page"} == set(told["findings"][0])


def test_exit_codes_are_for_bad_paths_and_for_who_asks(learned: Trained, invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("doctor", learned.path, "--strict")[0] == 1
    code, out, err = invoke("doctor", tmp_path / "nowhere")
    assert (code, out, err) == (2, "", f"error: {tmp_path / 'nowhere'} is no run directory: it has no config.yaml\n")
    (tmp_path / "config.yaml").write_text("{}")
    code, out, _ = invoke("doctor", tmp_path, "--strict")
    assert code == 0
    assert out.endswith("nothing is wrong so far; of how rewards move, rules speak from iteration 16 on\n")
    (tmp_path / "run.json").write_text('{"end": {"how": "finished"}}')
    assert invoke("doctor", tmp_path)[1].endswith(
        "nothing is wrong; how rewards move is not judged: a run of fewer than 16 iterations is too short for that\n"
    )


def test_a_run_is_looked_at_while_it_goes_on_and_after_it_failed(learned: Trained, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_bytes(learned.directory.config.read_bytes())
    content = learned.directory.metrics.read_bytes()
    (path / "metrics.jsonl").write_bytes(content[: len(content) // 2])  # within a line
    (path / "run.json").write_text(json.dumps({"under_way": "token"}))
    said: list[str] = []
    table, state = read_table(path, said.append)
    assert state.endswith(f"{table.trained[-1]['iteration']} of 30 iterations, under way, or killed")
    assert len(said) == 1
    assert "line" in said[0]
    (path / "run.json").write_text(json.dumps({"end": {"how": "failed", "sentence": "the disk is full"}}))
    assert read_table(path, said.append)[1].endswith("failed: the disk is full")
    stopped = {"how": "stopped", "sentence": "stopped after iteration 11; continue with --resume"}
    (path / "run.json").write_text(json.dumps({"end": stopped}))
    assert read_table(path, said.append)[1].endswith("stopped: stopped after iteration 11; continue with --resume")
    (path / "run.json").write_text(json.dumps({"end": stopped, "under_way": "token"}))  # it was, and goes on
    with held(path, said.append):
        assert read_table(path, said.append)[1].endswith("of 30 iterations, under way")
        lock = (path / "run.lock").read_bytes()
    program = (
        "import os\nfrom pathlib import Path\nfrom flowfactory.runs.lock import held\n"
        f"with held(Path({str(path)!r}), print):\n    os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert (path / "run.lock").read_bytes() != lock
    assert read_table(path, said.append)[1].endswith("of 30 iterations, killed")


def test_no_torch_and_no_plugin_is_imported(learned: Trained, tmp_path: Path) -> None:
    path = tmp_path / "of_a_stranger"
    path.mkdir()
    plugin = tmp_path / "plugin.py"
    plugin.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    config = {**learned.config, "plugins": [str(plugin)], "model": {"name": "unheard-of"}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "metrics.jsonl").write_bytes(learned.directory.metrics.read_bytes())
    program = (
        "import sys\nfrom flowfactory.cli.main import main\n"
        f"sys.argv = ['flowfactory', 'doctor', {str(path)!r}]\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "#reward-hacking" in done.stdout
    assert done.stdout.endswith("False\n")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "config",
    [
        "[]",
        "training: 3\nsampling: [1]\nalgorithm: text\nrewards: {bright: 7}\nadvantages: null\n",
        "sampling: {guidance: 1e999, groups: -5, group_size: 0}\ntraining: {optimizer: {lr: -.inf}, updates: many}\n",
        f"sampling: {{guidance: {'9' * 400}, groups: 1e99}}\nalgorithm: {{timesteps: 1, kl: .nan, guidance: {{}}}}\n",
        "a: [",
    ],
)
def test_whatever_a_stranger_writes_costs_no_traceback(config: str, learned: Trained, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config)
    rows = [{"iteration": 5, "reward/\x1b[2J/mean": 1e99, "advantage/a/share": -1e99, "reward/a/b/c": 3}] * 40
    odd = [
        {"iteration": 9 - n % 9, "eval//mean": float(n), "reward//mean": 1e99 * (-1) ** n, "advantage//share": 1}
        for n in range(60)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *odd, *learned.records]))
    (tmp_path / "run.json").write_text('{"prompts": {"train": "many"}, "end": [], "guidance": {}}')
    code, out, _ = invoke("doctor", tmp_path)
    assert code == 0
    assert "\x1b" not in out
    assert out.splitlines()[0].startswith(f"{tmp_path}: ")


def test_a_run_that_fails_still_has_its_doctor(make: Callable[..., Trained], tmp_path: Path, invoke: Invoke) -> None:
    with pytest.raises(RunError):
        make("failing", {"rewards": {"bright": {"name": "bright", "nan_from": 4}}, "prompts": {"heldout": None}})
    folder = max(tmp_path.parent.parent.glob("*/failing*/run"), key=lambda path: path.stat().st_mtime)
    code, out, _ = invoke("doctor", folder)
    assert code == 0
    assert out.startswith(f"{RunDirectory(folder).path}: ")
    assert "failed: reward" in out
    told = json.loads(invoke("doctor", folder, "--json")[1])["findings"]
    assert [finding["rule"] for finding in told] == ["run-failed"]
    assert told[0]["what"].startswith("the run failed: reward")
    assert "nothing is wrong" not in out
    assert invoke("doctor", folder, "--strict")[0] == 1
