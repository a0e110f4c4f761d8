"""The keys of a starter config, before they are fitted to a card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flowfactory.config.component import ModelConfig
from flowfactory.config.component_slots import config_class
from flowfactory.config.example_options import bundled_example, bundled_examples, starter_values
from flowfactory.discovery.catalogue import Catalogue
from flowfactory.runs.starter.choice import Choice

Raw = dict[str, Any]
LORA: Raw = {"lora": {"rank": 32, "alpha": 64}}
MOST_SAMPLES, LARGEST_GROUP = 256, 16
"""Of an iteration on one card; published recipes have several times as many, over many cards."""
TAKEN = ("size", "frames", "steps", "guidance")
"""Keys of a model's bundled sampling that no algorithm asks for otherwise."""


def drafts(catalogue: Catalogue, choice: Choice, path: str | None) -> Iterator[Raw]:
    """Configs without prompts, what is likeliest to be right first: their dynamics differ."""
    name, model = choice.model
    examples = list(bundled_examples(catalogue, model))
    both = next((raw for raw in examples if _algorithm(raw) in (choice.algorithm[0], choice.algorithm[1].full_name)), None)
    example = both or (examples[0] if examples else {})
    options = {"name": name, **starter_values(catalogue, model), **({"path": path} if path else {})}
    if "train" not in options:
        options["train"] = LORA
    own = both["algorithm"] if both and isinstance(both.get("algorithm"), Mapping) else {}
    drawn = _mapping(example, "sampling")
    kind: Any = config_class(model)
    starters = kind.starter_sampling if issubclass(kind, ModelConfig) else {}
    sampling = {key: drawn[key] for key in TAKEN if key in drawn} or dict(starters)
    for dynamics in _dynamics(catalogue, choice, drawn if both else {}):
        raw: Raw = {
            "model": options,
            "algorithm": {"name": choice.algorithm[0], **{key: value for key, value in own.items() if key != "name"}},
            "rewards": {_label(reward): {"name": reward, **starter_values(catalogue, c)} for reward, c in choice.rewards},
            "prompts": {},
            "sampling": {"groups": 16, "group_size": 8, **sampling, "batch_size": 8, "dynamics": dynamics},
            "training": {"iterations": 100, "updates": 2, "batch_size": 8, "optimizer": {"name": "adamw", "lr": 1e-4}},
            "evaluation": {"every": 20},
            "output": {"checkpoint_every": 20},
        }
        if both is not None:
            raw |= {key: dict(both[key]) for key in ("sampling", "advantages", "training") if key in both}
            raw["sampling"] = {**_for_one_card(raw["sampling"]), "dynamics": dynamics}
        if "steps" in (evaluation := _mapping(example, "evaluation")):
            raw["evaluation"]["steps"] = evaluation["steps"]
        yield raw if choice.learns_from == "samples" else _of_records(raw)


def _of_records(raw: Raw) -> Raw:
    """The same where nothing is drawn to train: rewards score what is held out, and each prompt brings its records."""
    sampling = {key: value for key, value in raw["sampling"].items() if key not in ("group_size", "dynamics")}
    kept = {key: value for key, value in raw.items() if key not in ("rewards", "advantages")}
    return {**kept, "sampling": sampling, "evaluation": {**raw["evaluation"], "rewards": raw["rewards"]}}


def lacking_records(choice: Choice) -> str:
    """What is to be given for an algorithm that learns from records, which none can be made up for."""
    told = f"algorithm {choice.algorithm[0]} learns from pictures or videos that prompts bring"
    if choice.learns_from == "pairs":
        return f"{told}, two each; give a .jsonl file with 'chosen' and 'rejected' beside each 'prompt': --prompts FILE"
    either = "a folder of pictures with captions, or a .jsonl file with a 'target' beside each 'prompt'"
    return f"{told}; give {either}: --prompts FOLDER"


def lacking_options(catalogue: Catalogue, choice: Choice) -> str | None:
    """What is to be given for an algorithm with options that none can be made up for, such as teachers; None: nothing."""
    name, component = choice.algorithm
    wanted = [key for key, field in config_class(component).model_fields.items() if field.is_required() and key != "name"]
    if not wanted or bundled_example(catalogue, component):
        return None
    told = f"algorithm {name} wants {', '.join(wanted)}, which only you have"
    return f"{told}; write the config from its page, and see flowfactory plugins show {name}"


def _for_one_card(sampling: Mapping[str, Any]) -> Raw:
    """The same with so few samples an iteration that one card can draw them; groups stay whole, and several."""
    groups, size = sampling.get("groups", 16), sampling.get("group_size", 8)
    if groups * size > MOST_SAMPLES:
        size = min(size, LARGEST_GROUP)
        groups = MOST_SAMPLES // size
    return {**sampling, "groups": groups, "group_size": size}


def _dynamics(catalogue: Catalogue, choice: Choice, own: Mapping[str, Any]) -> Iterator[Any]:
    """Those of the example of both, of any example of the algorithm, and then what is usual."""
    found = [own["dynamics"]] if "dynamics" in own else []
    samplings = [_mapping(raw, "sampling") for raw in bundled_examples(catalogue, choice.algorithm[1])]
    found += [sampling["dynamics"] for sampling in samplings if "dynamics" in sampling]
    found += ["ode", "flow-sde", {"name": "flow-sde", "num_sde_steps": 1}]
    seen: list[Any] = []
    for each in found:
        if each not in seen:
            seen.append(each)
            yield each


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, Mapping) else {}


def _algorithm(raw: Mapping[str, Any]) -> object:
    value = raw.get("algorithm")
    return value.get("name") if isinstance(value, Mapping) else value


def _label(reward: str) -> str:
    """A label for a reward, which is a part of the names of metrics."""
    return "".join(letter if letter.isalnum() or letter in "_-." else "-" for letter in reward)
