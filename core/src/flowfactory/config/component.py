"""What the options of every component are, and what those of models, algorithms and dynamics share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from flowfactory.config.kl import AdaptiveKL, KLTerm, kl_term
from flowfactory.config.roles import RoleConfig
from flowfactory.config.strict import Strict
from flowfactory.config.warm_start import WarmStart, find_error, is_base, pinned, started_from

OF_AN_ADAPTER = ("rank", "alpha", "targets")
"""What adapters bring themselves that training starts from."""
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")]
"""Where something computes: auto, cpu, cuda, cuda:1 …"""


class ComponentConfig(Strict, ABC):
    """The options of one component, and how to make it. Subclass, add fields, write ``build``.

    A ``description`` of a field is what ``flowfactory plugins show`` prints.
    """

    free_to_change: ClassVar[tuple[str, ...]] = ()
    """The options that a resumed run may have others of: about speed, memory and places, and of no effect on any number."""

    sends_to: ClassVar[Mapping[str, str]] = {}
    """The options that reach beyond this machine, and the words before the value of each that say what it does, such as
    ``{"url": "sends pictures and prompts to"}``. In the run directory of somebody else they need ``--trust``."""

    known_as: ClassVar[tuple[str, ...]] = ()
    """Other names that people have for it; whoever writes one is told the right one."""

    starter_options: ClassVar[Mapping[str, Any]] = {}
    """The options that examples of it are written with, such as a value for each that has no default."""

    starter_prompts: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Prompts, each as a line of a ``.jsonl`` file, that a reward can judge where it cannot judge any: a starter config
    trains on them."""

    checkpoint_licences: ClassVar[Mapping[str, str]] = {}
    """The checkpoints that its defaults and its examples name, and the licence that the authors state for the weights of each,
    such as {"org/model": "Apache-2.0"}; "see its page" where none could be confirmed. ``flowfactory licences`` lists them."""

    @abstractmethod
    def build(self, label: str) -> object:
        """Make the component. ``label`` is the config's own name for it, which a reward returns its scores under."""

    def check(self, run: Any) -> None:
        """Raise ValueError with one sentence when ``run``, a RunConfig, does not go with this component."""

    def lacking(self) -> str | None:
        """What is not installed here and is needed, with the command that installs it; None where nothing is."""
        return None

    def remarks(self, run: Any) -> Iterable[str]:
        """One sentence for each option that does nothing beside the others of ``run``, a RunConfig, with what to do."""
        return ()

    learned: ClassVar[bool] = False
    """Whether a reward is a learned scorer, which training finds ways to please that people do not mean."""

    def ignores_prompts(self) -> bool:
        """Whether a reward scores a picture alike whatever its prompt; False where that is not known."""
        return False

    def weight_bytes(self) -> Mapping[str, int] | None:
        """Bytes of the weights that a reward will hold, by what they are called; None where that is not known.

        What two rewards call by one name they hold together. ``flowfactory estimate`` counts them.
        """
        return None


