"""Checkpoints that somebody else made: nothing in them runs, and whatever they say that cannot be is one line."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import payload
import pytest
import torch
from safetensors.torch import load_file
from saved import tensors

from flowfactory.checkpoint_names import MANIFEST, list_checkpoints
from flowfactory.config.schema import RunConfig
from flowfactory.distributed.ranks import Ranks
from flowfactory.errors import RunError, UserError
from flowfactory.runs.checkpoints import lookup
from flowfactory.runs.checkpoints import save as saving
from flowfactory.runs.checkpoints.files import Damaged, Stored, file_record
from flowfactory.runs.checkpoints.load import load as load_weights
from flowfactory.runs.checkpoints.manifest import Manifest
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.runs.checkpoints.shards import Rows, own_rows, read_index, read_rows, write_shard
from flowfactory.runs.checkpoints.stored_modules import read_modules
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.resume import checksum
from flowfactory.training.setup import Run

Trained = Callable[..., RunDirectory]
Invoke = Callable[..., tuple[int, str, str]]
Prepared = Callable[..., Run]
Content = dict[str, Any]
SHARD, OF_TRAINING = "checkpoint-weights-0.safetensors", "checkpoint-training-0.safetensors"


def sealed(folder: Path, **changes: Any) -> None:
    """The manifest as a stranger writes it, who works out the checksums of whatever he changed, and any that he likes."""
    content = json.loads((folder / MANIFEST).read_text()) | changes
    for name in content["files"] if isinstance(content["files"], dict) else ():
        if "files" not in changes and (folder / name).is_file():
            content["files"][name] = file_record(folder / name)
    content = {key: value for key, value in content.items() if key not in ("format", "checksum") and value is not ...}
    (folder / MANIFEST).write_text(json.dumps({"format": 3, "checksum": checksum(content), **content}))


@pytest.fixture
def run(prepared: Prepared) -> Run:
    return prepared({"model": {"name": "net", "train": "full"}})


@pytest.fixture
def saved(run: Run, tmp_path: Path) -> Path:
    """A checkpoint of ``run`` after iteration 1."""
    checkpoints = Checkpoints(tmp_path / "saved", Ranks(), run.config)
    checkpoints.save(1, run.policy, run.learner)
    checkpoints.finish()
    return tmp_path / "saved/000001"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of no run, after iteration 1."""
    folder = tmp_path / "made/000001"
    folder.mkdir(parents=True)
    state = {"present/a": torch.randn(4, 2), "kept/slow/a": torch.randn(4, 2), "steps": torch.tensor(3)}
    Manifest(1, 1, 1, {"seed": 7}, {SHARD: write_shard(folder / SHARD, own_rows(state))}).write(folder)
    return folder


def rewrite(folder: Path, change: Callable[[list[Rows]], list[Rows]], shard: str = SHARD) -> None:
    """Another shard, of what was in it."""
    held = own_rows(load_file(folder / shard))
    (folder / shard).unlink()
    write_shard(folder / shard, change(held))
    sealed(folder)


def refusal(folder: Path) -> str:
    """What is said of a checkpoint that is asked for; within a second, in one line."""
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        lookup.find(folder.parent, 1)
    assert time.monotonic() - began < 1
    told = str(refused.value)
    assert told.isprintable()
    assert len(told) < 1000
    found = re.fullmatch(rf"{folder} is damaged: (.*); choose another checkpoint", told)
    return found[1] if found else told


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_no_command_opens_what_a_stranger_puts_into_a_checkpoint(
    lora: bool, trained: Trained, config_file: Callable[..., Path], invoke: Invoke, tmp_path: Path
) -> None:
    changes = {"model": {"name": "net", **({} if lora else {"train": "full"})}, "training": {"iterations": 2}}
    directory = trained(changes)
    checkpoint, mark = directory.checkpoints / "000002", tmp_path / "ran"
    foreign = (".metadata", "__0.metadata", "__0_0.distcp", ".part-0", "optimizer.pt", "adapter_model.bin", "training.pt")
    for name in (*foreign, "pytorch_lora_weights.bin", "checkpoint-1.safetensors", "random_states_0.pkl"):
        (checkpoint / name).write_bytes(payload.saved_by_torch(mark) if name.endswith(("pt", "bin")) else payload.pickled(mark))
    if lora:  # which is for other programs, and never read
        (checkpoint / "pytorch_lora_weights.safetensors").write_bytes(payload.pickled(mark))
    sealed(checkpoint)
    for arguments in (
        ("sample", directory.path, "red", "--out", tmp_path / "drawn"),
        ("eval", directory.path),
        ("export", directory.path, tmp_path / "exported"),
        ("run", config_file({**changes, "training": {"iterations": 3}}), "--out", directory.path, "--resume"),
    ):
        code, out, err = invoke(*arguments)
        assert (code, err) == (0, ""), arguments
        assert not mark.exists()
    assert "resumed after iteration 2" in out
    pickle.loads((checkpoint / ".metadata").read_bytes())
    assert mark.exists(), "or nothing above would show anything"


