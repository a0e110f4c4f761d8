"""The sections of a config: every key, its type, its default and what it is for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    SerializeAsAny,
    StrictBool,
    ValidationInfo,
    field_validator,
)

from flowfactory.canvas import Canvas
from flowfactory.config.component import AlgorithmConfig, ComponentConfig, Device, DynamicsConfig, ModelConfig
from flowfactory.config.ema import Decay
from flowfactory.config.feature_caches import FeatureCache
from flowfactory.config.optimizers import AdamWConfig, Optimizer
from flowfactory.config.paths import LocalPath
from flowfactory.config.sources import PromptSource, Side, Source, Train, check_file
from flowfactory.config.strict import Strict

"""Of a picture, in pixels."""


MANY_PROMPTS, PROMPTS_AT_ONCE = 4096, 2048
"""The most training prompts that are encoded before a run begins, and how many of more are at a time, unless a config says."""


class PromptsConfig(Strict):
    """Files of prompts: ``.txt``, ``.jsonl``, ``.ndjson``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet``; or folders of
    pictures with captions.
    """

    train: Train = Field(
        examples=["a path", "{NAME: {file: …}}"],
        description="prompts to train on: a file, or several by names, each with its weight",
    )
    heldout: LocalPath | None = Field(None, description="drawn before, during and after training, never trained on")
    negative: str = Field("", description="the negative prompt of classifier-free guidance, for prompts without their own")
    video_fps: Literal["model", "keep"] = Field(
        "model", description="model: a prompt's video is read at the model's frames per second; keep: frame by frame"
    )
    encode_ahead: Literal["auto", "all"] | Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        "auto",
        description="training prompts that are encoded in one go, before the iterations that draw them; all: every one before "
        f"the first iteration; auto: all of at most {MANY_PROMPTS}, else {PROMPTS_AT_ONCE}; does not change what is drawn",
    )

    def iterations_at_once(self, count: int, groups: int) -> int | None:
        """Iterations whose prompts are encoded in one go, of ``count`` training prompts; None where all are at the start."""
        ahead = self.encode_ahead
        if ahead == "auto":
            ahead = "all" if count <= MANY_PROMPTS else PROMPTS_AT_ONCE
        return None if ahead == "all" or ahead >= count else max(1, ahead // groups)

    @field_validator("train", "heldout")
    @classmethod
    def _check_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return check_file(path, f"prompts.{info.field_name}", info) if isinstance(path, Path) else path

    @property
    def named(self) -> Mapping[str, PromptSource]:
        """The sources of training prompts by their names; empty where they are one file."""
        return {} if isinstance(self.train, Path) else self.train

    @property
    def weights(self) -> dict[str, int]:
        """The share of an iteration's groups that each source has."""
        return {name: source.weight for name, source in self.named.items()}

    @property
    def trained(self) -> list[Source]:
        """The files of training prompts, in order."""
        if isinstance(self.train, Path):
            return [Source("", self.train)]
        return [Source(name, source.file, source.rewards) for name, source in self.train.items()]

    @property
    def held_out(self) -> list[Source]:
        """The files of held-out prompts, in order."""
        own = [Source(name, source.heldout, source.rewards) for name, source in self.named.items() if source.heldout]
        return [*([Source("", self.heldout)] if self.heldout else ()), *own]


