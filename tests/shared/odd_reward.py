"""A one-file plugin for tests of serving: ``odd`` does what the metadata of its first sample say."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import torch
from pydantic import Field

from flowfactory import ComponentConfig, RunError, hookimpl


class OddConfig(ComponentConfig):
    """A weighted sum of the pixels, unless ``mode`` in the metadata says otherwise."""

    factor: float = Field(1.0, description="of the sum")
    pointwise: bool = Field(True, description="what it says of itself")
    until: str = Field("", description="a file that it waits for before it is ready")
    broken: str = Field("", description="what it raises instead of getting ready")
    ends: str = Field("", description="how its process ends instead of getting ready")
    gate: str = Field("", description="a file without which its process ends instead of getting ready")

    def build(self, label):
        return Odd(label, self)


class Odd:
    def __init__(self, label, config):
        self.label, self.config, self.pointwise = label, config, config.pointwise

    @hookimpl
    def prepare_reward(self, device):
        if self.config.broken:
            raise RunError(self.config.broken)
        if self.config.gate and not Path(self.config.gate).exists():
            os._exit(4)
        end(self.config.ends)
        if self.config.until:
            awaited(Path(self.config.until))

    @hookimpl
    def compute_reward(self, samples):
        said = samples.metadata[0]
        mode = said.get("mode", "score")
        if "hold" in said:
            (Path(said["hold"]) / "begun").touch()
            awaited(Path(said["hold"]) / "go")
        if "log" in said:
            with Path(said["log"]).open("a") as log:
                log.write(f"{len(samples.prompts)}\n")
        time.sleep(said.get("sleep", 0))
        fork(mode)
        if mode == "long-error":
            raise ValueError("A" * 10_000_000)
        if mode == "raise":
            raise ZeroDivisionError("the picture is upside down")
        end(mode)
        if mode == "run-error":
            raise RunError("no face in the picture")
        scores = self.config.factor * weighted(samples.media)
        if mode == "nan":
            scores[-1] = torch.nan
        if mode == "short":
            scores = scores[1:]
        if mode == "group":
            for group in samples.groups.unique():
                scores[samples.groups == group] -= scores[samples.groups == group].mean()
        if mode == "sources":
            scores = torch.tensor([float(size_of(source)) for source in samples.sources])
        if mode == "metadata":
            scores = torch.tensor([float(len(metadata)) for metadata in samples.metadata])
        if mode == "pid":
            scores = torch.full((len(samples.prompts),), float(os.getpid()))
        if mode == "count":
            scores = torch.full((len(samples.prompts),), float(len(samples.prompts)))
        return {self.label: scores}


def fork(how):
    """Start a process that holds all that this one has open, and then what ``how`` says; fill what is open with garbage."""
    if how.startswith("fork"):
        helper = os.fork()
        if helper == 0 and how != "fork-return":
            time.sleep(300)
            os._exit(0)
        Path(os.environ.get("ODD_HELPERS", os.devnull)).write_text(str(helper))
        if how == "fork-die":
            os._exit(3)
        end(how.removeprefix("fork-"))
    if how == "garbage":
        for number in range(3, 64):
            with contextlib.suppress(OSError):
                os.set_blocking(number, False)
                os.write(number, b"\0\0\0\x10garbagegarbage!!" * 10)


def end(how):
    """End this process, or never return, if ``how`` says so."""
    if how == "hang":
        while True:
            time.sleep(1)
    if how == "os-exit":
        os._exit(3)
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "sys-exit":
        sys.exit("enough")
    if how == "interrupt":
        raise KeyboardInterrupt


def weighted(media):
    """[B]: different for any two pictures of a test, and for a picture with its pixels in another order."""
    flat = media.flatten(1)
    return (flat * torch.linspace(0.5, 1.5, flat.shape[1])).mean(1)


def size_of(source):
    return source.index + len(source.negative or "") + sum(1000 * len(path.read_bytes()) for path in source.media)


def awaited(path):
    while not path.exists():
        time.sleep(0.01)


@hookimpl
def register_components(register):
    register("reward", "odd", OddConfig)
