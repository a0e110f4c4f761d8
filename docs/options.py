"""The directive ``options``: a table of every key of a config class, made while the pages are built.

``{options} training`` is a section of the config, ``{options} training.optimizer`` one further down,
``{options} algorithm grpo`` a component as ``flowfactory plugins list`` names it, and ``{options} ema power`` one of
the choices of UNIONS.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flowfactory.config import component_slots
from flowfactory.config.component import AlgorithmConfig, ComponentConfig, LoraConfig, ModelConfig
from flowfactory.config.component_slots import schema_type
from flowfactory.config.ema import Decay
from flowfactory.config.feature_caches import FirstBlockConfig
from flowfactory.config.kl import AdaptiveKL, KLGate, KLRefresh, KLTerm
from flowfactory.config.optimizers import Optimizer
from flowfactory.config.schema import EarlyStopConfig, RegulariseConfig
from flowfactory.config.sources import PromptSource
from flowfactory.discovery.discover import discover
from flowfactory.flow.dynamics import Slide
from flowfactory.flow.timesteps import Timesteps
from flowfactory.models.family_config import FamilyConfig

UNITS = {
    "LoraConfig.rank": "dimensions",
    "LoraConfig.alpha": "factor",
    "PromptsConfig.encode_ahead": "prompts",
    "PromptSource.weight": "groups",
    "PromptSource.size": "pixels",
    "SamplingConfig.groups": "prompts",
    "SamplingConfig.group_size": "pictures",
    "SamplingConfig.size": "pixels",
    "SamplingConfig.frames": "frames",
    "SamplingConfig.steps": "steps",
    "SamplingConfig.guidance": "factor",
    "SamplingConfig.batch_size": "pictures",
    "FirstBlockConfig.threshold": "mean absolute change, relative",
    "AdvantagesConfig.clip": "standard deviations",
    "AdvantagesConfig.min_range": "units of the weighted rewards",
    "NormGuardConfig.norm_guard": "factor",
    "OptimizerConfig.lr": "factor",
    "OptimizerConfig.weight_decay": "times lr, per step",
    "AdamWConfig.betas": "factors",
    "AdamWConfig.eps": "root of the second moment",
    "LionConfig.betas": "factors",
    "TrainingConfig.iterations": "iterations",
    "TrainingConfig.updates": "optimizer steps",
    "TrainingConfig.epochs": "passes",
    "TrainingConfig.batch_size": "pictures",
    "TrainingConfig.timesteps_per_forward": "steps or timesteps per picture",
    "TrainingConfig.warmup": "optimizer steps",
    "TrainingConfig.max_grad_norm": "L2 norm of all gradients",
    "TrainingConfig.patience_flat": "iterations",
    "EarlyStopConfig.patience": "evaluations",
    "EvaluationConfig.every": "iterations",
    "EvaluationConfig.members": "pictures",
    "EvaluationConfig.size": "pixels",
    "EvaluationConfig.frames": "frames",
    "FamilyOptions.decode_batch_size": "samples",
    "EvaluationConfig.steps": "steps",
    "EvaluationConfig.guidance": "factor",
    "EvaluationConfig.batch_size": "pictures",
    "EvaluationConfig.pictures": "pictures",
    "OutputConfig.checkpoint_every": "iterations",
    "OutputConfig.keep_last": "checkpoints",
    "DistributedConfig.shard": "ranks",
    "DistributedConfig.replicate": "copies",
    "DistributedConfig.context": "ranks",
    "DistributedConfig.timeout": "minutes",
    "RunConfig.seed": "",
    "SDEConfig.sde_steps": "steps, from 0",
    "SDEConfig.num_sde_steps": "steps",
    "Slide.every": "iterations",
    "Slide.stride": "candidates",
    "FlowSDEConfig.noise_level": "factor",
    "DanceSDEConfig.noise_level": "spread",
    "CPSConfig.noise_level": "right angles",
    "Constant.decay": "share",
    "Power.power": "exponent",
    "Power.decay": "share",
    "WarmUp.decay": "share",
    "Linear.start": "share",
    "Linear.end": "share",
    "Linear.iterations": "iterations",
    "PiecewiseLinear.points": "iterations, share",
    "Cosine.start": "share",
    "Cosine.end": "share",
    "Cosine.iterations": "iterations",
    "WarmupCosine.warmup": "iterations",
    "WarmupCosine.start": "share",
    "WarmupCosine.end": "share",
    "WarmupCosine.iterations": "iterations",
    "_TimestepRange.count": "timesteps",
    "_TimestepRange.low": "sigma",
    "_TimestepRange.high": "sigma",
    "_Continuous.shift": "factor",
    "RegulariseConfig.sft": "factor",
    "LogitNormal.mean": "log-odds of sigma",
    "LogitNormal.std": "log-odds of sigma",
    "AlgorithmConfig.guidance": "factor",
    "AdaptiveKL.target": "as the metric kl",
    "AdaptiveKL.start": "factor",
    "KLTerm.coefficient": "factor",
    "KLGate.share": "share",
    "KLRefresh.above": "as the metric kl",
    "KLRefresh.every": "optimizer steps",
    "PolicyGradientConfig.kl": "factor",
    "FewStepConfig.teacher_guidance": "factor",
    "DMD2Config.low": "sigma",
    "DMD2Config.high": "sigma",
    "TDMConfig.huber": "units of the latents",
    "TDMR1Config.beta": "factor",
    "TDMR1Config.surrogate_kl": "factor",
    "TDMR1Config.clip_range": "ratio",
    "TDMR1Config.guidance_weight": "factor",
    "TDMR1Config.reward_weight": "factor",
    "OPDConfig.share": "share",
    "OPDConfig.teacher_guidance": "factor",
    "RoleConfig.steps": "optimizer steps",
    "RoleConfig.lr": "factor",
    "GRPOConfig.clip_range": "ratio",
    "DGPOConfig.clip_range": "ratio",
    "GRPOGuardConfig.clip_range": "normalised ratio",
    "DPPOConfig.kl_bound": "nats an element",
    "NFTConfig.beta": "factor",
    "NFTConfig.advantage_max": "advantage",
    "NFTConfig.kl": "factor",
    "FlashGRPOConfig.clip_range": "ratio",
    "VGRPOConfig.clip_range": "ratio",
    "VGRPOConfig.advantage_max": "advantage",
    "VGRPOConfig.kl": "factor",
    "VGRPOConfig.old_kl": "factor",
    "RAMConfig.reward_multiplier": "factor",
    "RVMConfig.advantage_scale": "factor",
    "RVMConfig.kl": "factor",
    "AWMConfig.power": "exponent",
    "AWMConfig.clip_range": "ratio",
    "AWMConfig.advantage_scale": "factor",
    "AWMConfig.kl": "factor",
    "AWMConfig.ema_kl": "factor",
    "ReferenceConfig.reference_guidance": "factor",
    "DPOConfig.beta": "factor",
    "DGPOConfig.beta": "factor",
    "DGPOConfig.kl": "factor",
    "DGPOConfig.kl_guidance": "factor",
    "CRDConfig.beta": "factor",
    "CRDConfig.temperature": "optimality",
    "CRDConfig.advantage_max": "advantage",
    "CRDConfig.kl": "factor",
    "CRDConfig.kl_guidance": "factor",
    "JpegSizeConfig.quality": "as Pillow counts it",
    "JpegSizeConfig.frames": "frames",
    "RewardModelConfig.batch_size": "pictures",
    "RewardModelConfig.frames": "frames",
    "GenevalConfig.threshold": "probability",
    "GenevalConfig.counting_threshold": "probability",
    "GenevalConfig.max_objects": "objects",
    "GenevalConfig.max_overlap": "intersection over union",
    "GenevalConfig.position_threshold": "sizes of the boxes",
    "OcrConfig.frames": "frames",
    "OcrConfig.resolution": "pixels",
    "OcrConfig.threads": "threads",
    "VideoMotionConfig.frames": "frames",
    "VideoMotionConfig.at_most": "diagonals a second",
    "ClientConfig.requests": "requests",
    "ClientConfig.request_timeout": "seconds",
    "ClientConfig.retries": "tries",
    "ClientConfig.patience": "seconds",
    "RemoteConfig.batch_size": "samples",
    "VlmConfig.passes": "answers",
    "ChatConfig.frames": "frames",
    "ChatConfig.max_tokens": "tokens",
    "ChatConfig.top_logprobs": "tokens",
    "ChatConfig.least_probability": "probability",
    "VlmConfig.range": "what the question says",
    "PairwiseConfig.opponents": "members",
    "SD3Config.max_sequence_length": "tokens",
    "ExpertsConfig.guidance_2": "factor",
    "WanV2VConfig.strength": "share of the noise",
    "Flux1Config.max_sequence_length": "tokens",
    "Flux2Config.max_sequence_length": "tokens",
    "Krea2Config.max_sequence_length": "tokens",
    "Flux2Config.picture_area": "pixels",
    "QwenImageConfig.max_sequence_length": "tokens",
    "QwenImage21EditConfig.picture_area": "pixels",
    "QwenImageEditConfig.vae_area": "pixels",
    "QwenImageEditConfig.condition_area": "pixels",
    "TinyConfig.max_sequence_length": "tokens",
    "ChromaConfig.max_sequence_length": "tokens",
    "Lumina2Config.max_sequence_length": "tokens",
    "Lumina2Config.cfg_trunc_ratio": "share of the steps",
    "SanaConfig.max_sequence_length": "tokens",
    "ZImageConfig.max_sequence_length": "tokens",
    "ZImageConfig.cfg_normalization": "factor",
    "ZImageConfig.cfg_truncation": "1 - sigma",
}
"""What a number counts, by class and key; every number of a documented class, or of a class above it, stands here."""

MEANINGS = {
    "LoraConfig.rank": "of the two factors of an adapter",
    "TrainingConfig.iterations": "rounds of sample, reward, update",
    "TrainingConfig.optimizer": "see [training.optimizer](#trainingoptimizer)",
    "TrainingConfig.max_grad_norm": "gradients are scaled down to it",
    "OutputConfig.dir": "the run directory; `--out` goes first",
    "OutputConfig.trackers": "who else is told: [trackers](trackers.md)",
    "RunConfig.model": "which model",
    "RunConfig.algorithm": "which algorithm",
    "RunConfig.rewards": "rewards by label",
    "RunConfig.prompts": "see [prompts](#prompts)",
    "RunConfig.sampling": "see [sampling](#sampling)",
    "RunConfig.advantages": "see [advantages](#advantages)",
    "RunConfig.training": "see [training](#training)",
    "RunConfig.evaluation": "see [evaluation](#evaluation)",
    "RunConfig.distributed": "see [distributed](#distributed)",
    "RunConfig.output": "see [output](#output)",
    "RunConfig.seed": "decides every random number of the run",
    "SamplingConfig.dynamics": "how latents step",
}
"""What a key means where its field does not say so itself."""

DEFAULTS = {
    "LoraConfig.alpha": "the rank",
    "OutputConfig.dir": "runs/<name of the config>",
    "SamplingConfig.dynamics": "ode",
}
"""Defaults that are made while a config is loaded."""

SHARED: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "algorithm": AlgorithmConfig,
    "family": FamilyConfig,
    "lora": LoraConfig,
    "slide": Slide,
    "early_stop": EarlyStopConfig,
    "regularise": RegulariseConfig,
    "adaptive_kl": AdaptiveKL,
    "kl": KLTerm,
    "kl_gate": KLGate,
    "kl_refresh": KLRefresh,
    "source": PromptSource,
    "feature_cache": FirstBlockConfig,
}
"""Classes that stand in no one place of a config."""

UNIONS: dict[str, tuple[type[BaseModel], ...]] = {
    "ema": get_args(get_args(Decay)[0]),
    "optimizer": get_args(get_args(Optimizer)[0]),
    "timesteps": get_args(get_args(Timesteps)[0]),
}
"""Classes of which a config chooses one by its ``name``."""


def rows(config: type[BaseModel]) -> list[tuple[str, str, str, str, str]]:
    """(key, type, default, unit, meaning) of every key of ``config``."""
    found = []
    for key, field in config.model_fields.items():
        if key == "name" and (issubclass(config, ComponentConfig) or is_choice(config)):
            continue
        meaning = field.description or said(MEANINGS, config, key)
        unit = said(UNITS, config, key)
        found.append((key, kind(field.annotation) + bounds(field), default(config, key, field), unit, meaning))
    return found


def said(of: dict[str, str], config: type[BaseModel], key: str) -> str:
    """What ``of`` says of the key of ``config``, or of a class that it inherits from."""
    places = (f"{owner.__name__}.{key}" for owner in config.__mro__)
    return next((of[place] for place in places if place in of), "")


def is_choice(config: type[BaseModel]) -> bool:
    """Whether ``config`` is one of a union's classes, told from the others by ``name``."""
    return any(config in classes for classes in UNIONS.values())


