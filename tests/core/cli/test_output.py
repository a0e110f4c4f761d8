"""Whatever files, plugins and arguments say, commands print lines of their own, of characters that terminals show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hostile_text import HOSTILE, obeyed

from flowfactory.distributed.outcome import to_outcome
from flowfactory.errors import Interrupted, RunError, UserError

Invoke = Callable[..., tuple[int, str, str]]
Config = Callable[..., Path]
NAME = HOSTILE.replace("/", "")
"""As a file may be called."""
PLUGIN = f'''
from flowfactory import ComponentConfig, hookimpl

HOSTILE = {HOSTILE!r}

class Hostile(ComponentConfig):
    """Says %s"""
    fail: bool = False
    def build(self, label):
        return Reward(self)

Hostile.__doc__ = HOSTILE

class Reward:
    def __init__(self, config):
        self.config = config
    @hookimpl
    def compute_reward(self, samples):
        if self.config.fail:
            raise ValueError(HOSTILE)
        return samples.media.mean((1, 2, 3))

@hookimpl
def register_components(register):
    register("reward", "hostile", Hostile)
'''


def check_quiet(text: str) -> None:
    assert obeyed(text) == []
    assert not any(line.startswith("error: all is well") for line in text.splitlines())
    assert any(escape in text for escape in (r"\x1b[2J", r"\u001b[2J", r"\e[2J"))  # as Python, JSON and YAML write it


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "hostile.py").write_text(PLUGIN, encoding="utf-8")
    return tmp_path / "hostile.py"


@pytest.mark.parametrize(
    "changes",
    [
        {HOSTILE: 1},
        {"sampling": {HOSTILE: 1}},
        {"rewards": {HOSTILE: {"name": HOSTILE}}},
        {"rewards": {HOSTILE: {"name": "bright", "weight": HOSTILE}}},
        {"model": {"name": HOSTILE}},
        {"prompts": {"train": f"{NAME}.txt"}},
        {"plugins": [f"{NAME}.py"]},
        {"seed": [HOSTILE, {HOSTILE: HOSTILE}]},
        {"device": HOSTILE},
    ],
)
def test_a_config_s_keys_and_values(invoke: Invoke, config_file: Config, changes: Mapping[str, Any]) -> None:
    code, out, err = invoke("run", config_file(changes), "--dry-run")
    assert (code, out) == (2, "")
    check_quiet(err)
    assert err.startswith(("error: config.yaml: ", "error: prompts "))


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "a", "image": HOSTILE},
        {"prompt": "a", "rewards": [HOSTILE]},
        {HOSTILE: "a"},
        {"prompt": [HOSTILE]},
        {"prompt": HOSTILE, "rewards": ["no"]},
    ],
)
def test_a_prompt_file_s_text(invoke: Invoke, config_file: Config, tmp_path: Path, line: Mapping[str, Any]) -> None:
    config = config_file({"prompts": {"train": "hostile.jsonl"}})
    (tmp_path / "hostile.jsonl").write_text(json.dumps(line))
    code, out, err = invoke("run", config, "--dry-run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    check_quiet(err)


def test_the_names_of_files(invoke: Invoke, config_file: Config, tmp_path: Path) -> None:
    config = config_file({"seed": "x"}, name=f"{NAME}.yaml")
    for typed in (["run", config], ["run", f"{config}x"], ["report", tmp_path / NAME], ["sample", tmp_path / NAME, "cat"]):
        code, out, err = invoke(*typed)
        assert (code, out, err.count("\n")) == (2, "", 1)
        check_quiet(err)


@pytest.mark.parametrize(
    "typed",
    [
        [HOSTILE],
        ["run", HOSTILE],
        ["run", "x", HOSTILE],
        ["run", "x", f"--{HOSTILE}"],
        ["run", "x", "--nproc", HOSTILE],
        ["run", "config.yaml", "--set", HOSTILE],
        ["run", "config.yaml", "--set", f"seed={HOSTILE}"],
        ["run", "config.yaml", "--set", f"{HOSTILE}=1"],
        ["plugins", "show", HOSTILE],
    ],
)
def test_what_was_typed(invoke: Invoke, config_file: Config, typed: list[str]) -> None:
    config_file()
    code, out, err = invoke(*typed)
    assert (code, out) == (2, "")
    assert obeyed(err) == []
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert not any(line.startswith("error: all is well") for line in err.splitlines())


def test_what_plugins_say_of_themselves(invoke: Invoke, plugin: Path, tmp_path: Path) -> None:
    code, out, _ = invoke("plugins", "show", "hostile", "--plugin", plugin)
    assert code == 0
    check_quiet(out)
    (tmp_path / "raising.py").write_text(f"raise ValueError({HOSTILE!r})", encoding="utf-8")
    for typed in (["plugins", "list"], ["run", "config.yaml"]):
        code, out, err = invoke(*typed, "--plugin", tmp_path / "raising.py")
        assert obeyed(out + err) == []


def test_a_run_and_its_evaluation_print_where_they_wrote(invoke: Invoke, config_file: Config, tmp_path: Path) -> None:
    config = config_file({"training": {"iterations": 1}, "evaluation": {"every": 1}})
    out = tmp_path / f"[bold]猫 {NAME}"
    code, said, err = invoke("run", config, "--out", out)
    assert (code, obeyed(err)) == (0, [])
    check_quiet(said)
    assert "[bold]猫" in said
    code, said, err = invoke("eval", out)
    assert (code, obeyed(said + err)) == (0, [])
    assert Path(json.loads(said)["checkpoint"]).is_relative_to(out)
    code, said, err = invoke("sample", out, HOSTILE)
    assert code == 0
    check_quiet(said)


def test_what_a_plugin_raises(invoke: Invoke, config_file: Config, plugin: Path, toy: Path) -> None:
    changes = {"rewards": {"a": {"name": "hostile", "fail": True}}, "plugins": [str(toy), str(plugin)]}
    code, _, err = invoke("run", config_file(changes))
    assert code == 1
    check_quiet(err.splitlines()[-1])


def test_a_dry_run_prints_what_can_be_read_again(invoke: Invoke, config_file: Config, tmp_path: Path) -> None:
    config = config_file({"prompts": {"train": f"猫 {NAME}.txt", "heldout": "猫.txt"}})
    for name, prompt in {f"猫 {NAME}.txt": "a cat", "猫.txt": "a dog"}.items():
        (tmp_path / name).write_text(f"{prompt}\n")
    code, out, err = invoke("run", config, "--dry-run")
    assert (code, err, obeyed(out)) == (0, "", [])
    assert "猫.txt" in out
    (tmp_path / "again.yaml").write_text(out, encoding="utf-8")
    assert invoke("run", tmp_path / "again.yaml", "--dry-run")[1] == out


def test_many_mistakes_are_many_lines_of_ours(invoke: Invoke, config_file: Config) -> None:
    config = config_file({f"key{i}": 1 for i in range(3)})
    _, _, err = invoke("run", config)
    assert [line.partition(": unknown key")[0] for line in err.splitlines()] == [
        f"error: config.yaml: key{i}" for i in range(3)
    ]


def test_how_a_rank_ended_is_told_as_in_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as raised:
        to_outcome(UserError("a", f"b {HOSTILE}"), 1).conclude()
    assert len(raised.value.sentences) == 2
    check_quiet(str(raised.value))
    for error in (RunError(HOSTILE), Interrupted(HOSTILE)):
        with pytest.raises(type(error)) as ended:
            to_outcome(error, 1).conclude()
        check_quiet(str(ended.value))
    with pytest.raises(RunError):
        to_outcome(ValueError(HOSTILE), 1).conclude()
    check_quiet(capsys.readouterr().err)


LIBRARIES = """
import logging, sys, threading, warnings
from flowfactory.cli.output import contain_libraries, say

hostile = sys.argv[1]
contain_libraries()
say("猫")
warnings.warn(hostile)
logging.getLogger("x").error("%s", hostile)
try:
    raise ValueError(hostile)
except ValueError:
    logging.getLogger("x").exception("what")
thread = threading.Thread(target=lambda: int(hostile), name="t")
thread.start()
thread.join()
raise KeyError(hostile) from ValueError(hostile)
"""


def test_what_libraries_warn_of_log_and_raise() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LIBRARIES, HOSTILE.replace("\x85", "")],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (1, b"\\u732b\n")
    told = ran.stderr.decode()
    check_quiet(told)
    assert told.count(r"\x1b[2J") >= 6
