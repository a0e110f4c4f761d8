"""Weights that stay in their files until they are placed are those that the library reads, and take no memory of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged import Harm, configured, copy_of, cut, prefixed, reshaped, reweighted, sharded, without
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowfactory import RunError, UserError
from flowfactory.config.component import LoraConfig
from flowfactory.models import load_module
from flowfactory.policy import blocks, lora, quantization
from flowfactory.stored_weights import place, read_stored
from flowfactory.testing.tiny_checkpoints import flux_transformer

pytest.importorskip("diffusers")
FLUX, WAN, SD3 = "FluxTransformer2DModel", "WanTransformer3DModel", "SD3Transformer2DModel"
MAPS = Path("/proc/self/maps")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def class_of(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)


def make(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == FLUX:
        return flux_transformer(8, (2, 2), (2, 16), 32, 32, axes_dims_rope=(4, 6, 6))
    if kind == SD3:  # whose table of positions is a buffer that is saved
        sizes = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "pos_embed_max_size": 8}
        return class_of(kind)(
            sample_size=8, caption_projection_dim=16, joint_attention_dim=16, pooled_projection_dim=16, **sizes
        )
    # whose norms and time embedder stay float32, and whose table of angles is a buffer that is not saved
    sizes = {"attention_head_dim": 12, "num_attention_heads": 2, "num_layers": 2, "ffn_dim": 32}
    return class_of(kind)(text_dim=16, freq_dim=16, in_channels=4, out_channels=4, **sizes)


def mixed(folder: Path) -> None:
    """Every third weight in another dtype than those beside it."""
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        some = {name: weight.to(F16 if place % 2 else F32) for place, (name, weight) in enumerate(weights.items())}
        save_file(some, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    root = tmp_path_factory.mktemp("transformers")

    def saved(kind: str, stored: str) -> Path:
        path = root / kind / stored
        if not path.exists():
            made = make(kind).to(BF16 if stored == "bf16" else F32)
            made.save_pretrained(path, **({"max_shard_size": "20KB"} if stored == "sharded" else {}))
            if stored == "mixed":
                mixed(path)
        return path

    return saved


def numbers(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def bits(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)  # packed numbers may look like NaN


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    def facts(tensor: Tensor) -> tuple[torch.dtype, torch.Size]:
        return tensor.dtype, tensor.shape

    if {key: facts(own) for key, own in ours.items()} != {key: facts(own) for key, own in theirs.items()}:
        return False
    return all(torch.equal(bits(ours[key]), bits(own)) for key, own in theirs.items())


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("stored", ["float32", "bf16", "mixed", "sharded"])
@pytest.mark.parametrize("kind", [FLUX, SD3, WAN])
def test_what_is_placed_is_what_the_library_reads(folder: Any, kind: str, stored: str, dtype: torch.dtype) -> None:
    ours = load_module(class_of(kind), folder(kind, stored), "the part", stays=True, dtype=dtype)
    theirs = class_of(kind).from_pretrained(folder(kind, stored), torch_dtype=dtype)
    before = {name: parameter.dtype for name, parameter in ours.named_parameters()}
    assert before == {name: parameter.dtype for name, parameter in theirs.named_parameters()}, "as it will be"
    assert ours.dtype == theirs.dtype
    assert all(parameter.untyped_storage().nbytes() <= 4 for parameter in ours.parameters()), "nothing is read"
    assert not any(parameter.isfinite().any() for parameter in ours.parameters()), "what was never placed shows"
    for part in (*blocks.find_blocks(ours), ours):
        place(part)
    assert same(numbers(ours), numbers(theirs))
    assert ours.config == theirs.config
    assert ours.training == theirs.training is False
    assert [own.requires_grad for own in ours.parameters()] == [other.requires_grad for other in theirs.parameters()]


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not tell which files are mapped")
def test_no_file_stays_mapped_for_a_buffer(folder: Any, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder(SD3, "float32"), own)
    module = load_module(class_of(SD3), own, "the part", stays=True, dtype=F32)
    assert str(own) not in MAPS.read_text()
    place(module)
    assert str(own) in MAPS.read_text(), "weights of the dtype that they have there do"


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_and_adapted_they_are_what_read_ones_become(folder: Any, kind: str, dtype: torch.dtype) -> None:
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")

    def prepared(**how: Any) -> dict[str, Tensor]:
        module = load_module(class_of(FLUX), folder(FLUX, "bf16"), "the part", dtype=dtype, **how)
        quantization.quantize_blocks(module, ["FluxTransformerBlock"], kind, dtype)
        lora.add_adapters(module, LoraConfig(rank=2, alpha=2), ("to_q", "proj_mlp"), seed=1)
        place(module)
        return numbers(module)

    read = prepared()
    assert any("lora_A" in name and own.any() for name, own in read.items())
    assert same(prepared(stays=True), read)


def test_no_more_than_a_layer_is_whole_while_they_are_quantised(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load_module(class_of(FLUX), folder(FLUX, "bf16"), "the part", stays=True, dtype=F32)
    linear = [layer for block in blocks.find_blocks(module) for layer in block.modules() if isinstance(layer, nn.Linear)]
    whole, made = [], quantization.Int8Linear.__init__

    def watched(self: Any, layer: nn.Linear, *rest: Any) -> None:
        there = {id(own) for own in module.modules()}
        whole.append([own is layer for own in linear if id(own) in there and own.weight.isfinite().all()])
        made(self, layer, *rest)

    monkeypatch.setattr(quantization.Int8Linear, "__init__", watched)
    quantization.quantize_blocks(module, [], "int8", F32)
    assert whole == [[True]] * len(linear)


@pytest.mark.parametrize(
    "harm",
    [
        without("single_transformer_blocks.1."),
        configured(num_layers=3),
        configured(num_layers=1),
        configured(joint_attention_dim=16),
        prefixed("model.diffusion_model."),
        reweighted(reshaped),
        reweighted(lambda weights: {name: weight * 0 for name, weight in weights.items()}),
        cut,
    ],
    ids=["a block away", "a block too few", "a block too many", "another size", "a prefix", "a shape", "zeros", "cut off"],
)
@pytest.mark.parametrize("files", ["one file", "several files"])
def test_damage_is_told_as_where_they_are_read(folder: Any, tmp_path: Path, harm: Harm, files: str) -> None:
    copy = copy_of(folder(FLUX, "float32"), tmp_path / "copy")
    harm(copy)
    if files == "several files":
        if harm is cut:
            pytest.skip("cannot be divided")
        sharded(copy)
    told = []
    for stays in (False, True):
        with pytest.raises(UserError) as refused:
            load_module(class_of(FLUX), copy, "the part", stays=stays, dtype=F32)
        told.append(str(refused.value))
    assert told[0] == told[1]


@pytest.mark.parametrize("change", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes() + b" ")])
def test_a_file_that_is_another_one_when_they_are_placed_ends_the_run(folder: Any, tmp_path: Path, change: Any) -> None:
    shutil.copytree(folder(FLUX, "bf16"), tmp_path / "copy")
    module = load_module(class_of(FLUX), tmp_path / "copy", "the part", stays=True, dtype=F32)
    change(tmp_path / "copy" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(RunError, match=r"model\.safetensors was changed or taken away .*; start the run again"):
        place(module)


TAKEN = """
import json, sys
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from flowfactory.models import load_module
from flowfactory.stored_weights import place

