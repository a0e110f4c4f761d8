"""YAML to strict pydantic models: unknown keys are refused with the nearest valid name."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import GenericAlias, UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, cast, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    model_validator,
)

from flowfactory.canvas import Canvas
from flowfactory.config.ema import Decay
from flowfactory.config.strict import Strict, name_only
from flowfactory.discovery.catalogue import Catalogue, discover, suggestion
from flowfactory.errors import UserError


class _Typed(str):
    """Text from the command line, where a relative path is relative to where the command was given."""


def _absolute(path: Any, info: ValidationInfo) -> Any:
    folder = Path.cwd() if isinstance(path, _Typed) else (info.context or {}).get("folder")
    if folder is None or not isinstance(path, str | Path):
        return path
    return Path(folder).joinpath(Path(path).expanduser()).resolve()


LocalPath = Annotated[Path, BeforeValidator(_absolute)]
"""A path; a relative one is relative to the config file it stands in, or to where ``--set`` was typed."""


def _folder_or_hub_id(path: Any, info: ValidationInfo) -> Any:
    if not isinstance(path, str):
        return path
    local = Path(_absolute(path, info))
    if local.is_dir():
        return str(local)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise ValueError(f"{local} is no folder, and {str(path)!r} is no hub id (owner/name)")
    return str(path)


CheckpointPath = Annotated[str, BeforeValidator(_folder_or_hub_id)]
"""A folder (relative as a LocalPath is) or a hub id; a folder that exists wins."""


class ComponentConfig(Strict, ABC):
    """The options of one component, and how to make it. Subclass, add fields, write ``build``.

    A ``description`` of a field is what ``flowfactory plugins show`` prints.
    """

    free_to_change: ClassVar[tuple[str, ...]] = ()
    """The options that a resumed run may have others of: about speed, memory and places, and of no effect on any number."""

    @abstractmethod
    def build(self, label: str) -> object:
        """Make the component. ``label`` is the config's own name for it, which a reward returns its scores under."""

    def check(self, run: RunConfig) -> None:
        """Raise ValueError with one sentence when the rest of the config does not go with this component."""

    def weights(self) -> Mapping[str, int] | None:
        """Bytes of the weights that a reward will hold, by what they are called; None where that is not known.

        What two rewards call by one name they hold together. ``flowfactory estimate`` counts them.
        """
        return None


class LoraConfig(Strict):
    """Low-rank adapters (arXiv:2106.09685) on the linear layers whose names end in one of ``targets``."""

    rank: int = Field(32, ge=1, description="of the two factors of an adapter")
    alpha: float = Field(64, gt=0, description="the adapter's output is scaled by alpha / rank")
    targets: tuple[str, ...] | None = Field(None, description="endings of module names; the model's own when left out")


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

    train: Training = Field(LoraTraining(), description="'full', or {lora: {rank, alpha, targets}}")
    quantize: Literal["nf4", "int8"] | None = Field(None, description="how the frozen weights below adapters are stored")


class AlgorithmConfig(ComponentConfig):
    """What every algorithm's options share."""

    groupwise: ClassVar[bool] = False
    """Whether its loss compares the members of a group, which no optimizer step may then split."""

    compared: ClassVar[int | None] = None
    """How many members of a group go through the transformer, all when None; what a forward's worth of groups is."""

    own_sampler: ClassVar[bool] = False
    """Whether it says itself which weights draw."""


class DynamicsConfig(ComponentConfig):
    """What all dynamics' options share."""

    stochastic: ClassVar[bool] = True
    """Whether steps have a log-density, which algorithms of GRPO's kind learn from."""

    linear: ClassVar[bool] = False
    """Whether the mean of a step is linear in its latents and velocity, which some algorithms' weights rely on."""


