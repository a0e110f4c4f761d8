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
    names = ["tiny", "flux1", "flux1-kontext", "flux2", "flux2-klein", "krea2", "lumina2", "sana", "chroma", "qwen-image"]
    names += ["qwen-image-edit", "qwen-image-2.1", "qwen-image-2.1-edit", "z-image"]
    names += ["wan-t2v", "wan-i2v", "wan-flf2v", "wan-v2v"]
    names += ["hunyuan-video-1.5", "hunyuan-video-1.5-i2v"]
    files = [write_config(tmp_path / name, name) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", DRAW.format(large=LARGE), *map(str, files)], capture_output=True, text=True, timeout=300
    )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: found[str(file)] for name, file in zip(names, files, strict=True)} == {name: [] for name in names}
    assert found["lora"] == ["peft", "transformers"]
    assert found["nf4"] == ["bitsandbytes", "peft", "transformers"]


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


NASTY = """
import dataclasses
import enum
import functools
import typing
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, bfloat16

PI = 2 * torch.pi + torch.pi ** 2 - -torch.pi // 1
LOG = 0.5 * float(torch.log(torch.tensor(PI)))
NEW = torch.__version__ >= "2.0" and tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 0)
KNOWN = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
assert NEW and "float32" in KNOWN and "float32" in dir(torch) and hasattr(torch, "float32") and not hasattr(torch, "flaot")
assert torch.float32 in {torch.float32, torch.float16} and torch.float in (torch.float32,) and bfloat16.itemsize == 2
assert isinstance(torch.float32, torch.dtype) and issubclass(nn.Linear, nn.Module) and isinstance(nn.Module, type)
assert {torch.float32: 1}[torch.zeros(1).dtype] == 1 and {Tensor: 2}[type(torch.zeros(1))] == 2
Either: typing.TypeAlias = Tensor | None
Other = typing.Optional[nn.Module] | int
TABLE = torch.arange(6).reshape(2, 3)[:, 1:].to(torch.float64)
torch.backends.cuda.matmul.allow_tf32 = False
torch.blue = 3
assert torch.blue == 3

@dataclasses.dataclass
class Settings:
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    weights: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(2, dtype=torch.float32))

class Kind(enum.Enum):
    single = torch.float32

class Layer(nn.Module):
    scale: Tensor

    def __init__(self, act=F.relu, dtype=torch.float32):
        super().__init__()
        self.register_buffer("scale", torch.ones(1, dtype=dtype))

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        return values * self.scale

@functools.singledispatch
def kind(value):
    return "other"

@kind.register(torch.Tensor)
def _(value):
    return "tensor"

with torch.no_grad(), torch.random.fork_rng():
    assert kind(Layer()(TABLE.float())) == "tensor" and Settings().weights.shape == (2,)
match torch.float32:
    case torch.float32:
        pass
    case _:
        raise AssertionError
"""
OWN = """
from typing import Annotated
import torch
from pydantic import ConfigDict, field_validator
from flowfactory import ComponentConfig, hookimpl

class BlueConfig(ComponentConfig):
    dtype: str = "float32"

    @field_validator("dtype")
    def _is_one(cls, value):
        if not isinstance(getattr(torch, value, None), torch.dtype):
            raise ValueError(f"torch has no {value}")
        return value

    def build(self, label):
        return Blue()

class Blue:
    weights = torch.zeros(2)

    @hookimpl
    def compute_reward(self, samples):
        return {}

@hookimpl
def register_components(register):
    register("reward", "blue", BlueConfig)
"""


