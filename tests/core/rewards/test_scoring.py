from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowfactory import Prompt, hookimpl
from flowfactory.config.component import ComponentConfig
from flowfactory.config.component_slots import parse_component
from flowfactory.config.schema import RunConfig
from flowfactory.data.prompts import check_reward_labels
from flowfactory.errors import RunError, UserError
from flowfactory.rewards.scoring import Rewards, merge_scores
from flowfactory.rewards.shared_models import load_shared
from flowfactory.training.assembly import Assembly
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.prompts import prepare_prompts
from flowfactory.types import Samples

Load = Callable[..., RunConfig]
Prepared = Callable[..., Any]
SAMPLES = Samples(torch.rand(3, 1, 2, 2), ("a", "a", "b"), torch.tensor([0, 0, 1]), ({}, {}, {}))
CPU = torch.device("cpu")


class Given(ComponentConfig):
    """Builds what it is told to."""

    make: Any
    concurrent: bool | None = None
    timeout: float | None = None

    def build(self, label: str) -> object:
        return self.make(label)


class Answers:
    """A reward that answers what it was given."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        self.answer = answer

    @hookimpl
    def compute_reward(self, samples: Samples) -> Mapping[str, Any]:
        return self.answer


def answering(**answers: Any) -> Rewards:
    """Rewards of which each answers its value under its label."""
    return Rewards({label: Given(make=lambda name, value=value: Answers({name: value})) for label, value in answers.items()})


def test_a_reward_without_its_hook_is_found_out() -> None:
    with pytest.raises(UserError, match=r"^glow: object does not implement compute_reward; write the method"):
        Rewards({"glow": Given(make=lambda _: object())})


def test_two_of_one_reward_answer_under_two_labels(load: Load) -> None:
    made = Assembly(load({"rewards": {"once": "bright", "twice": {"name": "bright", "scale": 2}, "bright": None}}))
    scores = made.rewards(SAMPLES)
    assert list(scores) == ["once", "twice"]
    torch.testing.assert_close(scores["once"], SAMPLES.media.mean((1, 2, 3)))
    torch.testing.assert_close(scores["twice"], 2 * scores["once"])


def test_scores_come_in_the_order_of_the_config_in_their_dtype_without_a_graph() -> None:
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    scores = answering(b=torch.tensor([1, 2, 2**53]), a=2 * weight, c=torch.zeros(3))(SAMPLES)
    assert list(scores) == ["b", "a", "c"]
    assert [score.dtype for score in scores.values()] == [torch.float64, torch.float64, torch.float32]
    assert not scores["a"].requires_grad
    assert scores["b"].tolist() == [1.0, 2.0, 2.0**53]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_no_digit_of_a_score_is_lost_on_its_way(dtype: torch.dtype, workers: int, tmp_path: Path) -> None:
    given = [-1e39, 1e6 + 1e-6, 0.1] if dtype == torch.float64 else [-1e38, 1e6, 0.1]
    file = tmp_path / "exact.py"
    file.write_text(
        "import torch\nfrom flowfactory import ComponentConfig, hookimpl\n\n\n"
        "class ExactConfig(ComponentConfig):\n    def build(self, label):\n        return Exact(label)\n\n\n"
        "class Exact:\n    def __init__(self, label):\n        self.label = label\n\n    @hookimpl\n"
        f"    def compute_reward(self, samples):\n        return {{self.label: torch.tensor({given}, dtype={dtype})}}\n\n\n"
        '@hookimpl\ndef register_components(register):\n    register("reward", "exact", ExactConfig)\n'
    )
    config = parse_component("reward", {"name": "exact", "workers": workers}, [file])
    scores = Rewards({"exact": config}, [file])(SAMPLES)["exact"]
    assert scores.dtype == dtype
    assert torch.equal(scores, torch.tensor(given, dtype=dtype))


def test_pieces_without_a_score_do_not_decide_how_finely_the_others_are_rounded() -> None:
    nowhere = torch.full((2,), torch.nan)
    half = torch.tensor([0.5, 0.25], dtype=torch.bfloat16)
    pieces = [([2, 3], {"a": nowhere, "b": half.double()}), ([0, 1], {"a": half}), ([1, 0], {"b": nowhere})]
    found = merge_scores(["b", "a"], 4, pieces)
    assert list(found) == ["b", "a"], "in the order of the config"
    assert found["a"].dtype == torch.bfloat16
    assert found["b"].dtype == torch.float64
    assert found["a"][:2].tolist() == [0.5, 0.25]
    assert bool(found["a"][2:].isnan().all())
    assert merge_scores(["a"], 4, [([0, 1], {"a": nowhere}), ([2, 3], {"a": nowhere})])["a"].dtype == torch.float32


def test_one_component_may_answer_for_no_other() -> None:
    with pytest.raises(RunError, match=r"^reward 'a': answered under 'other'; each answers once, under the label it was built"):
        Rewards({"a": Given(make=lambda _: Answers({"other": torch.zeros(3)}))})(SAMPLES)


def test_a_label_is_answered_once() -> None:
    configs = {label: Given(make=lambda _: Answers({"a": torch.zeros(3)})) for label in ("a", "b")}
    with pytest.raises(RunError, match=r"^reward 'b': answered under 'a'; each answers once"):
        Rewards(configs)(SAMPLES)


def test_a_label_without_scores_is_named() -> None:
    configs = {"a": Given(make=lambda _: Answers({"a": torch.zeros(3)})), "b": Given(make=lambda _: Answers({}))}
    with pytest.raises(RunError, match=r"^reward 'b': gave no scores$"):
        Rewards(configs)(SAMPLES)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (torch.zeros(2), r"\[2\]"),
        (torch.zeros(3, 1), r"\[3, 1\]"),
        (torch.tensor(1.0), r"\[\]"),
        (0.5, "float"),
    ],
)
def test_scores_of_another_shape_are_refused(value: Any, told: str) -> None:
    with pytest.raises(RunError, match=rf"^reward 'glow': gave {told}; expected a tensor \[3\], one score a sample$"):
        answering(glow=value)(SAMPLES)


@pytest.mark.parametrize("kind", [list, tuple, np.asarray])
def test_scores_that_are_no_tensor_are_refused_with_how_to_make_one(kind: Callable[[list[float]], Any]) -> None:
    value = kind([1.0, 2.0, 3.0])
    told = rf"gave {type(value).__name__}; expected a tensor \[3\], one score a sample; return torch.as_tensor"
    with pytest.raises(RunError, match=rf"^reward 'glow': {told}\(\.\.\.\) of them$"):
        answering(glow=value)(SAMPLES)
    assert answering(glow=torch.as_tensor(value))(SAMPLES)["glow"].tolist() == [1.0, 2.0, 3.0]


def test_complex_scores_are_refused() -> None:
    with pytest.raises(RunError, match=r"^reward 'glow': gave complex scores, which have no order; return their"):
        answering(glow=torch.tensor([1 + 2j, 3, 0]))(SAMPLES)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_score_that_is_not_finite_is_an_error_and_no_zero(value: str) -> None:
    score = torch.tensor([0.0, float(value), 1.0])
    with pytest.raises(RunError, match=rf"^reward 'glow': gave {value} for sample 1; scores must be finite$"):
        answering(glow=score)(SAMPLES)


def test_futures_are_waited_for() -> None:
    with ThreadPoolExecutor(2) as pool:
        scores = answering(a=pool.submit(torch.ones, 3), b=torch.zeros(3), c=pool.submit(torch.zeros, 3))(SAMPLES)
    assert {label: score.tolist() for label, score in scores.items()} == {"a": [1.0] * 3, "b": [0.0] * 3, "c": [0.0] * 3}


def test_a_future_is_checked_as_a_score_is() -> None:
    future: Future[Tensor] = Future()
    future.set_result(torch.tensor([0.0, 0.0, float("nan")]))
    with pytest.raises(RunError, match=r"^reward 'glow': gave nan for sample 2"):
        answering(glow=future)(SAMPLES)


def raising(error: BaseException) -> Given:
    class Raises:
        @hookimpl
        def compute_reward(self, samples: Samples) -> Mapping[str, Tensor]:
            raise error

    return Given(make=lambda _: Raises())


def test_what_a_reward_raises_is_an_error_of_the_run_that_names_it_and_its_line() -> None:
    with pytest.raises(RunError, match=r"^reward 'glow': ZeroDivisionError: no light \(test_scoring\.py line \d+\)$"):
        Rewards({"glow": raising(ZeroDivisionError("no light"))})(SAMPLES)
    with pytest.raises(RunError, match=r"^reward 'glow': the server is away$"):
        Rewards({"glow": raising(RunError("the server is away"))})(SAMPLES)
    with pytest.raises(UserError, match=r"^reward 'glow': wants a text$"):
        Rewards({"glow": raising(UserError("wants a text"))})(SAMPLES)


def test_a_future_that_fails_is_named_too() -> None:
    future: Future[Tensor] = Future()
    future.set_exception(TimeoutError("the server is away"))
    with pytest.raises(RunError, match=r"^reward 'glow': TimeoutError: the server is away"):
        answering(glow=future)(SAMPLES)


@pytest.mark.parametrize("concurrent", [True, None])
def test_a_reward_that_never_answers_is_given_up_after_its_timeout(concurrent: bool | None) -> None:
    over = threading.Event()

    class Waits:
        @hookimpl
        def compute_reward(self, samples: Samples) -> Mapping[str, Tensor]:
            over.wait(60)
            return {"glow": torch.zeros(3)}

    rewards = Rewards({"glow": Given(make=lambda _: Waits(), concurrent=concurrent, timeout=0.2)})
    told = r"^reward 'glow': no scores within 0\.2 seconds; raise its timeout, or look at what"
    if concurrent:
        scoring = rewards.start(SAMPLES)  # goes on beside
        with pytest.raises(RunError, match=told):
            scoring.result()
    else:
        with pytest.raises(RunError, match=told):
            rewards.start(SAMPLES)
    over.set()


def test_a_future_that_never_comes_is_given_up_too() -> None:
    config = Given(make=lambda label: Answers({label: Future()}), timeout=0.1)
    with pytest.raises(RunError, match=r"^reward 'glow': no scores within 0\.1 seconds"):
        Rewards({"glow": config})(SAMPLES)


def test_a_concurrent_reward_goes_on_while_the_run_does() -> None:
    go = threading.Event()

    class Waits:
        concurrent = True

        @hookimpl
        def compute_reward(self, samples: Samples) -> Mapping[str, Tensor]:
            assert go.wait(60)
            assert not torch.is_grad_enabled()  # which is a matter of each thread
            return {"slow": samples.media.flatten(1).sum(1)}

    rewards = Rewards({"slow": Given(make=lambda _: Waits())})
    scoring = [rewards.start(SAMPLES), rewards.start(SAMPLES.rows([2]))]  # returns, though nothing can be done yet
    go.set()
    assert torch.equal(scoring[0].result()["slow"], SAMPLES.media.flatten(1).sum(1))
    assert torch.equal(scoring[1].result()["slow"], SAMPLES.media[2:].flatten(1).sum(1))
    assert not Rewards({"slow": Given(make=lambda _: Waits(), concurrent=False)})._executors[0].runs_concurrently


def test_a_concurrent_reward_begins_before_those_that_hold_the_run_up() -> None:
    begun, seen = threading.Event(), []

    class Aside:
        @hookimpl
        def compute_reward(self, samples: Samples) -> Mapping[str, Tensor]:
            begun.set()
            return {"aside": torch.zeros(3)}

    class Here:
        @hookimpl
        def compute_reward(self, samples: Samples) -> Mapping[str, Tensor]:
            seen.append(begun.wait(60))
            return {"here": torch.ones(3)}

    scores = Rewards({"here": Given(make=lambda _: Here()), "aside": Given(make=lambda _: Aside(), concurrent=True)})(SAMPLES)
    assert seen == [True]
    assert list(scores) == ["here", "aside"]


def test_samples_go_on_being_drawn_while_a_concurrent_reward_is_computed(prepared: Prepared) -> None:
    run = prepared({"sampling": {"batch_size": 4}})
    drawn = threading.Semaphore(0)
    waited: list[bool] = []

    class Waits:
        concurrent = True

        @hookimpl
        def compute_reward(self, samples: Samples) -> Mapping[str, Tensor]:
            # the scores of the first three pieces are not ready before the fourth is drawn
            waited.append(len(waited) > 0 or all(drawn.acquire(timeout=60) for _ in range(4)))
            return {"bright": samples.media.flatten(1).mean(1)}

    hook, sample = run.assembly.hooks, run.assembly.hooks.sample

    def counted(*arguments: Any) -> Any:
        drawn.release()
        return sample(*arguments)

    hook.sample = counted
    expected = collect_rollouts(prepared({"sampling": {"batch_size": 4}}), 0, Timer(CPU)).experience.rewards
    run.assembly.rewards = Rewards({"bright": Given(make=lambda _: Waits())})
    rewards = collect_rollouts(run, 0, Timer(CPU)).experience.rewards
    assert waited == [True] * 4
    torch.testing.assert_close(rewards, expected)


def test_a_reward_is_prepared_once_on_the_device_of_the_run_before_it_is_asked() -> None:
    calls: list[object] = []

    class Prepares:
        @hookimpl
        def prepare_reward(self, device: torch.device) -> None:
            calls.append(device)

        @hookimpl
        def compute_reward(self, samples: Samples) -> Mapping[str, Tensor]:
            calls.append("asked")
            return {"a": torch.zeros(len(samples.prompts))}

    rewards = Rewards({"a": Given(make=lambda _: Prepares())})
    rewards.prepare(CPU)
    rewards.prepare(CPU)
    rewards(SAMPLES)
    assert calls == [CPU, "asked"]
    Rewards({"a": Given(make=lambda _: Prepares())})(SAMPLES)
    assert calls == [CPU, "asked", CPU, "asked"]


def test_weights_that_cannot_be_read_end_a_run_before_anything_is_drawn(trained: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^reward 'glow': no weights here$"):
        trained({"rewards": {"glow": {"name": "bright", "refuses": "no weights here"}}})


def test_a_reward_is_asked_only_about_the_prompts_that_it_applies_to() -> None:
    seen: list[Sequence[str]] = []

    class Sees:
        @hookimpl
        def compute_reward(self, samples: Samples) -> Mapping[str, Tensor]:
            seen.append(samples.prompts)
            return {"text": samples.media.flatten(1).mean(1)}

    metadata = ({"rewards": ["other"]}, {"rewards": ["other"]}, {"rewards": ["text", "other"]})
    samples = Samples(SAMPLES.media, SAMPLES.prompts, SAMPLES.groups, metadata)
    rewards = Rewards({"text": Given(make=lambda _: Sees()), "other": Given(make=lambda _: Answers({"other": torch.ones(3)}))})
    scores = rewards(samples)
    assert seen == [("b",)]
    assert scores["text"].isnan().tolist() == [True, True, False]
    assert float(scores["text"][2]) == pytest.approx(float(SAMPLES.media[2].mean()), rel=1e-6)
    assert scores["other"].tolist() == [1.0, 1.0, 1.0]
    nowhere = Samples(SAMPLES.media, SAMPLES.prompts, SAMPLES.groups, ({"rewards": ["other"]},) * 3)
    assert rewards(nowhere)["text"].isnan().all()
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (["brihgt"], r"'rewards' names 'brihgt', which is no label of the config; did you mean 'bright'\?$"),
        ([], r"'rewards' is \[\]; write a list of the labels that apply, or leave it out for all$"),
        ("bright", r"'rewards' is 'bright'; write a list of the labels"),
    ],
)
def test_a_prompt_may_name_labels_of_the_config_alone(told: object, message: str) -> None:
    with pytest.raises(UserError, match=r"^prompts: 'a cat': " + message):
        check_reward_labels([Prompt("a dog"), Prompt("a cat", metadata={"rewards": told})], ["bright", "legible"])


def test_a_training_prompt_names_a_label_that_is_learned_from(load: Load, tmp_path: Path) -> None:
    rewards = {"bright": {"name": "bright"}, "watched": {"name": "bright", "weight": 0}}
    lines = '{"prompt": "a", "rewards": ["watched", "bright"]}\n{"prompt": "b"}\n'
    for labels, refused in (('["watched"]', True), ('["seen"]', True), ('["watched", "seen"]', True), ('["bright"]', False)):
        (tmp_path / "some.jsonl").write_text(f'{lines}{{"prompt": "a dog", "rewards": {labels}}}\n')
        changes = {"rewards": rewards, "evaluation": {"rewards": {"seen": {"name": "bright"}}}}
        prepare_prompts(load({**changes, "prompts": {"heldout": str(tmp_path / "some.jsonl")}}))
        config = load({**changes, "prompts": {"train": str(tmp_path / "some.jsonl")}})
        if not refused:
            prepare_prompts(config)
            continue
        with pytest.raises(
            UserError, match=r"^prompts: 'a dog': 'rewards' names .* alone, which nothing is learned from; add "
        ):
            prepare_prompts(config)


def test_such_prompts_are_found_before_any_weight_is_read(load: Load, tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text('{"prompt": "a", "rewards": ["brigth"]}\n')
    with pytest.raises(UserError, match="did you mean 'bright'"):
        prepare_prompts(load({"prompts": {"train": str(tmp_path / "some.jsonl")}}))


def workers(count: int, *, plugins: Sequence[Path], **options: Any) -> Rewards:
    config = parse_component("reward", {"name": "bright", "workers": count, **options}, plugins)
    return Rewards({"glow": config}, plugins)


TOY = Path(__file__).parents[1] / "toy_plugin.py"
MANY = Samples(torch.rand(6, 1, 4, 4), ("a", "a", "b", "b", "c", "c"), torch.tensor([0, 0, 1, 1, 2, 2]), ({},) * 6)


def test_a_reward_that_is_concurrent_by_itself_computes_in_workers_too(tmp_path: Path) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text(
        "from flowfactory import ComponentConfig, hookimpl\n"
        "class SlowConfig(ComponentConfig):\n"
        "    def build(self, label):\n"
        "        return Slow(label)\n"
        "class Slow:\n"
        "    concurrent = True\n"
        "    def __init__(self, label):\n"
        "        self.label = label\n"
        "    @hookimpl\n"
        "    def compute_reward(self, samples):\n"
        "        return {self.label: samples.media.flatten(1).mean(1)}\n"
        "@hookimpl\n"
        "def register_components(register):\n"
        "    register('reward', 'slow', SlowConfig)\n"
    )
    config = parse_component("reward", {"name": "slow", "workers": 1}, [plugin])
    torch.testing.assert_close(Rewards({"slow": config}, [plugin])(MANY)["slow"], MANY.media.flatten(1).mean(1))


def test_workers_score_as_the_run_itself_does_and_are_other_processes() -> None:
    rewards = workers(2, plugins=[TOY], scale=3.0)
    torch.testing.assert_close(rewards(MANY)["glow"], 3 * MANY.media.flatten(1).mean(1))
    identities = workers(2, plugins=[TOY], tells="pid")(MANY)["glow"].tolist()
    assert len(set(identities)) == 2
    assert os.getpid() not in identities
    assert [identities[i] == identities[i + 1] for i in (0, 2, 4)] == [True] * 3  # groups stay whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"raises": "boom"}, r"^reward 'glow': ValueError: boom \(toy_plugin\.py line \d+\)$"),
        ({"nan_from": 0}, r"^reward 'glow': gave nan for sample 0; scores must be finite$"),
        ({"refuses": "no weights"}, r"^reward 'glow': no weights$"),
        ({"dies": True}, r"^reward 'glow': one of its workers died; look for what killed it, most likely a lack of memory$"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_named(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises((RunError, UserError), match=message):
        workers(1, plugins=[TOY], **options)(MANY)


def test_what_asks_a_run_to_stop_leaves_its_workers_to_finish() -> None:
    rewards = workers(1, plugins=[TOY], tells="pid")
    pid = int(rewards(MANY)["glow"][0])
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(pid, asked)
    assert int(rewards(MANY)["glow"][0]) == pid


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "pass", "raise SystemExit(3)"])
def test_workers_end_with_the_process_that_started_them(end: str, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, sys, signal, torch\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "if __name__ == '__main__':\n"
        "    from test_scoring import MANY, TOY, workers\n"
        "    print(int(workers(1, plugins=[TOY], tells='pid')(MANY)['glow'][0]), flush=True)\n"
        f"    {end}\n"
    )
    done = subprocess.run([sys.executable, script, Path(__file__).parent], capture_output=True, text=True, timeout=120)
    pid = int(done.stdout)
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"worker {pid} is still there")


class Model:
    made = 0

    def __init__(self, path: str, dtype: torch.dtype) -> None:
        type(self).made += 1


def test_what_is_shared_is_made_once_and_let_go_with_its_last_holder() -> None:
    Model.made = 0
    first, second = load_shared(Model, "a", torch.float32), load_shared(Model, "a", torch.float32)
    assert first is second
    assert load_shared(Model, "a", torch.bfloat16) is not first
    assert Model.made == 2
    del first, second
    third = load_shared(Model, "a", torch.float32)
    assert Model.made == 3
    del third


def test_threads_that_share_at_once_make_one() -> None:
    Model.made = 0

    class Slow(Model):
        def __init__(self, path: str, dtype: torch.dtype) -> None:
            time.sleep(0.05)
            super().__init__(path, dtype)

    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda _: load_shared(Slow, "a", torch.float32), range(8)))
    assert len(set(map(id, held))) == 1