class PromptsConfig(Strict):
    """Files with a prompt a line: text, or ``.jsonl`` with an object a line."""

    train: LocalPath = Field(description="prompts to train on")
    heldout: LocalPath | None = Field(None, description="drawn before, during and after training, never trained on")
    negative: str = Field("", description="the negative prompt of classifier-free guidance, for prompts without their own")

    @model_validator(mode="after")
    def _exist(self) -> PromptsConfig:
        for path in (self.train, self.heldout):
            if path is not None and not path.is_file():
                raise ValueError(f"no file {path}")
        return self


class SamplingConfig(Strict):
    """What one iteration draws: groups x group_size pictures."""

    groups: int = Field(16, ge=1, description="prompts an iteration")
    group_size: int = Field(8, ge=2, description="pictures a prompt, compared with one another")
    size: tuple[int, int] = Field((512, 512), description="height, width in pixels")
    frames: int | None = Field(None, ge=1, description="of a video; left out for pictures")
    steps: int = Field(10, ge=1, description="transformer evaluations a picture")
    guidance: float = Field(1.0, ge=0, description="classifier-free, which is off at 1, or as a number given to the model")
    batch_size: int = Field(8, ge=1, description="pictures drawn at once; does not change what is drawn")
    average: Decay | None = Field(None, description="draw with an average of the weights, which moves as this says")
    keep_on: Literal["device", "host"] = Field("device", description="where samples rest until learned from")
    keep_as: Literal["float32", "bf16"] = Field("float32", description="the dtype of latents between steps")
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
    spread: Literal["group", "global"] = Field("group", description="whose standard deviation divides")
    clip: float | None = Field(5.0, gt=0, description="bound on the absolute advantage; null for none")


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Strict):
    """What all optimizers share. All are element-wise, so that a step of every shard is a step of the whole."""

    method: ClassVar[Literal["adamw", "lion"]]

    name: str
    lr: float = Field(gt=0, description="learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, times the learning rate")

    @property
    def bits(self) -> Literal[8, 32]:
        """What an element of a moment is stored in."""
        return 8 if self.name.endswith("8bit") else 32

    @property
    def paged(self) -> bool:
        """Whether moments move to host memory while a GPU is short of its own."""
        return self.name.startswith("paged-")

    def check(self, run: RunConfig) -> None:
        """Raise ValueError with one sentence when it cannot be had where ``run`` runs."""
        if self.name == "adamw":
            return  # PyTorch has it
        from flowfactory.training import optimizers

        if reason := optimizers.unavailable(self, run.device, run.distributed.offload):
            raise ValueError(f"training.optimizer: {reason}")


class AdamWConfig(OptimizerConfig):
    """AdamW, arXiv:1711.05101; with moments in 8 bits, arXiv:2110.02861."""

    method = "adamw"

    name: Literal["adamw", "adamw8bit", "paged-adamw", "paged-adamw8bit"] = "adamw"
    lr: float = Field(3e-4, gt=0, description="learning rate")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="decay of the two moments")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")


class LionConfig(OptimizerConfig):
    """Lion, arXiv:2302.06675: steps along a sign, with one moment."""

    method = "lion"

    name: Literal["lion", "lion8bit", "paged-lion", "paged-lion8bit"] = "lion"
    lr: float = Field(1e-4, gt=0, description="learning rate; AdamW's divided by 3 to 10")
    betas: tuple[Beta, Beta] = Field((0.9, 0.99), description="the momentum's share of the sign, and its decay")


def _named_optimizer(value: Any) -> Any:
    return {"name": "adamw", **named} if isinstance(named := name_only(value), Mapping) else value


Optimizer = Annotated[AdamWConfig | LionConfig, Field(discriminator="name"), BeforeValidator(_named_optimizer)]
"""An optimizer by its ``name``, adamw when left out."""