def check(folder: Path, *options: str) -> tuple[int, bool, str, str]:
    """The exit code, whether PyTorch was imported, and what was printed to either stream."""
    # it is imported in a process of its own, which prints with the others
    command = [sys.executable, "-X", "importtime", "-m", "flowfactory", "run", "config.yaml", "--dry-run", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    lines = done.stderr.splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    told = "\n".join(line for line in lines if not line.startswith("import time:"))
    return done.returncode, any(line.endswith(" torch.version") for line in imports), done.stdout, told


@pytest.fixture
def checked(tmp_path: Path) -> Path:
    """A folder with a right config and plugins."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    settings: dict[str, Any] = {
        "model": {"name": "tiny"},
        "algorithm": "grpo",
        "rewards": {"small": "jpeg-size"},
        "prompts": {"train": "prompts.txt"},
        "sampling": {"groups": 1, "group_size": 2, "size": [32, 32], "steps": 2, "dynamics": "flow-sde"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    plugins = {"blue": PLUGIN, "typo": TYPO + PLUGIN, "base": BASE + PLUGIN, "nasty": NASTY + PLUGIN, "own": OWN}
    for name, text in plugins.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize("algorithm", ["grpo", "crd", "dpo"])
def test_a_config_is_checked_without_pytorch(checked: Path, algorithm: str) -> None:
    options = ["--set", f"algorithm={algorithm}"] + ["--set", "sampling.dynamics=ode"] * (algorithm != "grpo")
    code, imported, out, told = check(checked, *options)
    assert (code, imported, told) == (0, False, "")
    assert f"name: {algorithm}" in out


def test_a_plugin_that_needs_none_of_it_is_checked_without_pytorch(checked: Path) -> None:
    assert check(checked, "--plugin", "blue.py", "--set", "rewards.blue=blue")[:2] == (0, False)


@pytest.mark.parametrize("plugin", ["base", "nasty", "own"])
def test_whatever_a_plugin_does_with_pytorch_is_right(checked: Path, plugin: str) -> None:
    code, imported, out, told = check(checked, "--plugin", f"{plugin}.py", "--set", "rewards.blue=blue")
    assert (code, imported, told) == (0, True, "")
    assert "name: blue" in out


def test_an_error_is_the_one_that_there_is_with_pytorch(checked: Path) -> None:
    code, imported, out, told = check(checked, "--plugin", "typo.py")
    assert (code, imported, out) == (2, True, "")
    assert "cannot import name 'Tensro' from 'torch'" in told
    assert "_Postponed" not in told
    code, _, _, told = check(checked, "--plugin", "own.py", "--set", "rewards.blue={name: blue, dtype: flaot}")
    assert (code, told) == (2, "error: --set rewards.blue.dtype: torch has no flaot")
    code, imported, _, told = check(checked, "--set", "model.train.lora.targets=[to_qq]")
    assert (code, imported) == (2, True)
    assert "model.train.lora.targets: no layer's name ends in 'to_qq'; did you mean 'to_q'?" in told


def test_warnings_and_errors_are_told_once(checked: Path) -> None:
    code, imported, _, told = check(checked, "--set", "evaluation.pictures=3")
    assert (code, imported) == (0, False)
    assert told == "warning: evaluation.pictures does nothing without held-out prompts; name their file in prompts.heldout"
    code, imported, out, told = check(checked, "--set", "evaluation.pictures=3", "--set", "prompts.train=none.txt")
    assert (code, imported, out, told.count("\n")) == (2, True, "", 0)
    assert "none.txt" in told


IMPORTED = """
import json, os, sys
from flowfactory.cli import main

def told():
    sys.stderr.write(json.dumps([name for name in {large!r} if name in sys.modules]) + "\\n")

leave = os._exit
os._exit = lambda code: (told(), sys.stderr.flush(), leave(code))  # of the fork in which a config is checked
try:
    main.main()
except SystemExit as end:
    told()
    raise
"""
HEAVY = ("torch", "transformers", "diffusers", "peft", "scipy", "bitsandbytes")


@pytest.mark.parametrize(
    "typed",
    [
        *(["--version"], ["check", "-h"], ["plugins", "list"], ["init"]),
        *(["check", "quickstart"], ["check", "flux1"], ["run", "quickstart", "--dry-run"]),
    ],
    ids=" ".join,
)
def test_what_asks_about_a_run_imports_none_of_what_computes_it(typed: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED.format(large=HEAVY), *typed],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert not done.returncode, done.stderr
    found = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert found
    assert not any(found)


def test_the_packages_that_need_names_of_pytorch_alone_are_those_of_this_repository() -> None:
    from flowfactory.cli.run import OURS

    sources = (
        Path(__file__).parents[2].glob("*/src/*/__init__.py"),
        Path(__file__).parents[2].glob("plugins/*/src/*/__init__.py"),
    )
    assert {path.parent.name for found in sources for path in found} == set(OURS)


STYLES = """
import pydantic, typing, dataclasses, functools, copy, pickle
import torch, torch.nn as nn, torch.backends.cudnn as cudnn
from torch import Tensor, dtype
from torch.nn import *
assert issubclass(nn.Linear, nn.Module) and isinstance(nn.Linear, type)
assert {nn.Linear: 1}[type(nn.Linear(2, 2))] and not hasattr(nn, "NoSuchThing")
assert pickle.loads(pickle.dumps(nn.Linear)) is nn.Linear and copy.copy(nn.Linear) is nn.Linear
class P(pydantic.BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    t: Tensor
try:
    P(t=3)
except pydantic.ValidationError:
    pass
else:
    raise AssertionError("validation is off")
@functools.singledispatch
def f(x): return 0
@f.register(Tensor)
def _(x): return 1
assert f(torch.ones(1)) == 1
cudnn.benchmark = True
assert torch.backends.cudnn.benchmark
def register_components(register): pass
from flowfactory import hookimpl
register_components = hookimpl(register_components)
"""


def test_a_plugin_gets_the_real_pytorch_whatever_it_does_with_it(tmp_path: Path) -> None:
    (tmp_path / "styles.py").write_text(STYLES)
    command = [sys.executable, "-m", "flowfactory", "run", "quickstart", "--dry-run", "--plugin", str(tmp_path / "styles.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
