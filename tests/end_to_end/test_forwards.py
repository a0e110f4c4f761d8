"""What each algorithm's mathematics needs of the transformer, in forwards a picture, and no more."""

from pathlib import Path

import pytest

from flowfactory.config import loading
from flowfactory.runs.train import train
from flowfactory.testing import ForwardCount, two_parameter
from flowfactory.training.velocity_probe import SIGMAS

GROUPS, MEMBERS, STEPS, TIMES = 4, 6, 5, 2
PICTURES = GROUPS * MEMBERS
SDE, ODE = {"name": "flow-sde", "num_sde_steps": 2}, "ode"
KL = 0.01
PLAIN = {"nft": {"kl": 0}, "awm": {"kl": 0, "ema_kl": 0, "timesteps": "uniform"}, "dgpo": {"clip_range": None}}


@pytest.fixture
def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``taken(algorithm, dynamics, **training)``: forwards a picture of the third of four iterations."""
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))

    def run(algorithm: dict, dynamics: object, **training: int) -> dict[str, float]:
        counted = ForwardCount()
        raw = two_parameter.settings(
            tmp_path,
            PLAIN.get(algorithm["name"], {}) | algorithm,
            sampling={
                "groups": GROUPS,
                "group_size": MEMBERS,
                "steps": STEPS,
                "dynamics": dynamics,
                "batch_size": training.pop("sampling", 8),
            },
            training={"iterations": 4, "batch_size": 2 * MEMBERS, "optimizer": {"lr": 0.01}, **training},
        )
        train(loading.validate(raw), observers=[counted], say=lambda _: None)
        found = counted.iterations[3]
        assert found.pop("velocity") == len(SIGMAS), "what tells how far the policy has moved is no part of the algorithm"
        return {phase: rows / PICTURES for phase, rows in found.items()}

    return run


def needs(train: float, no_grad: float = 0.0) -> dict[str, float]:
    found = {"sample": STEPS, "train": train, "backward": train, "no_grad": no_grad}
    return {phase: rows for phase, rows in found.items() if rows}


@pytest.mark.parametrize("name", ["grpo", "grpo-guard", "dppo"])
def test_a_coupled_algorithm_needs_one_forward_a_recorded_step(taken, name):
    assert taken({"name": name}, SDE, updates=2, epochs=1) == needs(train=2)


@pytest.mark.parametrize("name", ["grpo", "grpo-guard", "dppo"])
def test_its_kl_needs_one_more(taken, name):
    assert taken({"name": name, "kl": KL}, SDE, updates=2) == needs(train=2, no_grad=2)


@pytest.mark.parametrize(("kl", "no_grad"), [(0, 0), (KL, 1)])
def test_one_trained_step_a_picture_needs_one_forward(taken, kl, no_grad):
    one = {"name": "flow-sde", "num_sde_steps": 1}
    assert taken({"name": "flash-grpo", "kl": kl}, one, updates=2) == needs(train=1, no_grad=no_grad)


@pytest.mark.parametrize(
    ("algorithm", "no_grad"), [({"name": "rvm"}, 0), ({"name": "rvm", "kl": KL}, TIMES), ({"name": "ram"}, TIMES)]
)
def test_without_a_ratio_no_old_weights_are_needed(taken, algorithm, no_grad):
    assert taken(algorithm, ODE, updates=2) == needs(train=TIMES, no_grad=no_grad)


@pytest.mark.parametrize(("together", "looks"), [(4, 1), (2, 2), (1, 2)])
def test_a_ratio_of_several_times_is_looked_at_first_where_they_fit_no_forward(taken, together, looks):
    found = taken({"name": "v-grpo"}, ODE, updates=2, timesteps_per_forward=together)
    assert found == needs(train=4, no_grad=looks * 4 / 2)


@pytest.mark.parametrize("name", ["nft", "awm"])
@pytest.mark.parametrize(("updates", "old"), [(1, 0), (2, TIMES / 2), (4, TIMES * 3 / 4)])
def test_old_weights_cost_nothing_while_they_are_the_present_ones(taken, name, updates, old):
    """The first of an iteration's updates learns from pictures of the very weights it changes."""
    following = {"name": name} | ({"old": {"name": "constant", "decay": 0.0}} if name == "nft" else {})
    assert taken(following, ODE, updates=updates) == needs(train=TIMES, no_grad=old)


def test_old_weights_that_lag_behind_cost_a_forward_each_time(taken):
    lagging = {"name": "nft", "old": {"name": "constant", "decay": 0.9}}
    assert taken(lagging, ODE, updates=1) == needs(train=TIMES, no_grad=TIMES)


@pytest.mark.parametrize("name", ["nft", "awm"])
def test_a_kl_to_the_reference_costs_a_forward_each_time(taken, name):
    following = {"name": name, "kl": KL} | ({"old": {"name": "constant", "decay": 0.0}} if name == "nft" else {})
    assert taken(following, ODE, updates=1) == needs(train=TIMES, no_grad=TIMES)


def test_the_published_recipe_of_awm_needs_its_reference_and_its_average_at_the_steps_after_the_first(taken):
    after = STEPS - 1
    as_published = {"name": "awm", "kl": 1e-3, "ema_kl": 1.0, "timesteps": {"name": "discrete", "count": 6, "initial": False}}
    assert taken(as_published, ODE, updates=1) == needs(train=after, no_grad=2 * after)


