"""MLflow: what its own client reads back from a database on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flowfactory import EvaluatedSample, RunInfo, UserError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.facts import read_facts
from flowfactory.runs.trackers.mlflow import MLflowConfig

mlflow: Any = pytest.importorskip("mlflow")
pytest.importorskip("alembic")
pytestmark = pytest.mark.filterwarnings("ignore")
Tracked = Callable[..., tuple[RunDirectory, list[str]]]


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database in the folder of the test, where artifacts go too."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def run_of(uri: str, directory: RunDirectory) -> Any:
    return mlflow.MlflowClient(uri).get_run(read_facts(directory.facts)["trackers"]["mlflow:flowfactory"])


def test_figures_config_and_pictures_are_there_and_a_resumed_run_goes_on(tracked: Tracked, uri: str, tmp_path: Path) -> None:
    tracker = {"name": "mlflow", "uri": uri, "run_name": "mine"}
    directory, warned = tracked(tracker, how="stopped")
    assert not warned
    stopped = run_of(uri, directory)
    assert (stopped.info.status, stopped.info.run_name) == ("KILLED", "mine")
    assert (stopped.data.params["training.iterations"], stopped.data.params["algorithm.name"]) == ("2", "score")
    directory, warned = tracked(tracker, iterations=3, resume=True)
    assert not warned
    done, client = run_of(uri, directory), mlflow.MlflowClient(uri)
    assert (done.info.run_id, done.info.status) == (stopped.info.run_id, "FINISHED")
    last = directory.records()[-1]
    assert {name: done.data.metrics[name] for name in last if name != "iteration"} == pytest.approx(
        {name: value for name, value in last.items() if name != "iteration"}
    )
    assert {metric.step for metric in client.get_metric_history(done.info.run_id, "loss")} == {1, 2, 3}
    folder = "heldout/000003"
    assert [file.path for file in client.list_artifacts(done.info.run_id, folder)] == [
        f"{folder}/{name}" for name in ("000.png", "001.png", "samples.json")
    ]
    told = json.loads(Path(client.download_artifacts(done.info.run_id, f"{folder}/samples.json", str(tmp_path))).read_text())
    assert [one["prompt"] for one in told] == ["black", "orange"]


def test_names_that_it_would_refuse_are_told_in_letters_that_it_takes(
    info: RunInfo, samples: list[EvaluatedSample], uri: str
) -> None:
    service = MLflowConfig(uri=uri).service()
    service.check()
    service.start(info)
    service.log(1, {"reward/schön, ja?/mean": 0.5}, samples)
    service.end("failed")
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("flowfactory").experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"reward/sch_n_ ja_/mean": 0.5}


@pytest.mark.parametrize(("code", "refused"), [(401, True), (403, True), (400, False)])
def test_what_a_server_refuses_is_told(code: int, refused: bool, uri: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"no")

        def log_message(self, *told: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        service = MLflowConfig(uri=f"http://127.0.0.1:{server.server_port}").service()
        if refused:
            with pytest.raises(UserError, match=r"^tracker 'mlflow' is refused \(.*\); set MLFLOW_TRACKING_TOKEN"):
                service.check()
        else:
            service.check()  # no answer to who asks: the run has a warning, if it stays so
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_address_of_an_unknown_kind_is_told(uri: str) -> None:
    with pytest.raises(UserError, match="write the uri of a server or a database"):
        MLflowConfig(uri="ftp://example.org").service().check()
