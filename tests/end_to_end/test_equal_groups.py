"""Groups without an advantage are not trained on, which changes nothing where their loss is zero."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flowfactory.config import loading
from flowfactory.runs.train import train
from flowfactory.testing import ForwardCount, two_parameter

GROUPS, MEMBERS, STEPS = 4, 4, 3
REWARD = """
import torch
from flowfactory import ComponentConfig, hookimpl

class Config(ComponentConfig):
    every: int = 2
    def build(self, label):
        return Reward(label, self.every)

class Reward:
    def __init__(self, label, every):
        self.label, self.every = label, every
    @hookimpl
    def compute_reward(self, samples):
        place = torch.tensor([len(prompt) for prompt in samples.prompts])
        differs = place % self.every == 0
        return {self.label: torch.where(differs, samples.media.flatten(1).mean(1), 0.5)}

@hookimpl
def register_components(register):
    register("reward", "some-groups", Config)
"""


@pytest.fixture
def learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``learn(algorithm, equal_groups, …)``: the weights at the end, the forwards of training and the records of a run."""
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    plugin = tmp_path / "some_groups.py"
    plugin.write_text(REWARD)
    prompts = tmp_path / "train.txt"

    def run(algorithm: dict[str, Any], equal: str, every: int = 2, **training: Any) -> Any:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        sde = not algorithm.get("timesteps")
        raw = two_parameter.settings(
            folder,
            algorithm,
            sampling={
                "groups": GROUPS,
                "group_size": MEMBERS,
                "steps": STEPS,
                "dynamics": {"name": "flow-sde", "num_sde_steps": 1} if sde else "ode",
            },
            training={"iterations": 2, "batch_size": MEMBERS, "optimizer": {"lr": 0.01}, **training},
        )
        prompts.write_text("a\nbb\nccc\ndddd\n")
        raw["prompts"] = {"train": str(prompts)}
        raw["plugins"] = [*raw.get("plugins", []), str(plugin)]
        raw["rewards"] = {"some": {"name": "some-groups", "every": every}}
        raw["advantages"] = {"equal_groups": equal}
        counted = ForwardCount()
        directory = train(loading.validate(raw), observers=[counted], say=lambda _: None)
        weights = next(iter(sorted(directory.path.glob("checkpoints/*"))[-1:]))
        return weights, counted.iterations[2].get("train", 0), directory.records()

    return run


def trained(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        found |= {f"{file.name}/{key}": value for key, value in load_file(file).items()}
    assert found
    return found


@pytest.mark.parametrize("updates", [1, 2, 4])
def test_half_the_groups_cost_half_the_forwards_and_teach_the_same(learn: Any, updates: int) -> None:
    dropped, few, records = learn({"name": "grpo"}, "drop", updates=updates)
    kept, all_of_them, _ = learn({"name": "grpo"}, "keep", updates=updates)
    assert all_of_them == GROUPS * MEMBERS
    assert few >= all_of_them / 2
    if updates == 1:
        assert few == all_of_them / 2
    assert records[-1]["groups/equal"] == 0.5
    mine, theirs = trained(dropped), trained(kept)
    assert mine.keys() == theirs.keys()
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], rtol=1e-5, atol=1e-7, msg=key)


def test_a_decoupled_loss_without_an_advantage_is_trained_on_where_that_is_wanted(learn: Any) -> None:
    nft = {"name": "nft", "timesteps": {"name": "uniform", "count": 1}}
    _, few, _ = learn(nft, "drop")
    _, all_of_them, _ = learn(nft, "keep")
    assert (few, all_of_them) == (GROUPS * MEMBERS / 2, GROUPS * MEMBERS)
