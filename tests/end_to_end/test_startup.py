"""A start whose prompts are cached imports what it uses, whatever else is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from family_cases import CASES, prompts

from flowfactory.config.loading import validate
from flowfactory.training.setup import prepare_run

pytest.importorskip("bitsandbytes")
LARGE = ("bitsandbytes", "peft", "scipy", "transformers")

DRAW = """
import json, sys
from flowfactory.config.loading import load
from flowfactory.training.iteration import iterate
from flowfactory.training.setup import prepare_run

def draw(config, overrides):
    told = []
    run = prepare_run(load(config, overrides), say=told.append)
    run.assembly.hooks.run_started(run.info, run.policy)
    assert any("0 encoded now" in sentence for sentence in told), told
    iterate(run, 0)

def imported():
    return [name for name in {large!r} if name in sys.modules]

found = {{}}
for config in sys.argv[1:]:
    draw(config, ["model.train=full"])
    found[config] = imported()
draw(sys.argv[1], [])
found["lora"] = imported()
draw(sys.argv[1], ["model.quantize=nf4"])
found["nf4"] = imported()
print(json.dumps(found))
"""


def write_config(folder: Path, name: str) -> Path:
    """Of the tiny checkpoint ``name``, or of the toy model, on two prompts that are in the cache."""
    folder.mkdir()
    options: dict[str, Any] = {"name": "tiny"}
    sampling: dict[str, Any] = {"size": [32, 32]}
    if name != "tiny":
        case = CASES[name]
        height, width, *frames = case.size
        options = {"name": case.name, "path": str(case.build(folder / "checkpoint")), **case.options}
        sampling = {"size": [height, width], **({"frames": frames[0]} if frames else {})}
        source = prompts(case, folder)
    else:
        source = folder / "prompts.txt"
        source.write_text("a red circle\na blue square\n")
    settings = {
        "model": {**options, "train": {"lora": {"rank": 2}}},
        "algorithm": "grpo",
        "rewards": {"small": "jpeg-size"},
        "prompts": {"train": str(source)},
        "sampling": {**sampling, "groups": 2, "group_size": 2, "steps": 2, "dynamics": "flow-sde"},
        "training": {"iterations": 1},
        "output": {"dir": str(folder / "run")},
        "device": "cpu",
    }
    prepare_run(validate(settings))  # encodes the prompts
    (folder / "config.yaml").write_text(json.dumps(settings))
    return folder / "config.yaml"


def test_a_start_with_cached_prompts_imports_what_it_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    names = ["tiny", "flux1", "flux1-kontext", "flux2", "flux2-klein", "qwen-image", "qwen-image-edit", "z-image"]
    names += ["wan-t2v", "wan-i2v", "wan-v2v"]
    files = [write_config(tmp_path / name, name) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", DRAW.format(large=LARGE), *map(str, files)], capture_output=True, text=True, timeout=300
    )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: found[str(file)] for name, file in zip(names, files, strict=True)} == {name: [] for name in names}
    assert found["lora"] == ["peft", "transformers"]
    assert found["nf4"] == ["bitsandbytes", "peft", "transformers"]


CHECK = """
import json, sys
sys.argv = ["flowfactory", "run", "config.yaml", "--dry-run", *sys.argv[1:]]
from flowfactory.cli.main import main
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
TYPO = "from torch import Tensro\n"
BASE = "import torch\n\nclass Layer(torch.nn.Linear):\n    pass\n"
PLUGIN = """
from flowfactory import ComponentConfig, hookimpl

class BlueConfig(ComponentConfig):
    def build(self, label):
        return Blue()

class Blue:
    @hookimpl
    def compute_reward(self, samples):
        return {}

@hookimpl
def register_components(register):
    register("reward", "blue", BlueConfig)
"""


def check(folder: Path, *options: str) -> tuple[list[str], str]:
    """The exit code and whether PyTorch was imported, and what was printed."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *options], capture_output=True, text=True, timeout=120, cwd=folder, check=True
    )
    return done.stdout.splitlines()[-1].split(), done.stdout + done.stderr


def test_a_config_is_checked_without_pytorch_unless_something_of_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    settings: dict[str, Any] = {
        "model": {"name": "tiny"},
        "algorithm": "grpo",
        "rewards": {"small": "jpeg-size"},
        "prompts": {"train": "prompts.txt"},
        "sampling": {"groups": 1, "group_size": 2, "size": [32, 32], "steps": 2, "dynamics": "flow-sde"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    for name, start in (("blue", ""), ("typo", TYPO), ("base", BASE)):
        (tmp_path / f"{name}.py").write_text(start + PLUGIN)
    assert check(tmp_path)[0] == ["0", "False"]
    assert check(tmp_path, "--plugin", "blue.py", "--set", "rewards.blue=blue")[0] == ["0", "False"]
    assert check(tmp_path, "--plugin", "base.py", "--set", "rewards.blue=blue")[0] == ["0", "True"]
    (code, _), told = check(tmp_path, "--plugin", "typo.py")
    assert code == "2"
    assert "cannot import name 'Tensro' from 'torch'" in told
    (code, imported), told = check(tmp_path, "--set", "model.train.lora.targets=[to_qq]")
    assert (code, imported) == ("2", "True")
    assert "model.train.lora.targets: no layer's name ends in 'to_qq'; did you mean 'to_q'?" in told
