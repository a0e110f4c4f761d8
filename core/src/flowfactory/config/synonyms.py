"""What people call things elsewhere, and what that is here.

Names of components are with the components: see ``ComponentConfig.known_as``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flowfactory.config.wording import LONGEST, alternatives, is_model, leaves, tags, written
from flowfactory.suggestions import nearest

KEYS: Mapping[str, tuple[str, ...]] = {
    "adam_epsilon": ("training.optimizer.eps",),
    "adapter": ("model.train",),
    "adv_clip": ("advantages.clip",),
    "adv_clip_max": ("advantages.clip", "algorithm.advantage_max"),
    "amp": ("training.precision",),
    "average": ("sampling.ema", "evaluation.ema"),
    "base_model": ("model.path",),
    "beta": ("algorithm.beta", "algorithm.kl"),
    "cfg": ("sampling.guidance", "evaluation.guidance"),
    "cfg_scale": ("sampling.guidance", "evaluation.guidance"),
    "checkpoint": ("model.path",),
    "checkpoint_interval": ("output.checkpoint_every",),
    "checkpointing_steps": ("output.checkpoint_every",),
    "checkpoints_total_limit": ("output.keep_last",),
    "ckpt": ("model.path",),
    "clip_range": ("algorithm.kl_bound",),
    "clip_eps": ("algorithm.clip_range",),
    "clip_epsilon": ("algorithm.clip_range",),
    "clip_grad_norm": ("training.max_grad_norm",),
    "clip_ratio": ("algorithm.clip_range",),
    "cliprange": ("algorithm.clip_range",),
    "coef": ("weight",),
    "coefficient": ("weight",),
    "cpu_offload": ("distributed.offload",),
    "dataset": ("prompts.train",),
    "dataset_path": ("prompts.train",),
    "ddrl": ("training.regularise",),
    "data_dir": ("prompts.train",),
    "dtype": ("training.precision",),
    "ema_decay": ("sampling.ema", "evaluation.ema"),
    "ema_rate": ("sampling.ema", "evaluation.ema"),
    "epsilon": ("algorithm.clip_range", "training.optimizer.eps"),
    "eta": ("sampling.dynamics.noise_level",),
    "eval": ("evaluation",),
    "eval_every": ("evaluation.every",),
    "eval_freq": ("evaluation.every",),
    "eval_interval": ("evaluation.every",),
    "eval_prompts": ("prompts.heldout",),
    "eval_steps": ("evaluation.every",),
    "evaluate_every": ("evaluation.every",),
    "file": ("prompts.train",),
    "grad_clip": ("training.max_grad_norm",),
    "grad_norm": ("training.max_grad_norm",),
    "gradient_checkpointing": ("training.activation_checkpointing",),
    "gradient_clip": ("training.max_grad_norm",),
    "gradient_clip_val": ("training.max_grad_norm",),
    "group": ("sampling.group_size",),
    "guidance_scale": ("sampling.guidance", "evaluation.guidance"),
    "height": ("sampling.size",),
    "image_size": ("sampling.size",),
    "images_per_prompt": ("sampling.group_size",),
    "inference_steps": ("sampling.steps", "evaluation.steps"),
    "init_same_noise": ("sampling.shared_noise",),
    "interval": ("evaluation.every",),
    "kl_beta": ("algorithm.kl",),
    "kl_coef": ("algorithm.kl",),
    "kl_coeff": ("algorithm.kl",),
    "kl_penalty": ("algorithm.kl",),
    "kl_weight": ("algorithm.kl",),
    "learning_rate": ("training.optimizer.lr",),
    "limit": ("output.keep_last",),
    "load_in_4bit": ("model.quantize",),
    "load_in_8bit": ("model.quantize",),
    "log_dir": ("output.dir",),
    "log_with": ("output.trackers",),
    "logger": ("output.trackers",),
    "logging_dir": ("output.dir",),
    "lora": ("model.train.lora",),
    "lora_alpha": ("model.train.lora.alpha",),
    "lora_r": ("model.train.lora.rank",),
    "lora_rank": ("model.train.lora.rank",),
    "lora_target_modules": ("model.train.lora.targets",),
    "loss_type": ("algorithm.loss",),
    "lr_scheduler": ("training.decay",),
    "lr_scheduler_type": ("training.decay",),
    "lr_warmup_steps": ("training.warmup",),
    "max_epochs": ("training.iterations",),
    "max_grad": ("training.max_grad_norm",),
    "max_steps": ("training.iterations",),
    "max_train_steps": ("training.iterations",),
    "micro_batch_size": ("training.batch_size",),
    "mini_batches": ("training.updates",),
    "mixed_precision": ("training.precision",),
    "model_name_or_path": ("model.path",),
    "model_path": ("model.path",),
    "model": ("path",),
    "modules": ("targets",),
    "negative_prompt": ("prompts.negative",),
    "network_alpha": ("model.train.lora.alpha",),
    "network_dim": ("model.train.lora.rank",),
    "noise": ("sampling.dynamics.noise_level",),
    "num_epochs": ("training.iterations", "training.epochs"),
    "num_frames": ("sampling.frames", "evaluation.frames"),
    "num_generations": ("sampling.group_size",),
    "num_image_per_prompt": ("sampling.group_size",),
    "num_images_per_prompt": ("sampling.group_size",),
    "num_inference_steps": ("sampling.steps", "evaluation.steps"),
    "num_inner_epochs": ("training.epochs",),
    "num_iterations": ("training.iterations",),
    "num_prompts": ("sampling.groups",),
    "num_samples": ("sampling.groups", "sampling.group_size"),
    "num_steps": ("sampling.steps", "evaluation.steps"),
    "num_train_epochs": ("training.iterations", "training.epochs"),
    "optim": ("training.optimizer",),
    "out": ("output.dir",),
    "out_dir": ("output.dir",),
    "outdir": ("output.dir",),
    "output_dir": ("output.dir",),
    "per_device_train_batch_size": ("training.batch_size",),
    "ppo_epochs": ("training.epochs",),
    "pretrained": ("path",),
    "pretrained_model": ("model.path",),
    "pretrained_model_name_or_path": ("path", "model.path"),
    "prompt_file": ("prompts.train",),
    "prompts_per_iteration": ("sampling.groups",),
    "quantization": ("model.quantize",),
    "r": ("model.train.lora.rank",),
    "regularization": ("training.regularise",),
    "regularize": ("training.regularise",),
    "rate": ("training.optimizer.lr",),
    "reward": ("rewards",),
    "reward_fn": ("rewards",),
    "reward_model": ("rewards",),
    "reward_weights": ("rewards",),
    "random_seed": ("seed",),
    "report_to": ("output.trackers",),
    "resolution": ("sampling.size", "evaluation.size"),
    "run_name": ("output.dir",),
    "sample": ("sampling",),
    "sample_every": ("evaluation.every",),
    "samples_per_prompt": ("sampling.group_size",),
    "same_latent": ("sampling.shared_noise",),
    "same_noise": ("sampling.shared_noise",),
    "sampler": ("sampling.dynamics",),
    "save_dir": ("output.dir",),
    "save_every": ("output.checkpoint_every",),
    "save_freq": ("output.checkpoint_every",),
    "save_interval": ("output.checkpoint_every",),
    "save_steps": ("output.checkpoint_every",),
    "save_total_limit": ("output.keep_last",),
    "scale": ("weight",),
    "scheduler": ("training.decay", "sampling.dynamics"),
    "sde_type": ("sampling.dynamics",),
    "sde_window": ("sampling.dynamics.sde_steps",),
    "sde_window_size": ("sampling.dynamics.num_sde_steps",),
    "sft": ("training.regularise.sft",),
    "sft_coef": ("training.regularise.sft",),
    "sft_loss": ("training.regularise.sft",),
    "sft_weight": ("training.regularise.sft",),
    "sigma": ("sampling.dynamics.noise_level",),
    "solver": ("sampling.dynamics",),
    "target_modules": ("model.train.lora.targets",),
    "test": ("prompts.heldout",),
    "test_file": ("prompts.heldout",),
    "timestep_fraction": ("sampling.dynamics.num_sde_steps",),
    "torch_compile": ("training.compile",),
    "total_steps": ("training.iterations",),
    "tensorboard": ("output.trackers",),
    "train_batch_size": ("training.batch_size",),
    "train_data": ("prompts.train",),
    "train_file": ("prompts.train",),
    "trainer": ("training",),
    "type": ("name",),
    "use_8bit_adam": ("training.optimizer.name",),
    "use_lora": ("model.train.lora",),
    "val": ("prompts.heldout",),
    "validation": ("evaluation", "prompts.heldout"),
    "validation_steps": ("evaluation.every",),
    "wandb": ("output.trackers",),
    "warmup_steps": ("training.warmup",),
    "width": ("sampling.size",),
    "wd": ("training.optimizer.weight_decay",),
}
"""Keys of other trainers, and the keys that mean it here: within the section at hand, or with their whole path."""

NOTES: Mapping[str, str] = {
    "accumulate_grad_batches": "it follows from training.batch_size and training.updates: leave it out",
    "gradient_accumulation": "it follows from training.batch_size and training.updates: leave it out",
    "gradient_accumulation_steps": "it follows from training.batch_size and training.updates: leave it out",
    "num_gpus": "the command says it: flowfactory run --nproc N",
    "num_processes": "the command says it: flowfactory run --nproc N",
    "nproc": "the command says it: flowfactory run --nproc N",
    "lora_dropout": "adapters have no dropout, since sampling and training must compute the same: leave it out",
    "dropout": "nothing here has dropout, since sampling and training must compute the same: leave it out",
    "resume": "the command says it: flowfactory run --resume",
    "resume_from_checkpoint": "the command says it: flowfactory run --resume",
    "warmup_ratio": "training.warmup is a number of optimizer steps",
}
"""Keys of other trainers that are none here, and why."""

VALUES: Mapping[str, tuple[str, ...]] = {
    "16": ("bf16",),
    "32": ("float32",),
    "4bit": ("nf4",),
    "8bit": ("adamw8bit", "int8"),
    "adam": ("adamw",),
    "adam8bit": ("adamw8bit",),
    "adamw_8bit": ("adamw8bit",),
    "adamw_torch": ("adamw",),
    "bfloat16": ("bf16",),
    "bnb": ("nf4",),
    "constant_with_warmup": ("constant",),
    "cosine_with_warmup": ("cosine",),
    "cosineannealing": ("cosine",),
    "cpu": ("host",),
    "cuda": ("device",),
    "ema": ("constant",),
    "false": ("none",),
    "float": ("float32",),
    "float16": ("fp16", "bf16"),
    "fp16": ("bf16",),
    "fp32": ("float32",),
    "full": ("blocks",),
    "gpu": ("cuda", "device"),
    "half": ("bf16",),
    "int4": ("nf4",),
    "lion_8bit": ("lion8bit",),
    "mean": ("sum",),
    "no": ("float32", "none"),
    "nf_4": ("nf4",),
    "page_adamw_8bit": ("paged-adamw8bit",),
    "paged_adamw": ("paged-adamw",),
    "paged_adamw_8bit": ("paged-adamw8bit",),
    "ram": ("host",),
    "sgd": ("adamw",),
    "true": ("blocks", "nf4"),
    "batch": ("global",),
    "per_prompt": ("group",),
    "logit_normal": ("logit-normal",),
}
"""Values of other trainers, and the words that mean it here, wherever those are taken."""

TRUE, FALSE, NONE = ("yes", "on", "true", "y", "1"), ("no", "off", "false", "n", "0"), ("none", "null", "off", "false", "~")
FULL = ("full_finetune", "full_finetuning", "full_parameter", "full_rank", "all", "finetune", "true", "whole")


def plain(word: object) -> str:
    """A word without what people write one way or another."""
    return re.sub(r"[\s-]+", "_", str(word).strip().lower())


def keys(section: str, key: str, known: Sequence[str], schema: type[BaseModel]) -> list[str]:
    """What an unknown ``key`` of ``section`` means: keys of the section, or whole paths; none where nothing is known of it."""
    word = plain(key)
    targets = KEYS.get(word, ())
    here = [t.rpartition(".")[2] for t in targets if t in known or (t.rpartition(".")[0] == section and exists(schema, t))]
    here = here or [last for t in targets if (last := t.rpartition(".")[2]) in known]
    if here or word in known:
        return list(dict.fromkeys(here)) or [word]
    elsewhere = [target for target in targets if "." in target or not section]
    found = [target for target in elsewhere if exists(schema, target)]
    if not found:
        everywhere = [path for path in dict.fromkeys(_paths(schema)) if path.rpartition(".")[0] != section]
        found = [path for path in everywhere if path.rpartition(".")[2] == word]
        if not found and not nearest(key, known):
            near = nearest(word, {path.rpartition(".")[2] for path in everywhere}, 0.8)
            found = [path for path in everywhere if path.rpartition(".")[2] in near]
    found = [path for path in found if path.count(".") == min(other.count(".") for other in found)]
    return found if len(found) <= 3 else []


def exists(schema: type[BaseModel], path: str) -> bool:
    """Whether a config of ``schema`` has the key."""
    here = [schema]
    for key in path.split("."):
        fields = [model.model_fields[key] for model in here if key in model.model_fields]
        here = [branch for field in fields for branch in alternatives(field.annotation) if is_model(branch)]
        if not fields:
            return False
    return True


def _paths(model: type[BaseModel], before: str = "") -> Iterator[str]:
    for key, field in model.model_fields.items():
        yield before + key
        for branch in alternatives(field.annotation):
            if is_model(branch):
                yield from _paths(branch, f"{before}{key}.")


def values(place: str, value: object, names: Sequence[str]) -> list[str]:
    """Which of ``names``, the words that are taken at ``place``, ``value`` means."""
    word = plain(written(value) if isinstance(value, bool) else value)
    same = [name for name in names if plain(name) == word]
    return same or [name for name in VALUES.get(word, ()) if name in names][:1]


def meaning(place: str, value: Any, field: FieldInfo | None) -> str | None:
    """What was meant by a ``value`` that ``field`` does not take, as YAML; None where nobody can tell."""
    if field is None or (isinstance(value, str) and len(value) > LONGEST):
        return None
    for guess in (_training, _average, _list, _labels, _word, _number, _text):
        if (meant := guess(place, value, field)) is not None:
            return meant
    return None


def _training(place: str, value: Any, field: FieldInfo) -> str | None:
    if place.endswith("model.train") and isinstance(value, str):
        return (
            "full" if plain(value) in FULL else "{lora: {}}" if "lora" in value.lower() or "adapter" in value.lower() else None
        )
    if place.endswith("train.lora"):
        if value is True:
            return "{}"
        return f"{{rank: {value}}}" if isinstance(value, int) else None
    return None


def _average(place: str, value: Any, field: FieldInfo) -> str | None:
    if not any("constant" in tags(branch) for branch in alternatives(field.annotation)):
        return None
    if isinstance(value, bool):
        return "constant" if value else "null" if type(None) in leaves(field.annotation) else None
    return f"{{name: constant, decay: {written(value)}}}" if isinstance(value, int | float) and 0 <= value <= 1 else None


def _list(place: str, value: Any, field: FieldInfo) -> str | None:
    several = [get_args(branch) for branch in alternatives(field.annotation) if get_origin(branch) is tuple]
    if not several:
        return None
    kinds = several[0]
    if isinstance(value, str) and (sides := re.fullmatch(r"(\d+)\s*[x×*, ]\s*(\d+)", value)) and leaves(kinds[0]) == {int}:
        return f"[{sides[1]}, {sides[2]}]"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    number = isinstance(value, int | float)
    if number and any(
        leaves(branch) & {int, float} for branch in alternatives(field.annotation) if get_origin(branch) is not tuple
    ):
        return None  # a number is taken too, but this one is not
    if number is not bool(leaves(kinds[0]) & {int, float}):
        return None
    return f"[{', '.join([str(value)] * (1 if Ellipsis in kinds else len(kinds)))}]"


def _labels(place: str, value: Any, field: FieldInfo) -> str | None:
    if place.rpartition(".")[2] != "rewards":
        return None
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return f"{{{', '.join(f'{n}: {n}' for n in names)}}}" if names and all(isinstance(n, str) for n in names) else None


def _word(place: str, value: Any, field: FieldInfo) -> str | None:
    kinds = leaves(field.annotation)
    word = plain(written(value) if isinstance(value, bool) else value)
    if bool in kinds and word in (*TRUE, *FALSE):
        return "true" if word in TRUE else "false"
    words = [str(word) for word in field.examples or ()]
    if word.startswith("gpu:") and "cuda:1" in words:
        return word.replace("gpu", "cuda")
    words += [str(w) for branch in alternatives(field.annotation) if get_origin(branch) is Literal for w in get_args(branch)]
    if meant := values(place, value, words):
        return meant[0]
    if type(None) in kinds and word in NONE:
        return "null"
    near = nearest(word, words)
    return near[0] if near else None


def _number(place: str, value: Any, field: FieldInfo) -> str | None:
    if not isinstance(value, str) or not leaves(field.annotation) & {int, float}:
        return None
    text = value.strip().replace(",", "").replace("_", "")
    try:
        float(text)
    except ValueError:
        return None
    return f"{text}, without quotes" if text == value.strip() else text


def _text(place: str, value: Any, field: FieldInfo) -> str | None:
    if value is None and field.default == "":
        return "''"
    return repr(written(value)) if field.annotation is str and not field.metadata and isinstance(value, int | float) else None
