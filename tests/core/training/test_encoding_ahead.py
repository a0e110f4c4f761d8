"""Prompts may be encoded as training comes to them: nothing but the time of encoding depends on it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import saved
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowfactory import hookimpl
from flowfactory.canvas import Canvas
from flowfactory.config.schema import PromptsConfig, RunConfig
from flowfactory.data.batches import prompts_of_iteration
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.errors import RunError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.train import train
from flowfactory.training.encoding_ahead import EncodingAhead
from flowfactory.types import Prompt

Load = Callable[..., RunConfig]
Figures = Callable[[RunDirectory], list[dict[str, Any]]]
COUNT, GROUPS, ITERATIONS = 40, 4, 6


class Watching:
    """Notes what the model is asked to encode, and what else happens, in order; draws from torch's own generator."""

    def __init__(self, fails_at: str = "") -> None:
        self.events: list[Any] = []
        self.fails_at = fails_at
        self.drawn: list[float] = []

    @hookimpl(wrapper=True)
    def encode(self, prompts: Sequence[Prompt]) -> Generator[None, Any, Any]:
        torch.rand(3)  # as where weights are made before they are read
        texts = [prompt.text for prompt in prompts]
        self.events.append(texts)
        if self.fails_at in texts and self.fails_at:
            raise RunError("no encoder")
        return (yield)

    @hookimpl
    def phase_progressed(self, phase: str, done: int, total: int) -> None:
        if phase in ("encoding", "drawing") and phase not in self.events[-1:]:
            self.events.append(phase)

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        self.events.append(iteration)
        self.drawn.append(float(torch.rand(())))

    @property
    def encoded(self) -> list[list[str]]:
        return [event for event in self.events if isinstance(event, list)]