class TrainingConfig(Strict):
    """How an iteration's pictures become optimizer steps."""

    iterations: int = Field(100, ge=1, description="rounds of sampling and learning")
    updates: int = Field(1, ge=1, description="optimizer steps one pass over the pictures is divided into")
    epochs: int = Field(1, ge=1, description="passes over the pictures of an iteration")
    batch_size: int = Field(8, ge=1, description="pictures in one forward; gradients accumulate over the rest")
    times_per_forward: int = Field(1, ge=1, description="steps or training times of each of them that share a forward")
    optimizer: Optimizer = AdamWConfig.model_validate({})
    warmup: int = Field(0, ge=0, description="optimizer steps over which the learning rate rises linearly")
    decay: Literal["constant", "linear", "cosine"] = Field("constant", description="learning rate after the warm-up")
    max_grad_norm: float = Field(1.0, gt=0, description="bound on the norm of the gradient")
    precision: Literal["float32", "bf16"] = Field("float32", description="what the transformer computes in")
    kept_on: Literal["device", "host"] = Field("device", description="where averages and references of weights are kept")
    activation_checkpointing: Annotated[str, Field(pattern=r"^(none|blocks|every-[1-9][0-9]*)$")] = Field(
        "none", description="none, blocks (all of them) or every-2, every-3 …: blocks whose inside is computed again backwards"
    )
    compile: bool = Field(False, description="whether torch.compile makes the transformer's blocks faster")


class EvaluationConfig(Strict):
    """Held-out prompts with fixed noise, before training, every ``every`` iterations and at the end."""

    every: int = Field(0, ge=0, description="iterations between evaluations; 0: only before and after")
    members: int = Field(1, ge=1, description="pictures a prompt")
    size: tuple[int, int] | None = Field(None, description="as in sampling when left out")
    frames: int | None = Field(None, ge=1, description="as in sampling when left out")
    steps: int | None = Field(None, ge=1, description="as in sampling when left out")
    guidance: float | None = Field(None, ge=0, description="as in sampling when left out")
    batch_size: int | None = Field(None, ge=1, description="as in sampling when left out")
    average: Decay | None = Field(None, description="draw with an average of the weights, which moves as this says")
    pictures: int = Field(16, ge=0, description="how many of the pictures are kept as PNG files")
    rewards: dict[str, SerializeAsAny[ComponentConfig]] = Field({}, description="the training rewards when left out")

    def canvas(self, sampling: SamplingConfig) -> Canvas:
        """What is drawn on."""
        return Canvas(*(self.size or sampling.size), self.frames or sampling.frames or 1)


class DistributedConfig(Strict):
    """How the ranks of a run hold its weights; ``flowfactory run --nproc N`` starts the ranks."""

    shard: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="ranks that hold one copy of the weights together; 1: each rank a whole one; auto: all"
    )
    replicate: Literal["auto"] | Annotated[int, Field(ge=1)] = Field("auto", description="such copies; auto: what shard leaves")
    offload: bool = Field(False, description="whether weights, gradients and optimizer state rest in host memory")
    gather_to_sample: bool = Field(False, description="whether weights stay whole while drawing, which takes more memory")
    judges: Literal["all", "first"] = Field("all", description="which ranks compute rewards")
    timeout: float = Field(30, gt=0, description="minutes that a rank waits for the others")

    def judges_of(self, ranks: int) -> int:
        """How many of ``ranks`` compute rewards."""
        return 1 if self.judges == "first" else ranks


class OutputConfig(Strict):
    """Where the run directory is and what else is told."""

    dir: LocalPath = Path("runs/run")
    checkpoint_every: int = Field(20, ge=1, description="iterations")
    keep_last: int | None = Field(None, ge=1, description="checkpoints that are kept; all when left out")
    trackers: tuple[SerializeAsAny[ComponentConfig], ...] = ()


