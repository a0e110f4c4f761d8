"""What is checked of the options of a model over a pipeline of diffusers before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from flowfactory.config.attention import attention_unavailable, attention_untrainable
from flowfactory.errors import UserError
from flowfactory.models.checkpoint_files import reading
from flowfactory.models.context_checks import check_canvases, check_heads
from flowfactory.models.family_model import FamilyModel
from flowfactory.models.family_options import FamilyOptions
from flowfactory.models.resolution import Grid

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

TEXT_WIDTHS = (
    *("joint_attention_dim", "text_dim", "cap_feat_dim", "caption_channels", "text_hidden_dim"),
    "text_embed_dim",
)
"""Keys of transformers' configs that say how wide the embedding of a token of the text is."""
TEXT_LAYERS = "num_text_layers"
"""The key that says how many layers of the text encoder the embedding is of, where it is of several."""
ENTRY_HEADER = 256
"""Bytes of a file of the cache beside its tensors, about."""


class FamilyConfig(FamilyOptions):
    """What the options of every model over a diffusers pipeline share, and what is checked of them.

    zero_guidance: whether 0 is how users say that guidance is off.
    """

    zero_guidance: ClassVar[bool] = False

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
        layers: int = settings.get(TEXT_LAYERS, 1)
        return (tokens * layers * width + (pooled if isinstance(pooled, int) else 0)) * precision + ENTRY_HEADER

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
        for name, source in run.prompts.named.items():
            grid.check(f"prompts.train.{name}", source.size, None)
        grid.check("evaluation", evaluation.size, evaluation.frames)
        if grid.stride is not None and run.sampling.frames is None:
            raise ValueError(f"sampling.frames is missing: this model draws videos of 1 + a multiple of {grid.stride} frames")
        if run.distributed.context > 1 and self.context_parallel:
            self.check_context(run, grid)
        if self.checkpoint.config(""):
            self.check_targets()
        drawn = {"sampling.guidance": run.sampling.guidance, "evaluation.guidance": evaluation.guidance}
        for key, guidance in (drawn | run.algorithm.guidances).items():
            if guidance is not None:
                self.check_guidance(key, guidance)

    def check_context(self, run: RunConfig, grid: Grid) -> None:
        """Raise ValueError where heads or tokens cannot be divided over the ranks that share a forward. Reads configs alone."""
        known = {name: self.checkpoint.config(name).get("num_attention_heads") for name in self.family.transformers}
        check_heads(run.distributed.context, {name: heads for name, heads in known.items() if heads})
        check_canvases(run, grid)

    def check_guidance(self, key: str, guidance: float) -> None:
        """Raise ValueError where the guidance under ``key`` would mean nothing."""
        if guidance == 1 or (guidance == 0 and self.zero_guidance):
            return
        if not self.family.takes_guidance(self.checkpoint):
            raise ValueError(f"{key} {guidance:g}: this checkpoint is distilled and takes none; write 1")
        if guidance < 1:
            raise ValueError(f"{key} {guidance:g}: guidance begins at 1, where it is off; write 1, or more")

    def untrainable(self) -> str | None:
        return attention_untrainable(self.attention)

    def takes_negatives(self) -> bool:
        return self.family.guided(self.checkpoint)

    def build(self, label: str) -> FamilyModel:
        return FamilyModel(self)
