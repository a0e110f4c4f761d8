"""``plugins check``: what is wrong, one line each, and what is no fault."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

Invoke = Callable[..., tuple[int, str, str]]

BROKEN = '''
import itertools
import torch
from pydantic import Field
from flowfactory import AlgorithmConfig, ComponentConfig, Loss, ModelConfig, flow, hookimpl
from flowfactory.testing import TwoParameter

COUNT = itertools.count()

class Restless:
    def __init__(self, label):
        self.label = label

    @hookimpl
    def compute_reward(self, samples):
        return {self.label: samples.media.flatten(1).mean(1) + next(COUNT)}

class RestlessConfig(ComponentConfig):
    """Other scores each time."""
    def build(self, label):
        return Restless(label)

class LoudConfig(flow.FlowSDEConfig):
    """Noise that nothing takes away again."""
    def build(self, label):
        made = super().build(label)
        right = made.transition
        made.transition = lambda v, x, s, t: right(v, x, s, t)._replace(mean=x + (t - s) * v)
        return made

class Heavy:
    @hookimpl
    def run_failed(self, error):
        raise ZeroDivisionError("nothing is open")

class HeavyConfig(ComponentConfig):
    """Fails where a run fails."""
    def build(self, label):
        return Heavy()

class Idle:
    @hookimpl
    def update(self, experience, policy):
        yield Loss(torch.zeros(len(experience.advantages)))

class IdleConfig(AlgorithmConfig):
    """A loss of nothing."""
    def build(self, label):
        return Idle()

class Deaf(TwoParameter):
    def log_prob(self, step):
        return super().log_prob(step)

class DeafConfig(ModelConfig):
    """A hook that lost its mark."""
    train: str = "full"
    def build(self, label):
        return Deaf(0.1, 0.0)

@hookimpl
def register_components(register):
    register("reward", "restless", RestlessConfig)
    register("dynamics", "loud", LoudConfig)
    register("tracker", "heavy", HeavyConfig)
    register("algorithm", "idle", IdleConfig)
    register("model", "deaf", DeafConfig)
    register("reward", "gone", "no_such_module:Config")
'''
GLOW = textwrap.dedent('''
    from pydantic import Field
    from flowfactory import ComponentConfig, hookimpl

    class Config(ComponentConfig):
        """How bright."""
        factor: float = Field(description="of the brightness")

        def build(self, label):
            return Glow(label, self.factor)

    class Glow:
        pointwise = True

        def __init__(self, label, factor):
            self.label, self.factor = label, factor

        @hookimpl
        def compute_reward(self, samples):
            return {self.label: self.factor * samples.media.flatten(1).mean(1)}

    @hookimpl
    def register_components(register):
        register("reward", "glow", Config)
''')


@pytest.fixture
def glow(tmp_path: Path) -> Path:
    (tmp_path / "glow.py").write_text(GLOW)
    return tmp_path / "glow.py"


def test_what_is_wrong_is_a_line_each_for_every_kind(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    code, out, err = invoke("plugins", "check", "broken.py")
    told = dict(line.split(": ", 1) for line in out.splitlines())
    assert (code, err) == (2, "")
    assert told["reward restless"] == "the reward gives other scores for the same pictures"
    assert "leads to noise of variance" in told["dynamics loud"]
    assert told["tracker heavy"].startswith("observer 0: run_failed: ZeroDivisionError: nothing is open")
    assert told["algorithm idle"] == "a loss has no gradient"
    assert told["model deaf"].endswith("is not marked and would never be called; write @hookimpl above it")
    assert "no_such_module" in told["reward gone"]


def test_options_are_given_as_those_of_a_config(glow: Path, invoke: Invoke) -> None:
    assert invoke("plugins", "check", "glow.py", "--set", "factor=2") == (0, "reward glow: in order\n", "")
    code, out, _ = invoke("plugins", "check", "glow", "--plugin", glow)
    assert code == 2
    assert out.startswith("reward glow: factor: ")


def test_without_a_name_what_needs_an_option_is_no_fault(glow: Path, invoke: Invoke) -> None:
    code, out, _ = invoke("plugins", "check", "--plugin", glow)
    lines = out.splitlines()
    assert code == 0
    assert next(line for line in lines if "glow" in line).startswith("reward glow: not checked, factor: ")
    assert {f"dynamics {name}: in order" for name in ("ode", "heun", "dpm-solver", "cps", "flow-sde", "dance-sde")} <= set(
        lines
    )


def test_without_a_name_a_tracker_that_may_write_to_an_account_is_not_tried(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    lines = invoke("plugins", "check", "--plugin", tmp_path / "broken.py")[1].splitlines()
    told = dict(line.split(": ", 1) for line in lines if line.startswith("tracker "))
    assert told["tracker heavy"].startswith("not checked, it may send runs to an account, or write them elsewhere")
    assert told["tracker csv"] == "in order"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["heum"], "no component called 'heum'; did you mean 'heun'?"),
        (["--set", "factor=2"], "components are checked; name one of them, with --plugin FILE if a file brings it"),
        (["heun", "--size", "8by8"], "--size 8by8: write height and width, such as 64x64"),
        (["nowhere.py"], "no such file"),
    ],
)
def test_what_is_typed_wrong_is_told(arguments: list[str], told: str, invoke: Invoke) -> None:
    code, _, err = invoke("plugins", "check", *arguments)
    assert code == 2
    assert told in err


def test_a_package_that_says_not_which_core_it_is_for_is_told(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/aglow.py").write_text(GLOW.replace('Field(description="of the brightness")', "1.0"))
    (tmp_path / "site/aglow-1.0.dist-info").mkdir()
    (tmp_path / "site/aglow-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: aglow\nVersion: 1.0\n")
    (tmp_path / "site/aglow-1.0.dist-info/entry_points.txt").write_text("[flowfactory]\naglow = aglow\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("FLOWFACTORY_PLUGINS", "aglow")
    code, out, _ = invoke("plugins", "check", "glow")
    assert code == 2
    said, rest = out.splitlines()
    assert said.startswith("package aglow: says not which flowfactory it is for; add 'flowfactory ~= ")
    assert rest == "reward glow: in order"


def test_a_torn_comment_of_one_file_is_told(glow: Path, invoke: Invoke) -> None:
    glow.write_text("# /// script\n# dependencies = [\n# ///\n" + GLOW)
    code, out, _ = invoke("plugins", "check", glow, "--set", "factor=2")
    assert code == 2
    assert out.startswith("plugin glow.py: its comment '# /// script' is not TOML: ")


FAULTY = '''
from flowfactory import AlgorithmConfig, ComponentConfig, Conditions, Evaluation, ModelConfig, Loss, flow, hookimpl
from flowfactory.testing import TwoParameter

class Slips(TwoParameter):
    def velocity(self, latents, sigma, conditions, guidance):
        return latents.foo                                         # line 7

class SlipsConfig(ModelConfig):
    """A velocity that fails, which core calls."""
    train: str = "full"
    def build(self, label):
        return Slips(0.1, 0.0)

class Short(TwoParameter):
    @hookimpl
    def encode(self, prompts, canvas):                             # line 17
        return list(super().encode(prompts))[:-1]

class ShortConfig(SlipsConfig):
    """Fewer entries than prompts."""
    def build(self, label):
        return Short(0.1, 0.0)

class Misses:
    @hookimpl
    def update(self, experience, policy):
        yield Loss({}["nothing"])                                  # line 28

class MissesConfig(AlgorithmConfig):
    """Fails in what it yields."""
    def build(self, label):
        return Misses()

def measure(samples):
    return helper_of_it(samples)

def helper_of_it(samples):
    raise KeyError("deep")                                         # line 39

class Deep:
    @hookimpl
    def compute_reward(self, samples):
        return {"x": measure(samples)}

class DeepConfig(ComponentConfig):
    """Fails in a helper."""
    def build(self, label):
        return Deep()

@hookimpl
def register_components(register):
    register("model", "slips", SlipsConfig)
    register("model", "short", ShortConfig)
    register("algorithm", "misses", MissesConfig)
    register("reward", "deep", DeepConfig)
'''


def test_a_fault_is_placed_in_the_innermost_line_of_the_authors_code(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    code, out, _ = invoke("plugins", "check", "faulty.py")
    told = dict(line.split(": ", 1) for line in out.splitlines())
    assert code == 2
    assert told["model slips"] == "AttributeError: 'Tensor' object has no attribute 'foo' (faulty.py line 7)"
    assert told["algorithm misses"] == "KeyError: 'nothing' (faulty.py line 28)"
    assert told["reward deep"] == "reward 'under test': KeyError: 'deep' (faulty.py line 39)"
    wanted = "yielded 1 for 2 prompts; yield one mapping of tensors a prompt, in their order"
    assert told["model short"] == f"model: Short.encode (faulty.py line 16) {wanted}"


CLIPS = '''
import torch
from flowfactory import CheckpointPath, ModelConfig, Trajectory, flow, hookimpl
from flowfactory.testing import TwoParameter

class Clips(TwoParameter):
    @hookimpl
    def sample(self, conditions, plan):
        height, width, frames = plan.canvas
        sigmas = torch.linspace(1, 0, plan.steps + 1)
        noise = flow.noise(plan, (frames, 3, height, width))
        latents, steps = flow.rollout(self.velocity, noise, sigmas, conditions, plan)
        return Trajectory(latents.sigmoid(), latents, sigmas, steps)

    @hookimpl
    def encode_media(self, media):
        return media.logit(1e-6)

class ClipsConfig(ModelConfig):
    """Videos of five frames."""
    path: CheckpointPath
    train: str = "full"
    def check(self, run):
        if run.sampling.frames != 5:
            raise ValueError("sampling.frames: this model draws 5")
    def build(self, label):
        return Clips(0.1, 0.0)

@hookimpl
def register_components(register):
    register("model", "clips", ClipsConfig)
'''


def test_a_video_model_is_asked_for_frames_and_mistakes_of_size_hide_behind_others(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "clips.py").write_text(CLIPS)
    code, out, _ = invoke("plugins", "check", "clips.py")
    assert code == 2
    assert [line.partition(";")[0] for line in out.splitlines()] == ["model clips: model.path: this key is missing"]
    code, out, _ = invoke("plugins", "check", "clips.py", "--set", "path=nowhere")
    assert [line.startswith("model clips: model.path: ") for line in out.splitlines()] == [True]
    told = invoke("plugins", "check", "clips.py", "--set", f"path={tmp_path}", "--size", "8x8")[1]
    assert told == "model clips: sampling.frames: this model draws 5\n"
    assert invoke("plugins", "check", "clips.py", "--set", f"path={tmp_path}")[:2] == (0, "model clips: in order\n")