def test_two_averages_that_are_the_same_weights_are_evaluated_once(taken):
    both = {"name": "awm", "ema_kl": KL, "ema": {"name": "constant", "decay": 0.0}}
    assert taken(both, ODE, updates=2) == needs(train=TIMES, no_grad=TIMES / 2)


def test_a_pair_needs_its_two_arms_alone(taken):
    assert taken({"name": "dpo"}, ODE, updates=2) == needs(train=TIMES * 2 / MEMBERS, no_grad=TIMES * 2 / MEMBERS)


@pytest.mark.parametrize("name", ["dgpo", "crd"])
def test_a_group_in_one_batch_needs_each_policy_once(taken, name):
    assert taken({"name": name}, ODE, updates=2) == needs(train=TIMES, no_grad=TIMES)


@pytest.mark.parametrize("name", ["dgpo", "crd"])
def test_a_group_in_several_batches_is_looked_at_before_its_first_loss(taken, name):
    assert taken({"name": name}, ODE, updates=2, batch_size=4) == needs(train=TIMES, no_grad=2 * TIMES)


def test_a_group_in_several_batches_needs_no_look_while_nothing_has_changed(taken):
    following = {"name": "crd", "old": {"name": "constant", "decay": 0.0}}
    assert taken(following, ODE, updates=1, batch_size=4) == needs(train=TIMES)


@pytest.mark.parametrize("batch_size", [2 * MEMBERS, 4])
def test_a_kl_to_the_very_reference_of_the_preference_costs_nothing(taken, batch_size):
    looked = 0 if batch_size > MEMBERS else TIMES
    assert taken({"name": "dgpo", "kl": KL}, ODE, batch_size=batch_size) == needs(train=TIMES, no_grad=TIMES + looked)


def test_crd_and_its_kl_need_three_policies(taken):
    assert taken({"name": "crd", "kl": KL}, ODE) == needs(train=TIMES, no_grad=2 * TIMES)


@pytest.mark.parametrize("name", ["nft", "dgpo"])
def test_no_size_of_a_batch_changes_what_is_needed(taken, name, tmp_path):
    whole = taken({"name": name}, ODE, updates=2, batch_size=PICTURES, sampling=PICTURES)
    (tmp_path / "run").rename(tmp_path / "first")
    assert taken({"name": name}, ODE, updates=2, batch_size=2 * MEMBERS, sampling=5, timesteps_per_forward=TIMES) == whole


@pytest.mark.parametrize(
    ("name", "train", "no_grad"),
    [
        ("flash-grpo", 2, 2),
        ("awm", TIMES, TIMES),
        ("rvm", TIMES, TIMES),
        ("dgpo", TIMES, TIMES),  # the reference of the preference is the KL's
        ("crd", TIMES, 2 * TIMES),
    ],
)
def test_a_kl_that_adapts_costs_what_one_of_a_fixed_weight_does(taken, name, train, no_grad):
    adaptive = {"name": name, "kl": {"name": "adaptive", "target": 1e-3}}
    assert taken(adaptive, SDE if name == "flash-grpo" else ODE, updates=1) == needs(train, no_grad)


FOLLOWING = {"old": {"name": "constant", "decay": 0.0}}


@pytest.mark.parametrize(
    ("algorithm", "pictures"),
    [
        ({"name": "nft", **FOLLOWING}, 1),
        ({"name": "awm"}, 1),
        ({"name": "ram"}, 1),  # which needs the same reference without the guard
        ({"name": "rvm"}, 1),
        ({"name": "crd", **FOLLOWING}, 1),
        ({"name": "dgpo"}, 1),  # which needs the same reference without the guard
        ({"name": "dpo"}, 2 / MEMBERS),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_guarded_norm_costs_a_forward_of_the_reference_if_nothing_else_needs_it(taken, algorithm, pictures):
    found = taken({**algorithm, "norm_guard": 0.5}, ODE, updates=1)
    assert found == needs(train=TIMES * pictures, no_grad=TIMES * pictures)


def test_the_kl_of_v_grpo_costs_a_forward_each_time_and_its_pull_to_the_old_weights_none(taken, tmp_path):
    held = {"name": "v-grpo", "kl": KL}
    assert taken(held, ODE, updates=1, timesteps_per_forward=4) == needs(train=4, no_grad=4)
    (tmp_path / "run").rename(tmp_path / "held")
    pulled = {"name": "v-grpo", "old_kl": KL}
    assert taken(pulled, ODE, updates=2, timesteps_per_forward=4) == needs(train=4, no_grad=4 / 2)


def test_an_average_that_rvm_is_anchored_to_costs_a_forward_each_time(taken):
    anchored = {"name": "rvm", "kl": KL, "anchor": "ema", "ema": {"name": "constant", "decay": 0.5}}
    assert taken(anchored, ODE, updates=1) == needs(train=TIMES, no_grad=TIMES)


def test_by_default_nft_needs_its_reference_and_its_old_policy(taken):
    assert taken({"name": "nft", "kl": 1e-4}, ODE, updates=1) == needs(train=TIMES, no_grad=2 * TIMES)


def test_by_default_dgpo_needs_its_reference_and_its_average(taken):
    published = {"name": "dgpo", "clip_range": 0.01, "kl": 0.02}
    assert taken(published, ODE, updates=2) == needs(train=TIMES, no_grad=2 * TIMES)


def test_the_clip_of_dgpo_costs_a_forward_of_its_average(taken):
    slow = {"name": "constant", "decay": 0.9}
    assert taken({"name": "dgpo", "clip_range": 0.01, "ema": slow}, ODE, updates=2) == needs(train=TIMES, no_grad=2 * TIMES)
