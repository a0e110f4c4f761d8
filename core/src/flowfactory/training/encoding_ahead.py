"""Training prompts, encoded for a stretch of iterations at a time where they are many."""

from __future__ import annotations

from collections.abc import Sequence

from flowfactory.config.schema import RunConfig
from flowfactory.training.prompts import prompts_of
from flowfactory.training.regularising_prompts import regularising_prompts, with_targets
from flowfactory.training.velocity_probe import probed_prompts
from flowfactory.types import Prompt


class EncodingAhead:
    """Which of a run's training ``prompts`` are encoded: all, or those of a stretch of iterations, counted from 0.

    What an iteration draws is a function of its number, so that nothing but the time of encoding depends on the stretches.
    """

    def __init__(self, prompts: Sequence[Prompt], config: RunConfig) -> None:
        self._prompts, self._config = prompts, config
        self._targets = with_targets(prompts) if config.training.regularise else []
        self.at_once = config.prompts.iterations_at_once(len(prompts), config.sampling.groups)
        self.encoded = range(0)

    def has(self, iteration: int) -> bool:
        """Whether the prompts of ``iteration`` are encoded."""
        return self.at_once is None or iteration in self.encoded

    def at_start(self, iteration: int) -> Sequence[Prompt]:
        """What is to be encoded before a run begins with ``iteration``."""
        if self.at_once is None:
            return self._prompts
        if iteration >= self._config.training.iterations:
            return []
        return [*probed_prompts(self._prompts), *self.upcoming(iteration)]

    def upcoming(self, iteration: int) -> list[Prompt]:
        """The prompts of the stretch that begins with ``iteration``, each once, in the order in which they are drawn."""
        found: dict[int, Prompt] = {}
        for number in self._stretch(iteration):
            found |= {prompt.index: prompt for prompt in prompts_of(self._config, self._prompts, number)}
            if self._targets:
                joining = regularising_prompts(self._targets, self._config, number)
                found |= {prompt.index: prompt for prompt in joining}
        return list(found.values())

    def reach(self, iteration: int) -> None:
        """Note that the prompts of the stretch that begins with ``iteration`` are encoded."""
        self.encoded = self._stretch(iteration)

    def _stretch(self, iteration: int) -> range:
        last = self._config.training.iterations
        if self.at_once is not None:
            last = min(iteration + self.at_once, last)
        return range(iteration, max(iteration + 1, last))

    def tell(self, heldout: int, encoded: int) -> str:
        """A line about what is encoded when a run begins, of which ``encoded`` was not before."""
        known = f"{len(self._prompts)} training and {heldout} held-out prompts"
        if self.at_once is None:
            return f"{known}, {encoded} encoded now, the rest from the cache"
        first, last = self.encoded.start + 1, self.encoded.stop
        there = f"those of iterations {first} to {last} are there, {encoded} encoded now"
        others = f"the others follow as training comes to them, about {self.at_once * self._config.sampling.groups} at a time"
        return f"{known}; {there}; {others if last < self._config.training.iterations else 'no others are drawn'}"