class Runs:
    """Trains the toy on many prompts, each run with an empty cache."""

    def __init__(self, load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._load, self._folder, self._monkeypatch = load, folder, monkeypatch
        self.said: list[str] = []

    def config(self, ahead: Any, out: str, iterations: int = ITERATIONS) -> RunConfig:
        file = self._folder / "many.txt"
        file.write_text("".join(f"{'x' * number} {number}\n" for number in range(COUNT)))
        changes = {
            "prompts": {"train": str(file), "encode_ahead": ahead},
            "sampling": {"groups": GROUPS},
            "training": {"iterations": iterations},
            "output": {"checkpoint_every": 4},
        }
        return self._load(changes, out)

    def train(self, ahead: Any, out: str, resume: bool = False, watching: Watching | None = None, **options: Any) -> Any:
        self._monkeypatch.setenv("FLOWFACTORY_CACHE", str(self._folder / f"cache-{out}-{ahead}"))
        watching, self.said = watching or Watching(), []
        directory = train(self.config(ahead, out, **options), resume, [watching], self.said.append)
        return directory, watching


@pytest.fixture
def runs(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(load, tmp_path, monkeypatch)


def weights(directory: RunDirectory) -> dict[str, torch.Tensor]:
    return saved.tensors(directory.checkpoints / f"{ITERATIONS:06d}")


def test_nothing_but_the_time_of_encoding_depends_on_it(runs: Runs, figures: Figures) -> None:
    whole, watched = runs.train("all", "all")
    assert len(watched.encoded) == 1
    for ahead in (1, 9, 39, 40, "auto"):
        other, watching = runs.train(ahead, f"ahead-{ahead}")
        assert len(watching.encoded) == {1: 6, 9: 3}.get(ahead, 1)
        assert figures(other) == figures(whole)
        assert watching.drawn == watched.drawn
        expected, found = weights(whole), weights(other)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_prompts_of_the_next_iterations_are_encoded_together(runs: Runs) -> None:
    _, watching = runs.train(9, "run")
    prompts = [Prompt(f"{'x' * number} {number}".strip(), number) for number in range(COUNT)]
    drawn = [[prompt.text for prompt in prompts_of_iteration(prompts, n, GROUPS, 7)] for n in range(ITERATIONS)]
    first = {*drawn[0], *drawn[1], *(prompt.text for prompt in prompts[:4]), "black", "orange"}
    assert [set(texts) for texts in watching.encoded] == [
        first,
        {*drawn[2], *drawn[3]} - first,
        {*drawn[4], *drawn[5]} - first,
    ]
    order = [event if isinstance(event, int | str) else "encoder" for event in watching.events]
    assert order == [
        *("encoder", "encoding", "drawing", 0, 1, "drawing", 2),
        *("encoder", "encoding", "drawing", 3, "drawing", 4),
        *("encoder", "encoding", "drawing", 5, "drawing", 6),
    ]
    (line,) = [line for line in runs.said if "held-out prompts" in line]
    there = f"those of iterations 1 to 2 are there, {len(first)} encoded now"
    others = "the others follow as training comes to them, about 8 at a time"
    assert line == f"40 training and 2 held-out prompts; {there}; {others}"


def test_seconds_of_encoding_are_told_where_there_was_some(runs: Runs) -> None:
    directory, _ = runs.train(9, "run")
    assert [record["iteration"] for record in directory.records() if "seconds/encode" in record] == [3, 5]


def test_what_is_encoded_is_not_encoded_again(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.train("all", "run")
    (tmp_path / "cache-run-all").rename(tmp_path / "cache-other-1")
    _, watching = runs.train(1, "other")
    assert watching.encoded == []


@pytest.mark.parametrize(("done", "encodes"), [(3, 2), (4, 1)])
def test_a_run_that_is_resumed_within_a_stretch_goes_on_alike(
    done: int, encodes: int, runs: Runs, figures: Figures, tmp_path: Path
) -> None:
    runs.train("all", "whole", iterations=done)
    whole, _ = runs.train("all", "whole", resume=True)
    runs.train(9, "parts", iterations=done)
    (tmp_path / "cache-parts-9").rename(tmp_path / "elsewhere")
    parts, watching = runs.train(9, "parts", resume=True)
    assert len(watching.encoded) == encodes
    assert watching.events[0] == watching.encoded[0], "before anything else"
    assert figures(parts) == figures(whole)
    expected, found = weights(whole), weights(parts)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    finished, watching = runs.train(1, "parts", resume=True)
    assert figures(finished) == figures(whole)
    assert watching.encoded == [["black", "orange"]], "nothing is left to be drawn"


def test_what_was_trained_is_kept_where_encoding_fails(runs: Runs, tmp_path: Path, figures: Figures) -> None:
    drawn = EncodingAhead([Prompt(f"{'x' * n} {n}".strip(), n) for n in range(COUNT)], runs.config(1, "run")).upcoming(2)
    failing = Watching(drawn[0].text)
    with pytest.raises(RunError, match=r"no encoder.*the last checkpoint is .*000002$"):
        runs.train(1, "run", watching=failing)
    whole, _ = runs.train("all", "whole")
    resumed, _ = runs.train(1, "run", resume=True)
    assert figures(resumed) == figures(whole)


@pytest.mark.parametrize(
    ("ahead", "count", "groups", "expected"),
    [
        ("auto", 4096, 16, None),
        ("auto", 4097, 16, 128),
        ("auto", 200_000, 3000, 1),
        ("all", 200_000, 16, None),
        (100, 100, 16, None),
        (99, 100, 16, 6),
        (1, 100, 16, 1),
    ],
)
def test_iterations_whose_prompts_are_encoded_in_one_go(ahead: Any, count: int, groups: int, expected: int | None) -> None:
    config = PromptsConfig.model_validate({"train": __file__, "encode_ahead": ahead})
    assert config.iterations_at_once(count, groups) == expected


@given(st.integers(0, 30), st.integers(1, 60))
def test_every_prompt_that_is_drawn_is_encoded_before(start: int, ahead: int) -> None:
    prompts = [Prompt(str(number), number) for number in range(COUNT)]
    config: Any = RunConfig.model_construct(
        prompts=PromptsConfig.model_validate({"train": __file__, "encode_ahead": ahead}),
        sampling=type("Sampling", (), {"groups": GROUPS, "canvas": Canvas(8, 8)}),
        training=type("Training", (), {"iterations": 30, "regularise": None}),
        seed=3,
    )
    encoding = EncodingAhead(prompts, config)
    known = {prompt.index for prompt in encoding.at_start(start)}
    encoding.reach(start)
    for iteration in range(start, 30):
        if not encoding.has(iteration):
            stretch = encoding.upcoming(iteration)
            assert len(stretch) <= max(ahead, GROUPS)
            known |= {prompt.index for prompt in stretch}
            encoding.reach(iteration)
        assert {prompt.index for prompt in prompts_of_iteration(prompts, iteration, GROUPS, 3)} <= known


def test_encoders_that_do_not_fit_beside_the_weights_are_told_of(tmp_path: Path) -> None:
    def encode(prompts: Sequence[Prompt], canvas: Canvas) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    cache = EncodeCache(encode, "m", CacheFolder(tmp_path))
    with pytest.raises(RunError) as told:
        cache.prepare_all([([Prompt("a")], Canvas(8, 8))], in_training=True)
    assert str(told.value) == (
        "the encoders do not fit on the device beside what is there; set model.encoders_on to host, or prompts.encode_ahead to "
        "all, which encodes before the transformer is there; and continue with --resume"
    )


def test_what_was_encoded_for_former_iterations_may_go(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path)
    cache = EncodeCache(lambda prompts, _: [{"x": torch.zeros(1)} for _ in prompts], "m", folder)
    canvas = Canvas(8, 8)
    cache.prepare([Prompt("held out")], canvas)
    for text in ("a", "b", "c"):
        cache.prepare_all([([Prompt(text)], canvas)], in_training=True)
        needed = {key for need in folder.needs() for key in need.keys}
        assert needed == {cache.key(Prompt(each), canvas) for each in ("held out", text)}
    del cache, folder
    assert CacheFolder(tmp_path).needs() == []