def anonymous():  # bytes of this process that no file stands behind, which no other process shares
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))

def taken(dtype):
    module = load_module(FluxTransformer2DModel, sys.argv[1], "the part", dtype=torch.float32)  # what libraries take once
    del module
    before = anonymous()
    module = load_module(FluxTransformer2DModel, sys.argv[1], "the part", stays=True, dtype=dtype)
    left = anonymous() - before
    place(module)
    assert sum(float(own.detach().double().sum()) for own in module.parameters()) != 0, "read through"
    return left, anonymous() - before

print(json.dumps([taken(torch.float32), taken(torch.bfloat16)]))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not tell what is shared")
def test_weights_of_the_runs_dtype_are_shared_and_others_are_a_copy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = flux_transformer(8, (8, 0), (2, 96), 192, 192, axes_dims_rope=(32, 32, 32))
    made.save_pretrained(tmp_path)
    size = next(tmp_path.glob("*.safetensors")).stat().st_size
    assert size > 2**25
    # a process of its own, whose allocator gives back what is freed: else new bytes are old ones
    surroundings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", TAKEN, str(tmp_path)], capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0, done.stderr
    (left, placed), (left_of_others, placed_of_others) = json.loads(done.stdout.splitlines()[-1])
    assert left < size / 10, "looked at, and not read"
    assert placed < size / 10, "the file's own pages"
    assert left_of_others < size / 10
    assert size * 0.45 < placed_of_others < size * 0.6, "half as many bytes, each rank's own"


def test_what_is_read_of_a_file_is_what_is_in_it(folder: Any) -> None:
    module = load_module(class_of(FLUX), folder(FLUX, "mixed"), "the part", stays=True, dtype=BF16)
    stored = load_file(folder(FLUX, "mixed") / "diffusion_pytorch_model.safetensors")
    assert same({name: found.clone() for name, _, found in read_stored(module)}, stored)
    place(module)
    assert not list(read_stored(module))
