"""The model card: what was trained, how, what it scores, and how to load it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flowfactory.config import yaml as config_yaml
from flowfactory.config.canvases import source_canvases
from flowfactory.config.schema import RunConfig, reward_weight
from flowfactory.config.warm_start import is_base
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.export.adapters import COMFYUI, PEFT
from flowfactory.runs.export.origin import Origin
from flowfactory.runs.export.usage import code_span, describe_use
from flowfactory.training.plans import EVALUATION
from flowfactory.types import Say

NOT_OF_THE_MODEL = ("output", "distributed", "plugins", "device")


@dataclass(frozen=True)
class Exported:
    """What was written: the weights after ``iteration``, those kept as ``weights``, in a format; the file of each module."""

    iteration: int
    weights: str | None
    form: str
    files: Mapping[str, Path]


def make_card(title: str, records: list[dict[str, Any]], config: RunConfig, origin: Origin, exported: Exported) -> str:
    """The text of README.md. Nothing in it tells a place on this machine."""
    pieces = [
        f"---\n{yaml.safe_dump(_head(config, origin, exported), sort_keys=False, allow_unicode=True)}---",
        f"# {_escape(title)}",
        _summary(config, origin, exported),
        _scores(records, config, exported),
        "## Use",
        describe_use(config, origin, exported.form, exported.files),
        _drawn(config),
        "## Config",
        "How it was trained, without the places of files and servers.",
        _fenced(_public_config(config)),
    ]
    return "\n\n".join(piece for piece in pieces if piece) + "\n"


def _head(config: RunConfig, origin: Origin, exported: Exported) -> dict[str, Any]:
    adapters = config.model.train != "full"
    head: dict[str, Any] = dict(origin.licence)
    if origin.hub:
        head |= {"base_model": origin.name, "base_model_relation": "adapter" if adapters else "finetune"}
    library = "peft" if exported.form == PEFT else "diffusers"
    if exported.form != COMFYUI and (origin.pipeline or adapters):
        head["library_name"] = library
    head["pipeline_tag"] = _task(config)
    kinds = [name for name, applies in (("lora", adapters), ("comfyui", exported.form == COMFYUI)) if applies]
    head["tags"] = ["flowfactory", *(way.replace(" ", "-") for way in _ways(config)), _component(config.algorithm), *kinds]
    return head


def _task(config: RunConfig) -> str:
    """The hub's word for what goes in and what comes out."""
    takes = config.model.takes
    given = "video" if takes.video[0] else "image" if takes.images[0] else "text"
    return f"{given}-to-{'video' if config.sampling.frames else 'image'}"


def _component(config: object) -> str:
    return str(getattr(config, "name", type(config).__name__))


def _ways(config: RunConfig) -> list[str]:
    """What the field calls the way in which it was trained."""
    algorithm = config.algorithm
    known = {"targets": "supervised fine-tuning", "pairs": "preference optimization"}
    if algorithm.learns_from != "samples":
        return [known[algorithm.learns_from]]
    taught = algorithm.taught_by_base or not algorithm.rewarded
    return [*(["distillation"] if taught else []), *(["reinforcement learning"] if algorithm.rewarded else [])]


def _drawn(config: RunConfig) -> str:
    """The settings that belong to the weights."""
    sampling, evaluation, student = config.sampling, config.evaluation, config.algorithm.taught_by_base
    steps, guidance, canvases = sampling.steps, sampling.guidance, list(dict.fromkeys(source_canvases(config).values()))
    if not student:
        steps, canvases = evaluation.steps or steps, [evaluation.canvas(sampling)]
        guidance = guidance if evaluation.guidance is None else evaluation.guidance
    sizes = " and ".join(f"{canvas.height} x {canvas.width}" for canvas in canvases)
    what = f"{canvases[0].frames} frames of {sizes}" if sampling.frames else sizes
    told = f"in {steps} step{'s' if steps > 1 else ''} under guidance {guidance:g}, {what} pixels (height x width)"
    return f"It is a student that draws {told}." if student else f"Its evaluations drew {told}."