class RunConfig(Strict):
    """A whole run. Made from a mapping by :func:`load`, which narrows each component to the one that is named."""

    model: SerializeAsAny[ModelConfig]
    algorithm: SerializeAsAny[AlgorithmConfig]
    rewards: dict[str, SerializeAsAny[ComponentConfig]] = Field(min_length=1)
    prompts: PromptsConfig
    sampling: SamplingConfig
    advantages: AdvantagesConfig = AdvantagesConfig.model_validate({})
    training: TrainingConfig = TrainingConfig.model_validate({})
    evaluation: EvaluationConfig = EvaluationConfig.model_validate({})
    distributed: DistributedConfig = DistributedConfig.model_validate({})
    output: OutputConfig = OutputConfig.model_validate({})
    plugins: tuple[LocalPath, ...] = Field((), description="one-file plugins")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 …")
    seed: int = Field(42, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _agree(self) -> RunConfig:
        pictures = self.sampling.groups * self.sampling.group_size
        if self.training.updates > pictures:
            raise ValueError(f"training.updates ({self.training.updates}) is more than the {pictures} pictures there are")
        if self.algorithm.groupwise and self.training.updates > self.sampling.groups:
            raise ValueError(
                f"training.updates ({self.training.updates}) is more than the {self.sampling.groups} groups there are, and "
                "this algorithm compares the members of a group; set it lower, or epochs higher"
            )
        if self.model.quantize and self.model.train == "full":
            raise ValueError("model.quantize: weights that train have all their bits; train {lora: {}}, or leave it out")
        if self.model.quantize:
            from flowfactory.policy import blocks  # which imports torch

            if lacking := blocks.check(self.model.quantize):
                raise ValueError(lacking)
        if self.algorithm.own_sampler and self.sampling.average is not None:
            raise ValueError("sampling.average: this algorithm says itself which weights draw; leave it out")
        components = [self.model, self.algorithm, self.sampling.dynamics]
        components += [*self.rewards.values(), *self.evaluation.rewards.values(), *self.output.trackers]
        for component in components:
            component.check(self)
        self.training.optimizer.check(self)
        for label in (*self.rewards, *self.evaluation.rewards):
            if not re.fullmatch(r"[\w.-]+", label):  # labels are parts of the names of metrics
                raise ValueError(f"rewards: the label {label!r} may have letters, digits, '_', '-' and '.' alone")
        if not any(reward_weight(reward) for reward in self.rewards.values()):
            raise ValueError("every reward has weight 0: nothing would be learned")
        return self


def reward_weight(reward: ComponentConfig) -> float:
    """The weight of a training reward; 0 means that it is only watched."""
    return float(getattr(reward, "weight", 1.0))


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (``1e-4`` is a number), and a repeated key is an error rather than the last one's win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
                problem = f"{key!r} cannot be a key; write text with braces in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str) -> Any:
    """The value. UserError: not YAML, with file and line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{source}{where}: {problem}") from error


def override(raw: dict[str, Any], assignment: str) -> dict[str, Any]:
    """``raw`` with ``a.b=value`` set; the value is YAML. UserError: no ``=``, or a path through a list."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise UserError(f"--set {assignment}: write it as a.b=value")
    keys = path.split(".")

    def put(node: Any, depth: int) -> Any:
        if depth == len(keys):
            return _typed(parse_yaml(text, f"--set {path}"))
        if isinstance(node, list):
            raise UserError(f"--set {assignment}: {'.'.join(keys[:depth])} is a list; set it as a whole")
        if isinstance(node, str) and _is_component(keys[:depth]):
            node = {"name": node}  # the shorthand of a component without options
        inner = dict(node) if isinstance(node, dict) else {}
        inner[keys[depth]] = put(inner.get(keys[depth]), depth + 1)
        return inner

    return cast(dict[str, Any], put(raw, 0))


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return _Typed(value) if isinstance(value, str) else value


def _is_component(keys: Sequence[str]) -> bool:
    alone = {("model",), ("algorithm",), ("sampling", "dynamics"), ("training", "optimizer")}
    return tuple(keys) in alone or "rewards" in keys[:-1]


def load(
    source: str | Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    out: Path | None = None,
) -> RunConfig:
    """The config in the file ``source`` (or the bundled example of that name) with ``overrides`` set on top.

    UserError: one line that names the file, the key and the nearest valid name. Reads no weights.
    """
    path = find(source, plugins)
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path.name}: expected a mapping at the top, got {type(raw).__name__}")
    for assignment in overrides:
        raw = override(raw, assignment)
    listed = raw.get("plugins") or []
    if plugins and isinstance(listed, list):
        raw["plugins"] = [*listed, *(str(Path(plugin).resolve()) for plugin in plugins)]
    # --out and the default are relative to where the command was given, a path in the file to the file
    if out is not None or "dir" not in (raw.get("output") or {}):
        output = raw.get("output") or {}
        if isinstance(output, dict):
            chosen = Path(out) if out is not None else Path("runs") / path.stem
            raw["output"] = {**output, "dir": str(chosen.absolute())}
    return validate(raw, source=path.name, folder=path.parent, overrides=overrides)


