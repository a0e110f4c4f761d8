"""A mapping to a RunConfig, or everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flowfactory.config.component_slots import UNKNOWN, options_class, schema_type
from flowfactory.config.findings import MOST, Finding, WrongConfig
from flowfactory.config.messages import Keys, Problem, describe, dotted, lookup
from flowfactory.config.schema import RunConfig
from flowfactory.config.together import check_together
from flowfactory.config.wording import written
from flowfactory.discovery.catalogue import Catalogue
from flowfactory.discovery.source_places import describe_exception
from flowfactory.errors import UserError


def check(raw: Mapping[str, Any], catalogue: Catalogue, folder: Path | None, unread: Collection[str] = ()) -> RunConfig:
    """The typed config of ``raw``. WrongConfig: all that is wrong with it.

    ``unread`` are the keys of which nothing has to be on this machine, such as "prompts.train" and "rewards".

    What a finding is about is taken out, so that the rest can be looked at; checks that need it are left out. With MOST
    findings no more are looked for, since each costs a search for what was meant.
    """
    draft = _Draft(raw)
    names: dict[str, set[str]] = {}
    findings: list[Finding] = []
    for keys, value in islice(_keys_that_are_no_text(raw), MOST):
        findings.append(Finding(dotted(keys[:-1]), _explain_key(keys[-1], value)))
        draft.take_out(Problem(keys[:-1] if "rewards" in keys[-2:-1] else keys, ()))
    for kind, keys, value in _components(raw, catalogue.core_name("dynamics", "ode")):
        if len(findings) >= MOST:
            break
        finding, name = _check_component(catalogue, kind, dotted(keys), value)
        if finding:
            findings.append(finding)
            draft.take_out(Problem(keys, (finding,)))
        elif name:
            names.setdefault(kind, set()).add(name)
    schema = schema_type(catalogue, names)
    where = {"folder": folder, "catalogue": catalogue, "unread": unread}
    config: RunConfig | None = None
    while config is None and len(findings) < MOST:
        try:
            config = schema.model_validate(draft.raw, context={**where})
        except ValidationError as error:
            problems = describe(error, schema, draft.raw)
            findings += [finding for problem in problems for finding in problem.findings if not draft.is_known(problem.keys)]
            whole = [p for p in problems if not any(p.keys[: len(q.keys)] == q.keys != p.keys for q in problems)]
            went = [draft.take_out(problem) for problem in whole]
            if not any(went):
                break
        except (UserError, MemoryError):
            raise
        except Exception as error:  # of a validator of a plugin's options
            raise UserError(f"a plugin's options cannot be checked: {describe_exception(error)}") from error
    if config is not None:
        draft.empty(config)
        findings += check_together(config, not findings, unread)
    if findings or config is None:
        order = {key: place for place, key in enumerate(raw)}
        raise WrongConfig(sorted(findings, key=lambda finding: order.get(finding.section, len(order))), config)
    return config


def _keys_that_are_no_text(raw: Mapping[Any, Any], above: Keys = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The keys down to each, and its value. What the options of a component hold is the component's own matter."""
    for key, value in raw.items():
        if not isinstance(key, str):
            yield (*above, key), value
        elif isinstance(value, Mapping) and "name" not in raw:
            yield from _keys_that_are_no_text(value, (*above, key))


def _explain_key(key: Any, value: Any) -> str:
    comma = value is None and isinstance(key, int | float) and not isinstance(key, bool)  # {lr: 0,0001}
    remedy = "a comma ends a value in braces, so write decimals with a point" if comma else "write it in quotes"
    return f"the key {written(key)} is no text; {remedy}"


def _components(raw: Mapping[str, Any], dynamics: str) -> Iterator[tuple[str, Keys, Any]]:
    """(kind, keys, value) of every component that ``raw`` names, or ``dynamics``; what is malformed is left to pydantic."""

    def section(key: str) -> Mapping[str, Any]:
        value = raw.get(key)
        return value if isinstance(value, Mapping) else {}

    def items(value: Any) -> Iterable[tuple[Any, Any]]:
        return value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()

    for kind in ("model", "algorithm"):
        if kind in raw:
            yield kind, (kind,), raw[kind]
    yield "dynamics", ("sampling", "dynamics"), section("sampling").get("dynamics", dynamics)
    if (other := section("evaluation").get("dynamics")) is not None:
        yield "dynamics", ("evaluation", "dynamics"), other
    for owner, where in ((raw, ()), (section("evaluation"), ("evaluation",))):
        rewards = owner.get("rewards")
        for label, value in items(rewards) if isinstance(rewards, Mapping) else ():
            yield "reward", (*where, "rewards", label), value
    for place, value in items(section("output").get("trackers")):
        yield "tracker", ("output", "trackers", place), value


def _check_component(catalogue: Catalogue, kind: str, place: str, value: Any) -> tuple[Finding | None, str | None]:
    """What is wrong with the name of a component, or the name."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        if isinstance(value, Mapping):
            return Finding(place, f"say which {kind} with 'name'"), None
        return Finding(place, f"got {written(value)}; give the name of a {kind}, or a mapping with 'name'"), None
    try:
        options_class(catalogue, kind, name)
    except UserError as error:
        return Finding(place, str(error)), None
    return None, name


class _Draft:
    """A copy of a config's mapping, from which what is wrong is taken out.

    ``taken`` are the keys of what was. UNKNOWN stands for a component, or a section without defaults, that is wrong as a whole.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw: Any = _copy(raw)
        self.taken: set[Keys] = set()

    def is_known(self, keys: Keys) -> bool:
        """Whether a finding was made there, or about what it is in, already."""
        return any(keys[: len(taken)] == taken for taken in self.taken)

    def take_out(self, problem: Problem) -> bool:
        """Take out what ``problem`` is about, or where that is out already what it is in; False where nothing is left."""
        keys = problem.keys[:-1] if problem.missing and not _is_slot(problem.keys) else problem.keys
        self.taken.add(problem.keys)
        while keys and not self._remove(keys):
            keys = keys[:-1]
        self.taken |= {keys} - {()}
        return bool(keys)

    def _remove(self, keys: Keys) -> bool:
        node = lookup(self.raw, keys[:-1])
        last: Any = keys[-1]
        if _is_slot(keys) and isinstance(node, dict | list):
            there = node.get(last) if isinstance(node, dict) else node[last]
            if there is UNKNOWN:
                return False
            node[last] = UNKNOWN
        elif isinstance(node, dict) and last in node:
            del node[last]
        else:  # an item of a list, or an option of a component that its name stands for
            return False
        return True

    def empty(self, config: RunConfig) -> None:
        """Let what was taken out be missing from ``config``, in place of its default."""
        for keys in self.taken:
            if _is_slot(keys) or any(keys[: len(other)] == other for other in self.taken if other != keys):
                continue
            node: Any = config
            key: Any
            for key in keys[:-1]:
                node = node[key] if isinstance(node, dict | tuple) else getattr(node, str(key), None)
            if isinstance(node, BaseModel):
                node.__dict__.pop(str(keys[-1]), None)


def _is_slot(keys: Keys) -> bool:
    alone = (("model",), ("algorithm",), ("prompts",), ("rewards",), ("sampling", "dynamics"))
    return keys in alone or (len(keys) > 1 and keys[-2] in ("rewards", "trackers") and len(keys) <= 3)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value