def _summary(config: RunConfig, origin: Origin, exported: Exported) -> str:
    base = f"[`{origin.name}`](https://huggingface.co/{origin.name})" if origin.hub else code_span(origin.name)
    what = "A fine-tune of" if config.model.train == "full" else "LoRA adapters for"
    rewards = ", ".join(
        f"`{label}`"
        + (f" ({name})" if (name := _component(reward)) != label else "")
        + f" with weight {reward_weight(reward):g}"
        for label, reward in config.rewards.items()
    )
    text = (
        f"{what} {base}, trained with flowfactory by {' and '.join(_ways(config))}: {exported.iteration} "
        f"iterations of `{_component(config.algorithm)}`."
    )
    if config.algorithm.rewarded:
        text += f" Rewards: {rewards}."
    if config.model.train != "full" and is_base(config.model.train.lora):
        text += " They contain the adapters that training began with, which it added to the frozen weights."
    if exported.weights:
        text += f" These are the weights kept as `{exported.weights}`."
    if origin.pipeline and not origin.licence:
        text += " Before you publish this, state a licence in the head of this file; "
        text += f"that of {code_span(origin.name)} may decide it."
    return text


def _scores(records: list[dict[str, Any]], config: RunConfig, exported: Exported) -> str:
    """A row a reward: its mean over the held-out prompts before training, in the last evaluation, and in the best."""
    found = [r for r in records if r["iteration"] <= exported.iteration and any(k.startswith("eval/") for k in r)]
    if len(found) < 2:
        return ""
    first, last = found[0], found[-1]
    rows = []
    for key in (key for key in last if re.fullmatch(r"eval/[^/]+/mean", key) and key in first):
        best = max((record for record in found if key in record), key=lambda record: (record[key], -record["iteration"]))
        scores = (_format_score(record[key]) for record in (first, last, best))
        rows.append("| {} | {} | {} | {} ({}) |".format(_escape(key.split("/")[1]), *scores, best["iteration"]))
    drawn = "prompts that were not trained on"
    drawn += f", drawn with the weights kept as `{EVALUATION}`" if config.evaluation.ema else ""
    return "\n".join(
        [
            f"Mean score of {drawn}:",
            "",
            f"| reward | before training | after iteration {last['iteration']} | best (after iteration) |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _format_score(score: float) -> str:
    """Four digits, at most four of them behind the point, unless that leaves too little of a small number."""
    size = abs(score)
    if not math.isfinite(score) or size >= 1e5 or 0 < size < 1e-3:
        return f"{score:.3g}"
    return f"{score:.{min(4, max(0, 3 - math.floor(math.log10(size))))}f}" if size else "0.0000"


def _escape(text: str) -> str:
    """As a cell of a table shows it."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def _public_config(config: RunConfig) -> str:
    """The config as YAML, without what is about this machine alone."""
    known = yaml.safe_load(config_yaml.dump(config))
    return yaml.safe_dump(
        {key: _strip_places(value) for key, value in known.items() if key not in NOT_OF_THE_MODEL},
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=120,
    )


def _strip_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strip_places(item) for item in value]
    if isinstance(value, str):
        if re.match(r"\w+://", value):
            return "a server"
        return Path(value).name if Path(value).is_absolute() else value
    return value


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}yaml\n{text}{fence}"


def write_card(
    folder: Path, directory: RunDirectory, config: RunConfig, origin: Origin, exported: Exported, say: Say = lambda _: None
) -> None:
    """Write README.md; ``say`` hears of figures that are left out of it."""
    text = make_card(directory.path.absolute().name, directory.records(say), config, origin, exported)
    (folder / "README.md").write_text(text, encoding="utf-8", errors="replace")  # of a folder whose name is no UTF-8