@pytest.mark.parametrize("kind", ["pickle", "archive", "program"])
def test_a_shard_that_is_something_else_is_refused_by_every_command(
    kind: str, trained: Trained, config_file: Callable[..., Path], invoke: Invoke, tmp_path: Path
) -> None:
    directory, mark = trained({"training": {"iterations": 1}}), tmp_path / "ran"
    contents = {"pickle": payload.pickled(mark), "archive": payload.saved_by_torch(mark), "program": payload.program()}
    checkpoint = directory.checkpoints / "000001"
    (checkpoint / SHARD).write_bytes(contents[kind])
    sealed(checkpoint)
    problem = f"{checkpoint} is damaged and skipped: {SHARD} is no safetensors file"
    for arguments in (
        ("sample", directory.path, "red"),
        ("eval", directory.path),
        ("export", directory.path, tmp_path / "exported"),
        ("run", config_file(), "--out", directory.path, "--resume"),
    ):
        code, out, err = invoke(*arguments)
        assert code == 2
        assert problem in (out + err).replace("\n", "")
        assert err.splitlines()[-1].startswith(f"error: {directory.checkpoints} holds no intact checkpoint; start a new run")
        assert "Traceback" not in out + err
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        *(payload.pickled(Path("ran")), b"", b"[1]", b'[1, "a", 2]', b'["1", "a"]', b"[" * 4000, b"1" * 5000),
        *(
            b'{"bytes": 1}',
            b'{"a": [1]}',
            b'{"a": ["1", "a"]}',
            b'{"a": [-1, "a"]}',
            b'{"../a": [1, "a"]}',
            b'{"/a": [1, "a"]}',
        ),
    ],
)
def test_what_a_rank_tells_another_is_no_program_either(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".part-1").write_bytes(content)
    with pytest.raises(RunError, match=r"\.part-1 .*; see who else writes there$") as refused:
        saving.read_part(tmp_path / ".part-1", threading.Event())
    assert "\n" not in str(refused.value)
    assert not Path("ran").exists()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


