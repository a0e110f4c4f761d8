"""The options of components that plugins bring, as parts of a config's schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from inspect import isabstract, isclass, isroutine
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal, Union

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    create_model,
)
from pydantic.errors import PydanticUndefinedAnnotation

from flowfactory.config.component import AlgorithmConfig, ComponentConfig, DynamicsConfig, ModelConfig
from flowfactory.config.findings import Finding, WrongConfig
from flowfactory.config.messages import describe
from flowfactory.config.schema import EvaluationConfig, OutputConfig, PromptsConfig, RunConfig, SamplingConfig
from flowfactory.config.strict import expand_name
from flowfactory.config.synonyms import plain
from flowfactory.discovery.catalogue import KINDS, Catalogue, Component
from flowfactory.discovery.discover import discover
from flowfactory.discovery.source_places import describe_exception, place_of
from flowfactory.errors import UserError
from flowfactory.postponed_imports import without_collections
from flowfactory.suggestions import join_or

BASES: Mapping[str, Any] = {
    "model": ModelConfig,
    "algorithm": AlgorithmConfig,
    "dynamics": DynamicsConfig,
}
"""What a component of a kind subclasses; ComponentConfig where none stands here."""


def config_class(component: Component) -> type[ComponentConfig]:
    """The option schema of ``component``. UserError: the lazy spec does not import, or is no ComponentConfig."""
    base: Any = BASES.get(component.kind, ComponentConfig)
    origin = f"{component.kind} {component.name!r} of {component.origin}"
    spec: Any = component.spec
    if isinstance(spec, str):
        module, _, attribute = spec.partition(":")
        if not (module and attribute):
            raise UserError(f"{origin} is registered as {spec!r}; write 'package.module:Class'")
        try:
            with without_collections():
                spec = getattr(import_module(module), attribute)
        except Exception as error:
            raise UserError(f"{origin} cannot be loaded: {describe_exception(error)}") from error
    if isinstance(spec, type) and issubclass(spec, base):
        if isabstract(spec):
            raise UserError(
                f"{origin}: {place_of(spec)} has no build; write 'def build(self, label)' that returns the component"
            )
        chosen: type[ComponentConfig] = spec
        try:
            chosen.model_rebuild()
        except PydanticUndefinedAnnotation as error:
            raise UserError(f"{origin}: {place_of(spec)} has an option of type {error.name!r}, which is not there") from error
        return chosen
    wrong = place_of(spec) if isclass(spec) or isroutine(spec) else repr(spec)
    raise UserError(f"{origin} registers {wrong}; register a subclass of flowfactory.{base.__name__}")


def loadable(catalogue: Catalogue) -> dict[str, list[str]]:
    """The names by kind of the components whose lazy spec imports, examples left out."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS if kind != "example"}
    for kind in found:
        for name, component in catalogue.components[kind].items():
            with suppress(UserError):
                config_class(component)
                found[kind].append(name)
    return found


def known_as(catalogue: Catalogue, kind: str, name: str) -> str | None:
    """The component, or the components joined by "or", that others call ``name``; None where nobody does."""
    word = plain(name)
    found = []
    for known in loadable(catalogue)[kind] if name not in catalogue.components[kind] else ():
        others = vars(config_class(catalogue.components[kind][known])).get("known_as", ())  # not its base's
        if word in map(plain, (known, *others)):
            found.append(repr(known))
    return join_or(found) or None


def options_class(catalogue: Catalogue, kind: str, name: str) -> type[ComponentConfig]:
    """The option schema of the component ``name``. UserError: there is none; names what is meant, or the nearest."""
    try:
        found = config_class(catalogue.find(kind, name))
    except UserError as error:
        if kind == "model" and "/" in name:
            raise UserError(_explain_path(catalogue, name)) from error
        if meant := known_as(catalogue, kind, name):
            raise UserError(f"no {kind} called {name!r}; did you mean {meant}?") from error
        raise
    if taken := {"name", *_EXTRA_FIELDS.get(kind, {})} & set(found.model_fields):
        raise UserError(f"{kind} {name!r} has an option {taken.pop()!r}, which is flowfactory's own; rename it")
    return found


def _explain_path(catalogue: Catalogue, path: str) -> str:
    """What to write where the hub id or the folder of a checkpoint stands for the name of a model."""
    word = plain(path.rstrip("/").rpartition("/")[2])
    names = catalogue.components["model"]
    same = next((repr(name) for name in names if plain(name) == word), None) or known_as(catalogue, "model", word)
    if same is not None and " or " not in same:
        return f"{path!r} is a path; did you mean {{name: {same[1:-1]}, path: {path}}}?"
    return f"{path!r} is a path; write {{name: …, path: {path}}}, where the name is {join_or(sorted(names))}"


class Unknown:
    """Stands where a finding has been made; what a check looks for in it is not there."""


UNKNOWN = Unknown()


