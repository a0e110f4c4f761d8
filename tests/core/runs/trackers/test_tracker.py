"""What all trackers do, whatever they pass things on to."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flowfactory import EvaluatedSample, RunInfo, UserError, hookimpl
from flowfactory.config.schema import RunConfig
from flowfactory.errors import Interrupted
from flowfactory.runs.facts import add_facts, read_facts
from flowfactory.runs.trackers.csv_files import CsvFiles
from flowfactory.runs.trackers.identity import identify, recall
from flowfactory.runs.trackers.samples import caption, flatten, to_gif
from flowfactory.runs.trackers.tracker import Tracker
from flowfactory.runs.train import train
from flowfactory.training.assembly import Assembly

NAMES = ["csv", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
Load = Callable[..., RunConfig]


class Shaky:
    """A service that is away from the call ``down`` to the call before ``up``."""

    def __init__(self, down: int = 10**9, up: int = 10**9) -> None:
        self.down, self.up, self.calls = down, up, 0
        self.heard: list[Any] = []

    def _reach(self, what: Any) -> None:
        self.calls += 1
        if self.down <= self.calls < self.up:
            raise ConnectionError("no route\nto host")
        self.heard.append(what)

    def check(self) -> None:
        self._reach("check")

    def start(self, run: RunInfo) -> None:
        self._reach("start")

    def log(self, iteration: int, metrics: Mapping[str, float], samples: Sequence[EvaluatedSample]) -> None:
        self._reach((iteration, len(samples)))

    def end(self, how: str) -> None:
        self._reach(how)


def drive(service: Shaky, info: RunInfo, iterations: int = 6, seconds: float = 50.0) -> list[str]:
    """What is warned of where an iteration takes ``seconds``."""
    said, now = list[str](), [0.0]
    tracker = Tracker("tracker 0", service, clock=lambda: now[0])
    tracker.run_started(RunInfo(info.directory, info.config, iterations, said.append))
    for number in range(iterations):
        tracker.iteration_finished(number, {"loss": 1.0})
        now[0] += seconds
    tracker.run_finished()
    return said


def test_what_goes_wrong_is_told_once_and_tried_again_less_and_less_often(info: RunInfo) -> None:
    service = Shaky(down=1, up=4)
    (told,) = drive(service, info, iterations=30)
    assert told.startswith("warning: tracker 0: ConnectionError: no route")
    assert told.endswith("; training goes on, and it is tried again at times; what it misses is in metrics.jsonl")
    # at 0 s; at 60 s or later, which is iteration 2; 120 s later, iteration 5; 240 s later, iteration 10
    assert service.heard[:3] == ["start", (10, 0), (11, 0)]
    assert service.heard[-1] == "finished"


def test_one_that_is_lost_while_it_ends_is_a_warning(info: RunInfo) -> None:
    service = Shaky(down=8)
    (told,) = drive(service, info)
    assert told.endswith("what it had not passed on yet is in metrics.jsonl")
    assert service.heard == ["start", *((n, 0) for n in range(6))]


@pytest.mark.parametrize(("error", "how"), [(Interrupted("x"), "stopped"), (KeyError("x"), "failed"), (None, "finished")])
def test_it_is_closed_once_however_the_run_ends(info: RunInfo, error: BaseException | None, how: str) -> None:
    service = Shaky()
    tracker = Tracker("tracker 0", service)
    tracker.run_failed(KeyError("before it was opened"))
    assert service.heard == []
    tracker.run_started(info)
    for _ in range(2):
        tracker.run_failed(error) if error else tracker.run_finished()
    assert service.heard == ["start", how]


@pytest.mark.parametrize("media", [True, False])
def test_samples_go_with_the_figures_of_their_iteration_where_they_are_wanted(
    info: RunInfo, samples: list[EvaluatedSample], media: bool
) -> None:
    service = Shaky()
    tracker = Tracker("tracker 0", service, media)
    tracker.run_started(info)
    tracker.evaluation_finished(samples)
    tracker.iteration_finished(0, {})
    tracker.iteration_finished(1, {"loss": 1.0})
    assert service.heard == ["start", *([(0, 2)] if media else []), (1, 0)]


def test_nothing_is_sent_where_there_is_nothing(info: RunInfo) -> None:
    service = Shaky()
    tracker = Tracker("tracker 0", service)
    tracker.run_started(info)
    tracker.iteration_finished(0, {})
    assert service.heard == ["start"]


def test_a_run_whose_tracker_fails_trains_to_its_end(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: CsvFiles, run: RunInfo) -> None:
        (run.directory / "csv").write_text("in its way")
        (run.directory / "csv").mkdir()

    monkeypatch.setattr(CsvFiles, "start", refuse)
    said: list[str] = []
    directory = train(load({"output": {"trackers": ["csv"]}}), say=said.append)
    assert [record["iteration"] for record in directory.records()] == [0, 1, 2, 3]
    (told,) = [line for line in said if line.startswith("warning: tracker 0 (")]
    assert "FileExistsError" in told


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["api_key", "token", "WANDB_API_KEY", "password"])
def test_a_secret_is_no_option(load: Load, name: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"output\.trackers\.0.*{key} is no option: a config is saved with the run"):
        load({"output": {"trackers": [{"name": name, key: "secret"}]}})


def test_a_password_in_an_address_is_refused(load: Load) -> None:
    with pytest.raises(UserError, match=r"has a password in it.*MLFLOW_TRACKING_PASSWORD"):
        load({"output": {"trackers": [{"name": "mlflow", "uri": "https://me:secret@example.org"}]}})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "csv"])
def test_without_its_library_a_run_is_refused_before_it_starts(
    name: str,
    config_file: Callable[..., Path],
    invoke: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    arguments = ("run", config_file({"output": {"trackers": [name]}}), "--out", tmp_path / "run")
    for more in (["--dry-run"], []):
        code, out, err = invoke(*arguments, *more)
        assert (code, out) == (2, "")
        assert err.endswith(f"output.trackers.0: tracker '{name}' needs {name}: pip install 'flowfactory[{name}]'\n")
    assert not (tmp_path / "run").exists()


def test_what_a_service_refuses_is_told_before_weights_are_read(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: CsvFiles) -> None:
        raise UserError("tracker 'csv' is refused; log in")

    monkeypatch.setattr(CsvFiles, "check", refuse)
    phases: list[str] = []

    class Watch:
        @hookimpl
        def phase_progressed(self, phase: str) -> None:
            phases.append(phase)

    with pytest.raises(UserError, match=r"^tracker 'csv' is refused; log in$"):
        train(load({"output": {"trackers": ["csv"]}}), observers=[Watch()], say=lambda _: None)
    assert phases == []


def test_trackers_are_built_on_the_leading_rank_alone(load: Load) -> None:
    config = load({"output": {"trackers": ["csv"]}})
    told = [len(Assembly(config, trackers=leads).hooks._hook.run_started.get_hookimpls()) for leads in (True, False)]
    assert told[0] == told[1] + 1


def test_what_a_service_calls_a_run_is_kept_with_it_and_read_with_care(info: RunInfo) -> None:
    first = identify(info, "wandb:/p", "x-")
    assert first.startswith("x-")
    assert identify(info, "wandb:/p") == first
    assert identify(info, "wandb:/q") != first
    facts = info.directory / "run.json"
    assert read_facts(facts)["trackers"]["wandb:/p"] == first
    for wrong in ({"wandb:/p": "../../x y"}, {"wandb:/p": 3}, ["wandb:/p"]):
        add_facts(facts, {"trackers": wrong})
        assert recall(info, "wandb:/p") is None


def test_a_caption_is_the_prompt_and_its_scores(samples: list[EvaluatedSample]) -> None:
    assert [caption(sample) for sample in samples] == ["a red fox  ocr 0.5000", "ein Füchslein, das läuft"]


def test_a_video_becomes_a_gif_of_its_frames_and_its_length(samples: list[EvaluatedSample], tmp_path: Path) -> None:
    with Image.open(io.BytesIO(to_gif(samples[1].path))) as gif:
        assert (gif.size, gif.n_frames, gif.info["duration"]) == ((24, 16), 12, 160)  # hundredths of a second are its unit


def test_a_nested_config_is_one_level() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [1]}) == {"a.b.c": 1, "a.d": {}, "e": [1]}