class SamplingConfig(Strict):
    """What one iteration draws: groups x group_size pictures."""

    groups: int = Field(16, ge=1, le=100_000, description="prompts an iteration")
    group_size: int = Field(8, ge=1, le=10_000, description="pictures a prompt, which rewards compare with one another")
    size: tuple[Side, Side] = Field((512, 512), description="height, width in pixels")
    frames: int | None = Field(None, ge=1, le=10_000, description="of a video; left out for pictures")
    steps: int = Field(
        10, ge=1, le=1000, description="of the schedule, with a transformer evaluation each; heun has two in all but the last"
    )
    guidance: float = Field(
        1.0, ge=0, le=100, description="classifier-free, which is off at 1, or as a number given to the model"
    )
    batch_size: int = Field(8, ge=1, le=100_000, description="pictures drawn at once; does not change what is drawn")
    ema: Decay | None = Field(None, description="draw with an average of the weights, which moves as this says")
    keep_on: Literal["device", "host"] = Field("device", description="where samples rest until learned from")
    keep_as: Literal["float32", "bf16"] = Field("float32", description="the dtype of latents between steps")
    merge_adapters: Literal["auto", "never"] = Field(
        "auto",
        description="auto: steps that are not recorded, and evaluations, are drawn with adapters added to the weights, which "
        "is faster; in bf16 it rounds the sum; never: as training computes them",
    )
    feature_cache: FeatureCache | None = Field(
        None,
        examples=["first-block", "{name: first-block, threshold: 0.08}"],
        description="first-block: blocks of the transformer are left out while its first one changes little from step to step; "
        "for algorithms that record no steps",
    )
    weights_as: Literal["nf4", "int8", "fp8"] | None = Field(
        None, description="a second copy of the weights, stored so, draws; for algorithms that record no steps"
    )
    shared_noise: Literal["none", "start", "prefix"] = Field(
        "none",
        description="what the pictures of a group have in common: none: each has noise of its own; start: they start from one "
        "noise; prefix: that, and the steps before the first stochastic one, which are drawn once",
    )
    dynamics: SerializeAsAny[DynamicsConfig]

    @property
    def canvas(self) -> Canvas:
        """What is drawn on."""
        return Canvas(*self.size, self.frames or 1)


class AdvantagesConfig(Strict):
    """How rewards become advantages."""

    aggregate: Literal["sum", "gdpo"] = Field(
        "sum",
        description="sum: weigh, add, normalise in the group; gdpo (arXiv:2601.05242): normalise each reward, weigh, add",
    )
    spread: Literal["group", "within", "global"] = Field(
        "group",
        description="whose standard deviation divides: the group's; within: that of all pictures, each less its group's mean; "
        "global: that of all pictures' rewards as they are",
    )
    min_range: float = Field(
        0.0, ge=0, description="groups within which the weighted rewards differ by less are not learned from"
    )
    equal_groups: Literal["drop", "keep"] = Field(
        "drop",
        description="drop: groups without any advantage take no part in the update; keep: they do, which matters where a loss "
        "has a gradient without one, such as a KL",
    )
    clip: float | None = Field(5.0, gt=0, description="bound on the absolute advantage; null for none")


class EarlyStopConfig(Strict):
    """``early_stop: {on: eval/strict/mean, patience: 5}``: the run ends when a held-out score has not been better for long."""

    on: str = Field(examples=["eval/strict/mean"], description="the score, as metrics.jsonl names it: eval/<label>/mean")
    patience: int = Field(
        5, ge=1, le=10_000_000, description="evaluations in a row without a better score, after which the run ends"
    )
    keep: Literal["best", "last"] = Field(
        "best", description="best: the checkpoint with the best score is kept, as by output.keep_best; last: as output says"
    )


class RegulariseConfig(Strict):
    """``regularise: {sft: 0.1}``: what joins the loss of an algorithm, on records that prompts bring beside."""

    sft: float = Field(
        gt=0, description="weight of the flow matching loss on targets of training prompts (DDRL, arXiv:2512.04332)"
    )