LIES: dict[str, tuple[Mapping[str, Any], str]] = {
    "no iteration": ({"iteration": ...}, "lacks a key, or has something else under it"),
    "no files": ({"files": ...}, "lacks a key"),
    "iteration a text": ({"iteration": "1"}, "lacks a key"),
    "iteration null": ({"iteration": None}, "lacks a key"),
    "iteration a fraction": ({"iteration": 1.0}, "lacks a key"),
    "iteration true": ({"iteration": True}, "lacks a key"),
    "another iteration": ({"iteration": 7}, "is that of iteration 7"),
    "iteration negative": ({"iteration": -1}, "says of its iteration or its ranks what cannot be"),
    "iteration enormous": ({"iteration": 10**4000}, "says of its iteration or its ranks what cannot be"),
    "size enormous": ({"files": {SHARD: [10**4000, "a"]}}, "names a file that cannot be one"),
    "ranks a list": ({"ranks": [1]}, "lacks a key"),
    "no ranks": ({"ranks": 0}, "says of its iteration or its ranks what cannot be"),
    "too many ranks": ({"ranks": 10**12}, "says of its iteration or its ranks what cannot be"),
    "shard larger than ranks": ({"shard": 2}, "says of its iteration or its ranks what cannot be"),
    "shard zero": ({"shard": 0}, "says of its iteration or its ranks what cannot be"),
    "files a list": ({"files": [SHARD]}, "lacks a key"),
    "files empty": ({"files": {}}, "says of its iteration or its ranks what cannot be"),
    "another file": ({"files": {"weights": [1, "a"]}}, f"does not name {re.escape(SHARD)}"),
    "a size alone": ({"files": {SHARD: [1]}}, "names a file that cannot be one"),
    "size a text": ({"files": {SHARD: ["1", "a"]}}, "names a file that cannot be one"),
    "size negative": ({"files": {SHARD: [-1, "a"]}}, "names a file that cannot be one"),
    "size true": ({"files": {SHARD: [True, "a"]}}, "names a file that cannot be one"),
    "checksum null": ({"files": {SHARD: [1, None]}}, "names a file that cannot be one"),
    "a module of an enormous name": ({"modules": {"m" * 5000: None}}, f"says of the module '{'m' * 100}' what cannot be"),
    "fixed null": ({"fixed": None}, "does not say what a resumed run may not change"),
    "fixed a list": ({"fixed": []}, "does not say what a resumed run may not change"),
    "fixed with another hash": ({"fixed": {"hash": "a", "values": {}}}, "does not say what a resumed run may not change"),
    "fixed values a list": ({"fixed": {"hash": checksum([]), "values": []}}, "does not say what a resumed run"),
    "fixed nested deep": ({"fixed": {"hash": "", "values": {"a": nested(300)}}}, "is nested more than 32 deep"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_says_what_cannot_be_is_one_line(lie: str, folder: Path) -> None:
    sealed(folder, **LIES[lie][0])
    assert re.search(rf"checkpoint\.json {LIES[lie][1]}", refusal(folder))


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../../train.txt", "a/../b", "..", ".", "", "./a", "a//b", "a/", "\x1b[2J", "a\nb", "\ud800", "a\0b"],
)
def test_a_manifest_names_only_files_below_its_checkpoint(name: str, folder: Path) -> None:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    sealed(folder, files={**files, name: [1, "a"]})
    assert "checkpoint.json names a file that cannot be one of a checkpoint: " in refusal(folder)


TEXTS = {
    "no JSON": ("{", r"is no JSON \("),
    "a list": ("[]", "is not what was written"),
    "null": ("null", "is not what was written"),
    "no UTF-8": (b"\xff\xfe", r"is no JSON \("),
    "nested": ("[" * 100_000, "is nested more than 32 deep"),
    "a number too long": ("1" * 5000, r"is no JSON \("),
    "format a text": ('{"format": "2"}', "is not what was written"),
    "format true": ('{"format": true}', "is not what was written"),
    "format a fraction": ('{"format": 2.5}', "is not what was written"),
    "format enormous": ('{"format": 1' + "0" * 4000 + "}", "is not what was written"),
    "format negative": ('{"format": -3}', "is not what was written"),
    "no checksum": ('{"format": 3}', "is not what was written"),
    "a million lists": ("[" + "[]," * 22_000_000 + "[]]", "is larger than 4 MiB"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_manifest_that_is_none_is_one_line(text: str, folder: Path) -> None:
    content, told = TEXTS[text]
    (folder / MANIFEST).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(rf"checkpoint\.json {told}", refusal(folder))


def test_pipes_devices_and_links_out_of_a_checkpoint_are_not_opened(folder: Path, tmp_path: Path) -> None:
    manifest = folder / MANIFEST
    content, shard = manifest.read_bytes(), (folder / SHARD).read_bytes()
    outside = tmp_path / "outside"
    outside.write_bytes(shard)
    for make, told in (
        (lambda: os.mkfifo(manifest), "is no file"),
        (lambda: manifest.symlink_to("/dev/zero"), "leads out of"),
        (lambda: manifest.symlink_to(outside), "leads out of"),
        (manifest.mkdir, "is no file|cannot be read"),
    ):
        manifest.unlink()
        make()
        assert re.search(rf"checkpoint\.json ({told})", refusal(folder))
        if manifest.is_dir():
            manifest.rmdir()
        else:
            manifest.unlink()
        manifest.write_bytes(content)
    for make, told in (
        (lambda: os.mkfifo(folder / SHARD), "is no file"),
        (lambda: (folder / SHARD).symlink_to(outside), "leads out of the checkpoint"),
        (lambda: (folder / SHARD).symlink_to("/dev/zero"), "leads out of the checkpoint"),
        (lambda: (folder / SHARD).mkdir(), "is no file|cannot be read"),
    ):
        (folder / SHARD).unlink()
        make()
        assert re.search(told, refusal(folder))
        (folder / SHARD).rmdir() if (folder / SHARD).is_dir() else (folder / SHARD).unlink()
        (folder / SHARD).write_bytes(shard)
    assert lookup.find(folder.parent, 1) == folder


def test_checkpoints_that_are_reached_by_a_link_are_read(run: Run, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(saved.parent)
    assert lookup.find(tmp_path / "elsewhere").name == "000001"
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/000001").symlink_to(saved)
    load_weights(lookup.find(tmp_path / "linked"), run.policy)


Change = Callable[[Content], object]


def first(header: Content) -> Content:
    """The entry that begins the file."""
    entry: Content = next(entry for entry in header.values() if entry.get("data_offsets", [1])[0] == 0)
    return entry


def set_in_first(**values: Any) -> Change:
    return lambda header: first(header).update(values)


def says_rows(value: Any) -> Change:
    return lambda header: header["__metadata__"].update(rows=value if isinstance(value, str) else json.dumps(value))


def rename_first(name: str) -> Change:
    def change(header: Content) -> None:
        old = next(key for key, entry in header.items() if entry is first(header))
        header[name] = header.pop(old)

    return change


WRONG_BYTES, CANNOT = "has not as many bytes as its header says", "says of .* what cannot be"
HEADERS: dict[str, tuple[Change, str]] = {
    "no rows": (lambda header: header.pop("__metadata__"), "has no header of a checkpoint's"),
    "rows a list": (says_rows([]), "does not say which rows it has"),
    "rows no JSON": (says_rows("{"), "has no header of a checkpoint's"),
    "rows nested": (says_rows("[" * 100_000), "has no header of a checkpoint's"),
    "rows of nothing": (says_rows({"nothing": [0, 1]}), "does not say which rows it has"),
    "rows outside": (lambda header: says_rows({next(iter(header.keys() - {"__metadata__"})): [5, 6]})(header), CANNOT),
    "rows negative": (lambda header: says_rows({next(iter(header.keys() - {"__metadata__"})): [-5, 6]})(header), CANNOT),
    "dtype unknown": (set_in_first(dtype="F4"), CANNOT),
    "dtype a list": (set_in_first(dtype=[]), CANNOT),
    "dtype null": (set_in_first(dtype=None), CANNOT),
    "another dtype": (set_in_first(dtype="F16"), CANNOT),
    "shape enormous": (set_in_first(shape=[10**15]), CANNOT),
    "shape beyond numbers": (set_in_first(shape=[2**200, 2**200]), CANNOT),
    "shape negative": (set_in_first(shape=[-1, -8]), CANNOT),
    "shape of fractions": (set_in_first(shape=[8.0]), CANNOT),
    "shape of truths": (set_in_first(shape=[True] * 8), CANNOT),
    "shape a text": (set_in_first(shape="8"), CANNOT),
    "shape of many": (set_in_first(shape=[1] * 100_000), CANNOT),
    "offsets negative": (set_in_first(data_offsets=[-8, 0]), CANNOT),
    "offsets backwards": (set_in_first(data_offsets=[8, 0]), CANNOT),
    "offsets one": (set_in_first(data_offsets=[0]), CANNOT),
    "offsets of texts": (set_in_first(data_offsets=["0", "8"]), CANNOT),
    "offsets beyond": (
        lambda header: first(header).update(data_offsets=[n + 10**12 for n in first(header)["data_offsets"]]),
        WRONG_BYTES,
    ),
    "another key": (set_in_first(more=1), CANNOT),
    "an entry null": (lambda header: header.update(other=None), CANNOT),
    "no name": (rename_first(""), "has a tensor without a proper name"),
    "a name for the terminal": (rename_first("\x1b]0;x\x07"), "has a tensor without a proper name"),
    "a long name": (rename_first("a" * 100_000), "has a tensor without a proper name"),
    "one less": (lambda header: header.pop(next(key for key in header if key.startswith("present"))), WRONG_BYTES),
}


def change_header(file: Path, change: Callable[[Content], object]) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("lie", HEADERS)
def test_a_header_that_says_what_cannot_be_is_one_line(lie: str, folder: Path) -> None:
    change_header(folder / SHARD, HEADERS[lie][0])
    sealed(folder)
    assert re.fullmatch(rf"{re.escape(SHARD)} {HEADERS[lie][1]}", refusal(folder))


@pytest.mark.parametrize("length", [0, 9, 2**31, 2**62, 2**64 - 1])
def test_a_header_is_no_longer_than_its_file(length: int, folder: Path) -> None:
    file = folder / SHARD
    file.write_bytes(length.to_bytes(8, "little") + b"{}      ")
    sealed(folder)
    assert re.fullmatch(rf"{re.escape(SHARD)} (is no safetensors file|has no header of a checkpoint's)", refusal(folder))
    file.write_bytes(b"\1")
    sealed(folder)
    assert re.fullmatch(rf"{re.escape(SHARD)} (is no safetensors file|has no header of a checkpoint's)", refusal(folder))


@pytest.mark.parametrize("name", [SHARD, "pytorch_lora_weights.safetensors", "notes"])
def test_a_file_without_content_is_not_read_for_hours(name: str, folder: Path) -> None:
    """Its size and its checksum are as the manifest says, or may be: that would be found out by reading all of it."""
    files = json.loads((folder / MANIFEST).read_text())["files"]
    size = 200 * 2**30
    with (folder / name).open("ab") as file:
        file.truncate(size)
    sealed(folder, files=files | {name: [size, "0" * 32]})
    told = f"{SHARD} has not as many bytes as its header says"
    assert refusal(folder) == (
        told if name == SHARD else f"{MANIFEST} names {size} bytes beside {files[SHARD][0]} of its shards"
    )


def test_a_manifest_has_room_for_thousands_of_ranks(folder: Path) -> None:
    files = {f"checkpoint-weights-{rank}.safetensors": Stored(2**40, "0" * 32) for rank in range(20_000)}
    Manifest(1, 20_000, 20_000, {"seed": 7}, files).write(folder)
    assert Manifest.read(folder).files == files


def test_averages_are_made_room_for_when_their_file_has_them(run: Run, saved: Path) -> None:
    """A thousand names of averages with a number each are no thousand copies of the weights."""
    others = [Rows(f"kept/{number}/x", torch.zeros(1), 0, 1) for number in range(1000)]
    rewrite(saved, lambda held: [*held, *others])
    before = run.policy.kept
    with pytest.raises(RunError, match=r"holds other weights than the config trains: kept/\w+/"):
        load_weights(saved, run.policy)
    assert run.policy.kept == before


def test_a_long_name_of_a_module_is_cut(folder: Path) -> None:
    sealed(folder, modules={"m" * 255: None})
    with pytest.raises(RunError, match=r"has no weights of its module 'm{90,100} …; choose another checkpoint"):
        read_modules(folder)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([(0, 2), (4, 2)], "its shards do not have every row of w once"),
        ([(0, 3), (2, 4)], "its shards do not have every row of w once"),
        ([(0, 3), (0, 3)], "its shards do not have every row of w once"),
        ([(0, 3)], "its shards do not have every row of w once"),
        ([(2, 4)], "its shards do not have every row of w once"),
    ],
)
def test_shards_have_every_row_once(parts: list[tuple[int, int]], told: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}" for number in range(len(parts))]
    for file, (begin, rows) in zip(files, parts, strict=True):
        write_shard(file, [Rows("w", torch.ones(rows, 2), begin, 6)])
    with pytest.raises(Damaged, match=told):
        read_index(files)


def test_shards_have_tensors_of_one_kind(tmp_path: Path) -> None:
    write_shard(tmp_path / "0", [Rows("w", torch.ones(2, 2), 0, 4)])
    for number, other in enumerate((torch.ones(2, 3), torch.ones(2, 2, dtype=torch.float64), torch.ones(2))):
        write_shard(tmp_path / f"other-{number}", [Rows("w", other, 2, 4)])
        with pytest.raises(Damaged, match=rf"other-{number} has another w than the shards before it"):
            read_index([tmp_path / "0", tmp_path / f"other-{number}"])


def test_any_rows_come_back_from_any_parts(tmp_path: Path) -> None:
    """Also those of ranks that hold none of a tensor, since it has fewer rows than there are ranks."""
    whole = {"w": torch.randn(7, 3), "half": torch.randn(5).bfloat16(), "few": torch.arange(2), "flags": torch.ones(4, 0)}
    single = {"steps": torch.tensor(9), "on": torch.tensor(True), "bytes": torch.arange(5, dtype=torch.uint8)}

    def divided(count: int, rank: int) -> list[Rows]:
        found = []
        for name, tensor in whole.items():
            each = -(-len(tensor) // count)
            begin = min(rank * each, len(tensor))
            found.append(Rows(name, tensor[begin : begin + each], begin, len(tensor)))
        return found + [Rows(name, t, 0, len(t) if t.dim() else 1) for name, t in single.items() if rank == 0]

    for writers in (1, 2, 3, 8):
        files = [tmp_path / f"{writers}-{rank}" for rank in range(writers)]
        for rank, file in enumerate(files):
            assert write_shard(file, divided(writers, rank)) == file_record(file)
        index = read_index(files)
        assert {name: (t.shape, t.dtype) for name, t in index.items()} == {
            name: (tuple(t.shape), t.dtype) for name, t in (whole | single).items()
        }
        for readers in (1, 2, 3, 8):
            for rank in range(readers):
                wanted = divided(readers, rank)
                found = [part._replace(tensor=torch.zeros_like(part.tensor)) for part in wanted]
                read_rows(index, found)
                assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(found, wanted, strict=True))


def test_a_shard_is_a_file_that_safetensors_reads(folder: Path) -> None:
    held = load_file(folder / SHARD)
    found = tensors(folder)
    assert held.keys() == found.keys()
    assert all(torch.equal(held[name], value) for name, value in found.items())


NAMES = [
    *("000006.bak", "000006 (copy)", "000006~", "6", "0000006", "000006.writing", ".000006", "000006 ", "+00006"),
    *(".DS_Store", "Thumbs.db", "٠٠٠٠٠٦", "００００６", "999999999999 (1)", "latest", "1e6", "000_06", "@eaDir"),
]


def test_foreign_names_are_passed_over(run: Run, load: Callable[..., RunConfig], tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    config = load()
    config = config.model_copy(update={"output": config.output.model_copy(update={"keep_last": 1})})
    folder = directory.checkpoints
    checkpoints = Checkpoints(folder, Ranks(), config)
    checkpoints.save(5, run.policy, run.learner)
    checkpoints.finish()
    for number, name in enumerate(NAMES):
        shutil.copytree(folder / "000005", folder / name)
        if number % 3 == 0:
            (folder / name / SHARD).write_bytes(b"")
    (folder / "000007").write_text("a file")
    (folder / ".writing-notes").write_text("a file")
    said: list[str] = []
    assert lookup.latest(folder) == lookup.find(folder, say=said.append) == lookup.find(folder, 5) == folder / "000005"
    assert Checkpoints(folder, Ranks(), config, said.append).restore(run.policy, run.learner) == 5
    for missing in (6, 7, 999999999999):
        with pytest.raises(UserError, match=rf"holds no checkpoint of iteration {missing}; there is 5$"):
            lookup.find(folder, missing)
    checkpoints.save(8, run.policy, run.learner)
    checkpoints.finish()
    assert {path.name for path in folder.iterdir()} == {*NAMES, "000008", "000007", ".writing-notes"}
    assert lookup.saved_fixed_config(folder) == Manifest.read(folder / "000008").fixed
    assert said == []


def test_a_folder_of_foreign_names_alone_holds_no_run(load: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = load()
    directory = RunDirectory(tmp_path / "run")
    directory.open(config, resume=False)
    for name in NAMES:
        (directory.checkpoints / name).mkdir(parents=True)
        (directory.checkpoints / name / MANIFEST).write_text("{}")
    assert list_checkpoints(directory.checkpoints) == []
    directory.open(config, resume=False)
    (directory.checkpoints / "000001").mkdir()
    (directory.checkpoints / "000001" / MANIFEST).write_text("{}")
    with pytest.raises(UserError, match="already holds a run"):
        directory.open(config, resume=False)


def test_a_state_that_is_none_of_a_generator_is_one_line(run: Run, saved: Path) -> None:

    def spoil(part: Rows) -> Rows:
        return part._replace(tensor=torch.full_like(part.tensor, 255)) if part.name == "random/0" else part

    rewrite(saved, lambda held: [spoil(part) for part in held], OF_TRAINING)
    with pytest.raises(UserError, match=r"000001 is damaged: random/0 is no state of a generator; .*delete it$"):
        Checkpoints(saved.parent, Ranks(), run.config).restore(run.policy, run.learner)