def table(config: type[BaseModel]) -> list[str]:
    """The rows as lines of Markdown."""
    lines = ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
    for key, type_, value, unit, meaning in rows(config):
        cells = [f"`{key}`", f"`{type_}`", f"`{value}`" if value not in ("", "required") else value, unit, meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def kind(annotation: Any) -> str:
    """A type as a user of YAML reads it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return kind(arguments[0])
    if origin in (Union, types.UnionType):
        if all(isinstance(argument, type) and issubclass(argument, ComponentConfig) for argument in arguments):
            return "component"
        if chosen := [noun for noun, classes in UNIONS.items() if set(classes) == set(arguments)]:
            return chosen[0]
        return " or ".join("null" if argument is type(None) else kind(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    if origin is tuple:
        inner = [kind(argument) for argument in arguments if argument is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in arguments else f"[{', '.join(inner)}]"
    if origin is dict:
        return f"mapping of {kind(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Path):
        return "path"
    if isinstance(annotation, type) and issubclass(annotation, ComponentConfig):
        return "component"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(annotation, "any")


LARGE = 10_000
"""Limits from here on only keep a slip of the finger from filling the memory."""


def bounds(field: FieldInfo) -> str:
    """``, > 0`` and the like."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [(sign, getattr(item, name, None)) for item in field.metadata for name, sign in signs.items()]
    return "".join(f", {sign} {limit:g}" for sign, limit in found if limit is not None and limit < LARGE)


def default(config: type[BaseModel], key: str, field: FieldInfo) -> str:
    """The default as YAML; ``required`` where there is none, nothing where the key is a section of its own."""
    if made := said(DEFAULTS, config, key):
        return made
    if field.is_required():
        return "required"
    return "" if is_section(field.annotation) else written(field.default)


def is_section(annotation: Any) -> bool:
    """Whether a key holds a mapping that has a table of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and not issubclass(annotation, ComponentConfig)


def written(value: Any) -> str:
    """A value as YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        inner = {key: item for key, item in value if item is not None}
        if is_choice(type(value)):  # the name, and what is not as that choice has it anyway
            usual = {key: field.default for key, field in type(value).model_fields.items()}
            inner = {"name": inner["name"]} | {key: item for key, item in inner.items() if item != usual[key]}
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in inner.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(written(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name  # where it is installed is the reader's own
    return str(value) or "''"


def config_class(words: str) -> type[BaseModel]:
    """The class that a directive names."""
    first, _, name = words.partition(" ")
    if first in UNIONS:
        return next(choice for choice in UNIONS[first] if choice.model_fields["name"].default == name)
    if name:
        return component_slots.config_class(discover().find(first, name))
    if first == "run":
        return schema_type(discover())
    if first in SHARED:
        return SHARED[first]
    found: type[BaseModel] = schema_type(discover())
    for key in first.split("."):
        section: Any = found.model_fields[key].annotation
        found = section
    return found


def setup(app: Any) -> dict[str, bool]:
    """Add the directive."""
    from docutils import nodes
    from docutils.statemachine import StringList
    from sphinx.util.docutils import SphinxDirective

    class Options(SphinxDirective):
        required_arguments = 1
        final_argument_whitespace = True

        def run(self) -> list[nodes.Node]:
            holder = nodes.container(classes=["options"])
            self.state.nested_parse(StringList(table(config_class(self.arguments[0])), source="options"), 0, holder)
            return list(holder.children)

    app.add_directive("options", Options)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