class TrainingConfig(Strict):
    """How an iteration's pictures become optimizer steps."""

    iterations: int = Field(100, ge=1, le=10_000_000, description="rounds of sampling and learning")
    updates: int = Field(1, ge=1, le=100_000, description="optimizer steps one pass over the pictures is divided into")
    epochs: int = Field(1, ge=1, le=1000, description="passes over the pictures of an iteration")
    batch_size: int = Field(8, ge=1, le=100_000, description="pictures in one forward; gradients accumulate over the rest")
    timesteps_per_forward: int = Field(
        1, ge=1, le=1000, description="steps or training timesteps of each of them that share a forward"
    )
    recompute_log_prob: bool = Field(
        False,
        description="whether log-densities of recorded steps are computed again before an iteration's first update, in the "
        "micro-batches that are trained on, which makes the first ratio exactly one",
    )
    keep_graphs: bool = Field(
        False,
        description="whether recorded steps are learned from through the forwards that drew them, which saves one forward each "
        "and holds their graphs, of all pictures, until the update",
    )
    optimizer: Optimizer = AdamWConfig.model_validate({})
    warmup: int = Field(0, ge=0, le=1_000_000_000, description="optimizer steps over which the learning rate rises linearly")
    decay: Literal["constant", "linear", "cosine"] = Field("constant", description="learning rate after the warm-up")
    max_grad_norm: float = Field(1.0, gt=0, description="bound on the norm of the gradient")
    patience_flat: int | None = Field(
        10,
        ge=1,
        description="iterations in a row without a difference in any group after which the run stops; null: never",
    )
    regularise: RegulariseConfig | None = Field(
        None,
        examples=["{sft: 0.1}"],
        description="a loss on records that joins the algorithm's: an iteration has as many as it has groups, of those prompts "
        "that bring a target",
    )
    early_stop: EarlyStopConfig | None = Field(
        None, description="ends the run, as finished, when a held-out score has not been better for long"
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="what the transformer computes in; auto: bf16 on CUDA, float32 on a CPU"
    )
    autocast: bool = Field(
        True,
        description="whether norms and the like choose float32 themselves under bf16; false: a LoRA run computes in bf16 "
        "throughout, as the pipelines of diffusers do",
    )
    matmul: Literal["highest", "high"] = Field(
        "highest",
        description="products of float32 matrices; high: rounded as TF32 where the device has it, and far faster there",
    )
    kept_on: Literal["device", "host"] = Field("device", description="where averages and references of weights are kept")
    activation_checkpointing: Annotated[str, Field(pattern=r"^(none|blocks|every-[1-9][0-9]*)$")] = Field(
        "none",
        examples=["none", "blocks", "every-2"],
        description="none, blocks (all of them) or every-2, every-3 …: blocks that are recomputed in the backward pass",
    )
    compile: Literal["auto"] | StrictBool = Field(
        "auto",
        description="whether torch.compile makes the transformer's blocks faster; auto: those of a large one that trains on "
        "CUDA, unless preflight finds fault with it",
    )


class EvaluationConfig(Strict):
    """Held-out prompts with fixed noise, before training, every ``every`` iterations and at the end."""

    at_start: bool = Field(True, description="whether the weights that training starts from are evaluated")
    every: int = Field(0, ge=0, le=10_000_000, description="iterations between evaluations; 0: none between start and end")
    members: int = Field(1, ge=1, le=10_000, description="pictures a prompt")
    size: tuple[Side, Side] | None = Field(None, description="as in sampling when left out")
    frames: int | None = Field(None, ge=1, le=10_000, description="as in sampling when left out")
    steps: int | None = Field(None, ge=1, le=1000, description="as in sampling when left out")
    guidance: float | None = Field(None, ge=0, le=100, description="as in sampling when left out")
    batch_size: int | None = Field(None, ge=1, le=100_000, description="as in sampling when left out")
    ema: Decay | None = Field(None, description="draw with an average of the weights, which moves as this says")
    dynamics: SerializeAsAny[DynamicsConfig] | None = Field(
        None, description="how latents step: ode when left out, or another without noise, such as dpm-solver"
    )
    pictures: int = Field(16, ge=0, le=100_000, description="how many of the pictures are kept as PNG files")
    rewards: dict[str, SerializeAsAny[ComponentConfig]] = Field({}, description="the training rewards when left out")

    def canvas(self, sampling: SamplingConfig) -> Canvas:
        """What is drawn on."""
        return Canvas(*(self.size or sampling.size), self.frames or sampling.frames or 1)


