"""The options that every model over a pipeline of diffusers has."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from flowfactory.config.attention import Attention
from flowfactory.config.component import LoraTraining
from flowfactory.config.paths import CheckpointPath
from flowfactory.models.on_meta import check_lora_targets
from flowfactory.models.pretrained import Pretrained
from flowfactory.models.single_file_option import SingleFileConfig


class FamilyOptions(SingleFileConfig):
    """The options that every model over a diffusers pipeline has."""

    caches_features: ClassVar[bool] = True
    detaches_negatives: ClassVar[bool] = True

    path: CheckpointPath = Field(description="a diffusers folder or a hub id")
    free_to_change = ("decode_batch_size", "tiling", "encoders_on", "decoder_on", "attention")

    variant: str | None = Field(
        None,
        pattern=r"^\w+$",
        description="read the files of this variant, such as fp16 for *.fp16.safetensors, where a part has it",
    )
    decode_batch_size: int | None = Field(
        None, ge=1, le=100_000, description="decoded at once; as many as are drawn when left out"
    )
    tiling: bool = Field(False, description="decode in tiles, which takes less memory for large sizes")
    attention: Attention = Field(
        "auto", description="what computes the transformer's attention; auto: what PyTorch chooses; sage, flash3: to draw alone"
    )
    encoders_on: Literal["device", "host"] = Field("device", description="where prompts are encoded, each once")
    encoders_in: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="the dtype of the text encoders; auto: bf16 on an accelerator, else the run's"
    )
    decoder_on: Literal["device", "host"] = Field("device", description="where the VAE is, and what was drawn is decoded")

    @property
    def checkpoint(self) -> Pretrained:
        """What ``path`` names."""
        return Pretrained(self.path, self.family.pipelines, self.variant, self.family.unused, self.single_files)

    def check_targets(self) -> None:
        """Raise ValueError where a LoRA target of ``train`` names no layer, or what takes no adapter. Reads no weights."""
        targets = self.train.lora.targets if isinstance(self.train, LoraTraining) else None
        if targets is not None:
            check_lora_targets(self.checkpoint, self.family.trained_transformers(self.checkpoint, self), targets)
