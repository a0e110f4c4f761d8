"""The options of every model over pipelines of diffusers, and what is checked of them before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from flowfactory.config.attention import Attention, attention_unavailable, attention_untrainable
from flowfactory.config.component import LoraTraining
from flowfactory.config.paths import CheckpointPath
from flowfactory.errors import UserError
from flowfactory.models.checkpoint_files import reading
from flowfactory.models.context_checks import check_canvases, check_heads
from flowfactory.models.on_meta import check_lora_targets
from flowfactory.models.pretrained import Pretrained
from flowfactory.models.resolution import Grid
from flowfactory.models.single_file_option import SingleFileConfig

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig
    from flowfactory.models.family_model import FamilyModel

TEXT_WIDTHS = ("joint_attention_dim", "text_dim", "cap_feat_dim", "caption_channels")
"""Keys of transformers' configs that say how wide the embedding of a token of the text is."""
ENTRY_HEADER = 256
"""Bytes of a file of the cache beside its tensors, about."""


class FamilyConfig(SingleFileConfig):
    """What the options of every model over a diffusers pipeline share."""

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

    def encoded_tokens(self) -> int | None:
        """The most tokens of an encoded text; None where nothing bounds them."""
        tokens: int | None = getattr(self, "max_sequence_length", None)
        return tokens

    def encoded_bytes(self, precision: int) -> int | None:
        """Tokens by the width that the transformer takes them in, and one vector where it takes one of the whole text."""
        settings, tokens = self.checkpoint.config(self.family.transformers[0]), self.encoded_tokens()
        width: int | None = next((settings[key] for key in TEXT_WIDTHS if isinstance(settings.get(key), int)), None)
        if tokens is None or width is None:
            return None
        pooled = settings.get("pooled_projection_dim")
        return (tokens * width + (pooled if isinstance(pooled, int) else 0)) * precision + ENTRY_HEADER

    def check_checkpoint(self) -> None:
        """ValueError: the checkpoint is damaged or another pipeline's, as far as files on this machine tell."""
        try:
            self.checkpoint.check(self.family.needed)
        except UserError as error:
            raise ValueError(str(error)) from error

    def check(self, run: RunConfig) -> None:
        """The checkpoint is whole, sizes and numbers of frames can be drawn, and guidance means something."""
        if reason := attention_unavailable(self.attention, run, masked=bool(self.family.padded)):
            raise ValueError(reason)
        self.check_checkpoint()
        with reading(f"model.path: the configs of {self.path}", ValueError):
            grid = self.family.grid(self.checkpoint)
        evaluation = run.evaluation
        grid.check("sampling", run.sampling.size, run.sampling.frames)
        grid.check("evaluation", evaluation.size, evaluation.frames)
        if grid.stride is not None and run.sampling.frames is None:
            raise ValueError(f"sampling.frames is missing: this model draws videos of 1 + a multiple of {grid.stride} frames")
        if run.distributed.context > 1 and self.context_parallel:
            self.check_context(run, grid)
        if self.checkpoint.config(""):
            self.check_targets()
        chosen = {"sampling": run.sampling.guidance, "evaluation": evaluation.guidance, "algorithm": run.algorithm.guidance}
        for section, guidance in chosen.items():
            if guidance is not None:
                self.check_guidance(section, guidance)

    def check_context(self, run: RunConfig, grid: Grid) -> None:
        """Raise ValueError where heads or tokens cannot be divided over the ranks that share a forward. Reads configs alone."""
        known = {name: self.checkpoint.config(name).get("num_attention_heads") for name in self.family.transformers}
        check_heads(run.distributed.context, {name: heads for name, heads in known.items() if heads})
        check_canvases(run, grid)

    def check_targets(self) -> None:
        """Raise ValueError where a LoRA target of ``train`` names no layer, or what takes no adapter. Reads no weights."""
        targets = self.train.lora.targets if isinstance(self.train, LoraTraining) else None
        if targets is not None:
            check_lora_targets(self.checkpoint, self.family.trained_transformers(self.checkpoint, self), targets)

    def check_guidance(self, section: str, guidance: float) -> None:
        """Raise ValueError where the guidance of ``section`` would mean nothing."""
        if guidance == 1:
            return
        if not self.family.takes_guidance(self.checkpoint):
            raise ValueError(f"{section}.guidance {guidance:g}: this checkpoint is distilled and takes none; leave it out")
        if guidance < 1:
            raise ValueError(f"{section}.guidance {guidance:g}: guidance begins at 1, where it is off; write 1, or more")

    def untrainable(self) -> str | None:
        return attention_untrainable(self.attention)

    def takes_negatives(self) -> bool:
        return self.family.guided(self.checkpoint)

    def build(self, label: str) -> FamilyModel:
        from flowfactory.models.family_model import FamilyModel  # which imports torch's parts of a pipeline

        return FamilyModel(self)