def _let_unknown(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    return value if value is UNKNOWN else handler(value)


def _let_be_elsewhere(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Rewards, whose folders need not be there where none is asked."""
    if info.context is None or "rewards" not in info.context.get("unread", ()):
        return handler(value)
    info.context["anywhere"] = True
    try:
        return handler(value)
    finally:
        info.context["anywhere"] = False


def parse_component(
    kind: str, raw: Any, plugins: Sequence[Path] = (), folder: Path | None = None, source: str = "", inner: bool = False
) -> ComponentConfig:
    """The typed options of one component, a name or a mapping with ``name``, as in a config. UserError: it is not valid."""
    try:
        return _parse_component(kind, raw, discover(plugins), folder, inner)
    except WrongConfig as error:
        name = raw if isinstance(raw, str) else raw.get("name")
        raise UserError(*error.describe(source or f"{kind} {name}")) from error


def _parse_component(kind: str, raw: Any, catalogue: Catalogue, folder: Path | None, inner: bool = False) -> ComponentConfig:
    named = expand_name(raw)
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
        raise UserError(f"say which {kind} with 'name'")
    schema = slot_type(catalogue, kind, [named["name"]], inner)
    try:
        made: ComponentConfig = schema.model_validate(named, context={"folder": folder, "catalogue": catalogue})
    except ValidationError as error:
        raise WrongConfig(finding for problem in describe(error, schema, named) for finding in problem.findings) from error
    return made


def _inner_reward(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, ComponentConfig):
        return value
    context = info.context or {}
    try:
        return _parse_component("reward", value, context.get("catalogue") or discover(), context.get("folder"), inner=True)
    except UserError as error:
        raise WrongConfig([Finding("", str(error))]) from error


InnerReward = Annotated[
    SerializeAsAny[ComponentConfig],
    PlainValidator(_inner_reward),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
]
"""A reward within the options of another, given as every reward is: its name, or a mapping with ``name``."""


_EXTRA_FIELDS: dict[str, dict[str, Any]] = {
    "reward": {
        "weight": (float, Field(1.0, description="in the sum of rewards; 0 only watches")),
        "concurrent": (
            bool | None,
            Field(
                None,
                description="whether it is computed while the next samples are drawn; its own choice when left out",
            ),
        ),
        "workers": (
            int,
            Field(0, ge=0, le=1000, description="processes on the CPU that compute it while the next samples are drawn"),
        ),
        "timeout": (
            float | None,
            Field(None, gt=0, le=10_000_000, description="seconds that the run waits for its scores; null: no limit"),
        ),
    }
}


EXECUTION_OPTIONS = ("concurrent", "workers", "timeout")
"""The options of a reward that say how it is computed and change no score."""


def slot_type(catalogue: Catalogue, kind: str, names: Iterable[str], inner: bool = False) -> Any:
    """The type of a config's slot for one of the components ``names`` of ``kind``, told apart by ``name``.

    ``inner``: without the options that core gives to those a run has; for a component within a component.
    """
    options: list[Any] = []
    extra = _EXTRA_FIELDS.get(kind, {})
    for name in sorted(names):
        parent = options_class(catalogue, kind, name)
        fields = {"name": (Literal[name], name), **({} if inner else extra)}
        made = create_model(parent.__name__, __base__=parent, __doc__=parent.__doc__, **fields)
        free = (*parent.free_to_change, *(key for key in EXECUTION_OPTIONS if key in fields))
        setattr(made, "free_to_change", free)  # noqa: B010 mypy takes what create_model returns for a type alone
        options.append(made)
    if not options:
        return ComponentConfig
    return options[0] if len(options) == 1 else Annotated[Union[tuple(options)], Field(discriminator="name")]  # noqa: UP007


def schema_type(catalogue: Catalogue, names: Mapping[str, Iterable[str]] | None = None) -> type[RunConfig]:
    """RunConfig whose slots accept the components ``names`` by kind, or all that are installed and can be loaded."""
    chosen = loadable(catalogue) if names is None else names

    annotated: Any = Annotated  # made at run time, where mypy wants types it can read

    def slot(kind: str) -> Any:
        known = slot_type(catalogue, kind, chosen.get(kind, ()))
        return annotated[known, BeforeValidator(expand_name), WrapValidator(_let_unknown)]

    rewards: Any = annotated[
        GenericAlias(dict, (str, slot("reward"))), WrapValidator(_let_be_elsewhere), WrapValidator(_let_unknown)
    ]
    trackers: Any = GenericAlias(tuple, (slot("tracker"), ...))
    sampling = create_model(
        "SamplingConfig",
        __base__=SamplingConfig,
        __doc__=SamplingConfig.__doc__,
        dynamics=(
            slot("dynamics"),
            Field({"name": catalogue.core_name("dynamics", "ode")}, validate_default=True, description="how latents step"),
        ),
    )
    evaluation = create_model(
        "EvaluationConfig",
        __base__=EvaluationConfig,
        __doc__=EvaluationConfig.__doc__,
        dynamics=(slot("dynamics") | None, EvaluationConfig.model_fields["dynamics"]),
        rewards=(rewards, EvaluationConfig.model_fields["rewards"]),
    )
    output = create_model("OutputConfig", __base__=OutputConfig, __doc__=OutputConfig.__doc__, trackers=(trackers, ()))
    return create_model(
        "RunConfig",
        __base__=RunConfig,
        __doc__=RunConfig.__doc__,
        model=(slot("model"), ...),
        algorithm=(slot("algorithm"), ...),
        rewards=(rewards, {}),
        prompts=(annotated[PromptsConfig, WrapValidator(_let_unknown)], ...),
        sampling=(sampling, Field({}, validate_default=True)),
        evaluation=(evaluation, Field({}, validate_default=True)),
        output=(output, Field({}, validate_default=True)),
    )