def find(source: str | Path, plugins: Sequence[Path] = ()) -> Path:
    """The config file: an existing path, or the bundled example of that name. UserError: neither."""
    path = Path(source)
    if path.is_file():
        return path
    examples = discover(plugins).components["example"]
    if str(source) in examples:
        return Path(examples[str(source)].spec)
    raise UserError(f"no file {source}, and no example of that name{suggestion(str(source), examples)}")


def validate(
    raw: Mapping[str, Any], source: str = "config", folder: Path | None = None, overrides: Sequence[str] = ()
) -> RunConfig:
    """The typed config of the mapping ``raw``; relative paths are relative to ``folder``. UserError: as :func:`load`."""
    files = raw.get("plugins") or []
    if not isinstance(files, list | tuple):
        raise UserError(f"{source}: plugins: expected a list of files")
    catalogue = discover([(folder or Path()) / str(file) for file in files])
    names: dict[str, set[str]] = {}
    for kind, name, place in _named_components(raw, source):
        try:
            catalogue.find(kind, name)
        except UserError as error:
            raise UserError(f"{_blame(place, source, overrides)}: {error}") from error
        names.setdefault(kind, set()).add(name)
    schema = schema_type(catalogue, names)
    try:
        return schema.model_validate(raw, context={"folder": folder, "catalogue": catalogue})
    except ValidationError as error:
        raise UserError(_explain(error, schema, source, overrides)) from error


def component(
    kind: str, raw: Any, plugins: Sequence[Path] = (), folder: Path | None = None, source: str = "", inner: bool = False
) -> ComponentConfig:
    """The typed options of one component, a name or a mapping with ``name``, as in a config. UserError: as :func:`load`."""
    return _component(kind, raw, discover(plugins), folder, source, inner)


def _component(
    kind: str, raw: Any, catalogue: Catalogue, folder: Path | None, source: str = "", inner: bool = False
) -> ComponentConfig:
    named = name_only(raw)
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
        raise UserError(f"say which {kind} with 'name'")
    schema = choice(catalogue, kind, [named["name"]], inner)
    try:
        made: ComponentConfig = schema.model_validate(named, context={"folder": folder, "catalogue": catalogue})
    except ValidationError as error:
        raise UserError(_explain(error, schema, source or f"{kind} {named['name']}", ())) from error
    return made


def _inner_reward(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, ComponentConfig):
        return value
    context = info.context or {}
    try:
        return _component("reward", value, context.get("catalogue") or discover(), context.get("folder"), inner=True)
    except UserError as error:
        raise ValueError(str(error)) from error


InnerReward = Annotated[
    SerializeAsAny[ComponentConfig],
    PlainValidator(_inner_reward),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
]
"""A reward within the options of another, given as every reward is: its name, or a mapping with ``name``."""


