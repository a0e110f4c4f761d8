"""What a run directory that somebody else made may do: nothing that its reader has not done before or asked for."""

from __future__ import annotations

import os
import py_compile
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowfactory.config.schema import RunConfig
from flowfactory.discovery.discover import discover
from flowfactory.runs import trust
from flowfactory.runs.directory import RunDirectory

Trained = Callable[..., RunDirectory]
Invoke = Callable[..., tuple[int, str, str]]

COMMANDS = (("sample", "RUN", "red"), ("eval", "RUN"), ("export", "RUN", "OUT"))
OPENING = pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is noted what was trained with, empty."""
    monkeypatch.setenv(trust.ENVIRONMENT, str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """A plugin that touches ``executed`` when it is executed."""
    return write_payload(tmp_path / "elsewhere/payload.py", tmp_path / "executed")


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    """What a payload touches."""
    return tmp_path / "executed"


@pytest.fixture
def begun(load: Callable[..., RunConfig]) -> RunDirectory:
    """A run directory in which nothing is but its config, of a run that began here."""
    config = load()
    directory = RunDirectory(config.output.dir)
    directory.open(config, False)
    trust.remember(config, print)
    return directory


def write_payload(path: Path, touched: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "from pathlib import Path\nfrom flowfactory import hookimpl\n\n"
        f"Path({str(touched)!r}).touch()\n\n\n@hookimpl\ndef register_components(register):\n    pass\n"
    )
    return path


def edit(directory: RunDirectory, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the config that a run directory holds, as whoever hands it over can."""
    config = yaml.safe_load(directory.config.read_text())
    change(config)
    directory.config.write_text(yaml.safe_dump(config))


def add_plugin(directory: RunDirectory, name: str | Path) -> None:
    edit(directory, lambda config: config["plugins"].append(str(name)))


def call(invoke: Invoke, command: tuple[str, ...], directory: RunDirectory, *more: str | Path) -> tuple[int, str, str]:
    out = directory.path.parent / "exported"
    shutil.rmtree(out, ignore_errors=True)
    return invoke(*({"RUN": directory.path, "OUT": out}.get(part, part) for part in command), *more)


@OPENING
def test_what_you_have_trained_with_is_executed(
    command: tuple[str, ...], trained: Trained, payload: Path, executed: Path, toy: Path, invoke: Invoke
) -> None:
    directory = trained({"plugins": [str(toy), str(payload)]})
    executed.unlink()
    code, _, err = call(invoke, command, directory)
    assert (code, err) == (0, "")
    assert executed.exists()


@OPENING
def test_what_you_have_not_trained_with_is_not_executed(
    command: tuple[str, ...], trained: Trained, payload: Path, executed: Path, invoke: Invoke
) -> None:
    directory = trained()
    add_plugin(directory, payload)
    code, out, err = call(invoke, command, directory)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: plugin {payload}: the run directory names it, and you have not trained with it")
    assert f"--plugin {payload}, or add --trust\n" in err
    assert not executed.exists()
    for given in (("--plugin", payload), ("--trust",)):
        assert call(invoke, command, directory, *given)[0] == 0
        assert executed.exists()
        executed.unlink()
    assert call(invoke, command, directory)[0] == 2, "what was given by hand once is not given for ever"