class DistributedConfig(Strict):
    """How the ranks of a run hold its weights; ``flowfactory run --nproc N`` starts the ranks."""

    shard: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        "auto",
        description="ranks that hold one copy of the weights together; 1: each rank a whole one; auto: 1 where that fits "
        "each GPU, else those of a node; on a CPU all",
    )
    replicate: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        "auto", description="such copies; auto: what shard leaves"
    )
    context: int = Field(
        1,
        ge=1,
        le=1024,
        description="ranks that share each forward, every one a part of its tokens, for long videos; shard divides the weights "
        "over all ranks as before",
    )
    offload: bool = Field(False, description="whether weights, gradients and optimizer state rest in host memory")
    gather_to_sample: bool = Field(False, description="whether weights stay whole while drawing, which takes more memory")
    reward_ranks: Literal["all", "first"] = Field("all", description="which ranks compute rewards")
    timeout: float = Field(30, gt=0, le=1_000_000, description="minutes that a rank waits for the others")

    def count_reward_ranks(self, ranks: int) -> int:
        """How many of ``ranks`` compute rewards."""
        return 1 if self.reward_ranks == "first" else ranks


class OutputConfig(Strict):
    """Where the run directory is and what else is told."""

    dir: LocalPath = Path("runs/run")
    checkpoint_every: int = Field(20, ge=1, le=10_000_000, description="iterations")
    keep_last: Literal["auto"] | Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        "auto", description="checkpoints that are kept; auto: 2 with train: full, all with LoRA; null: all"
    )
    keep_best: StrictBool | str = Field(
        False,
        examples=["true", "eval/strict/mean"],
        description="whether the checkpoint with the best held-out score is kept besides; of several scores the name of one",
    )
    trackers: tuple[SerializeAsAny[ComponentConfig], ...] = ()


class RunConfig(Strict):
    """A whole run. Made by ``config.loading``, which narrows each component to the one that is named."""

    model: SerializeAsAny[ModelConfig]
    algorithm: SerializeAsAny[AlgorithmConfig]
    rewards: dict[str, SerializeAsAny[ComponentConfig]] = Field({})
    prompts: PromptsConfig
    sampling: SamplingConfig
    advantages: AdvantagesConfig = AdvantagesConfig.model_validate({})
    training: TrainingConfig = TrainingConfig.model_validate({})
    evaluation: EvaluationConfig = EvaluationConfig.model_validate({})
    distributed: DistributedConfig = DistributedConfig.model_validate({})
    output: OutputConfig = OutputConfig.model_validate({})
    plugins: tuple[LocalPath, ...] = Field((), description="one-file plugins")
    device: Device = Field("auto", examples=["auto", "cpu", "cuda", "cuda:1"], description="auto, cpu, cuda, cuda:1 …")
    seed: int = Field(42, ge=0, lt=2**63)

    @property
    def group_members(self) -> int:
        """How many samples of each group are learned from: those that are drawn, or the records of a prompt."""
        return {"samples": self.sampling.group_size, "targets": 1, "pairs": 2}[self.algorithm.learns_from]

    @property
    def learned_records(self) -> tuple[Literal["targets", "pairs"], ...]:
        """The records of training prompts that are learned from."""
        of_algorithm = self.algorithm.learns_from
        return (of_algorithm,) if of_algorithm != "samples" else ("targets",) if self.training.regularise else ()


def reward_weight(reward: ComponentConfig) -> float:
    """The weight of a training reward; 0 means that it is only watched."""
    return float(getattr(reward, "weight", 1.0))


def reward_weights(config: RunConfig) -> dict[str, float]:
    """{label: weight} of the training rewards."""
    return {label: reward_weight(reward) for label, reward in config.rewards.items()}
