"""Any component against the contract of its kind, without pytest: what ``flowfactory plugins check`` says."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from flowfactory.config.component import ComponentConfig
from flowfactory.config.component_slots import config_class
from flowfactory.config.loading import load, validate
from flowfactory.config.paths import CheckpointPath
from flowfactory.config.schema import RunConfig
from flowfactory.data.prompts import read_prompts, read_sources
from flowfactory.discovery.catalogue import Catalogue, Component
from flowfactory.discovery.source_places import describe_exception
from flowfactory.errors import UserError
from flowfactory.hooks.building import build
from flowfactory.testing.algorithm_contract import check_algorithm
from flowfactory.testing.dynamics_contract import check_dynamics
from flowfactory.testing.model_contract import check_model
from flowfactory.testing.reward_contract import check_reward
from flowfactory.testing.run_suite import check_resumes_bit_for_bit
from flowfactory.testing.tracker_contract import check_tracker
from flowfactory.testing.two_parameter import settings
from flowfactory.types import Prompt, Samples

PROMPTS = ('a red circle with the words "good morning"', 'two blue squares beside a sign that says "open"')
SIZES = [(*side, *frames) for frames in ((), (5,)) for side in ((8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (256, 256))]
"""What models are asked for, until one takes it."""
LABEL = "under_test"


@dataclass(frozen=True)
class Question:
    """Which component is checked, and how: its ``options``, the ``prompts`` that it is tried on, and a model's ``size``.

    ``named``: it was asked for by name, so that what is not here may be downloaded and servers may be reached.
    """

    component: Component
    catalogue: Catalogue
    plugins: Sequence[Path] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    prompts: Path | None = None
    size: tuple[int, ...] | None = None
    named: bool = False


@dataclass(frozen=True)
class Verdict:
    """What is ``wrong``, a sentence each; or why the contract was ``left_out``, which is no fault of the component."""

    wrong: tuple[str, ...] = ()
    left_out: str = ""


def check_component(question: Question) -> Verdict:
    """What is wrong with a component: its version, its options, what it builds, and the contract of its kind."""
    component = question.component
    if component.misfit:
        return Verdict((component.misfit,))
    try:
        if component.kind != "example":
            config_class(component)
    except UserError as error:
        return Verdict(error.sentences)
    with tempfile.TemporaryDirectory() as name:
        try:
            run, raw = _make_run(question, Path(name))
        except UserError as error:
            told = tuple(sentence.removeprefix("config: ").removeprefix(f"rewards.{LABEL}.") for sentence in error.sentences)
            return Verdict(told) if question.named else Verdict(left_out=told[0])
        if component.kind == "example":
            return Verdict()
        config = _PICK[component.kind](run)
        if not question.named and (away := next(_elsewhere(component.kind, config), None)):
            return Verdict(left_out=away)
        try:
            build(config, LABEL)
            _CONTRACTS[component.kind](question, config, run, raw)
        except AssertionError as error:
            return Verdict((str(error) or describe_exception(error),))
        except UserError as error:
            return Verdict(error.sentences)
        except Exception as error:
            return Verdict((describe_exception(error),))
    return Verdict()


def _make_run(question: Question, folder: Path) -> tuple[RunConfig, Mapping[str, Any]]:
    """A small run that the component is part of, and its config. UserError: the options, or what is installed, allow none."""
    if question.component.kind == "example":
        return load(question.component.spec, (), question.plugins), {}
    refused = []
    for sections in _SECTIONS[question.component.kind](question):
        algorithm = sections.pop("algorithm", "policy-gradient")
        raw = settings(folder, algorithm, question.plugins, **{"sampling": {"dynamics": "flow-sde"}, **sections})
        prompts = question.prompts
        if prompts is None:
            prompts = folder / "prompts.txt"
            prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
        raw["prompts"] = {"train": str(prompts)}
        try:
            return validate(raw), raw
        except UserError as error:
            refused.append(error)
    lasting = [sentence for sentence in refused[0].sentences if all(sentence in error.sentences for error in refused)]
    raise UserError(*lasting) if lasting else refused[-1]  # what no other size or dynamics mends hides what one might


def _options(question: Question) -> dict[str, Any]:
    names = question.catalogue.components[question.component.kind]
    name = next(name for name, component in names.items() if component is question.component)
    return {"name": name, **question.options}


def _model_sections(question: Question) -> Iterator[dict[str, Any]]:
    for size in [question.size] if question.size else SIZES:
        canvas = {"size": list(size[:2]), **({"frames": size[2]} if len(size) > 2 else {})}
        yield {"model": _options(question), "sampling": {"dynamics": "flow-sde", **canvas}}


def _algorithm_sections(question: Question) -> Iterator[dict[str, Any]]:
    for dynamics in ("ode", "flow-sde"):  # the first where no log-density is needed
        yield {"algorithm": _options(question), "sampling": {"dynamics": dynamics}}


_SECTIONS: Mapping[str, Callable[[Question], Iterator[dict[str, Any]]]] = {
    "model": _model_sections,
    "algorithm": _algorithm_sections,
    "reward": lambda question: iter([{"rewards": {LABEL: _options(question)}}]),
    "dynamics": lambda question: iter([{"sampling": {"dynamics": _options(question)}}]),
    "tracker": lambda question: iter([{"output": {"trackers": [_options(question)]}}]),
}
_PICK: Mapping[str, Callable[[RunConfig], Any]] = {
    "model": lambda run: run.model,
    "algorithm": lambda run: run.algorithm,
    "reward": lambda run: run.rewards[LABEL],
    "dynamics": lambda run: run.sampling.dynamics,
    "tracker": lambda run: run.output.trackers[0],
}


def _elsewhere(kind: str, config: ComponentConfig) -> Iterator[str]:
    """What of a component is not on this machine: checkpoints of a hub, and servers; or not in a run, such as an account."""
    if kind == "tracker" and not getattr(config, "stays_in_run", False):
        yield "it may send runs to an account, or write them elsewhere than to a run directory; name it to have it tried"
    for key, option in type(config).model_fields.items():
        value = getattr(config, key)
        if get_args(CheckpointPath)[1] in option.metadata and not Path(str(value)).is_dir():
            yield f"its {key} {value} may have to be downloaded"
    for key, does in config.sends_to.items():
        if getattr(config, key, None):
            yield f"it {does} {getattr(config, key)}"


def _check_model(question: Question, config: Any, run: RunConfig, raw: Mapping[str, Any]) -> None:
    prompts: Sequence[str | Prompt] = PROMPTS if question.prompts is None else read_prompts(question.prompts)[:2]
    frames = run.sampling.frames
    size = (*run.sampling.size, *(() if frames is None else (frames,)))
    if check_model(config, prompts, size).guided:
        check_model(config, prompts, size, guidance=3.0)


def _check_algorithm(question: Question, config: Any, run: RunConfig, raw: Mapping[str, Any]) -> None:
    dynamics: Any = build(run.sampling.dynamics, "dynamics")
    check_algorithm(config, dynamics=dynamics)
    check_resumes_bit_for_bit(raw)


def _check_reward(question: Question, config: Any, run: RunConfig, raw: Mapping[str, Any]) -> None:
    """As it says of itself, point by point or with groups that are whole."""
    prompts = [prompt for prompt in read_sources(run.prompts.trained)[:2] for _ in range(2)]
    count = len(prompts)
    pictures = torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    samples = Samples(
        pictures,
        tuple(prompt.text for prompt in prompts),
        torch.tensor([i // 2 for i in range(count)]),
        tuple(prompt.metadata for prompt in prompts),
        tuple(prompts),
    )
    pointwise = getattr(build(config, LABEL), "pointwise", False) is True
    check_reward(config, samples, pointwise=pointwise, varies=False)  # noise shows nothing of what most rewards look for


_CONTRACTS: Mapping[str, Callable[[Question, Any, RunConfig, Mapping[str, Any]], None]] = {
    "model": _check_model,
    "algorithm": _check_algorithm,
    "reward": _check_reward,
    "dynamics": lambda question, config, run, raw: check_dynamics(config),
    "tracker": lambda question, config, run, raw: check_tracker(config),
}
