"""What rewards that are a pretrained model share: where its weights are, and how pictures and videos go through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field
from safetensors import safe_open
from torch import Tensor, nn

from flowfactory import CheckpointPath, ComponentConfig, Samples, UserError, hookimpl
from flowfactory.rewards import load_shared
from flowfactory_rewards.frames import pixels, spread

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Scorer = Callable[[Tensor, Sequence[str]], Tensor]
"""Scores [n] of pictures [n, 3, H, W] in [0, 1] and their n prompts."""


class LearnedConfig(ComponentConfig):
    """What every learned reward's options share."""

    free_to_change = ("device", "batch_size")

    path: CheckpointPath = Field(description="a folder or a hub id with the weights")
    device: str = Field("auto", description="auto (the run's), cpu, cuda, cuda:1 …")
    dtype: Literal["float32", "bf16", "fp16"] = Field("float32", description="what the model computes in")
    batch_size: int = Field(16, ge=1, description="pictures in one forward; does not change the scores")
    frames: int = Field(8, ge=1, description="of a video that are looked at, evenly spread; its score is their mean")

    def placed(self, device: torch.device) -> tuple[torch.device, torch.dtype]:
        """Where and in what the model computes in a run on ``device``."""
        return device if self.device == "auto" else torch.device(self.device), DTYPES[self.dtype]

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The folders and hub ids of the models that it holds."""
        return (self.path,)

    def weights(self) -> dict[str, int] | None:
        """As ComponentConfig.weights, where all of them are on this machine as safetensors."""
        size = DTYPES[self.dtype].itemsize
        found = {f"{path}, {self.dtype}": elements(path) for path in self.checkpoints}
        known = {name: size * count for name, count in found.items() if count is not None}
        return known if len(known) == len(found) else None


class Learned:
    """Each picture by itself, through what ``load(*arguments, device, dtype)`` makes; it is made once for all labels."""

    pointwise = True

    def __init__(self, label: str, config: LearnedConfig, load: Callable[..., Scorer], *arguments: Hashable) -> None:
        self.label, self._config = label, config
        self._load, self._arguments = load, arguments
        self._scorer: Scorer | None = None

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        """Read the weights."""
        self._scorer = load_shared(self._load, *self._arguments, *self._config.placed(device))

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        """``{label: scores [B]}``."""
        if self._scorer is None:
            self.prepare_reward(samples.media.device)
        assert self._scorer is not None
        clips = spread(samples.media, self._config.frames)
        pictures = clips.flatten(0, 1)
        if pictures.shape[1] == 1:
            pictures = pictures.expand(-1, 3, -1, -1)
        prompts = [prompt for prompt in samples.prompts for _ in range(clips.shape[1])]
        size = self._config.batch_size
        with torch.inference_mode():
            scores = [self._scorer(pictures[i : i + size], prompts[i : i + size]) for i in range(0, len(pictures), size)]
        return {self.label: torch.cat(scores).float().reshape(len(clips), -1).mean(1)}


def images(pictures: Tensor) -> list[Image.Image]:
    """The n pictures [n, 3, H, W] in [0, 1] as Pillow has them, with 256 levels: what released code reads from files."""
    return [Image.fromarray(picture) for picture in pixels(pictures)]


def opened(part: Any, path: str, **options: Any) -> Any:
    """``part.from_pretrained(path)``, of a class of transformers. UserError: its files are not there."""
    try:
        return part.from_pretrained(path, **options)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def pretrained(model: Any, path: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The ``model``, a class of transformers, in ``path``, to score with. UserError: another is there, or not all of it."""
    from transformers import AutoConfig

    config = opened(AutoConfig, path)
    wanted = model.config_class.model_type
    if config.model_type != wanted:
        raise UserError(f"{path} holds a model of type {config.model_type!r}; this reward reads {wanted!r}")
    return _whole(opened(model, path, dtype=dtype, output_loading_info=True), path, device)


def filled(
    model: Any,
    config: Any,
    state: Mapping[str, Tensor],
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    **options: Any,
) -> Any:
    """The ``model``, a class of transformers, with the weights ``state``, to score with. UserError: ``state`` lacks some."""
    options |= {"dtype": dtype, "output_loading_info": True}
    try:
        # without a path it is made without memory of its own, and takes these tensors
        loaded = model.from_pretrained(None, config=config, state_dict=dict(state), **options)
    except RuntimeError as error:
        raise UserError(f"{source} does not fit a {model.__name__}: {' '.join(str(error).split())}") from error
    return _whole(loaded, source, device)


def _whole(loaded: tuple[Any, Mapping[str, Any]], source: str, device: torch.device) -> Any:
    model, told = loaded
    if missing := sorted(told["missing_keys"]):  # which are random now
        raise UserError(f"{source} lacks {len(missing)} weights of a {type(model).__name__}, such as {missing[0]}")
    return model.eval().requires_grad_(False).to(device)


def tensors(path: str, file: str) -> dict[str, Any]:
    """What ``file`` in the folder or hub id ``path`` holds, on the CPU. UserError: no such file, or more than tensors in it."""
    place = Path(path) / file
    try:
        if not Path(path).is_dir():
            from huggingface_hub import hf_hub_download

            place = Path(hf_hub_download(path, file))
        if place.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: dict[str, Any] = load_file(place)
            return found
        found = torch.load(place, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"no file {file} in {path}: {' '.join(str(error).split())}") from error
    except UnpicklingError as error:
        raise UserError(f"{place} holds more than tensors, and is not read: what it holds could run code") from error
    return found


def elements(path: str) -> int | None:
    """How many numbers the ``.safetensors`` in the folder or hub id ``path`` hold; None where they are not on this machine."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(path, "config.json")
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as held:
            count += sum(math.prod(held.get_slice(name).get_shape()) for name in held.keys())  # noqa: SIM118 it is no mapping
    return count or None


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What of ``state`` has names that begin with ``prefix``, under the rest of them."""
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}


def linear_layers(state: Mapping[str, Tensor], numbers: Sequence[int], source: str) -> list[nn.Linear]:
    """The layers ``0.weight``, ``0.bias`` and so on in ``state``, float32. UserError: it has layers of other ``numbers``."""
    found = sorted({int(name.split(".")[0]) for name in state})
    if found != [*numbers]:
        raise UserError(f"{source} has the layers {found} in its predictor; the released one has {[*numbers]}")
    layers = []
    for number in numbers:
        weight, bias = state[f"{number}.weight"], state[f"{number}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float32)
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer.requires_grad_(False))
    return layers


LINEAR_PREDICTOR = (0, 2, 4, 6, 7)
"""The layers of LAION's predictor and ImageReward's, which dropout alone stands between: with activations they are others."""
