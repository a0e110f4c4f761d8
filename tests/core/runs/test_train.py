from __future__ import annotations

import math
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import saved
import torch
from torch import Tensor

from flowfactory import flow, hookimpl
from flowfactory.config import loading
from flowfactory.config.schema import RunConfig
from flowfactory.distributed.mesh import resolve_device
from flowfactory.errors import Interrupted, RunError, UserError
from flowfactory.experience import Experience
from flowfactory.hooks.calls import Hooks
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.train import train
from flowfactory.training.evaluation import evaluate
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.plans import sampling_plan
from flowfactory.training.preflight import preflight
from flowfactory.training.rollouts import Rollouts
from flowfactory.training.setup import Run, prepare_run
from flowfactory.training.update import split_updates
from flowfactory.types import HELD_OUT, NoiseKey, RunInfo, Samples, SamplingPlan

Figures = Callable[[RunDirectory], list[dict[str, Any]]]
Trained = Callable[..., RunDirectory]
Prepared = Callable[..., Run]
CPU = torch.device("cpu")
FULL = {"name": "net", "train": "full"}


def weights(directory: RunDirectory, iteration: int = 3) -> dict[str, Tensor]:
    found = saved.weights(directory.checkpoints / f"{iteration:06d}")
    return {name.removeprefix("transformer."): value for name, value in found.items()}


@torch.no_grad()
def nudge(run: Run) -> None:
    for name, parameter in run.policy.parameters.items():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=flow.generator("nudge", name)))
    run.policy.mark_changed()


