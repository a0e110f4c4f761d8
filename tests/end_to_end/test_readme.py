import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_commands_are_one_line_each():
    assert [block.strip().count("\n") for block in blocks("bash")[:2]] == [0, 0]


def test_continuous_integration_runs_the_readmes_test_command():
    assert blocks("bash")[1].strip() in (ROOT / ".ci" / "run").read_text()


def test_the_readmes_reward_trains_as_a_one_file_plugin(flowfactory, tmp_path):
    (tmp_path / "brightness.py").write_text(blocks("python")[0])
    (tmp_path / "prompts.txt").write_text("a red circle on white\ntwo blue squares on black\n")
    (tmp_path / "config.yaml").write_text(
        """
model: {name: tiny}
algorithm: grpo
rewards: {bright: {name: brightness, target: 0.7}, dark: {name: brightness, target: 0.1, weight: 0}}
prompts: {train: prompts.txt}
sampling: {groups: 2, group_size: 4, size: [32, 32], steps: 4, dynamics: flow-sde}
training: {iterations: 1}
"""
    )
    said = flowfactory("run", "config.yaml", "--plugin", "brightness.py").stdout
    assert "bright -" in said
    assert (tmp_path / "runs" / "config" / "checkpoints" / "000001").is_dir()


def test_the_readmes_config_is_valid(flowfactory, tmp_path):
    (tmp_path / "brightness.py").write_text(blocks("python")[0])
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text("a prompt\n")
    (tmp_path / "config.yaml").write_text(blocks("yaml")[0])
    resolved = flowfactory("run", "config.yaml", "--plugin", "brightness.py", "--dry-run").stdout
    assert "stabilityai/stable-diffusion-3.5-medium" in resolved


def test_the_readmes_mistake_ends_in_the_line_it_shows(flowfactory, tmp_path):
    (tmp_path / "p.txt").write_text("a small yellow ring on gray\n")
    (tmp_path / "config.yaml").write_text(
        "model: {name: tiny}\nalgorithm: {name: grpo, clip_rnage: 1e-4}\nrewards: {scene: scene}\n"
        "prompts: {train: p.txt}\nsampling: {size: [32, 32], dynamics: flow-sde}\n"
    )
    done = flowfactory("run", "config.yaml", code=2)
    shown = " ".join(re.findall(r"`(config\.yaml: algorithm\.clip_rnage.*?)`", README, flags=re.DOTALL)[0].split())
    assert done.stderr.strip() == f"error: {shown}"
