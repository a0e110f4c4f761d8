"""Qwen-Image-2.1 over the parts of a QwenImage21Pipeline, and what it shares with Qwen-Image-2.1 that edits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from flowfactory import Canvas, Conditions, Prompt, UserError, models
from flowfactory.models import Entry, Family, FamilyConfig, Grid, Parts, Pretrained
from flowfactory_qwen_image.qwen_image import check_steps, refuse_steps

if TYPE_CHECKING:
    from flowfactory import RunConfig

MULTIPLE = 32  # the pipeline's, whatever the VAE's config says: two by two latents of 16 x 16 pixels
SLOT = 4  # latents for which the text has one place
LICENCES = {"Qwen/Qwen-Image-2.1": "Qwen Research License"}
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "img_mlp.proj", "img_mlp.gate_layer", "img_mlp.out")


class Checkpoint(Pretrained):
    """A folder or a hub id, opened with or without torchvision, and without its processor where no prompt is encoded."""

    def open(
        self, names: Collection[str], dtypes: Mapping[str, torch.dtype], staying: Collection[str] = (), **given: Any
    ) -> Any:
        absent = {} if "processor" in names else {"processor": AbsentProcessor()}
        return super().open(names, dtypes, staying, **absent | given)

    def load(self, kind: Any, folder: Any, name: str, dtype: torch.dtype, stays: bool = False) -> Any:
        if name != "processor":
            return super().load(kind, folder, name, dtype, stays)
        from flowfactory_qwen_image.picture_processor import PictureProcessor3

        processor = super().load(PictureProcessor3, folder, name, dtype, stays)
        if not processor.chat_template:
            told = f"processor of {self.path} has no chat template, which stands in chat_template.jinja"
            raise UserError(f"{told}; get it again, whole")
        return processor


class AbsentProcessor:
    """What a pipeline is made with that encodes no prompt: its constructor asks how long the system's message is."""

    def apply_chat_template(self, messages: Any, **options: Any) -> list[list[int]]:
        return [[]]

    @property
    def tokenizer(self) -> AbsentProcessor:
        return self

    def encode(self, text: str) -> list[int]:
        return [0]


def entries(embeds: Tensor, valid: Tensor | None, slots: Tensor) -> Iterator[Entry]:
    """embeds [L, D] of each prompt, and which of them are places of pictures, slots [L]: without padding."""
    for i, row in enumerate(embeds):
        there = slice(None) if valid is None else valid[i].bool()
        yield {"embeds": row[there], "slots": slots[i][there]}


def encode(parts: Parts, prompts: Sequence[Prompt], canvas: Canvas) -> Iterable[Entry]:
    """See :func:`entries`; no place is one of pictures."""
    return entries(*parts.pipeline.encode_prompt([prompt.text for prompt in prompts], device=parts.device))


def sigmas(parts: Parts, steps: int, canvas: Canvas) -> Tensor:
    """[steps + 1], of the checkpoint's own sigmas where it has as many, shifted by the resolution as the scheduler says."""
    refuse_steps(parts, steps)
    _, height, width = models.latent_shape(parts, canvas)
    own = parts.pipeline.config.sample_sigmas or ()
    chosen = own if len(own) == steps else models.even_sigmas(steps)
    return models.scheduler_sigmas(parts, steps, sigmas=chosen, mu=models.resolution_shift(parts, height * width))


def velocity(parts: Parts, latents: Tensor, sigma: Tensor, conditions: Conditions, guidance: float) -> Tensor:
    """[B, C, H, W]. The conditions' latents of pictures, if any, come before those that are drawn, which end the sequence."""
    pipeline, embeds, slots = parts.pipeline, conditions.stack("embeds"), conditions.stack("slots")
    pictures = [*models.stack_images(conditions), latents]
    drawn = latents[0, 0].numel()
    # rounded as in the pipeline: to thousandths in the embeds' dtype
    time = (sigma * pipeline.scheduler.config.num_train_timesteps).to(embeds.dtype) / 1000
    found: Tensor = pipeline.transformer(
        hidden_states=torch.cat([picture.to(embeds.dtype).flatten(2) for picture in pictures], 2).transpose(1, 2),
        timestep=time,
        encoder_hidden_states=embeds,
        img_shapes=[[(1, *picture.shape[-2:]) for picture in pictures]] * len(latents),
        img_mask=torch.cat([slots, slots.new_ones(len(latents), drawn // SLOT)], 1),
        return_dict=False,
    )[0]
    return found[:, -drawn:].transpose(1, 2).reshape(latents.shape)


def decode(parts: Parts, latents: Tensor) -> Tensor:
    """Pictures [B, 3, H, W], white where they are transparent."""
    seen = models.decode_frame(parts, latents).clamp(0, 1)
    colours, alpha = seen[:, :3], seen[:, 3:]
    return colours * alpha + 1 - alpha


def encode_media(parts: Parts, media: Tensor) -> Tensor:
    """Latents [B, C, H, W] of pictures [B, 3 or 4, H, W] in [0, 1], opaque where they do not say."""
    opaque = torch.ones_like(media[:, : 4 - media.shape[1]])
    return models.encode_frame(parts, torch.cat([media, opaque], 1))


def grid(checkpoint: Pretrained) -> Grid:
    """Multiples of what a place in the text stands for."""
    return Grid(MULTIPLE)


QWEN_IMAGE_21 = Family(
    distribution="flowfactory-qwen-image",
    pipelines=("QwenImage21Pipeline",),
    encoders=("text_encoder", "processor"),
    encode=encode,
    shape=models.latent_shape,
    sigmas=sigmas,
    velocity=velocity,  # prompts of other lengths are at other places, so that nothing is padded
    decode=decode,
    encode_media=encode_media,
    blocks=("QwenImage21TransformerBlock",),
    lora_targets=LORA_TARGETS,
    grid=grid,
    encode_batch=8,  # every layer's hidden states are kept, and scores of the whole vocabulary are made
    # hidden states are read, and of texts alone
    unused={"text_encoder": (r"lm_head\.weight", r"model\.visual\..*")},
)


class QwenImage21Options(FamilyConfig):
    """What both models over a QwenImage21Pipeline check."""

    def check(self, run: RunConfig) -> None:
        """As every family's, the schedule has as many steps as it needs, and the attention is one that is read."""
        super().check(run)
        check_steps(self.checkpoint, run)
        if self.attention not in ("auto", "native"):
            raise ValueError(f"model.attention: {self.attention}: this transformer calls PyTorch's own; leave it out")

    @property
    def checkpoint(self) -> Pretrained:
        return Checkpoint(self.path, self.family.pipelines, self.variant, self.family.unused, self.single_files)


class QwenImage21Config(QwenImage21Options):
    """Any diffusers QwenImage21Pipeline, from texts: Qwen-Image-2.1."""

    known_as = ("qwen-image-2", "qwen-image-21", "qwenimage21", "qwen-2.1")
    checkpoint_licences: ClassVar[Mapping[str, str]] = LICENCES

    family: ClassVar[Family] = QWEN_IMAGE_21