class Draws:
    """Draws from torch's own generator, after each iteration."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        self.drawn.append(float(torch.rand(())))


def test_torchs_own_generator_is_seeded_by_the_seed_and_goes_on_when_resumed(load: Callable[..., RunConfig]) -> None:
    def draw(out: str, resume: bool = False, **changes: Any) -> list[float]:
        torch.rand(3)  # as other work in the same process does
        observer = Draws()
        train(load({**changes, "output": {"checkpoint_every": 1}}, out), resume, [observer], lambda _: None)
        return observer.drawn

    one = draw("one", training={"iterations": 4})
    assert draw("two", training={"iterations": 4}) == one
    assert not {*draw("other", seed=8)} & {*one}
    assert draw("two in parts", training={"iterations": 2}) == one[:3]
    assert draw("two in parts", resume=True, training={"iterations": 4}) == one[3:]


def test_training_twice_gives_the_same_figures_and_weights(trained: Trained, figures: Figures) -> None:
    one, two = trained({"model": FULL}, out="one"), trained({"model": FULL}, out="two")
    assert figures(one) == figures(two)
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(two)[name])


def test_another_seed_gives_other_figures(trained: Trained, figures: Figures) -> None:
    assert figures(trained())[1]["reward/bright/mean"] != figures(trained({"seed": 8}, out="b"))[1]["reward/bright/mean"]


def test_the_same_noise_whatever_the_sampling_batch_size(prepared: Prepared) -> None:
    dynamics = {"name": "flow-sde", "sde_steps": [0]}  # so that the noise a trajectory starts from is recorded
    drawn: dict[int, list[Experience]] = {}
    for size in (1, 5, 16):
        run = prepared({"model": FULL, "sampling": {"batch_size": size, "dynamics": dynamics}})
        drawn[size] = [collect_rollouts(run, iteration, Timer(CPU)).experience for iteration in range(3)]
    for size in (5, 16):
        for one, other in zip(drawn[1], drawn[size], strict=True):
            assert torch.equal(one.steps[0].latents, other.steps[0].latents)
            torch.testing.assert_close(one.latents, other.latents, rtol=0, atol=1e-5)
            torch.testing.assert_close(one.rewards["bright"], other.rewards["bright"], rtol=0, atol=1e-5)


def test_the_same_rewards_whatever_the_sampling_batch_size(trained: Trained, figures: Figures) -> None:
    runs = [figures(trained({"sampling": {"batch_size": size}}, out=str(size))) for size in (3, 16)]
    for one, other in zip(*runs, strict=True):
        for key in one:
            if key.startswith(("reward/", "eval/")):
                assert one[key] == pytest.approx(other[key], abs=1e-5)


def test_the_same_weights_whatever_the_training_batch_size(trained: Trained) -> None:
    runs = [weights(trained({"model": FULL, "training": {"batch_size": size}}, out=str(size))) for size in (1, 3, 16)]
    start = weights(trained({"model": FULL, "training": {"iterations": 1, "optimizer": {"lr": 1e-12}}}, out="start"), 1)
    for other in runs[1:]:
        for name, weight in runs[0].items():
            torch.testing.assert_close(weight, other[name], rtol=0, atol=2e-5)
            assert (weight - start[name]).abs().max() > 1e-2


@pytest.mark.parametrize(("updates", "epochs"), [(1, 1), (2, 3), (4, 1), (7, 2), (16, 1)])
def test_updates_and_epochs_give_the_number_of_optimizer_steps(
    trained: Trained, prepared: Prepared, updates: int, epochs: int
) -> None:
    directory = trained({"training": {"updates": updates, "epochs": epochs, "iterations": 2}})
    run = prepared()
    run.assembly.hooks.run_started(run.info, run.policy)
    assert Checkpoints(directory.checkpoints, run.ranks, run.config).restore(run.policy, run.learner) == 2
    counts = {float(value) for key, value in run.learner.state().items() if key.endswith("step") or key == "steps"}
    assert counts == {2.0 * updates * epochs}


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 5, 16])
def test_an_epoch_deals_out_every_sample_once(prepared: Prepared, updates: int) -> None:
    experience = collect_rollouts(prepared(), 0, Timer(CPU)).experience
    dealt = list(split_updates(experience.groups, updates, 7, 0, 0))
    assert len(dealt) == updates
    assert sorted(row for rows in dealt for row in rows) == list(range(16))
    if updates <= 4:  # there are four groups
        assert all(len(torch.unique(experience.groups[rows])) * 4 == len(rows) for rows in dealt)
    else:
        assert {len(rows) for rows in dealt} <= {16 // updates, math.ceil(16 / updates)}


def test_each_epoch_has_an_order_of_its_own(prepared: Prepared) -> None:
    groups = collect_rollouts(prepared(), 0, Timer(CPU)).experience.groups
    orders = [list(split_updates(groups, 16, 7, 0, epoch)) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert list(split_updates(groups, 16, 7, 1, 0)) != orders[0]


def test_the_record_of_an_iteration_has_every_promised_key(trained: Trained) -> None:
    records = trained({"rewards": {"bright": {"name": "bright"}, "watched": {"name": "bright", "weight": 0}}}).records()
    assert [record["iteration"] for record in records] == [0, 1, 2, 3]
    held = {"eval/samples", *(f"eval/{label}/{what}" for label in ("bright", "watched") for what in ("mean", "std"))}
    figures = ("luma", "saturation", "edge_density", "colour_entropy", "jpeg_bytes")
    held |= {f"drift/heldout/{name}{end}" for name in figures for end in ("", "/std")} | {"drift/heldout/groups"}
    assert set(records[0]) == {"iteration", *held}
    promised = {"iteration", "loss", "pull", "ratio/mean", "ratio/max_deviation", "clip_fraction", "grad_norm", "lr"}
    promised |= {"clip_fraction/first_update", "seconds/sample", "seconds/reward", "seconds/update", "peak_memory_mb"}
    promised |= {f"reward/{label}/{what}" for label in ("bright", "watched") for what in ("mean", "std", "flat", "group_std")}
    promised |= {"advantage/bright/share", "correlation/bright/watched", "seconds/drift", "drift/groups"}
    promised |= {f"drift/{name}{end}" for name in (*figures, "diversity") for end in ("", "/std")}
    promised |= {"weights/moved", "weights/update", "velocity_rms", "velocity_rms/fixed", "velocity_norm", "groups/equal"}
    promised |= {"effective_sample_size"}
    assert [set(record) for record in records[1:3]] == [promised, promised]
    assert set(records[3]) == promised | held
    assert all(isinstance(value, int | float) and math.isfinite(value) for record in records for value in record.values())
    assert all(record["seconds/sample"] > 0 and record["peak_memory_mb"] > 1 for record in records[1:])


def test_the_recorded_reward_is_that_of_the_drawn_pictures(prepared: Prepared, trained: Trained) -> None:
    rewards = collect_rollouts(prepared(), 0, Timer(CPU)).experience.rewards["bright"]
    record = trained().records()[1]
    values = [float(value) for value in rewards]
    mean = math.fsum(values) / 16
    assert record["reward/bright/mean"] == pytest.approx(mean, abs=1e-7)
    assert record["reward/bright/std"] == pytest.approx(math.sqrt(math.fsum((v - mean) ** 2 for v in values) / 16), abs=1e-7)


def test_the_first_ratio_of_a_run_with_one_update_is_one(trained: Trained) -> None:
    for record in trained({"model": FULL, "training": {"updates": 1}}).records()[1:]:
        assert record["ratio/mean"] == pytest.approx(1, abs=1e-6)
        assert record["ratio/max_deviation"] <= 1e-5
        assert record["clip_fraction"] == 0


def test_training_raises_the_held_out_score(trained: Trained) -> None:
    records = trained({"training": {"iterations": 12, "updates": 1, "optimizer": {"lr": 0.05}}}).records()
    assert records[-1]["eval/bright/mean"] > records[0]["eval/bright/mean"] + 0.05


def test_the_held_out_score_is_of_the_same_pictures_each_time(trained: Trained, figures: Figures) -> None:
    still = {"training": {"optimizer": {"lr": 1e-12}}, "evaluation": {"every": 1}}
    scores = [record["eval/bright/mean"] for record in figures(trained(still))]
    assert len(scores) == 4
    assert max(scores) - min(scores) < 1e-7


def test_evaluation_comes_before_every_so_often_and_at_the_end(trained: Trained) -> None:
    directory = trained({"training": {"iterations": 5}, "evaluation": {"every": 2, "members": 2, "pictures": 3}})
    evaluated = [record["iteration"] for record in directory.records() if "eval/bright/mean" in record]
    assert evaluated == [0, 2, 4, 5]
    for iteration in evaluated:
        assert len(directory.read_samples(iteration)) == 3
    assert directory.read_samples(1) == []


def test_the_evaluation_before_training_is_of_weights_that_nothing_has_touched(trained: Trained, prepared: Prepared) -> None:
    changes = {"model": FULL, "evaluation": {"ema": AVERAGE}}
    run = prepared(changes)
    untouched = evaluate(run.sampler, run.assembly, run.config, run.heldout).metrics()
    first = trained(changes).records()[0]
    assert first == {"iteration": 0, **untouched}


class Order:
    """What happens, in order; and what is done at the first held-out picture."""

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self.happened: list[str] = []
        self._act = act

    @hookimpl(wrapper=True)
    def sample(self, plan: SamplingPlan) -> Any:
        self.happened.append("evaluate" if plan.iteration == HELD_OUT else "draw")
        if plan.iteration == HELD_OUT:
            self._act()
        return (yield)

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        self.happened.append(f"record {iteration}")

    @hookimpl
    def run_failed(self, error: BaseException) -> None:
        self.happened.append(type(error).__name__)


def test_the_first_pictures_are_checked_before_the_held_out_ones_are_drawn(load: Callable[..., RunConfig]) -> None:
    seen = Order()
    told: list[str] = []
    train(load({"training": {"iterations": 1}}), observers=[seen], say=told.append)
    assert seen.happened == ["draw", "draw", "evaluate", "record 0", "evaluate", "record 1"]
    checks = [place for place, sentence in enumerate(told) if sentence.startswith("preflight: ")]
    assert max(checks) < min(place for place, sentence in enumerate(told) if sentence.startswith("held-out score"))


def test_what_preflight_refuses_has_cost_no_evaluation(load: Callable[..., RunConfig], tmp_path: Path) -> None:
    seen = Order()
    with pytest.raises(RunError, match=r"^preflight: rewards do not differ"):
        train(load({"rewards": {"bright": {"name": "bright", "scale": 0}}}), observers=[seen], say=lambda _: None)
    assert seen.happened == ["draw", "draw", "RunError"]
    assert not RunDirectory(tmp_path / "run").records()
    assert not (tmp_path / "run" / "samples").exists()


def test_without_the_evaluation_at_the_start_all_else_is_the_same(trained: Trained, figures: Figures) -> None:
    whole = figures(trained({"evaluation": {"every": 2}}, out="whole"))
    directory = trained({"evaluation": {"every": 2, "at_start": False}})
    rest = figures(directory)
    assert rest[0] == {"iteration": 0}
    assert rest[1:] == whole[1:]
    assert "eval/bright/mean" in whole[0]
    assert sorted(path.name for path in directory.samples.iterdir()) == ["000002", "000003", "training"]


def test_a_run_that_is_asked_to_stop_at_its_first_evaluation_stops_at_once(load: Callable[..., RunConfig]) -> None:
    seen = Order(lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match=r"^stopped at once; "):
        train(load(), observers=[seen], say=lambda _: None)
    assert seen.happened == ["draw", "draw", "evaluate", "Interrupted"]
    again = Order()
    train(load(), resume=True, observers=[again], say=lambda _: None)
    assert again.happened[:4] == ["draw", "draw", "evaluate", "record 0"]


def test_evaluation_may_have_other_rewards(trained: Trained) -> None:
    directory = trained({"evaluation": {"rewards": {"doubled": {"name": "bright", "scale": 2}, "plain": "bright"}}})
    record = directory.records()[0]
    assert record["eval/doubled/mean"] == pytest.approx(2 * record["eval/plain/mean"], rel=1e-6)
    assert "eval/bright/mean" not in record


def test_a_held_out_score_is_told_of_the_prompts_it_applies_to(load: Callable[..., RunConfig], tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"prompt": "red", "rewards": ["a"]}\n{"prompt": "blue", "rewards": ["b"]}\n')
    rewards = {label: {"name": "bright", "scale": scale} for label, scale in (("a", 1.0), ("b", 1e30), ("c", 1.0))}
    said: list[str] = []
    changes = {"evaluation": {"rewards": rewards, "members": 2}, "prompts": {"heldout": "some.jsonl"}}
    records = train(load(changes), say=said.append).records()
    told = [sentence for sentence in said if sentence.startswith("held-out")]
    assert told == [
        f"held-out score after iteration {record['iteration']}, 4 pictures: "
        f"a {record['eval/a/mean']:.4f}, b {record['eval/b/mean']:.4g}"
        for record in (records[0], records[-1])
    ]
    assert re.search(r"b \d(\.\d+)?e\+(29|30)$", told[0])


def test_a_run_without_held_out_prompts_is_not_evaluated(trained: Trained) -> None:
    directory = trained({"prompts": {"heldout": None}})
    assert not any(key.startswith("eval/") for record in directory.records() for key in record)


def test_a_reward_that_turns_nan_stops_the_run_and_names_the_last_checkpoint(
    config_file: Callable[..., Path], command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    changes = {
        "rewards": {"glow": {"name": "bright", "nan_from": 5}, "bright": None},
        "prompts": {"heldout": None},
        "training": {"iterations": 6},
    }
    done = command("run", config_file(changes), "--out", tmp_path / "run")
    assert done.returncode == 1
    last = tmp_path / "run/checkpoints/000002"
    assert done.stderr == (
        f"stopped: reward 'glow': gave nan for sample 0; scores must be finite; the last checkpoint is {last}\n"
    )
    assert [record["iteration"] for record in RunDirectory(tmp_path / "run").records()] == [0, 1, 2]
    assert (last / "checkpoint.json").is_file()


def test_a_run_that_stops_before_its_first_checkpoint_says_so(trained: Trained) -> None:
    with pytest.raises(RunError, match=r"there is no checkpoint yet$"):
        trained({"rewards": {"bright": {"name": "bright", "nan_from": 1}}, "prompts": {"heldout": None}})


STUMBLES = """
from flowfactory import ComponentConfig, hookimpl

