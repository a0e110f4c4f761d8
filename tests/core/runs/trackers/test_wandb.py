"""Weights & Biases, offline: what the library itself wrote, and what a server's answer to a key comes to."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flowfactory import EvaluatedSample, RunInfo, UserError
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.trackers.wandb import WandbConfig

wandb: Any = pytest.importorskip("wandb")
pytestmark = pytest.mark.filterwarnings("ignore")
Tracked = Callable[..., tuple[RunDirectory, list[str]]]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No account of whoever runs the tests, and no network."""
    for name, value in {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


def records(file: Path) -> Iterator[Any]:
    """What ``wandb sync`` would send: a log of LevelDB's form, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, block, whole = file.read_bytes(), 2**15, b""
    assert content[:4] == b":W&B"
    place = 7
    while place < len(content):
        if block - place % block < 7:  # the rest of a block that no header fits
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole one, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


def parts(run: Path) -> list[list[Any]]:
    """The records of each part of the run: one, and one more each time that it was resumed."""
    return [list(records(file)) for file in sorted(run.glob("wandb/offline-run-*/*.wandb"))]


def history(part: list[Any]) -> list[dict[str, Any]]:
    rows = [record.history for record in part if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item} for row in rows]


def test_every_metric_and_every_held_out_picture_is_there(tracked: Tracked) -> None:
    directory, warned = tracked({"name": "wandb", "project": "p", "tags": ["a"], "group": "g"})
    assert not warned
    (part,) = parts(directory.path)
    rows = history(part)
    for row, record in zip(rows, directory.records(), strict=True):
        assert {name: row[name] for name in record} == pytest.approx(record)
        assert row["heldout/_type"] == "images/separated"
        assert row["heldout/captions"][0].startswith("black  bright 0.")
    begun = next(record.run for record in part if record.HasField("run"))
    assert (begun.project, begun.display_name, begun.run_group, list(begun.tags)) == ("p", "run", "g", ["a"])
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["training"]["iterations"] == 2
    assert next(record.exit.exit_code for record in part if record.HasField("exit")) == 0
    pictures = list(directory.path.glob("wandb/offline-run-*/files/media/images/**/*.png"))
    assert len(pictures) == 6


def test_a_resumed_run_is_the_same_run(tracked: Tracked) -> None:
    tracked({"name": "wandb"}, how="failed")
    directory, warned = tracked({"name": "wandb"}, resume=True)
    assert not warned
    first, second = parts(directory.path)
    ids = {next(record.run.run_id for record in part if record.HasField("run")) for part in (first, second)}
    assert ids == {json.loads(directory.facts.read_text())["trackers"]["wandb:/flowfactory"]}
    codes = [next(record.exit.exit_code for record in part if record.HasField("exit")) for part in (first, second)]
    assert codes == [1, 0]


def test_a_video_is_a_video(info: RunInfo, samples: list[EvaluatedSample]) -> None:
    service = WandbConfig(mode="offline").service()
    service.start(info)
    service.log(3, {"loss": 1.0}, samples[1:])
    service.end("finished")
    files = list(info.directory.glob("wandb/*/files/media/videos/**/*.mp4"))
    assert {file.read_bytes() for file in files} == {samples[1].path.read_bytes()}


@contextmanager
def answering(code: int, asked: list[str] | None = None) -> Iterator[str]:
    """The address of a server that answers every question with ``code``, and adds what it is ``asked`` for."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if asked is not None:
                asked.append(self.path)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b'{"errors": [{"message": "permission denied"}]}' if code == 401 else b"{}")

        def log_message(self, *told: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


OFFLINE = """
import sys
from pathlib import Path
from types import SimpleNamespace
from flowfactory import RunInfo
from flowfactory.runs.trackers.wandb import WandbConfig

config = SimpleNamespace(model_dump=lambda mode: {})
service = WandbConfig(mode="offline").service()
service.start(RunInfo(Path(sys.argv[1]), config, 1, print))
service.log(1, {"loss": 1.0}, ())
service.end("finished")
"""


@pytest.mark.parametrize("wanted", [None, "true"])
def test_offline_nothing_is_sent_unless_its_user_lets_the_library_tell_of_itself(
    wanted: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name)
    if wanted:
        monkeypatch.setenv("WANDB_ERROR_REPORTING", wanted)
    asked: list[str] = []
    with answering(500, asked) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        subprocess.run([sys.executable, "-c", OFFLINE, tmp_path], check=True, capture_output=True, timeout=120)
    assert bool(asked) is (wanted is not None)


def test_a_key_that_is_refused_and_none_at_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match=r"has no API key; run wandb login, set WANDB_API_KEY, or choose mode: offline$"):
        WandbConfig().service().check()
    WandbConfig(mode="offline").service().check()
    with answering(401) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        wandb.teardown()
        with pytest.raises(UserError, match=r"is refused \(.*permission denied.*\); run wandb login again"):
            WandbConfig().service().check()
