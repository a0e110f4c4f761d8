from __future__ import annotations

import io
import os
import pickle
import re
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowfactory.atomic_files import make_temporary_folder
from flowfactory.canvas import Canvas
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.errors import RunError, UserError
from flowfactory.models import checkpoint_identity
from flowfactory.process_identity import ProcessIdentity
from flowfactory.types import Conditions, Prompt

CANVAS = Canvas(8, 8)
PROMPTS = [Prompt("a", 0), Prompt("bb", 1), Prompt("a", 2), Prompt("ccc", 3)]


class Encoder:
    """Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.canvases: list[Canvas] = []

    def __call__(self, prompts: Sequence[Prompt], canvas: Canvas) -> list[Mapping[str, Tensor]]:
        self.asked += [prompt.text for prompt in prompts]
        self.canvases.append(canvas)
        tall = torch.arange(12.0).reshape(3, 4)
        return [
            {
                "embeds": (tall.T * len(prompt.text)).bfloat16(),  # not contiguous
                "mask": torch.tensor([True, False]),
                "length": torch.tensor(len(prompt.text)),
            }
            for prompt in prompts
        ]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., tuple[EncodeCache, Encoder]]:
    def make(encoding: str = "model-1") -> tuple[EncodeCache, Encoder]:
        encoder = Encoder()
        return EncodeCache(encoder, encoding, CacheFolder(tmp_path)), encoder

    return make


Made = Callable[..., tuple[EncodeCache, Encoder]]


def files(folder: Path) -> list[Path]:
    return sorted((folder / "conditions").glob("*/*"))


def test_each_distinct_prompt_is_encoded_once(made: Made, tmp_path: Path) -> None:
    cache, encoder = made()
    assert cache.prepare(PROMPTS, CANVAS) == 3
    assert encoder.asked == ["a", "bb", "ccc"]
    assert cache.prepare(PROMPTS, CANVAS) == 0
    assert len(cache.conditions(PROMPTS, CANVAS)) == 4
    assert encoder.asked == ["a", "bb", "ccc"]
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"] * 3  # nothing half-written is left


def test_another_process_finds_what_was_encoded(made: Made) -> None:
    made()[0].prepare(PROMPTS, CANVAS)
    cache, encoder = made()
    assert cache.prepare([*PROMPTS, Prompt("dddd")], CANVAS) == 1
    assert encoder.asked == ["dddd"]


def test_what_is_read_is_what_was_encoded(made: Made) -> None:
    fresh = made()[0].conditions(PROMPTS, CANVAS)
    read = made()[0].conditions(PROMPTS, CANVAS)
    for prompt, one, two in zip(PROMPTS, fresh.entries, read.entries, strict=True):
        (expected,) = Encoder()([prompt], CANVAS)
        for entry in (one, two):
            assert set(entry) == set(expected)
            for name, tensor in expected.items():
                assert entry[name].dtype == tensor.dtype
                assert torch.equal(entry[name], tensor)


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:5], lambda b: b"", lambda b: b"x" * len(b)])
def test_an_entry_that_cannot_be_read_is_made_again(damage: Callable[[bytes], bytes], made: Made, tmp_path: Path) -> None:
    made()[0].prepare([Prompt("bb")], CANVAS)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    cache, encoder = made()
    cache.prepare([Prompt("bb")], CANVAS)
    assert torch.equal(cache.conditions([Prompt("bb")], CANVAS).entries[0]["length"], torch.tensor(2))
    assert encoder.asked == ["bb"]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("prompt", "encoding"),
    [
        (Prompt("a "), "model-1"),
        (Prompt("a", metadata={"image": "x.png"}), "model-1"),
        (Prompt("a"), "model-2"),
        (Prompt(""), "model-1a"),
    ],
    ids=["text", "metadata", "encoding", "boundary"],
)
def test_whatever_changes_the_tensors_changes_the_key(prompt: Prompt, encoding: str, made: Made) -> None:
    made()[0].prepare([Prompt("a")], CANVAS)
    assert made(encoding)[0].prepare([prompt], CANVAS) == 1


def test_what_does_not_change_the_tensors_does_not_change_the_key(made: Made) -> None:
    made()[0].prepare([Prompt("a", 0, {"x": 1, "y": 2})], CANVAS)
    assert made()[0].prepare([Prompt("a", 7, {"y": 2, "x": 1})], CANVAS) == 0


def test_the_samples_of_a_prompt_share_one_entry(made: Made) -> None:
    cache, _ = made()
    known = cache.conditions([Prompt("a", 0)] * 4 + [Prompt("bb", 1)] * 4, CANVAS, [Prompt("no")] * 8)
    assert len({id(entry) for entry in known.entries}) == 2
    assert known.negative is not None
    assert len(known.negative) == 8
    assert len({id(entry) for entry in known.negative.entries}) == 1
    again = cache.conditions([Prompt("a", 0)], CANVAS)
    assert again.entries[0] is known.entries[0]
    assert again.negative is None


def test_rows_take_the_negative_along() -> None:
    entries = tuple({"x": torch.tensor(float(i))} for i in range(4))
    known = Conditions(entries, Conditions(tuple({"x": torch.tensor(float(-i))} for i in range(4))))
    part = known.rows([2, 0])
    assert part.stack("x").tolist() == [2.0, 0.0]
    assert part.negative is not None
    assert part.negative.stack("x").tolist() == [-2.0, 0.0]
    assert Conditions(entries).rows([1]).negative is None


def test_the_identity_of_a_folder_changes_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "transformer").mkdir()
    weights, other = tmp_path / "encoder/model.safetensors", tmp_path / "transformer/model.safetensors"
    weights.write_bytes(b"12")
    other.write_bytes(b"1")
    whole, part = checkpoint_identity(str(tmp_path)), checkpoint_identity(str(tmp_path), ["encoder"])
    assert checkpoint_identity(str(tmp_path)) == whole
    other.write_bytes(b"123")
    assert checkpoint_identity(str(tmp_path)) != whole
    assert checkpoint_identity(str(tmp_path), ["encoder"]) == part
    stat = weights.stat()
    weights.write_bytes(b"21")
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert checkpoint_identity(str(tmp_path), ["encoder"]) != part


def test_the_identity_of_a_hub_id_is_itself() -> None:
    assert checkpoint_identity("owner/name") == "owner/name"


def flip(content: bytes) -> bytes:
    """One bit of the last tensor."""
    return content[:-1] + bytes([content[-1] ^ 1])


def test_an_entry_with_another_bit_is_made_again(made: Made, tmp_path: Path) -> None:
    made()[0].prepare([Prompt("bb")], CANVAS)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(flip(whole))
    assert load_file(path), "safetensors alone does not notice"
    cache, encoder = made()
    cache.conditions([Prompt("bb")], CANVAS)
    assert encoder.asked == ["bb"]
    assert path.read_bytes() == whole


def test_entries_that_changed_places_are_made_again(made: Made, tmp_path: Path) -> None:
    made()[0].prepare([Prompt("a"), Prompt("bb")], CANVAS)
    one, other = files(tmp_path)
    whole = one.read_bytes(), other.read_bytes()
    one.rename(tmp_path / "third")
    other.rename(one)
    (tmp_path / "third").rename(other)
    cache, encoder = made()
    entries = cache.conditions([Prompt("a"), Prompt("bb")], CANVAS).entries
    assert [int(entry["length"]) for entry in entries] == [1, 2]
    assert sorted(encoder.asked) == ["a", "bb"]
    assert (one.read_bytes(), other.read_bytes()) == whole


def test_media_count_by_their_bytes(made: Made, tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("1.png", "2.png", "3.png"))
    one.write_bytes(b"x")
    same.write_bytes(b"x")
    other.write_bytes(b"y")
    made()[0].prepare([Prompt("a", images=(one,))], CANVAS)
    assert made()[0].prepare([Prompt("a", images=(same,))], CANVAS) == 0
    for prompt in (
        Prompt("a"),
        Prompt("a", images=(other,)),
        Prompt("a", images=(one, one)),
        Prompt("a", video=one),
        Prompt("a", video=one, video_fps="keep"),
        Prompt("a", audio=one),
    ):
        assert made()[0].prepare([prompt], CANVAS) == 1, prompt
    one.write_bytes(b"zz")
    assert made()[0].prepare([Prompt("a", images=(one,))], CANVAS) == 1


@pytest.mark.parametrize("matters", [False, True])
def test_the_canvas_counts_where_it_matters(matters: bool, tmp_path: Path) -> None:
    encoder = Encoder()
    cache = EncodeCache(encoder, "m", CacheFolder(tmp_path), canvas_matters=matters)
    cache.prepare([Prompt("a")], Canvas(8, 8, 5))
    for other in (Canvas(8, 16, 5), Canvas(8, 8, 9)):
        assert cache.prepare([Prompt("a")], other) == int(matters)
    assert encoder.canvases == [CANVAS._replace(frames=5), Canvas(8, 16, 5), Canvas(8, 8, 9)][: 3 if matters else 1]


def test_an_entry_is_on_the_disk_as_soon_as_it_is_made(tmp_path: Path) -> None:
    def encode(prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Mapping[str, Tensor]]:
        yield {"x": torch.ones(2)}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EncodeCache(encode, "m", CacheFolder(tmp_path)).prepare([Prompt("a"), Prompt("b")], CANVAS)
    encoder = Encoder()
    assert EncodeCache(encoder, "m", CacheFolder(tmp_path)).prepare([Prompt("a"), Prompt("b")], CANVAS) == 1
    assert encoder.asked == ["b"]


def test_on_another_device_the_samples_of_a_prompt_still_share_one_entry(tmp_path: Path) -> None:
    cache = EncodeCache(Encoder(), "m", CacheFolder(tmp_path), "meta")
    known = cache.conditions([Prompt("a")] * 3 + [Prompt("b")], CANVAS, [Prompt("no")] * 4)
    assert known.negative is not None
    assert {entry["embeds"].device.type for entry in (*known.entries, *known.negative.entries)} == {"meta"}
    assert len({id(entry) for entry in (*known.entries, *known.negative.entries)}) == 3


def test_ragged_conditions_are_padded_with_zeros_and_a_mask() -> None:
    known = Conditions(({"e": torch.ones(2, 3)}, {"e": torch.ones(4, 3) * 2}, {"e": torch.ones(1, 3) * 3}))
    batch, theirs = known.pad("e")
    assert batch.shape == (3, 4, 3)
    assert theirs.sum(1).tolist() == [2, 4, 1]
    assert torch.equal(batch.sum((1, 2)), torch.tensor([6.0, 24.0, 9.0]))
    assert not batch[~theirs].any()


def evict_all(folder: Path) -> None:
    """What another process, whose limit is nothing, leaves of it."""
    CacheFolder(folder, 0).evict()


def test_what_takes_hours_to_encode_is_there_for_the_other_ranks(tmp_path: Path) -> None:
    """Another run makes room meanwhile, and again while they read."""

    def encode(prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Mapping[str, Tensor]]:
        for entry in Encoder()(prompts, canvas):
            yield entry
            for path in files(tmp_path):
                os.utime(path, times=(time.time() - 7200,) * 2)
            evict_all(tmp_path)

    first = EncodeCache(encode, "m", CacheFolder(tmp_path))
    first.prepare([Prompt("a"), Prompt("bb")], CANVAS)
    first.prepare([Prompt("ccc")], CANVAS)  # of another canvas, hours later
    evict_all(tmp_path)
    encoder = Encoder()
    assert EncodeCache(encoder, "m", CacheFolder(tmp_path)).prepare([Prompt("a"), Prompt("bb"), Prompt("ccc")], CANVAS) == 0


def test_what_was_found_is_there_for_the_other_ranks_however_old(tmp_path: Path) -> None:
    EncodeCache(Encoder(), "m", CacheFolder(tmp_path)).prepare(PROMPTS, CANVAS)
    for path in files(tmp_path):
        os.utime(path, times=(time.time() - 10**6,) * 2)
    found = EncodeCache(Encoder(), "m", CacheFolder(tmp_path))
    assert found.prepare(PROMPTS, CANVAS) == 0
    evict_all(tmp_path)
    assert EncodeCache(Encoder(), "m", CacheFolder(tmp_path)).prepare(PROMPTS, CANVAS) == 0


def test_prompts_beyond_the_limit_are_kept_for_the_next_run_and_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    EncodeCache(Encoder(), "m", CacheFolder(tmp_path)).prepare([Prompt("old")], CANVAS)
    os.utime(files(tmp_path)[0], times=(time.time() - 7200,) * 2)
    assert EncodeCache(Encoder(), "m", CacheFolder(tmp_path, 10, told.append)).prepare(PROMPTS, CANVAS) == 3
    assert len(told) == 1
    assert "FLOWFACTORY_CACHE_SIZE" in told[0]
    assert EncodeCache(Encoder(), "m", CacheFolder(tmp_path, 10, told.append)).prepare(PROMPTS, CANVAS) == 0
    assert told == [told[0]] * 2
    assert len(files(tmp_path)) == 3


def test_leftovers_of_killed_writes_go_when_something_is_encoded(made: Made, tmp_path: Path) -> None:
    made()[0].prepare([Prompt("a")], CANVAS)
    left = make_temporary_folder(tmp_path / "conditions")
    os.utime(left, times=(time.time() - 90_000,) * 2)
    made()[0].prepare([Prompt("bb")], CANVAS)
    assert not left.exists()


def test_where_nothing_can_be_written_it_is_encoded_and_told_of_once(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "file").touch()
    cache = EncodeCache(Encoder(), "m", CacheFolder(tmp_path / "file", say=told.append))
    assert cache.prepare(PROMPTS, CANVAS) == 3
    assert cache.prepare([*PROMPTS, Prompt("dddd")], CANVAS) == 1
    assert torch.equal(cache.conditions([Prompt("bb")], CANVAS).entries[0]["length"], torch.tensor(2))
    assert len(told) == 1


class Payload:
    """What runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_planted_entry_executes_nothing(made: Made, tmp_path: Path) -> None:
    made()[0].prepare([Prompt("a")], CANVAS)
    touched = tmp_path / "touched"
    (path,) = files(tmp_path)
    for content in (pickle.dumps(Payload(touched)), torch_bytes(Payload(touched))):
        path.write_bytes(content)
        cache, encoder = made()
        cache.conditions([Prompt("a")], CANVAS)
        assert encoder.asked == ["a"]
        assert not touched.exists()