class LoraConfig(WarmStart):
    """Low-rank adapters (arXiv:2106.09685) on the layers whose names end in one of ``targets``."""

    rank: int = Field(32, ge=1, le=4096, description="of the two factors of an adapter")
    alpha: float = Field(32, gt=0, description="the adapter's output is scaled by alpha / rank; the rank when left out")
    targets: tuple[str, ...] | None = Field(None, description="endings of module names; the model's own when left out")

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets == ():
            raise ValueError("got []; name at least one, or leave it out for the model's own")
        return targets

    @model_validator(mode="after")
    def _alpha_of_rank(self) -> LoraConfig:
        if "alpha" not in self.model_fields_set:
            object.__setattr__(self, "alpha", float(self.rank))  # it is frozen
        return self

    @model_validator(mode="after")
    def _check_start(self, info: ValidationInfo) -> LoraConfig:
        start, context = started_from(self), info.context or {}
        if start is None:
            if "as" in self.model_fields_set and is_base(self):
                raise ValueError("as: base is for adapters that training starts from; name them as from, or leave it out")
            return self
        if not is_base(self) and (own := [key for key in OF_AN_ADAPTER if key in self.model_fields_set]):
            alone = "--set model.train.lora='{from: …}'"
            kept = f"{' and '.join(own)}: those of the adapters in from are kept"
            raise ValueError(f"{kept}; leave it out ({alone}), or write as: base")
        if not context.get("anywhere"):
            if reason := find_error(start):
                raise ValueError(f"from: {reason}")
            object.__setattr__(self, "from", pinned(start))  # a run directory may go on; it is frozen
        return self

    @model_serializer(mode="wrap")
    def _without_what_the_file_says(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        start = started_from(self)
        if start is None:  # as it was written before there were any
            return {key: value for key, value in found.items() if key not in ("from", "as")}
        return found if is_base(self) else {key: value for key, value in found.items() if key not in OF_AN_ADAPTER}


class LoraTraining(Strict):
    """``train: {lora: {rank: 32}}``."""

    lora: LoraConfig = LoraConfig.model_validate({})


Training = Literal["full"] | LoraTraining


class Takes(NamedTuple):
    """How many files of each kind a prompt must and may bring: least and most."""

    images: tuple[int, float] = (0, 0)
    video: tuple[int, float] = (0, 0)
    audio: tuple[int, float] = (0, 0)


class ModelConfig(ComponentConfig):
    """What every model's options share."""

    takes: ClassVar[Takes] = Takes()
    """The pictures, videos and sounds that a prompt must and may bring."""

    video_rate: ClassVar[float | None] = None
    """Frames a second that a prompt's video is read at, as many as are drawn; None where it is read in another way."""

    starter_sampling: ClassVar[Mapping[str, Any]] = {}
    """What of ``sampling`` examples of it are written with, where no bundled example says it."""

    caches_features: ClassVar[bool] = False
    """Whether its ``sample`` heeds a plan's ``cache_threshold``."""
    detaches_negatives: ClassVar[bool] = False
    """Whether its velocity runs negative prompts within ``flow.negative_branch``, for ``guidance_gradient: conditional``."""
    context_parallel: ClassVar[bool] = False
    """Whether ranks can share its forwards, each a part of the tokens: ``_cp_plan`` of its transformers says how."""

    train: Training = Field(
        LoraTraining(), description="'full', or {lora: {rank, alpha, targets}}; {lora: {from}} for adapters that are there"
    )
    quantize: Literal["nf4", "int8"] | None = Field(None, description="how the frozen weights below adapters are stored")

    @model_validator(mode="after")
    def _check_fused(self) -> ModelConfig:
        if self.quantize and isinstance(self.train, LoraTraining) and is_base(self.train.lora):
            raise ValueError(
                f"train.lora.as: base adds the adapters to the frozen weights, which quantize: {self.quantize} stores in fewer "
                "bits; write as: start, or leave out quantize"
            )
        return self

    def untrainable(self) -> str | None:
        """Why nothing can be trained with these options, though drawing can, and what to do; None where it can."""
        return None

    def picture_error(self, width: int, height: int) -> str | None:
        """Why a prompt's picture of so many pixels cannot be encoded, in words that follow its path; None when it can be."""
        return None

    def picture_tokens(self, width: int, height: int) -> int:
        """How many tokens a prompt's picture of so many pixels adds to those of what is drawn, in one forward with them."""
        return 0

    def encoded_bytes(self, precision: int) -> int | None:
        """About how many bytes the text of a prompt takes, encoded, at most, where a number of the transformer takes
        ``precision`` bytes; None where it is not known, as of a checkpoint that is not here."""
        return None

    def takes_negatives(self) -> bool:
        """Whether guidance above 1 asks for a negative prompt, as far as files on this machine tell."""
        return True


class AlgorithmConfig(ComponentConfig):
    """What every algorithm's options share."""

    conditional: ClassVar[bool] = False
    """Whether it trains the velocity with the prompt alone where ``guidance`` is left out; else the one that drew."""

    guidance: float | None = Field(
        None,
        ge=0,
        le=100,
        description="guidance of the velocity that is trained; left out: off where velocities are regressed, else as drawn",
    )
    guidance_gradient: Literal["exact", "conditional"] = Field(
        "exact",
        description="which of guidance's two velocities has a gradient; exact: both; conditional: the one with the prompt, "
        "which halves the memory of the backward pass",
    )

    groupwise: ClassVar[bool] = False
    """Whether its loss compares the members of a group, which no optimizer step may then split."""

    compared: ClassVar[int | None] = None
    """How many members of a group go through the transformer, all when None; what a forward's worth of groups is."""

    own_sampler: ClassVar[bool] = False
    """Whether it chooses itself which weights draw."""

    learns_from: ClassVar[Literal["samples", "targets", "pairs"]] = "samples"
    """Samples that are drawn; or records that prompts bring, for which nothing is drawn: the target of each, or a chosen and a
    rejected one, which are a group of two with advantages 1 and -1. Their experience has no recorded steps."""

    rewarded: ClassVar[bool] = True
    """Whether it learns from rewards; where not, evaluations alone compute any. What learns from records is not."""

    taught_by_base: ClassVar[bool] = False
    """Whether its teacher is the model without adapters, those that training starts from included; see ``Policy.keep_base``."""

    trust_region: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Which extremes of its losses tell how far replayed steps are from what they were when drawn, and the options, the least
    of which bounds each: beyond it gradients are cut. Such as ``{"ratio/max_deviation": ("clip_low", "clip_high")}``. Empty
    where no loss compares a recorded step with what it was."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """TypeError: the trust region names an option that there is not; or records are to have rewards."""
        super().__pydantic_init_subclass__(**kwargs)
        if cls.rewarded and cls.learns_from != "samples":
            raise TypeError(f"{cls.__name__} learns from {cls.learns_from}, which have no rewards; set rewarded = False")
        for name in (name for names in cls.trust_region.values() for name in names):
            if name not in cls.model_fields:
                raise TypeError(f"{cls.__name__}.trust_region names {name!r}, which is none of its options; add a field")

    @property
    def guidances(self) -> dict[str, float | None]:
        """Each guidance among its options, by its key in a config."""
        return {f"algorithm.{name}": value for name, value in self if name.endswith("guidance")}

    @property
    def roles(self) -> Mapping[str, RoleConfig]:
        """What it trains beside the policy, in the order in which an optimizer step comes to them; see ``Policy.add_role``."""
        return {}

    @property
    def teacher_names(self) -> tuple[str, ...]:
        """The teachers that sources of prompts may name, see :func:`.teachers.teachers_by_source`; none for most algorithms."""
        return ()

    @property
    def replays(self) -> bool:
        """Whether recorded steps are compared with what they were when drawn, and not places alone to learn at."""
        return bool(self.trust_region) or (self.rewarded and not self.roles)

    @property
    def kl_term(self) -> KLTerm | None:
        """All that its option ``kl`` says, where it has one and it is not 0."""
        kl = getattr(self, "kl", None)
        return kl_term(kl) if isinstance(kl, int | float | AdaptiveKL | KLTerm) else None

    @property
    def adaptive_kl(self) -> AdaptiveKL | None:
        """What the weight of its KL follows, where it adapts: the mean of its losses' term ``kl`` is measured then."""
        coefficient = self.kl_term.coefficient if self.kl_term else None
        return coefficient if isinstance(coefficient, AdaptiveKL) else None

    @property
    def trust_region_bounds(self) -> dict[str, tuple[str, float]]:
        """{extreme: (option, value)}: the least option of each part of the trust region; those that are null bound nothing.

        Of an option with a bound below and one above it is the lesser.
        """
        given = {extreme: [(getattr(self, name), name) for name in names] for extreme, names in self.trust_region.items()}
        known = {
            extreme: [(min(value) if isinstance(value, tuple) else value, name) for value, name in pairs if value is not None]
            for extreme, pairs in given.items()
        }
        return {extreme: min(pairs)[::-1] for extreme, pairs in known.items() if pairs}


class DynamicsConfig(ComponentConfig):
    """What all dynamics' options share."""

    stochastic: ClassVar[bool] = True
    """Whether steps have a log-density, which algorithms of GRPO's kind learn from."""

    linear: ClassVar[bool] = False
    """Whether the mean of a step is linear in its latents and velocity, which some algorithms' weights rely on."""

    evaluations: ClassVar[int] = 1
    """How many velocities each step takes, but the last, which takes one."""

    def stochastic_steps(self, steps: int) -> int:
        """How many of so many ``steps`` are stochastic in an iteration."""
        return steps if self.stochastic else 0
