"""A run's weights as diffusers loads them, in a folder that stands by itself."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.errors import UserError
from flowfactory.policy import lora
from flowfactory.policy.policy import Policy
from flowfactory.runs.checkpoints import load, lookup
from flowfactory.runs.directory import RunDirectory
from flowfactory.training.assembly import Assembly
from flowfactory.types import DTYPES, Runtime

INDEX = "model_index.json"


def export(
    directory: RunDirectory,
    out: Path,
    iteration: int | None,
    weights: str | None,
    precision: str | None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write ``out`` and return it: of a LoRA run the adapters, of a full one the whole pipeline; and a model card, README.md.

    ``weights`` are those kept under that name, the trained ones when None. ``precision`` is that of fully trained weights,
    the run's own when None. Written under a temporary name and renamed; ``say`` hears of damaged checkpoints that are passed
    over. UserError: ``out`` exists, there is no such checkpoint, or nothing is kept under that name.
    """
    if out.exists():
        raise UserError(f"{out} already exists; choose another folder")
    config = directory.load_config()
    saved = lookup.find(directory.checkpoints, iteration, say)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    try:
        policy = _restore(config, saved, weights)
        with policy.using(weights):
            policy.save_trained(temporary)
        if config.model.train == "full":
            _complete(temporary, config, list(policy.modules), DTYPES[precision or config.training.precision])
        (temporary / "README.md").write_text(card(directory, config, saved, list(policy.modules), weights), encoding="utf-8")
        temporary.chmod(0o755)
        os.rename(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return out


def _restore(config: RunConfig, saved: Path, weights: str | None) -> Policy:
    """The policy of a checkpoint, in host memory; no prompt is encoded for it."""
    assembly = Assembly(config, trackers=False)
    device = torch.device("cpu")
    trainable = assembly.hooks.load(Runtime(device, torch.float32 if config.model.train == "full" else DTYPES["bf16"]))
    policy = Policy(trainable, assembly.hooks.log_prob, device, seed=config.seed)
    load.load(saved, policy)
    if weights is not None and weights not in policy.kept:
        known = ", ".join(policy.kept) or "none"
        raise UserError(f"{saved} keeps no weights called {weights!r}; there is {known}")
    return policy


def _complete(folder: Path, config: RunConfig, trained: list[str], dtype: torch.dtype) -> None:
    """Make a pipeline of ``folder``, which holds the ``trained`` transformers: the rest is copied from the checkpoint."""
    source = _local(str(getattr(config.model, "path", "")))
    if source is None:
        return  # a model that is no diffusers pipeline has nothing beside its weights
    import diffusers

    index = json.loads((source / INDEX).read_text())
    for name in trained:
        kind = getattr(diffusers, index[name][1])
        whole = kind.from_pretrained(folder / name, torch_dtype=dtype)
        shutil.rmtree(folder / name)
        whole.save_pretrained(folder / name)
    for part in source.iterdir():
        if part.name in trained or part.name.startswith("."):
            continue
        if part.is_dir() and part.name in index:
            shutil.copytree(part, folder / part.name)
        elif part.name == INDEX:
            shutil.copy(part, folder / part.name)


def _local(path: str) -> Path | None:
    """The folder of a checkpoint; a hub id's is where it was downloaded to. None: it is no pipeline."""
    if not Path(path).is_dir():
        if "/" not in path:
            return None
        from huggingface_hub import snapshot_download

        path = snapshot_download(path)
    return Path(path) if (Path(path) / INDEX).is_file() else None


def card(directory: RunDirectory, config: RunConfig, saved: Path, modules: list[str], weights: str | None) -> str:
    """The model card: what it was made from, how, what it scores, and how to load it."""
    base = str(getattr(config.model, "path", getattr(config.model, "name", "model")))
    on_hub = not Path(base).is_dir()
    name = base if on_hub else Path(base).name  # a folder's place is nobody else's business
    adapters = config.model.train != "full"
    done = int(saved.name)
    head: dict[str, Any] = {"library_name": "diffusers", "tags": ["flowfactory", "reinforcement-learning"]}
    if on_hub and "/" in base:
        head["base_model"] = base
    if adapters:
        head["tags"] = [*head["tags"], "lora"]
    algorithm = getattr(config.algorithm, "name", type(config.algorithm).__name__)
    rewards = ", ".join(f"`{getattr(r, 'name', label)}` (weight {reward_weight(r):g})" for label, r in config.rewards.items())
    pieces = [
        f"---\n{_yaml(head)}---",
        f"# {directory.path.name}",
        f"{'LoRA adapters for' if adapters else 'A fine-tune of'} `{name}`, made with [flowfactory]"
        f"(https://arxiv.org/abs/2602.12529): {done} iterations of `{algorithm}` with the rewards {rewards}"
        + (f". These are the weights kept as `{weights}`." if weights else "."),
        _scores(directory.records(), done),
        "## Use",
        "```python\n" + _use(name, modules, adapters) + "```",
    ]
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def _yaml(head: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(head), sort_keys=False)


def _scores(records: list[dict[str, Any]], done: int) -> str:
    evaluated = [r for r in records if r["iteration"] <= done and any(key.startswith("eval/") for key in r)]
    if len(evaluated) < 2:
        return ""
    first, last = evaluated[0], evaluated[-1]
    rows = "".join(
        f"| {key.split('/')[1]} | {first[key]:.4f} | {last[key]:.4f} |\n"
        for key in last
        if key.startswith("eval/") and key in first
    )
    return f"Held-out score:\n\n| | before | after {last['iteration']} iterations |\n|---|---|---|\n{rows.rstrip()}"


def _use(name: str, modules: list[str], adapters: bool) -> str:
    lines = ["from diffusers import DiffusionPipeline\n"]
    if not adapters:
        return "\n".join([*lines, 'pipeline = DiffusionPipeline.from_pretrained("this folder")\n'])
    lines.append(f'pipeline = DiffusionPipeline.from_pretrained("{name}")')
    for module in modules:
        place = lora.adapter_path(Path("this folder"), module).parent
        second = "" if module == lora.FIRST else f", load_into_{module}=True"
        lines.append(f'pipeline.load_lora_weights("{place}"{second})')
    return "\n".join(lines) + "\n"
