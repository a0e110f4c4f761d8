"""One of three ranks that encode together, as test_joint_encoding.py asks. encoding_rank.py RANK PORT FOLDER"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import DistStoreError, distributed_c10d

from flowfactory.canvas import Canvas
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.distributed.apart import do_apart
from flowfactory.distributed.outcome import to_outcome
from flowfactory.distributed.process_group import leave_process_group
from flowfactory.distributed.ranks import Ranks
from flowfactory.errors import RunError
from flowfactory.types import Prompt

CANVAS = Canvas(8, 8)
PROMPTS = [Prompt("x" * length, length) for length in range(1, 101)]


def unreadable(length: int) -> RunError:
    """As a plugin may raise it: no other process can make it again."""

    class Unreadable(RunError):
        def __init__(self, length: int, why: str) -> None:
            super().__init__(f"no {length}: {why}")

    return Unreadable(length, "too long")


class Encoder:
    """Notes what it is asked, and fails at the texts of ``fails``."""

    def __init__(self, fails: Callable[[str], bool] = lambda text: False) -> None:
        self.asked: list[int] = []
        self._fails = fails

    def __call__(self, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Mapping[str, Tensor]]:
        for prompt in prompts:
            if self._fails(prompt.text):
                raise unreadable(len(prompt.text))
            self.asked.append(len(prompt.text))
            yield {"length": torch.tensor(len(prompt.text)), "embeds": torch.full((3,), float(len(prompt.text)))}


class Scenes:
    """What a rank sees of each scene, by its name."""

    def __init__(self, ranks: Ranks, folder: Path) -> None:
        self._ranks, self._folder = ranks, folder
        self.told: list[tuple[int, int]] = []
        self.said: list[str] = []

    def cache(self, encoder: Encoder, root: Path) -> EncodeCache:
        folder = CacheFolder(root, say=self.said.append)
        return EncodeCache(encoder, "m", folder, ranks=self._ranks, tell=lambda *told: self.told.append(told))

    def prepare(self, root: Path) -> dict[str, Any]:
        encoder = Encoder()
        cache = self.cache(encoder, root)
        count = cache.prepare(PROMPTS, CANVAS)
        known = cache.conditions(PROMPTS, CANVAS)
        read = [int(entry["length"]) for entry in known.entries]
        return {"count": count, "asked": encoder.asked, "right": read == [len(prompt.text) for prompt in PROMPTS]}

    def shared(self) -> dict[str, Any]:
        found = self.prepare(self._folder / "shared")
        return found | {"again": self.prepare(self._folder / "shared"), "told": [*self.told]}

    def apart(self) -> dict[str, Any]:
        return self.prepare(self._folder / ("other" if self._ranks.rank == 1 else "one"))

    def unwritable(self) -> dict[str, Any]:
        return self.prepare(self._folder / "file")

    def one_unwritable(self) -> dict[str, Any]:
        self.said.clear()
        return self.prepare(self._folder / ("file" if self._ranks.rank == 1 else "rest")) | {"said": [*self.said]}

    def lost(self) -> dict[str, Any]:
        encoder = Encoder()
        cache = self.cache(encoder, self._folder / "shared")
        assert cache.prepare(PROMPTS, CANVAS) == 0
        self._ranks.barrier()
        if self._ranks.rank == 2:
            first, second, *_ = sorted((self._folder / "shared").rglob("*.safetensors"))
            first.unlink()
            second.write_bytes(second.read_bytes()[:-1])
        self._ranks.barrier()
        known = cache.conditions(PROMPTS, CANVAS)
        right = [int(entry["length"]) for entry in known.entries] == [len(prompt.text) for prompt in PROMPTS]
        return {"asked": encoder.asked, "right": right}

    def fails(self) -> dict[str, Any]:
        encoder = Encoder(lambda text: self._ranks.rank == 1 and len(text) == 40)
        cache = self.cache(encoder, self._folder / "fails")
        try:
            cache.prepare(PROMPTS, CANVAS)
        except RunError as error:
            return {"error": str(error)}
        return {}

    def fails_in_turn(self) -> dict[str, Any]:
        def work(mine: bool) -> None:
            raise unreadable(40)

        try:
            self._ranks.in_turn(work)
        except RunError as error:
            return {"error": str(error)}
        return {}

    def takes_long(self) -> dict[str, Any]:
        """Pieces that are done within what the store waits for, and then one that is not."""
        distributed_c10d._get_default_store().set_timeout(timedelta(seconds=2))

        def work(advance: Callable[[], None], pieces: int, seconds: float) -> int:
            for _ in range(pieces):
                time.sleep(seconds)
                advance()
            return pieces

        pieces = 15 if self._ranks.rank == 1 else 0
        done = do_apart(self._ranks, lambda advance: work(advance, pieces, 0.2))
        try:
            do_apart(self._ranks, lambda advance: work(advance, int(self._ranks.rank == 1), 4))
        except DistStoreError as error:
            return {"done": done, "error": str(error), "kind": to_outcome(error, self._ranks.rank).kind}
        return {"done": done, "error": None, "kind": None}


def main() -> None:
    torch.set_num_threads(1)
    rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    scenes = Scenes(Ranks(rank, 3, rank), folder)
    names = ("shared", "apart", "unwritable", "one_unwritable", "lost", "fails", "fails_in_turn", "takes_long")
    (folder / f"{rank}.json").write_text(json.dumps({name: getattr(scenes, name)() for name in names}))
    while len(list(folder.glob("?.json"))) < 3:  # the first rank has the store
        time.sleep(0.05)
    leave_process_group()


if __name__ == "__main__":
    main()