def dump(config: RunConfig) -> str:
    """The resolved config as YAML that :func:`load` reads back to the same."""
    return yaml.safe_dump(_name_first(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def _name_first(value: Any) -> Any:
    if isinstance(value, dict):
        first = [key for key in ("name", "weight") if key in value]
        return {key: _name_first(value[key]) for key in [*first, *(key for key in value if key not in first)]}
    if isinstance(value, list):
        return [_name_first(item) for item in value]
    return value


def _named_components(raw: Mapping[str, Any], source: str) -> Iterator[tuple[str, str, str]]:
    """(kind, name, place) of every component that ``raw`` names; what is malformed is left to pydantic."""

    def section(key: str) -> Mapping[str, Any]:
        value = raw.get(key)
        return value if isinstance(value, Mapping) else {}

    def items(value: Any) -> Iterable[tuple[str, Any]]:
        return value.items() if isinstance(value, Mapping) else ()

    trackers = section("output").get("trackers")
    slots: list[tuple[str, str, Any]] = [(kind, kind, raw[kind]) for kind in ("model", "algorithm") if kind in raw]
    slots += [("dynamics", "sampling.dynamics", section("sampling").get("dynamics", "ode"))]
    slots += [("reward", f"rewards.{label}", value) for label, value in items(raw.get("rewards"))]
    slots += [("reward", f"evaluation.rewards.{label}", value) for label, value in items(section("evaluation").get("rewards"))]
    slots += [("tracker", f"output.trackers.{i}", value) for i, value in enumerate(trackers or [])]
    for kind, place, value in slots:
        if isinstance(value, str):
            yield kind, value, place
        elif isinstance(value, Mapping):
            if not isinstance(value.get("name"), str):
                raise UserError(f"{source}: {place}: say which {kind} with 'name'")
            yield kind, value["name"], place
        else:
            raise UserError(f"{source}: {place}: expected the name of a {kind} or a mapping with 'name'")


_EXTRA_FIELDS: dict[str, dict[str, Any]] = {
    "reward": {
        "weight": (float, Field(1.0, description="in the sum of rewards; 0 only watches")),
        "concurrent": (
            bool | None,
            Field(None, description="whether it is computed while the next samples are drawn; its own way when left out"),
        ),
        "workers": (int, Field(0, ge=0, description="processes on the CPU that compute it while the next samples are drawn")),
        "timeout": (float | None, Field(None, gt=0, description="seconds that the run waits for its scores; null for ever")),
    }
}
ASIDE = ("concurrent", "workers", "timeout")
"""The options of a reward that say how it is computed and change no score."""


def choice(catalogue: Catalogue, kind: str, names: Iterable[str], inner: bool = False) -> Any:
    """The type of a config's slot for one of the components ``names`` of ``kind``, told apart by ``name``.

    ``inner``: without the options that core gives to those a run has; for a component within a component.
    """
    options: list[Any] = []
    extra = _EXTRA_FIELDS.get(kind, {})
    for name in sorted(names):
        parent = catalogue.find(kind, name).config_class()
        taken = {"name", *extra} & set(parent.model_fields)
        if taken:
            raise UserError(f"{kind} {name!r} has an option {taken.pop()!r}, which is flowfactory's own; rename it")
        fields = {"name": (Literal[name], name), **({} if inner else extra)}
        made = create_model(parent.__name__, __base__=parent, __doc__=parent.__doc__, **fields)
        free = (*parent.free_to_change, *(key for key in ASIDE if key in fields))
        setattr(made, "free_to_change", free)  # noqa: B010 mypy takes what create_model returns for a type alone
        options.append(made)
    if not options:
        return ComponentConfig
    return options[0] if len(options) == 1 else Annotated[Union[tuple(options)], Field(discriminator="name")]  # noqa: UP007


def schema_type(catalogue: Catalogue, names: Mapping[str, Iterable[str]] | None = None) -> type[RunConfig]:
    """RunConfig whose slots accept the components ``names`` by kind, or all that are installed and can be loaded."""
    chosen = catalogue.loadable() if names is None else names

    annotated: Any = Annotated  # made at run time, where mypy wants types it can read

    def slot(kind: str) -> Any:
        return annotated[choice(catalogue, kind, chosen.get(kind, ())), BeforeValidator(name_only)]

    rewards: Any = GenericAlias(dict, (str, slot("reward")))
    trackers: Any = GenericAlias(tuple, (slot("tracker"), ...))
    sampling = create_model(
        "SamplingConfig",
        __base__=SamplingConfig,
        __doc__=SamplingConfig.__doc__,
        dynamics=(slot("dynamics"), Field({"name": "ode"}, validate_default=True, description="how latents step")),
    )
    evaluation = create_model(
        "EvaluationConfig",
        __base__=EvaluationConfig,
        __doc__=EvaluationConfig.__doc__,
        rewards=(rewards, EvaluationConfig.model_fields["rewards"]),
    )
    output = create_model("OutputConfig", __base__=OutputConfig, __doc__=OutputConfig.__doc__, trackers=(trackers, ()))
    return create_model(
        "RunConfig",
        __base__=RunConfig,
        __doc__=RunConfig.__doc__,
        model=(slot("model"), ...),
        algorithm=(slot("algorithm"), ...),
        rewards=(rewards, Field(min_length=1)),
        sampling=(sampling, Field({}, validate_default=True)),
        evaluation=(evaluation, Field({}, validate_default=True)),
        output=(output, Field({}, validate_default=True)),
    )


def _blame(place: str, source: str, overrides: Sequence[str]) -> str:
    """``file: key``, or ``--set key`` where the key came from the command line."""
    for assignment in overrides:
        path = assignment.partition("=")[0]
        if place == path or place.startswith(path + ".") or path.startswith(place + "."):
            return f"--set {place}"
    return f"{source}: {place}" if place else source


def _explain(error: ValidationError, schema: type[BaseModel], source: str, overrides: Sequence[str]) -> str:
    problems = error.errors()
    # of the branches of a union the one that went deepest is the one that was meant
    first = max((p for p in problems if p["loc"][:2] == problems[0]["loc"][:2]), key=lambda p: len(p["loc"]))
    keys, owner = _locate(schema, first["loc"])
    blame = _blame(".".join(keys), source, overrides)
    if first["type"] == "extra_forbidden":
        known = owner.model_fields if owner else {}
        message = f"unknown key{suggestion(keys[-1], known)}"
    elif first["type"] == "value_error":
        message = str(first["ctx"]["error"])
    elif first["type"] == "union_tag_invalid":
        names = re.findall(r"'([^']+)'", first["ctx"]["expected_tags"])
        message = f"there is no {first['ctx']['tag']!r}{suggestion(first['ctx']['tag'], names)}"
    elif first["type"] == "union_tag_not_found":
        message = "say which with 'name'"
    elif first["type"] == "missing":
        message = "this key is missing"
    else:
        message = f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
    places = {tuple(_locate(schema, problem["loc"])[0]) for problem in problems}
    # the other branches of a union complain of the whole that the deepest one has found the mistake in
    more = sum(place != tuple(keys[: len(place)]) for place in places)
    return f"{blame}: {message}" + (f" (and {more} more)" if more else "")


def _locate(schema: Any, loc: Sequence[str | int]) -> tuple[list[str], type[BaseModel] | None]:
    """The keys as the user wrote them, and the model that the last one belongs to.

    pydantic puts the tag of a discriminated union and the branch of a plain one into ``loc``; those are left out.
    """
    keys: list[str] = []
    owner: type[BaseModel] | None = None
    here = _alternatives(schema)
    for part in loc:
        branches = [branch for branch in here if part in (*_tags(branch), getattr(branch, "__name__", None))]
        if len(here) > 1 and (branches or str(part).startswith("literal[")):
            here = branches or here
            continue
        keys.append(str(part))
        models = [branch for branch in here if isinstance(branch, type) and issubclass(branch, BaseModel)]
        owner = next((model for model in models if part in model.model_fields), models[0] if models else None)
        if owner is not None:
            field = owner.model_fields.get(str(part))
            here = _alternatives(field.annotation) if field else []
        else:  # dict[str, Model] and tuple[Model, ...]
            items = [argument for branch in here for argument in get_args(branch) if argument not in (str, Ellipsis)]
            here = [alternative for item in items for alternative in _alternatives(item)]
    return keys, owner


def _alternatives(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [branch for argument in get_args(annotation) for branch in _alternatives(argument)]
    return [annotation]


def _tags(model: Any) -> tuple[Any, ...]:
    field = getattr(model, "model_fields", {}).get("name")
    return get_args(field.annotation) if field is not None else ()
