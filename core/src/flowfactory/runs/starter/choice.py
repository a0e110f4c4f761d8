"""What a starter config is to be of, of all that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowfactory.config.component_slots import config_class, known_as
from flowfactory.config.example_options import bundled_example
from flowfactory.discovery.catalogue import Catalogue, Component
from flowfactory.errors import UserError

PREFERRED = {"model": ("tiny",), "algorithm": ("nft", "grpo"), "reward": ("jpeg-size",)}
"""What is taken where nothing is chosen, if it is installed."""


@dataclass(frozen=True)
class Choice:
    """The components of a starter config, and the names that a config has for them."""

    model: tuple[str, Component]
    algorithm: tuple[str, Component]
    rewards: tuple[tuple[str, Component], ...]

    @property
    def learns_from(self) -> str:
        """What the algorithm learns from."""
        return str(getattr(config_class(self.algorithm[1]), "learns_from", "samples"))


def choose(catalogue: Catalogue, model: str | None, algorithm: str | None, rewards: Sequence[str]) -> Choice:
    """What was chosen by name, and for the rest what the model's bundled example has, or what is usual.

    UserError: there is no such component, or none of a kind is installed.
    """
    own_model = _find(catalogue, "model", model or _usual(catalogue, "model"))
    example = bundled_example(catalogue, own_model[1]) or {}
    own_algorithm = _find(catalogue, "algorithm", algorithm or _usual(catalogue, "algorithm"))
    named = list(dict.fromkeys(rewards)) or _example_rewards(catalogue, example) or [_usual(catalogue, "reward")]
    return Choice(own_model, own_algorithm, tuple(_find(catalogue, "reward", name) for name in named))


def _find(catalogue: Catalogue, kind: str, name: str) -> tuple[str, Component]:
    try:
        component = catalogue.find(kind, name)
    except UserError as error:
        if meant := known_as(catalogue, kind, name):
            raise UserError(f"no {kind} called {name!r}; did you mean {meant}?") from error
        raise
    return next((known, each) for known, each in catalogue.components[kind].items() if each is component)


def _usual(catalogue: Catalogue, kind: str) -> str:
    known = catalogue.components[kind]
    found = next((name for name in (*PREFERRED[kind], *sorted(known)) if name in known), None)
    if found is None:
        raise UserError(f"no {kind} is installed; install a package with one, such as those of this project")
    return found


def _example_rewards(catalogue: Catalogue, example: object) -> list[str]:
    rewards = example.get("rewards") if isinstance(example, dict) else None
    values = rewards.values() if isinstance(rewards, dict) else ()
    names = [value.get("name") if isinstance(value, dict) else value for value in values]
    return [name for name in dict.fromkeys(names) if name in catalogue.components["reward"]]