class StumblesConfig(ComponentConfig):
    def build(self, label):
        return Stumbles(label)

class Stumbles:
    def __init__(self, label):
        self.label = label

    @hookimpl
    def compute_reward(self, samples):
        {edit}
        return {{self.label: samples.media.flatten(1).mean(1)}}

@hookimpl
def register_components(register):
    register("reward", "stumbles", StumblesConfig)
"""
FROM_THE_FOURTH_ON = """
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 6:  # of which an iteration has two
            raise ValueError("no more")
"""


def test_a_reward_that_fails_costs_no_iteration_that_was_made(
    load: Callable[..., RunConfig], figures: Figures, tmp_path: Path
) -> None:
    file = tmp_path / "stumbles.py"
    changes = {
        "plugins": [*load().model_dump(mode="json")["plugins"], str(file)],
        "rewards": {"bright": None, "stumbles": "stumbles"},
        "prompts": {"heldout": None},
        "training": {"iterations": 6},
        "output": {"checkpoint_every": 100},
    }
    file.write_text(STUMBLES.format(edit=""))
    whole = train(load(changes, out=tmp_path / "whole"), say=lambda _: None)
    file.write_text(STUMBLES.format(edit=FROM_THE_FOURTH_ON))
    with pytest.raises(RunError, match=r"no more .*; the last checkpoint is .*000003$"):
        train(load(changes), say=lambda _: None)
    file.write_text(STUMBLES.format(edit=""))
    said: list[str] = []
    resumed = train(load(changes), resume=True, say=said.append)
    assert any(line.startswith("resumed after iteration 3") for line in said)
    assert [line for line in said if "stumbles.py was edited since the run went so far" in line]
    assert figures(resumed) == figures(whole)
    again: list[str] = []
    train(load({**changes, "training": {"iterations": 7}}), resume=True, say=again.append)
    assert not [line for line in again if "was edited" in line]


def test_a_run_directory_is_resumed_by_its_name(trained: Trained, figures: Figures) -> None:
    directory = trained()
    config = loading.load(directory.path)
    assert (config.output.dir, config.training.iterations) == (directory.path, 3)
    said: list[str] = []
    assert figures(train(config, resume=True, say=said.append)) == figures(directory)
    assert any(line.startswith("resumed after iteration 3") for line in said)


def test_a_step_that_was_made_is_not_saved_as_the_iteration_before(load: Callable[..., RunConfig], tmp_path: Path) -> None:
    """The second of an iteration's updates fails: the weights are those of no whole iteration."""

    class Fails:
        steps = 0

        @hookimpl(wrapper=True)
        def update(self) -> Any:
            self.steps += 1
            if self.steps == 4:
                raise RunError("no more")
            return (yield)

    changes = {"training": {"updates": 2, "iterations": 6}, "output": {"checkpoint_every": 100}}
    with pytest.raises(RunError, match=r"no more; there is no checkpoint yet$"):
        train(load(changes), observers=[Fails()], say=lambda _: None)


