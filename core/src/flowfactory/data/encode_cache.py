"""The encode-once cache: each distinct prompt goes through the text encoders once, then rests on disk until it is drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from flowfactory.canvas import Canvas
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.condition_checks import check_finite
from flowfactory.data.entry_file import Entry, pack, unpack
from flowfactory.data.media import file_digest
from flowfactory.data.shared_disk import deal, find_mates
from flowfactory.discovery.installed_version import installed_version
from flowfactory.distributed.apart import Advance, do_apart
from flowfactory.distributed.ranks import ALONE, Ranks
from flowfactory.errors import RunError
from flowfactory.types import Conditions, Prompt

PICTURES_READ, VIDEOS_READ = 2, 2
"""How often the way from a file to its pixels has changed: what was encoded before that is encoded again."""
DEALT = 32
"""Prompts that a rank encodes at least, if there are so many; a multiple of the batches of most models."""
MEASURED = 16
"""Entries after which it is known about how large all will be."""
_ENCODES_FIRST = ", or continue with --resume, which encodes before the transformer is there"
_ALL_BEFORE = ", or prompts.encode_ahead to all, which encodes before the transformer is there; and continue with --resume"
Encode = Callable[[Sequence[Prompt], Canvas], Iterable[Entry]]
Wanted = Sequence[tuple[Sequence[Prompt], Canvas]]


class _Ahead(NamedTuple):
    """What is being read: the entries by key, None for those that are not there."""

    prompts: list[Prompt]
    canvas: Canvas
    found: Future[dict[str, Entry | None]]


class EncodeCache:
    """Conditions of prompts: from ``folder``, else from the model.

    ``encoding`` is everything beside the prompt that changes the tensors; the canvas does where ``canvas_matters``. Host
    memory has the entries that were asked for last, those that are read ahead, and those that the folder does not take; they
    come on ``device``. An entry that is missing, or whose bytes are not those that were written, is made again. ``tell`` hears
    how many prompts all ranks have encoded, and of how many; ``option`` says where what encodes is, and ``what`` is what users
    call the prompts. What prepares and what gives conditions is a joint work of the ``ranks``.
    """

    def __init__(
        self,
        encode: Encode,
        encoding: str,
        folder: CacheFolder,
        device: torch.device | str = "cpu",
        canvas_matters: bool = False,
        ranks: Ranks = ALONE,
        tell: Callable[[int, int], None] = lambda done, total: None,
        option: str = "model.encoders_on",
        what: str = "prompts",
    ) -> None:
        self._encode, self._option, self._what = encode, option, what
        self._digest = hashlib.sha256(json.dumps([installed_version("flowfactory"), encoding]).encode())
        self._folder = folder
        self._device = torch.device(device)
        self._canvas_matters = canvas_matters
        self._ranks, self._tell = ranks, tell
        self._held: dict[str, Entry] = {}
        self._unwritten: dict[str, Entry] = {}
        self._ahead: _Ahead | None = None
        self._reader: ThreadPoolExecutor | None = None
        self._told_of_lost = False
        self._beside: str | None = None  # what to do where the encoders do not fit beside what is there

    def prepare(self, prompts: Sequence[Prompt], canvas: Canvas) -> int:
        """As :meth:`prepare_all`, of one canvas."""
        return self.prepare_all([(prompts, canvas)])

    def prepare_all(self, wanted: Wanted, in_training: bool = False) -> int:
        """Have the entries of all prompts ``wanted`` in the folder; returns how many were not. Each rank encodes a part.

        They are needed until the run ends, or ``in_training`` until the next time. Looks at the names of what is there. Ranks
        that share no disk encode apart, and where nothing can be written each rank holds all. UserError, RunError: on whichever
        rank, a file cannot be read; an entry is not finite; there is no room.
        """
        self._beside = _ALL_BEFORE if in_training else None
        mates = find_mates(self._folder, self._ranks)
        first = mates[0] == self._ranks.rank
        needed: set[str] = set()

        def look(advance: Advance) -> list[list[int]]:
            return [self._find_missing(prompts, canvas, needed) for prompts, canvas in wanted] if first else []

        listed = do_apart(self._ranks, look)
        missing = listed[mates[0]]
        if needed:
            self._folder.need(needed, for_now=in_training)
        total = sum(len(places) for one in listed for places in one)
        if total:
            self._encode_jointly(wanted, missing, mates, lambda done: self._tell(done, total))
        if first:
            self._folder.warn_of_limit(self._folder.estimate(needed))
            if any(missing):
                self._folder.evict()
        return sum(map(len, missing))

    def entries(self, prompts: Sequence[Prompt], canvas: Canvas) -> list[Entry]:
        """The entry of each prompt, in host memory."""
        self._hold(list(prompts), canvas)
        return [self._held[self.key(prompt, canvas)] for prompt in prompts]

    def conditions(self, prompts: Sequence[Prompt], canvas: Canvas, negative: Sequence[Prompt] | None = None) -> Conditions:
        """The conditions of ``prompts``, one entry each, and of the ``negative`` prompt of each."""
        self._hold([*prompts, *(negative or ())], canvas)
        arrived: dict[str, Entry] = {}

        def entries(wanted: Sequence[Prompt]) -> tuple[Entry, ...]:
            keys = [self.key(prompt, canvas) for prompt in wanted]
            for key in keys:
                if key not in arrived:
                    arrived[key] = self._to_device(self._held[key])
            return tuple(arrived[key] for key in keys)

        return Conditions(entries(prompts), None if negative is None else Conditions(entries(negative)))

    def read_ahead(self, prompts: Sequence[Prompt], canvas: Canvas, negative: Sequence[Prompt] | None = None) -> None:
        """Begin to read what :meth:`conditions` will be asked for next but for what comes between, in a thread."""
        self._reader = self._reader or ThreadPoolExecutor(1, "conditions")
        wanted = [*prompts, *(negative or ())]
        self._ahead = _Ahead(wanted, canvas, self._reader.submit(self._read_all, wanted, canvas, self._held))

    def _hold(self, prompts: list[Prompt], canvas: Canvas) -> None:
        """Hold the entries of ``prompts`` and no others; those that are gone are encoded again."""
        if self._ahead is not None and self._ahead[:2] == (prompts, canvas):
            found, self._ahead = self._ahead.found.result(), None
        else:
            found = self._read_all(prompts, canvas, self._held)
        lost = self._keep(found, prompts, canvas)
        told = self._ranks.gather(lost)
        if any(told):
            self._restore(prompts, canvas, told)

    def _keep(self, found: dict[str, Entry | None], prompts: Sequence[Prompt], canvas: Canvas) -> list[int]:
        """Hold what was ``found``; returns the places of the ``prompts`` whose entries were not, each once."""
        self._held = {key: entry for key, entry in found.items() if entry is not None}
        if len(self._held) == len(found):
            return []
        places = {self.key(prompt, canvas): place for place, prompt in enumerate(prompts)}
        return sorted(place for key, place in places.items() if key not in self._held)

    def _restore(self, prompts: list[Prompt], canvas: Canvas, told: Sequence[list[int]]) -> None:
        """Encode again what each rank has lost, ``told[rank]``."""
        self._beside = _ENCODES_FIRST
        if not self._told_of_lost:
            self._told_of_lost = True
            self._folder.tell_of_lost(max(map(len, told)))
        mates = find_mates(self._folder, self._ranks)
        lost = sorted(set().union(*(told[mate] for mate in mates)))
        self._encode_jointly([(prompts, canvas)], [lost], mates, lambda done: None)
        left = self._keep(self._read_all(prompts, canvas, self._held), prompts, canvas)
        if left:  # what another rank has written and this one cannot read
            self._encode_places(prompts, canvas, left, lambda: None, hold=True)
            self._keep(self._read_all(prompts, canvas, self._held), prompts, canvas)

    def _find_missing(self, prompts: Sequence[Prompt], canvas: Canvas, needed: set[str]) -> list[int]:
        """The places of the ``prompts`` whose entries are not there, each once; ``needed`` has the keys of all afterwards."""
        places: dict[str, int] = {}
        for place, prompt in enumerate(prompts):
            places.setdefault(self.key(prompt, canvas), place)
        there = self._folder.find(places)
        needed.update(places)
        return [place for key, place in places.items() if key not in there and key not in self._unwritten]

    def _encode_jointly(
        self, wanted: Wanted, missing: Sequence[list[int]], mates: list[int], watch: Callable[[int], None]
    ) -> None:
        """Encode what is ``missing`` of each of ``wanted`` for the ranks ``mates``, each of them its part.

        Where the folder does not take an entry, each of them holds it.
        """
        rank = self._ranks.rank

        def work(advance: Advance) -> list[list[int]]:
            parts = [deal(places, mates.index(rank), len(mates), DEALT) for places in missing]
            return [
                self._encode_places(prompts, canvas, mine, advance, len(places) if rank == mates[0] else 0)
                for (prompts, canvas), places, mine in zip(wanted, missing, parts, strict=True)
            ]

        held = do_apart(self._ranks, work, watch)
        if self._ranks.count == 1 or not any(places for one in held for places in one):
            return
        self._folder.tell_of_other(self._ranks.gather(self._folder.refusal))
        lacking = [sorted(set().union(*(held[mate][n] for mate in mates if mate != rank))) for n in range(len(wanted))]
        do_apart(
            self._ranks,
            lambda advance: [
                self._encode_places(prompts, canvas, places, advance)
                for (prompts, canvas), places in zip(wanted, lacking, strict=True)
            ],
        )

    def _encode_places(
        self,
        prompts: Sequence[Prompt],
        canvas: Canvas,
        places: Sequence[int],
        advance: Advance,
        announced: int = 0,
        hold: bool = False,
    ) -> list[int]:
        """Encode the ``prompts`` at ``places``, in one call, for which the encoders are loaded once.

        Each is in the folder as soon as it is made; returns the places of those that it does not take, which are held, all
        if they are to ``hold``. Where ``announced`` prompts are encoded in all, the folder is told how large they will be.
        """
        if not places:
            return []
        self._folder.remove_leftovers()
        chosen, held, size = [prompts[place] for place in places], [], 0
        try:
            for count, (place, prompt, entry) in enumerate(
                zip(places, chosen, self._encode_apart(chosen, canvas), strict=True), 1
            ):
                check_finite(prompt, entry)
                kept = {name: tensor.cpu().contiguous() for name, tensor in entry.items()}
                key = self.key(prompt, canvas)
                content = pack(key, kept)
                if not self._folder.write(key, content) or hold:
                    self._unwritten[key] = kept
                    held.append(place)
                size += len(content)
                if count == MEASURED and announced > count:
                    self._folder.announce(announced, size * announced // count, self._what)
                advance()
        except torch.OutOfMemoryError as error:
            where = "on the device" + (" beside what is there" if self._beside else "")  # at the start nothing is yet
            raise RunError(f"the encoders do not fit {where}; set {self._option} to host{self._beside or ''}") from error
        return held

    def _encode_apart(self, prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Entry]:
        """What the model makes of ``prompts``, without a trace in torch's own generators.

        What is drawn from them then does not depend on when a prompt is encoded, or on whether it was before.
        """
        generators = [self._device] if self._device.type == "cuda" else []
        states = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in generators]
        try:
            yield from self._encode(prompts, canvas)
        finally:
            torch.set_rng_state(states[0])
            for device, state in zip(generators, states[1], strict=True):
                torch.cuda.set_rng_state(state, device)

    def _read_all(self, prompts: Sequence[Prompt], canvas: Canvas, held: dict[str, Entry]) -> dict[str, Entry | None]:
        """By key, the entry of each prompt, None where there is none. Runs in a thread, too."""
        keys = dict.fromkeys(self.key(prompt, canvas) for prompt in prompts)
        return {key: held.get(key) or self._unwritten.get(key) or self._read(key) for key in keys}

    def _read(self, key: str) -> Entry | None:
        content = self._folder.read(key)
        if content is None:
            return None
        entry = unpack(key, content)
        if entry is None:
            self._folder.discard(key)  # so that whoever looks at names misses it
        else:
            self._folder.note_use(key)
        return entry

    def _to_device(self, entry: Entry) -> Entry:
        if self._device.type == "cpu":
            return entry
        return {name: tensor.to(self._device) for name, tensor in entry.items()}

    def key(self, prompt: Prompt, canvas: Canvas) -> str:
        """What the entry of ``prompt`` is called: 40 digits that everything changes that changes its tensors."""
        parts = [
            prompt.text,
            prompt.metadata and json.dumps(prompt.metadata, sort_keys=True, default=str),
            prompt.images and [PICTURES_READ, *(file_digest(path) for path in prompt.images)],
            prompt.video and [VIDEOS_READ, installed_version("av"), prompt.video_fps, file_digest(prompt.video)],
            prompt.audio and file_digest(prompt.audio),
            canvas if self._canvas_matters else None,
            prompt.is_negative,
        ]
        digest = self._digest.copy()
        digest.update(json.dumps(parts).encode())
        return digest.hexdigest()[:40]