def torch_bytes(value: object) -> bytes:
    torch.save(value, file := io.BytesIO())
    return file.getvalue()


class Counting(CacheFolder):
    """Notes which keys are read, and in which thread."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.keys: list[str] = []
        self.threads: set[str] = set()

    def read(self, key: str) -> bytes | None:
        self.keys.append(key)
        self.threads.add(threading.current_thread().name.partition("_")[0])
        return super().read(key)


MANY = [Prompt(f"prompt {number}", number) for number in range(300)]


@pytest.fixture
def counted(tmp_path: Path) -> tuple[EncodeCache, Counting]:
    """A cache that has all of MANY on the disk, and its folder."""
    EncodeCache(Encoder(), "m", CacheFolder(tmp_path)).prepare(MANY, CANVAS)
    folder = Counting(tmp_path)
    cache = EncodeCache(Encoder(), "m", folder)
    assert cache.prepare(MANY, CANVAS) == 0
    return cache, folder


def test_a_start_reads_no_entry_and_drawing_reads_its_own(counted: tuple[EncodeCache, Counting]) -> None:
    cache, folder = counted
    assert folder.keys == []
    cache.conditions(MANY[:5] * 4, CANVAS, [Prompt("prompt 7")] * 20)
    assert len(folder.keys) == len(set(folder.keys)) == 6
    cache.conditions(MANY[3:8], CANVAS)  # of which three are held
    assert len(folder.keys) == 8


def test_what_was_drawn_before_is_held_no_more(counted: tuple[EncodeCache, Counting]) -> None:
    cache, _ = counted
    seen = []
    for start in range(0, 300, 10):
        known = cache.conditions(MANY[start : start + 10], CANVAS)
        cache.read_ahead(MANY[start + 10 : start + 20], CANVAS)
        seen += [weakref.ref(entry["embeds"]) for entry in known.entries]
        del known
        assert sum(tensor() is not None for tensor in seen) <= 10


def test_what_is_read_ahead_is_not_read_again_whatever_comes_between(counted: tuple[EncodeCache, Counting]) -> None:
    cache, folder = counted
    cache.read_ahead(MANY[:10], CANVAS)
    cache.conditions(MANY[20:25], CANVAS)
    assert len(folder.keys) <= 15
    known = cache.conditions(MANY[:10], CANVAS)
    assert len(folder.keys) == len(set(folder.keys)) == 15
    assert folder.threads == {"conditions", "MainThread"}
    assert torch.equal(known.entries[3]["length"], torch.tensor(len("prompt 3")))


def test_what_goes_wrong_ahead_is_told_when_it_is_asked_for(counted: tuple[EncodeCache, Counting], tmp_path: Path) -> None:
    cache, _ = counted
    picture = tmp_path / "gone.png"
    cache.read_ahead([Prompt("a", images=(picture,))], CANVAS)
    with pytest.raises(UserError, match=r"gone\.png: cannot be read"):
        cache.conditions([Prompt("a", images=(picture,))], CANVAS)


def test_what_went_while_it_was_read_ahead_is_encoded_again(tmp_path: Path) -> None:
    encoder, told = Encoder(), []
    cache = EncodeCache(encoder, "m", CacheFolder(tmp_path, say=told.append))
    cache.prepare(MANY[:20], CANVAS)
    for path in files(tmp_path)[:3]:
        path.unlink()
    cache.read_ahead(MANY[:20], CANVAS)
    known = cache.conditions(MANY[:20], CANVAS)
    assert len(encoder.asked) == 23
    assert [int(entry["length"]) for entry in known.entries] == [len(prompt.text) for prompt in MANY[:20]]
    lines = [line for line in told if "gone or damaged" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"warning: 3 entries of {tmp_path / 'conditions'} are gone or damaged, and encoded again; ")


def test_encoders_that_do_not_fit_beside_the_rest_are_told_of(tmp_path: Path) -> None:
    def encode(prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Mapping[str, Tensor]]:
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    cache = EncodeCache(encode, "m", CacheFolder(tmp_path))
    with pytest.raises(RunError) as alone:
        cache.prepare(PROMPTS, CANVAS)
    assert str(alone.value) == "the encoders do not fit on the device; set model.encoders_on to host", "nothing is resumed"
    with pytest.raises(RunError, match=r"beside what is there; set model.encoders_on to host, or continue with --resume"):
        cache.conditions(PROMPTS, CANVAS)


def test_how_large_it_will_be_is_told_while_it_is_encoded(tmp_path: Path) -> None:
    told: list[str] = []

    def encode(prompts: Sequence[Prompt], canvas: Canvas) -> Iterator[Mapping[str, Tensor]]:
        for number, entry in enumerate(Encoder()(prompts, canvas)):
            assert bool(told) == (number >= 16)
            yield entry

    EncodeCache(encode, "m", CacheFolder(tmp_path, say=told.append)).prepare(MANY, CANVAS)
    assert len(told) == 1
    assert re.match(
        rf"encoding 300 prompts, which take about \d+\.\d KB in {tmp_path}/conditions, where \S+ .B are free", told[0]
    )
    size = sum(path.stat().st_size for path in files(tmp_path))
    assert float(told[0].split("about ")[1].split()[0]) * 1000 == pytest.approx(size, rel=0.1)


def test_a_lease_ends_with_who_has_it(tmp_path: Path) -> None:
    cache = EncodeCache(Encoder(), "m", CacheFolder(tmp_path))
    cache.prepare(PROMPTS, CANVAS)
    for path in files(tmp_path):
        os.utime(path, times=(time.time() - 7200,) * 2)
    evict_all(tmp_path)
    assert len(files(tmp_path)) == 3
    del cache
    evict_all(tmp_path)
    assert files(tmp_path) == []
    assert not [path for path in (tmp_path / "conditions").iterdir() if path.is_file()]


def lease_of_another(tmp_path: Path, **changes: Any) -> Path:
    """What a process with other ``changes`` leaves that needs the entries of PROMPTS, which are not in use otherwise."""
    cache = EncodeCache(Encoder(), "m", CacheFolder(tmp_path))
    cache.prepare(PROMPTS, CANVAS)
    owner = replace(ProcessIdentity.own(), **changes)
    lease = tmp_path / "conditions" / f".{'0' * 16}.needed"
    lease.write_text(owner.as_json() + "".join(f"{cache.key(prompt, CANVAS)}\n" for prompt in PROMPTS))
    for path in files(tmp_path):
        os.utime(path, times=(time.time() - 7200,) * 2)
    return lease


def test_the_lease_of_a_killed_run_of_this_system_keeps_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    lease = lease_of_another(tmp_path, pid=process.pid)
    evict_all(tmp_path)
    assert files(tmp_path) == []
    assert not lease.exists()


def test_the_lease_of_a_process_whose_number_another_has_now_keeps_nothing(tmp_path: Path) -> None:
    lease = lease_of_another(tmp_path, started="1")
    evict_all(tmp_path)
    assert files(tmp_path) == []
    assert not lease.exists()


def test_the_lease_of_a_run_elsewhere_keeps_entries_for_a_day(tmp_path: Path) -> None:
    lease = lease_of_another(tmp_path, system="another machine's")
    evict_all(tmp_path)
    assert len(files(tmp_path)) == 3
    os.utime(lease, times=(time.time() - 90_000,) * 2)
    evict_all(tmp_path)
    assert files(tmp_path) == []
    assert not lease.exists()


def test_the_lease_of_a_run_that_was_stopped_for_days_holds_while_it_lives(tmp_path: Path) -> None:
    cache = EncodeCache(Encoder(), "m", CacheFolder(tmp_path))
    cache.prepare(PROMPTS, CANVAS)
    (lease,) = (path for path in (tmp_path / "conditions").iterdir() if path.is_file())
    for path in (*files(tmp_path), lease):
        os.utime(path, times=(time.time() - 90_000,) * 2)
    evict_all(tmp_path)
    assert len(files(tmp_path)) == 3
    assert len(cache.conditions(PROMPTS, CANVAS)) == 4