def test_observers_see_the_run_in_order(load: Callable[..., RunConfig]) -> None:
    seen: list[Any] = []

    class Observer:
        @hookimpl
        def run_started(self, run: RunInfo) -> None:
            seen.append(("started", run.iterations))

        @hookimpl
        def iteration_finished(self, iteration: int, metrics: Mapping[str, float]) -> None:
            seen.append((iteration, "loss" in metrics))

        @hookimpl
        def checkpoint_saved(self, iteration: int, path: Path) -> None:
            seen.append(("saved", iteration, (path / "checkpoint.json").is_file()))

        @hookimpl
        def run_finished(self, run: RunInfo) -> None:
            seen.append("finished")

    train(load(), observers=[Observer()], say=lambda _: None)
    # a checkpoint is written while training goes on, and told of when it is whole
    saved = [event for event in seen if event[0] == "saved"]
    assert saved == [("saved", 2, True), ("saved", 3, True)]
    assert [event for event in seen if event not in saved] == [
        *(("started", 3), (0, False), (1, True), (2, True), (3, True)),
        "finished",
    ]
    assert seen.index(saved[0]) > seen.index((2, True))


def test_the_window_is_drawn_anew_each_iteration_and_the_same_in_every_process(prepared: Prepared) -> None:
    keys = [NoiseKey(0, 0)]
    one, other = prepared(), prepared()
    windows = [sampling_plan(one.assembly, one.config, iteration, keys).stochastic for iteration in range(20)]
    assert windows == [sampling_plan(other.assembly, other.config, iteration, keys).stochastic for iteration in range(20)]
    assert all(len(window) == 2 and window <= {0, 1, 2} for window in windows)
    assert len(set(windows)) == 3
    assert sampling_plan(one.assembly, one.config, 0, keys).recorded == windows[0]  # what the algorithm asks for


