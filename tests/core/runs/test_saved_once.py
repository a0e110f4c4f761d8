"""What checkpoints share and how many are kept; how their shards are made, and read without a model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved import stored, tensors

from flowfactory.checkpoint_names import list_checkpoints
from flowfactory.config.schema import RunConfig
from flowfactory.distributed.ranks import ALONE
from flowfactory.errors import UserError
from flowfactory.policy import REFERENCE
from flowfactory.runs.checkpoints import lookup
from flowfactory.runs.checkpoints.manifest import START, Manifest
from flowfactory.runs.checkpoints.roles import WEIGHTS
from flowfactory.runs.checkpoints.save import Checkpoints
from flowfactory.runs.checkpoints.shards import Rows, own_rows, write_shard
from flowfactory.runs.checkpoints.staging import SMALL, TOGETHER, Staging, packs, stages_pinned
from flowfactory.runs.checkpoints.writers import Held, choose_writers
from flowfactory.runs.directory import RunDirectory
from flowfactory.training import optimizers
from flowfactory.training.setup import Run, prepare_run

Prepared = Callable[..., Run]
FULL: dict[str, Any] = {"model": {"name": "net", "train": "full"}}


@torch.no_grad()
def fill(run: Run, value: float) -> None:
    for parameter in run.policy.parameters.values():
        parameter.fill_(value)
    run.policy.mark_changed()


def save(checkpoints: Checkpoints, run: Run, *numbers: int) -> None:
    for number in numbers:
        fill(run, float(number))
        checkpoints.save(number, run.policy, run.learner)
        checkpoints.finish()


@pytest.fixture
def referring(prepared: Prepared, tmp_path: Path) -> tuple[Run, Path, dict[str, torch.Tensor]]:
    """A run with the weights of its start kept, three checkpoints later, of which two are left; and those weights."""
    run = prepared(FULL)
    start = {name: parameter.detach().clone() for name, parameter in run.policy.parameters.items()}
    run.policy.keep_reference()
    save(Checkpoints(tmp_path / "saved", ALONE, run.config), run, 1, 2, 3)
    return run, tmp_path / "saved", start


def test_the_weights_of_the_start_are_saved_once_and_outlive_the_first_checkpoint(
    referring: tuple[Run, Path, dict[str, torch.Tensor]], prepared: Prepared
) -> None:
    _, folder, start = referring
    assert sorted(path.name for path in folder.iterdir()) == ["000002", "000003", START]
    (file,) = (folder / START).iterdir()
    assert {name.rpartition("/")[2] for name in load_file(file)} == set(start)
    for number in (2, 3):
        manifest = Manifest.read(folder / f"{number:06d}")
        assert set(manifest.reference) == {file.name}
        assert not any("reference" in name for name in manifest.files)

    other = prepared(FULL)
    fill(other, 9.0)
    other.policy.keep_reference()
    checkpoints = Checkpoints(folder, ALONE, other.config)
    assert checkpoints.restore(other.policy, other.learner) == 3
    before = file.stat()
    save(checkpoints, other, 4)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with other.policy.using(REFERENCE):
        assert all(torch.equal(other.policy.parameters[name], value) for name, value in start.items())


def test_a_copy_of_the_folder_resumes(referring: tuple[Run, Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    run, folder, _ = referring
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    assert Checkpoints(tmp_path / "copy", ALONE, run.config).restore(run.policy, run.learner) == 3


def test_a_checkpoint_without_the_weights_of_the_start_says_where_they_are_to_be(
    referring: tuple[Run, Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    _, folder, _ = referring
    (file,) = (folder / START).iterdir()
    shutil.copytree(folder / "000003", tmp_path / "alone/000003")
    where = re.escape(str(tmp_path / "alone" / START / file.name))
    with pytest.raises(UserError, match=f"000003 is damaged: {where} is missing; copy that folder over too; choose another"):
        lookup.find(tmp_path / "alone", 3)
    assert lookup.find(tmp_path / "alone", roles=[WEIGHTS]).name == "000003", "to draw it is not needed"


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [Path.unlink, flip_a_bit, lambda file: shutil.rmtree(file.parent)])
def test_damaged_weights_of_the_start_are_written_again_from_the_model(
    referring: tuple[Run, Path, dict[str, torch.Tensor]], prepared: Prepared, harm: Callable[[Path], None]
) -> None:
    _, folder, start = referring
    (file,) = (folder / START).iterdir()
    before = file.read_bytes()
    harm(file)
    other, said = prepared(FULL), list[str]()
    other.policy.keep_reference()
    assert Checkpoints(folder, ALONE, other.config, said.append).restore(other.policy, other.learner) == 3
    assert file.read_bytes() == before
    (sentence,) = said
    assert sentence.startswith(f"warning: {file} is ")
    assert "written again, from the model" in sentence
    assert sorted(path.name for path in folder.iterdir()) == ["000002", "000003", START]
    assert all(bool((value == 3).all()) for value in other.policy.parameters.values())
    with other.policy.using(REFERENCE):
        assert all(torch.equal(other.policy.parameters[name], value) for name, value in start.items())


def test_damaged_weights_of_the_start_are_refused_where_the_model_has_others(
    referring: tuple[Run, Path, dict[str, torch.Tensor]], prepared: Prepared
) -> None:
    _, folder, _ = referring
    (file,) = (folder / START).iterdir()
    flip_a_bit(file)
    damaged = file.read_bytes()
    other, said = prepared(FULL), list[str]()
    fill(other, 9.0)
    other.policy.keep_reference()
    other.policy._start = other.policy._version  # as of a model whose files changed
    with pytest.raises(UserError, match="holds no intact checkpoint"):
        Checkpoints(folder, ALONE, other.config, said.append).restore(other.policy, other.learner)
    assert len(said) == 2
    told = f"{file} is not what was written; it is not made again from another model"
    assert all(told in sentence for sentence in said)
    assert file.read_bytes() == damaged
    assert sorted(path.name for path in folder.iterdir()) == ["000002", "000003", START]


def test_a_reference_that_moved_is_in_the_checkpoint(
    referring: tuple[Run, Path, dict[str, torch.Tensor]], prepared: Prepared
) -> None:
    run, folder, _ = referring
    fill(run, 7.0)
    run.policy.keep_reference()
    save(Checkpoints(folder, ALONE, run.config), run, 8)
    found = tensors(folder / "000008")
    assert Manifest.read(folder / "000008").reference == {}
    assert all(bool((value == 7).all()) for name, value in found.items() if name.startswith("kept/reference/"))
    assert all(bool((value == 8).all()) for name, value in found.items() if name.startswith("present/"))


@pytest.mark.parametrize(("train", "keep_last", "left"), [("full", "auto", 2), (None, "auto", 4), ("full", None, 4)])
def test_two_checkpoints_are_kept_of_a_full_run_and_all_of_adapters(
    train: str | None, keep_last: str | None, left: int, prepared: Prepared, tmp_path: Path
) -> None:
    run = prepared({"model": {"name": "net", **({"train": train} if train else {})}})
    output = run.config.output.model_copy(update={"keep_last": keep_last})
    save(Checkpoints(tmp_path / "saved", ALONE, run.config.model_copy(update={"output": output})), run, 1, 2, 3, 4)
    assert len(list_checkpoints(tmp_path / "saved")) == left


def test_thousands_of_tensors_are_copied_and_written_as_a_few_pieces(tmp_path: Path) -> None:
    state = {f"present/{i}": torch.randn(i % 5, 7) for i in range(2000)}
    state |= {
        "large": torch.randn(300, 300).T,
        "half": torch.randn(9).bfloat16(),
        "steps": torch.tensor(3),
        "one": torch.ones(()),
    }
    parts = own_rows(state)
    assert len(list(packs(part.tensor for part in parts))) <= 4
    staged = Staging().stage(WEIGHTS, parts)
    assert staged.write(tmp_path / "staged") == write_shard(tmp_path / "written", parts)
    held = load_file(tmp_path / "staged")
    assert all(torch.equal(held[name], value) for name, value in state.items())


def test_packs_are_bounded_and_what_is_large_is_alone() -> None:
    sizes = [SMALL // 4] * 600 + [SMALL // 4 + 1, 5, SMALL, 3]
    found = list(packs(torch.empty(size) for size in sizes))
    assert [tensor.numel() for pack in found for tensor in pack] == sizes
    assert all(len(pack) == 1 or sum(tensor.nbytes for tensor in pack) <= TOGETHER for pack in found)
    assert all(len(pack) == 1 for pack in found if max(tensor.nbytes for tensor in pack) > SMALL)


def test_memory_is_pinned_for_copies_from_cuda_alone() -> None:
    assert (stages_pinned("cuda"), stages_pinned("cpu"), stages_pinned("meta")) == (True, False, False)


def test_what_ranks_hold_in_common_is_written_once_by_whoever_has_the_least() -> None:
    shared = [Held(f"shared{i}", 0, 100) for i in range(6)]
    by_rank = [[*shared, Held("own", 3 * rank, 150)] for rank in range(3)]
    chosen = choose_writers(by_rank)
    assert all("own" in names for names in chosen)
    assert sorted(name for names in chosen for name in names if name != "own") == [held.name for held in shared]
    assert [len(names) for names in chosen] == [3, 3, 3]


def test_what_draws_makes_no_optimizer(
    trained: Callable[..., RunDirectory], invoke: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = trained({**FULL, "training": {"iterations": 1}})

    def refuse(*_: object) -> None:
        raise AssertionError("an optimizer was made")

    monkeypatch.setattr(optimizers, "build", refuse)
    for arguments in (("sample", directory.path, "red"), ("eval", directory.path)):
        assert invoke(*arguments)[0] == 0


def test_an_average_is_drawn_with_in_the_place_of_the_weights_and_others_are_read_when_they_are_used(
    load: Callable[..., RunConfig], trained: Callable[..., RunDirectory]
) -> None:
    from flowfactory.runs.checkpoints.load import load_to_draw

    changes = {**FULL, "evaluation": {"ema": {"name": "constant", "decay": 0.5}}}
    folder = trained(changes).checkpoints / "000003"
    held = tensors(folder)
    run = prepare_run(load(changes), trains=False)
    load_to_draw(folder, run.policy, "evaluation")
    run.assembly.hooks.run_started(run.info, run.policy)
    assert not any(name.startswith("kept/") for name in run.policy.state()), "copies were made"

    def present() -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in run.policy.parameters.items()}

    with run.policy.using("evaluation"):
        assert all(torch.equal(value, held[f"kept/evaluation/{name}"]) for name, value in present().items())
    with run.policy.using("slow"):
        assert all(torch.equal(value, held[f"kept/slow/{name}"]) for name, value in present().items())
    assert all(torch.equal(value, held[f"kept/evaluation/{name}"]) for name, value in present().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_exported_in_files_of_a_size_with_an_index(dtype: torch.dtype, prepared: Prepared, tmp_path: Path) -> None:
    weights = pytest.importorskip("flowfactory.runs.export.weights", reason="huggingface_hub is not here")
    run = prepared(FULL)
    module = run.policy.modules["transformer"]
    with stored(run.policy) as (held,):
        files = weights.write_whole(held, tmp_path, dtype, ["0"], 600)
    index = json.loads((tmp_path / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    count = len(files)
    assert count > 1
    assert [file.name for file in files] == [
        f"diffusion_pytorch_model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)
    ]
    found = {name: load_file(tmp_path / "transformer" / file)[name] for name, file in index["weight_map"].items()}
    assert set(found) == set(module.state_dict())
    for name, value in module.state_dict().items():
        assert torch.equal(found[name], value if name.startswith("0.") else value.to(dtype)), name


def test_tensors_are_read_one_after_the_other(prepared: Prepared) -> None:
    """At most sixteen megabytes of them are held together."""
    run = prepared(FULL)
    with stored(run.policy) as (held,):
        large = {"a": 3 * 2**20, "b": 2**20, "c": 2**20, "d": 3 * 2**20}
        sizes = {name: held.tensors["0.weight"]._replace(shape=(rows,), dtype=torch.float32) for name, rows in large.items()}
        batches = list(type(held)("m", None, sizes)._batches(sizes))
    assert batches == [["a", "b"], ["c", "d"]]


def test_rows_of_a_number_are_one(tmp_path: Path) -> None:
    assert own_rows({"a": torch.tensor(3)}) == [Rows("a", torch.tensor(3), 0, 1)]