@pytest.mark.parametrize(
    "spelling", ["inside.py", "./inside.py", "../run/inside.py", "link.py", "$TMP_OF_TEST/run/inside.py", "folder/../inside.py"]
)
def test_however_it_is_spelled_it_is_not_executed(
    spelling: str, begun: RunDirectory, executed: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMP_OF_TEST", str(tmp_path))
    write_payload(begun.path / "inside.py", executed)
    (begun.path / "folder").mkdir()
    (begun.path / "link.py").symlink_to("inside.py")
    add_plugin(begun, spelling)
    for command in COMMANDS:
        code, _, err = call(invoke, command, begun)
        assert code == 2
        assert f"plugin {begun.path / 'inside.py'}: " in err
    assert not executed.exists()


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ("defaults: &d {{plugins: [{payload}]}}\n<<: *d\n", True),
        ("<<: [{{plugins: [{payload}]}}, {{plugins: []}}]\n", True),
        ('"plug\\x69ns": ["{payload}"]\n', True),
        ("plugins: []\nplugins: [{payload}]\n", False),
        ("plugins: {{a: {payload}}}\n", False),
        ("plugins: {payload}\n", False),
        ("plugins: [[{payload}]]\n", False),
    ],
)
def test_whatever_yaml_can_do_it_is_not_executed(
    text: str, is_list: bool, begun: RunDirectory, payload: Path, executed: Path, invoke: Invoke
) -> None:
    edit(begun, lambda config: config.pop("plugins"))
    begun.config.write_text(text.format(payload=payload) + begun.config.read_text())
    for command in COMMANDS:
        code, _, err = call(invoke, command, begun)
        assert code == 2
        assert err.startswith(f"error: plugin {payload}: the run" if is_list else "error: config.yaml")
    assert not executed.exists()


def test_a_plugin_that_was_edited_since_is_not_executed(
    trained: Trained, payload: Path, executed: Path, toy: Path, invoke: Invoke
) -> None:
    directory = trained({"plugins": [str(toy), str(payload)]})
    executed.unlink()
    payload.write_text(payload.read_text() + "# more\n")
    assert call(invoke, ("eval", "RUN"), directory)[0] == 2
    assert not executed.exists()
    trained({"plugins": [str(toy), str(payload)]}, out="another")
    assert call(invoke, ("eval", "RUN"), directory)[0] == 0


def test_the_same_bytes_beside_other_files_are_not_executed(
    trained: Trained, payload: Path, executed: Path, toy: Path, invoke: Invoke
) -> None:
    directory = trained({"plugins": [str(toy), str(payload)]})
    executed.unlink()
    copy = directory.path / payload.name
    shutil.copy(payload, copy)
    edit(directory, lambda config: config["plugins"].__setitem__(1, str(copy)))
    code, _, err = call(invoke, ("eval", "RUN"), directory)
    assert code == 2
    assert f"plugin {copy}: " in err
    assert not executed.exists()


def test_a_plugin_given_by_hand_stands_in_the_place_of_one_of_its_name(
    trained: Trained, payload: Path, executed: Path, toy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    directory = trained({"plugins": [str(toy), str(payload)]})
    mine = tmp_path / "mine" / payload.name
    mine.parent.mkdir()
    payload.rename(mine)
    executed.unlink()
    assert f"no file {payload}" in call(invoke, ("eval", "RUN"), directory)[2]
    assert call(invoke, ("eval", "RUN"), directory, "--plugin", mine)[0] == 0
    assert executed.exists()


@pytest.mark.parametrize("command", COMMANDS[:2], ids=["sample", "eval"])
def test_a_list_of_plugins_given_by_hand_is_executed(
    command: tuple[str, ...], trained: Trained, payload: Path, executed: Path, toy: Path, invoke: Invoke
) -> None:
    directory = trained()
    assert call(invoke, command, directory, "--set", f"plugins=[{toy}, {payload}]")[0] == 0
    assert executed.exists()


def test_a_report_executes_nothing(trained: Trained, payload: Path, executed: Path, toy: Path, invoke: Invoke) -> None:
    directory = trained({"plugins": [str(toy), str(payload)]})
    executed.unlink()
    assert invoke("report", directory.path)[0] == 0
    assert not executed.exists()


def test_a_config_that_you_run_yourself_is_executed(
    config_file: Callable[..., Path], payload: Path, executed: Path, toy: Path, invoke: Invoke, tmp_path: Path
) -> None:
    path = config_file({"plugins": [str(toy), str(payload)], "training": {"iterations": 1}})
    assert invoke("run", path, "--dry-run")[0] == 0
    assert executed.exists()
    assert invoke("run", path, "--out", tmp_path / "run")[0] == 0
    executed.unlink()
    assert invoke("run", tmp_path / "run/config.yaml", "--resume", "--set", "training.iterations=2")[0] == 0
    assert executed.exists()


def test_resuming_does_not_execute_what_the_run_directory_names(
    config_file: Callable[..., Path], trained: Trained, payload: Path, executed: Path, invoke: Invoke
) -> None:
    directory = trained()
    shutil.rmtree(directory.checkpoints)  # which would say what the run was trained with
    add_plugin(directory, payload)
    code, _, err = invoke("run", config_file(), "--out", directory.path, "--resume")
    assert (code, err) == (0, "")
    assert not executed.exists()


def test_what_lies_compiled_beside_a_plugin_is_not_executed(payload: Path, executed: Path, tmp_path: Path) -> None:
    harmless = tmp_path / "harmless.py"
    harmless.write_text("from flowfactory import hookimpl\n\n\n@hookimpl\ndef register_components(register):\n    pass\n")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(payload), cache_from_source(str(harmless)), invalidation_mode=mode)
    discover([harmless])
    assert not executed.exists()