def test_guidance_changes_what_is_drawn(prepared: Prepared) -> None:
    model = {"name": "net", "train": "full", "guided": True}
    drawn = [
        collect_rollouts(prepared({"model": model, "sampling": {"guidance": scale}}), 0, Timer(CPU)).experience
        for scale in (1.0, 1.0, 4.0)
    ]
    assert torch.equal(drawn[0].latents, drawn[1].latents)
    assert not torch.allclose(drawn[0].latents, drawn[2].latents, atol=1e-3)


def test_half_precision_trains_with_full_master_weights(trained: Trained) -> None:
    directory = trained({"model": FULL, "training": {"precision": "bf16", "updates": 1}})
    assert {weight.dtype for weight in weights(directory).values()} == {torch.float32}
    assert all(record["ratio/max_deviation"] <= 1e-3 for record in directory.records()[1:])


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"^device: 'cuda:77' is not available here: "):
        resolve_device("cuda:77")
    with pytest.raises(UserError, match=r"^device: 'gpu' is not available here: "):
        resolve_device("gpu")


AVERAGE = {"name": "linear", "start": 0, "end": 1, "iterations": 4}  # keeps 0, then 1/4, then 1/2


def test_the_held_out_score_is_that_of_the_averaged_weights(trained: Trained, prepared: Prepared) -> None:
    directory = trained({"evaluation": {"every": 1, "ema": AVERAGE}, "output": {"checkpoint_every": 1, "keep_last": 9}})
    average = {"p": 0.1, "q": 0.2}
    for iteration, decay in ((1, 0.0), (2, 0.25), (3, 0.5)):
        present = {name: float(weight.double()) for name, weight in weights(directory, iteration).items()}
        average = {name: decay * average[name] + (1 - decay) * present[name] for name in average}
        scores = []
        for p_and_q in (average, present):
            run = prepared({"model": {"name": "toy", **p_and_q}})
            scores.append(evaluate(run.sampler, run.assembly, run.config, run.heldout).metrics()["eval/bright/mean"])
        recorded = directory.records()[iteration]["eval/bright/mean"]
        assert recorded == pytest.approx(scores[0], abs=1e-6)
        assert (abs(recorded - scores[1]) > 1e-4) == (decay > 0)


