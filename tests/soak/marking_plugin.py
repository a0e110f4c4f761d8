"""A one-file plugin: a reward and a tracker that tell the process that started the run which phase it is in."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor

from flowfactory import ComponentConfig, Samples, hookimpl


def mark(phase: str) -> None:
    if "SOAK_MARKS" in os.environ:
        os.write(int(os.environ["SOAK_MARKS"]), f"{phase}\n".encode())


Wrapped = Generator[None, Any, Any]


class BrightConfig(ComponentConfig):
    """The mean of the pixels."""

    def build(self, label: str) -> Bright:
        return Bright(label)


class Bright:
    def __init__(self, label: str) -> None:
        self.label = label

    @hookimpl
    def prepare_reward(self, device: torch.device) -> None:
        mark("preparing-rewards")

    @hookimpl
    def compute_reward(self, samples: Samples) -> dict[str, Tensor]:
        mark("rewards")
        return {self.label: samples.media.flatten(1).mean(1)}


class MarksConfig(ComponentConfig):
    """What tells where a run is."""

    def build(self, label: str) -> Marks:
        return Marks()


class Marks:
    """Wraps what the others do."""

    @hookimpl(wrapper=True)
    def load(self) -> Wrapped:
        mark("loading")
        return (yield)

    @hookimpl(wrapper=True)
    def encode(self) -> Wrapped:
        mark("encoding")
        return (yield)

    @hookimpl(wrapper=True)
    def sample(self) -> Wrapped:
        mark("drawing")
        return (yield)

    @hookimpl(wrapper=True)
    def log_prob(self) -> Wrapped:
        mark("update")
        return (yield)

    @hookimpl
    def run_started(self) -> None:
        mark("preflight")

    @hookimpl
    def iteration_finished(self, iteration: int) -> None:
        mark("between-iterations")

    @hookimpl
    def checkpoint_saved(self, iteration: int) -> None:
        mark("between-iterations")

    @hookimpl
    def run_finished(self) -> None:
        mark("run-finished")


@hookimpl
def register_components(register: Callable[[str, str, Any], None]) -> None:
    register("reward", "marking", BrightConfig)
    register("tracker", "marks", MarksConfig)