def test_what_was_looked_at_is_what_is_executed(payload: Path, executed: Path, tmp_path: Path) -> None:
    harmless, seen = tmp_path / "harmless.py", []
    harmless.write_text("from flowfactory import hookimpl\n\n\n@hookimpl\ndef register_components(register):\n    pass\n")

    def swap(file: Path, content: bytes) -> None:
        seen.append(content)
        payload.replace(file)

    discover([harmless], swap)
    assert b"touch" not in seen[0]
    assert not executed.exists()


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


def test_what_is_noted_is_private(trained: Trained, state: Path) -> None:
    before = os.umask(0)
    try:
        trained()
    finally:
        os.umask(before)
    assert modes(state) == {0o700, 0o600}


def test_a_note_that_others_can_write_is_not_believed(trained: Trained, state: Path, invoke: Invoke) -> None:
    directory = trained()
    assert call(invoke, ("eval", "RUN"), directory)[0] == 0
    (state / "trained").chmod(0o777)
    assert call(invoke, ("eval", "RUN"), directory)[0] == 2


@pytest.mark.parametrize("obstacle", ["file", "home"])
def test_where_nothing_can_be_noted_a_run_goes_on(
    obstacle: str, load: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowfactory.runs.train import train

    if obstacle == "file":
        (tmp_path / "state").write_text("")
    else:
        monkeypatch.setenv(trust.ENVIRONMENT, "/proc/nowhere")
    told: list[str] = []
    directory = train(load(), say=told.append)
    assert len(directory.records()) == 4
    assert [line for line in told if "cannot be noted" in line and line.endswith("will need --trust")]


def test_the_newest_notes_are_kept_whoever_writes_them_at_once(
    load: Callable[..., RunConfig], state: Path, monkeypatch: pytest.MonkeyPatch, payload: Path, toy: Path
) -> None:
    monkeypatch.setattr(trust, "KEPT", 5)
    folder = state / "trained"
    folder.mkdir(parents=True, mode=0o700)
    state.chmod(0o700)
    for number in range(20):
        (folder / f"{number:064d}").touch()
        os.utime(folder / f"{number:064d}", (number, number))
    told: list[str] = []
    config = load({"plugins": [str(toy), str(payload)]})
    threads = [threading.Thread(target=trust.remember, args=(config, told.append)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == []
    kept = {mark.name for mark in folder.iterdir()}
    assert kept == {
        *(trust.plugin_mark(file, file.read_bytes()) for file in (toy, payload)),
        *(f"{number:064d}" for number in range(17, 20)),
    }


CALLER = '''
from urllib.request import Request, urlopen
import os
import torch
from flowfactory import ComponentConfig, hookimpl


class CallerConfig(ComponentConfig):
    """Asks a server."""

    sends_to = {"url": "sends pictures to", "token_env": "sends what is in the environment variable"}
    url: str
    token_env: str = "TOKEN_OF_TEST"

    def build(self, label):
        return Caller(label, self)


class Caller:
    def __init__(self, label, config):
        self.label, self.config = label, config

    @hookimpl
    def compute_reward(self, samples):
        urlopen(Request(self.config.url, headers={"Authorization": os.environ.get(self.config.token_env, "")})).read()
        return {self.label: torch.zeros(len(samples.prompts))}


@hookimpl
def register_components(register):
    register("reward", "caller", CallerConfig)
'''


@pytest.fixture
def server() -> Iterator[tuple[str, list[str | None]]]:
    """A server on loopback: its URL, and the tokens that it was sent."""
    tokens: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}", tokens
        listening.shutdown()


def test_a_server_and_a_secret_are_those_that_you_have_trained_with(
    trained: Trained,
    server: tuple[str, list[str | None]],
    invoke: Invoke,
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, tokens = server
    monkeypatch.setenv("TOKEN_OF_TEST", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    (tmp_path / "caller.py").write_text(CALLER)
    called = {"name": "caller", "url": url, "weight": 0}
    directory = trained({"rewards": {"far": called}, "plugins": [str(toy), str(tmp_path / "caller.py")]})
    del tokens[:]
    assert call(invoke, ("eval", "RUN"), directory)[0] == 0
    assert set(tokens) == {"mine"}
    del tokens[:]
    edit(directory, lambda config: config["rewards"]["far"].update(url=f"{url}/theirs", token_env="AWS_SECRET_ACCESS_KEY"))
    code, out, err = call(invoke, ("eval", "RUN"), directory)
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first.startswith(f"error: config.yaml: rewards.far.url: it sends pictures to {url}/theirs, with which")
    assert first.endswith("give your own with --set rewards.far.url=…, or add --trust")
    assert second.startswith(
        "error: config.yaml: rewards.far.token_env: it sends what is in the environment variable AWS_SECRET"
    )
    code, _, err = call(invoke, ("eval", "RUN"), directory, "--set", f"rewards.far.url={url}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert tokens == []
    for command in (COMMANDS[0], COMMANDS[2]):  # which ask no reward
        assert call(invoke, command, directory)[0] == 0
    assert tokens == []
    hand = ("--set", f"rewards.far.url={url}/other", "--set", "rewards.far.token_env=TOKEN_OF_TEST")
    assert call(invoke, ("eval", "RUN"), directory, *hand)[0] == 0
    assert set(tokens) == {"mine"}
    assert call(invoke, ("eval", "RUN"), directory, "--trust")[0] == 0
    assert set(tokens) == {"mine", "secret"}


def test_a_label_with_a_dot_in_it_is_not_what_was_given_by_hand(
    trained: Trained, server: tuple[str, list[str | None]], invoke: Invoke, toy: Path, tmp_path: Path
) -> None:
    url, tokens = server
    (tmp_path / "caller.py").write_text(CALLER)
    far = {"name": "caller", "url": url, "weight": 0}
    directory = trained({"rewards": {"far": far}, "plugins": [str(toy), str(tmp_path / "caller.py")]})
    del tokens[:]
    edit(directory, lambda config: config["rewards"].update({"far.url": {**far, "url": f"{url}/theirs"}}))
    assert call(invoke, ("eval", "RUN"), directory, "--set", f"rewards.far.url={url}")[0] == 2
    assert tokens == []


@OPENING
def test_environment_variables_are_not_read_for_a_run_directory(
    command: tuple[str, ...], trained: Trained, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", "heldout")
    directory = trained()
    edit(directory, lambda config: config["prompts"].update(heldout=f"{tmp_path}/${{SECRET_OF_TEST}}.txt"))
    code, _, err = call(invoke, command, directory)
    assert code == 2
    assert err.startswith("error: config.yaml: prompts.heldout: ")
    assert "write out what it stands for, or add --trust\n" in err
    assert call(invoke, command, directory, "--trust")[0] == 0


def test_a_dollar_that_a_run_wrote_is_no_variable(
    trained: Trained, invoke: Invoke, config_file: Callable[..., Path], tmp_path: Path
) -> None:
    config_file()
    shutil.copy(tmp_path / "heldout.txt", tmp_path / "a$HOME.txt")
    directory = trained({"prompts": {"heldout": "a$$HOME.txt", "negative": "$HOME"}})
    assert call(invoke, ("eval", "RUN"), directory)[0] == 0


def test_where_the_config_sends_output_nothing_is_written(trained: Trained, invoke: Invoke, tmp_path: Path) -> None:
    directory = trained()
    edit(directory, lambda config: config["output"].update(dir=str(tmp_path / "theirs"), trackers=["tensorboard"]))
    for command in COMMANDS:
        assert call(invoke, command, directory)[0] == 0
    assert not (tmp_path / "theirs").exists()
    assert not list(directory.path.glob("tensorboard"))
    assert (directory.samples / "drawn/000.png").is_file()


@pytest.mark.parametrize("kind", ["link", "pipe", "device", "large"])
def test_a_config_that_is_no_file_of_the_run_is_not_read(
    kind: str, begun: RunDirectory, invoke: Invoke, tmp_path: Path
) -> None:
    content = begun.config.read_text()
    begun.config.unlink()
    if kind == "link":
        (tmp_path / "theirs.yaml").write_text(content)
        begun.config.symlink_to(tmp_path / "theirs.yaml")
    elif kind == "pipe":
        os.mkfifo(begun.config)
    elif kind == "device":
        begun.config.symlink_to("/dev/zero")
    else:
        begun.config.write_bytes(b"#" * (17 * 2**20))
    for command in COMMANDS:
        code, _, err = call(invoke, command, begun)
        assert (code, err.count("\n")) == (2, 1)
        assert str(begun.path) in err


def test_checkpoints_on_another_disk_are_read_and_samples_elsewhere_are_not_written(
    trained: Trained, invoke: Invoke, tmp_path: Path
) -> None:
    directory = trained()
    for folder in (directory.checkpoints, directory.samples):
        folder.rename(tmp_path / folder.name)
        folder.symlink_to(tmp_path / folder.name)
    link = tmp_path / "linked"
    link.symlink_to(directory.path)  # a link to the whole is no link out of it
    code, _, err = invoke("sample", link, "red")
    assert (code, err) == (2, f"error: {link}/samples/drawn leads out of {link}; choose where to write with --out\n")
    assert invoke("sample", link, "red", "--out", tmp_path / "drawn")[0] == 0
    assert invoke("eval", link)[0] == 0


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["samples", "samples/000003"])
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["new", "resume"])
def test_a_run_writes_no_samples_through_a_link_out_of_its_directory(
    load: Callable[..., RunConfig], trained: Trained, invoke: Invoke, tmp_path: Path, name: str, resume: tuple[str, ...]
) -> None:
    run, theirs = RunDirectory(load().output.dir) if not resume else trained(), tmp_path / "theirs"
    link = run.path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(link, ignore_errors=True)
    link.symlink_to(theirs)
    for folder in (theirs, theirs / "000001"):
        folder.mkdir()
        old = folder / ".0123456789abcdef.writing"
        old.touch()
        os.utime(old, (0, 0))
    before = files(tmp_path)
    code, _, err = invoke("run", tmp_path / "config.yaml", "--out", run.path, "--set", "training.iterations=4", *resume)
    told = f"error: {link} leads out of {run.path}; put the whole run directory there, or link that\n"
    assert (code, err) == (2, told)
    assert files(tmp_path) == before
    moved = run.path.rename(tmp_path / "moved")
    (moved / name).unlink()
    run.path.symlink_to(moved)
    assert invoke("run", tmp_path / "config.yaml", "--out", run.path, "--set", "training.iterations=4", *resume)[0] == 0


def test_a_resumed_run_replaces_links_in_place_of_its_files(trained: Trained, invoke: Invoke, tmp_path: Path) -> None:
    run, theirs = trained(), tmp_path / "theirs"
    theirs.mkdir()
    shutil.rmtree(run.checkpoints / "000003")  # so that its samples are written once more
    run.report.touch()
    names = ["config.yaml", "metrics.jsonl", "run.json", "report.html", "samples/000003/000.png", "samples/000003/index.json"]
    for number, name in enumerate(names):
        (run.path / name).rename(theirs / str(number))
        (run.path / name).symlink_to(theirs / str(number))
    before = files(theirs)
    assert invoke("run", tmp_path / "config.yaml", "--out", run.path, "--resume")[0] == 0
    assert files(theirs) == before
    assert not [name for name in names if (run.path / name).is_symlink()]