def test_an_evaluation_with_the_average_is_one_that_uses_it(prepared: Prepared) -> None:
    run = prepared({"model": FULL, "evaluation": {"ema": {"name": "constant", "decay": 0.5}}})
    plain = run.config.model_copy(update={"evaluation": run.config.evaluation.model_copy(update={"ema": None})})
    nudge(run)
    run.policy.iteration_finished(0)
    found = evaluate(run.sampler, run.assembly, run.config, run.heldout)
    with run.policy.using("evaluation"):
        expected = evaluate(run.sampler, run.assembly, plain, run.heldout)
    assert torch.equal(found.media, expected.media)
    assert torch.equal(found.scores["bright"], expected.scores["bright"])
    present = evaluate(run.sampler, run.assembly, plain, run.heldout)
    assert not torch.allclose(found.media, present.media, atol=1e-3)


def test_how_a_run_is_evaluated_does_not_change_how_it_trains(trained: Trained) -> None:
    one = trained({"model": FULL}, out="one")
    two = trained({"model": FULL, "evaluation": {"every": 1, "ema": AVERAGE}}, out="two")
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(two)[name])


def test_pictures_are_drawn_with_the_average_where_the_config_says_so(prepared: Prepared) -> None:
    run = prepared({"sampling": {"ema": {"name": "constant", "decay": 0.75}}})  # p and q start as 0.1 and 0.2
    with torch.no_grad():
        run.policy.parameters["transformer.p"].fill_(0.5)
        run.policy.parameters["transformer.q"].fill_(-0.6)
    run.policy.mark_changed()
    run.policy.iteration_finished(0)
    drawn = collect_rollouts(run, 1, Timer(CPU)).experience
    # 3/4 of the start and 1/4 of the present: p = 0.2 and q = 0
    expected = collect_rollouts(prepared({"model": {"name": "toy", "p": 0.2, "q": 0.0}}), 1, Timer(CPU)).experience
    torch.testing.assert_close(drawn.latents, expected.latents, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.rewards["bright"], expected.rewards["bright"], rtol=0, atol=1e-6)
    for step, other in zip(drawn.steps, expected.steps, strict=True):
        torch.testing.assert_close(step.log_prob, other.log_prob, rtol=0, atol=1e-5)
    assert drawn.plan.weights == "sampling"
    assert expected.plan.weights is None
    assert [float(p.detach()) for p in run.policy.parameters.values()] == pytest.approx([0.5, -0.6])


def test_a_run_that_draws_with_the_average_passes_its_checks_when_it_is_resumed(load: Callable[..., RunConfig]) -> None:
    def changes(iterations: int) -> dict[str, Any]:
        average = {"name": "constant", "decay": 0.9}
        return {"model": FULL, "sampling": {"ema": average}, "training": {"iterations": iterations}}

    said: list[str] = []
    train(load(changes(2)), say=lambda _: None)
    train(load(changes(3)), resume=True, say=said.append)
    assert any(line.startswith("preflight: replaying 2 recorded steps gives a ratio of 1 within ") for line in said)


def test_a_resumed_run_has_the_averages_of_one_that_was_not_stopped(trained: Trained, figures: Figures) -> None:
    def changes(iterations: int) -> dict[str, Any]:
        sampling = {"ema": {"name": "power", "power": 0.5}}
        training = {"iterations": iterations, "optimizer": {"lr": 0.05}}
        return {"model": FULL, "sampling": sampling, "evaluation": {"every": 1, "ema": AVERAGE}, "training": training}

    whole = trained(changes(4), out="whole")
    trained(changes(2), out="stopped")
    resumed = trained(changes(4), out="stopped", resume=True)
    assert figures(resumed) == figures(whole)
    kept = [saved.kept(run.checkpoints / "000004") for run in (whole, resumed)]
    assert {name.partition("/")[0] for name in kept[0]} == {"slow", "sampling", "evaluation"}
    assert all(torch.equal(weight, kept[1][name]) for name, weight in kept[0].items())


def test_a_run_may_be_resumed_with_an_average_to_evaluate_that_it_had_not(trained: Trained, prepared: Prepared) -> None:
    trained({"training": {"iterations": 2}})
    average = {"name": "constant", "decay": 0.25}
    directory = trained({"training": {"iterations": 3}, "evaluation": {"ema": average}}, resume=True)
    before, after = (
        {name: float(weight.double()) for name, weight in weights(directory, iteration).items()} for iteration in (2, 3)
    )
    run = prepared({"model": {"name": "toy", **{name: 0.25 * before[name] + 0.75 * after[name] for name in after}}})
    expected = evaluate(run.sampler, run.assembly, run.config, run.heldout).metrics()
    assert directory.records()[-1]["eval/bright/mean"] == pytest.approx(expected["eval/bright/mean"], abs=1e-6)


Matching = Callable[..., dict[str, Any]]


def test_the_conditions_bring_what_the_teachers_guidance_needs(prepared: Prepared, matching: Matching) -> None:
    for guided, teacher, negative in ((True, 1.0, False), (True, 4.0, True), (False, 4.0, False)):
        model = {"name": "net", "train": "full", "guided": guided}
        experience = collect_rollouts(prepared({"model": model, **matching(teacher=teacher)}), 0, Timer(CPU)).experience
        assert (experience.conditions.negative is not None) == negative
        assert experience.plan.guidance == 1.0


def test_the_teachers_guidance_does_not_change_what_is_drawn(prepared: Prepared, matching: Matching) -> None:
    model = {"name": "net", "train": "full", "guided": True}
    drawn = [
        collect_rollouts(prepared({"model": model, **matching(teacher=scale)}), 0, Timer(CPU)).experience.latents
        for scale in (1.0, 4.0)
    ]
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-5)


def test_an_algorithm_that_draws_with_its_own_average_is_heard(prepared: Prepared, matching: Matching) -> None:
    run = prepared({"model": FULL, **matching()})
    start = collect_rollouts(run, 1, Timer(CPU)).experience
    nudge(run)
    assert torch.equal(collect_rollouts(run, 1, Timer(CPU)).experience.latents, start.latents)  # the average has not moved yet
    run.policy.iteration_finished(0)
    assert not torch.allclose(collect_rollouts(run, 1, Timer(CPU)).experience.latents, start.latents, atol=1e-3)


def test_the_same_weights_however_many_samples_and_times_share_a_forward(
    trained: Trained, prepared: Prepared, matching: Matching
) -> None:
    def finish(batch_size: int, timesteps_per_forward: int) -> dict[str, Tensor]:
        training = {"batch_size": batch_size, "timesteps_per_forward": timesteps_per_forward, "epochs": 2}
        changes = {"model": FULL, **matching(timesteps={"name": "logit-normal", "count": 3}), "training": training}
        return weights(trained(changes, out=f"{batch_size} {timesteps_per_forward}"))

    first, start = finish(4, 1), prepared({"model": FULL}).policy.modules["transformer"].state_dict()
    for other in (finish(3, 2), finish(16, 3)):
        for name, weight in first.items():
            torch.testing.assert_close(weight, other[name], rtol=0, atol=2e-5)
            assert (weight - start[name]).abs().max() > 1e-2


def test_the_experience_says_what_fits_a_forward_and_which_schedule_drew(prepared: Prepared) -> None:
    experience = collect_rollouts(
        prepared({"training": {"batch_size": 3, "timesteps_per_forward": 2}}), 0, Timer(CPU)
    ).experience
    assert (experience.batch_size, experience.timesteps_per_forward, experience.epoch) == (3, 2, 0)
    assert experience.sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("updates", [2, 7])
def test_every_share_knows_its_epoch(prepared: Prepared, updates: int) -> None:
    pool = collect_rollouts(prepared(), 0, Timer(CPU))
    for rows in split_updates(pool.experience.groups, updates, 7, 0, 3):
        assert [piece.epoch for piece, _ in pool.micro_batches([rows], 1, epoch=3)] == [3]


def test_samples_that_rest_on_the_host_teach_the_same(trained: Trained) -> None:
    device = trained({}, out="device")
    host = trained({"sampling": {"keep_on": "host"}}, out="host")
    before, after = weights(device), weights(host)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.gpu
def test_samples_leave_the_accelerator_until_they_are_learned_from(prepared: Prepared, trained: Trained) -> None:
    changes = {"model": {"name": "net", "train": "full"}, "device": "cuda", "sampling": {"keep_on": "host"}}
    experience = collect_rollouts(prepared(changes), 0, Timer(torch.device("cuda"))).experience
    assert {experience.latents.device.type, *(step.latents.device.type for step in experience.steps)} == {"cpu"}
    assert {batch.latents.device.type for batch in experience.micro_batches()} == {"cuda"}
    assert trained(changes).records()[-1]["iteration"] == 3


def test_latents_kept_as_bf16_are_halved_and_still_replay(prepared: Prepared) -> None:
    run = prepared({"sampling": {"keep_as": "bf16"}})
    experience = collect_rollouts(run, 0, Timer(torch.device("cpu"))).experience
    assert {step.latents.dtype for step in experience.steps} == {torch.bfloat16}
    assert experience.latents.dtype == torch.bfloat16
    said = list(preflight(Rollouts(experience), run.policy, run.assembly.hooks, run.config))
    assert "a ratio of 1 within" in said[2]


@pytest.mark.parametrize(("batch_size", "calls"), [(1, 4), (4, 4), (8, 2), (11, 2), (16, 1)])
def test_rewards_judge_whole_groups_as_they_are_drawn(batch_size: int, calls: int, prepared: Prepared) -> None:
    whole = collect_rollouts(prepared({"sampling": {"batch_size": 16}}), 0, Timer(torch.device("cpu"))).experience
    run = prepared({"sampling": {"batch_size": batch_size}})
    seen: list[Samples] = []
    start = run.assembly.rewards.start_each

    def watched(questions: Any) -> Any:
        seen.extend(samples for _, samples in questions)
        return start(questions)

    run.assembly.rewards.start_each = watched  # type: ignore[method-assign]
    experience = collect_rollouts(run, 0, Timer(torch.device("cpu"))).experience
    assert len(seen) == calls
    assert all(len(samples.groups) % 4 == 0 for samples in seen)
    assert [source.text for samples in seen for source in samples.sources] == [p for samples in seen for p in samples.prompts]
    torch.testing.assert_close(experience.rewards["bright"], whole.rewards["bright"])
    torch.testing.assert_close(experience.latents, whole.latents)
    assert experience.groups.tolist() == whole.groups.tolist()


def test_a_prompt_may_bring_its_own_negative(tmp_path: Path, load: Callable[..., RunConfig]) -> None:
    config = load({"model": {"name": "net", "guided": True}, "sampling": {"guidance": 2.0}, "prompts": {"negative": "no"}})
    config.prompts.train.with_suffix(".jsonl").write_text(
        '{"prompt": "a", "negative_prompt": "not this"}\n{"prompt": "a"}\n{"prompt": "a", "negative_prompt": ""}\n'
    )
    changed = config.prompts.model_copy(update={"train": config.prompts.train.with_suffix(".jsonl")})
    run = prepare_run(config.model_copy(update={"prompts": changed}))
    conditions = run.sampler.conditions(run.train, 2.0, config.sampling.canvas)
    assert conditions.negative is not None
    lengths = [round(10 * float(entry["length"])) for entry in conditions.negative.entries]
    assert lengths == [len("not this"), len("no"), 0]
    assert run.sampler.conditions(run.train, 1.0, config.sampling.canvas).negative is None


def test_what_only_the_opened_model_knows_is_checked_before_anything_is_encoded(
    load: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id's configs are on this machine only once it has been opened."""
    config = load()

    def late(self: Any, run: RunConfig) -> None:
        raise ValueError("sampling.size [4, 4]: this model draws multiples of 8")

    monkeypatch.setattr(type(config.model), "check", late)
    with pytest.raises(UserError, match=r"^model: sampling\.size \[4, 4\]: this model draws multiples of 8$"):
        prepare_run(config)


@pytest.mark.parametrize(("matters", "calls"), [(False, 1), (True, 2)])
def test_encoders_are_loaded_once_for_training_and_held_out_prompts(
    load: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, matters: bool, calls: int
) -> None:
    """Once a canvas, where what is encoded depends on it."""
    asked: list[int] = []
    real_encode, real_load = Hooks.encode, Hooks.load

    def encode(self: Hooks, prompts: Any, canvas: Any) -> Any:
        asked.append(len(prompts))
        return real_encode(self, prompts, canvas)

    monkeypatch.setattr(Hooks, "encode", encode)
    monkeypatch.setattr(Hooks, "load", lambda self, runtime: replace(real_load(self, runtime), canvas_matters=matters))
    prepare_run(load({"evaluation": {"size": [8, 8]}}))
    assert sum(asked) == 7
    assert len(asked) == calls


@pytest.mark.parametrize(("keep", "kept"), [(0, 0), (1, 1), (3, 3), (None, 4)])
def test_an_evaluation_keeps_no_more_media_than_it_is_asked_to(prepared: Prepared, keep: int | None, kept: int) -> None:
    run = prepared({"evaluation": {"members": 2, "batch_size": 2}})
    whole = evaluate(run.sampler, run.assembly, run.config, run.heldout)
    result = evaluate(run.sampler, run.assembly, run.config, run.heldout, keep=keep)
    assert torch.equal(result.media, whole.media[:kept])
    assert torch.equal(result.scores["bright"], whole.scores["bright"])
    assert len(result.scores["bright"]) == 4
