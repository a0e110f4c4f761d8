"""A module is its file's weights, all of them and no others, or one line says which is not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from damaged import (
    POINTER,
    Harm,
    configured,
    copy_of,
    cut,
    prefixed,
    replaced,
    reshaped,
    reweighted,
    sharded,
    weights_of,
    without,
)
from safetensors.torch import load_file
from torch import Tensor

from flowfactory import UserError
from flowfactory.models import load_module, refuse_gaps
from flowfactory.testing.tiny_checkpoints import clip_text, scaled_vae, t5_text

pytest.importorskip("diffusers")
KINDS = ("AutoencoderKL", "CLIPTextModel", "T5EncoderModel")
FIRST = {
    "AutoencoderKL": "decoder.conv_in.bias",
    "CLIPTextModel": "embeddings.position_embedding.weight",
    "T5EncoderModel": "encoder.block.0.layer.0.SelfAttention.k.weight",
}
WHOLE = "get the folder again, whole, or a config.json that goes with its weights"


def class_of(kind: str) -> Any:
    import diffusers
    import transformers

    return getattr(diffusers, kind, None) or getattr(transformers, kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    from transformers import CLIPTextModel

    root = tmp_path_factory.mktemp("modules")
    torch.manual_seed(0)
    scaled_vae(0.1, 0.5).save_pretrained(root / "AutoencoderKL")
    clip_text(CLIPTextModel, 64, 32).save_pretrained(root / "CLIPTextModel")
    t5_text(64, 32).save_pretrained(root / "T5EncoderModel")
    return lambda kind: root / kind


def refusal(kind: str, folder: Path, source: str = "the part", **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        load_module(class_of(kind), folder, source, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_whole_is_read_as_the_library_reads_it(folder: Any, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    ours = load_module(class_of(kind), folder(kind), "the part").state_dict()
    theirs = class_of(kind).from_pretrained(folder(kind)).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["te.", "model.diffusion_model."])
def test_names_with_a_prefix_are_missing_ones(folder: Any, tmp_path: Path, kind: str, prefix: str) -> None:
    prefixed(prefix)(copy_of(folder(kind), tmp_path / "copy"))
    told = refusal(kind, tmp_path / "copy")
    assert re.fullmatch(
        rf"the part lacks \d+ weights that {kind} needs, the first {FIRST[kind]}, and holds \d+ weights that it does not know, "
        rf"the first {prefix}{FIRST[kind]}; {WHOLE}",
        told,
    )


@pytest.mark.parametrize(
    ("kind", "harm", "told"),
    [
        ("CLIPTextModel", without("layers.1."), "lacks 16 weights that CLIPTextModel needs, the first encoder.layers.1."),
        (
            "CLIPTextModel",
            configured(num_hidden_layers=3),
            "lacks 16 weights that CLIPTextModel needs, the first encoder.layers.2.",
        ),
        (
            "CLIPTextModel",
            configured(num_hidden_layers=1),
            "holds 16 weights that its config.json has no place for, the first encoder.layers.1.",
        ),
        ("CLIPTextModel", configured(hidden_size=16, num_attention_heads=2), "holds 34 weights of other shapes than"),
        (
            "T5EncoderModel",
            without("shared"),
            "lacks 2 weights that T5EncoderModel needs, the first encoder.embed_tokens.weight",
        ),
        (
            "T5EncoderModel",
            without("final_layer_norm"),
            "lacks a weight that T5EncoderModel needs, the first encoder.final_layer_norm",
        ),
        ("AutoencoderKL", without("mid_block"), "lacks 52 weights that AutoencoderKL needs, the first decoder.mid_block"),
        (
            "AutoencoderKL",
            configured(layers_per_block=2),
            "lacks 32 weights that AutoencoderKL needs, the first decoder.up_blocks.0",
        ),
        *(
            (
                kind,
                reweighted(reshaped),
                f"holds a weight of another shape than its config.json says: {FIRST[kind]} is [3, 5], ",
            )
            for kind in KINDS
        ),
        *(
            (
                kind,
                reweighted(lambda weights: weights | {"zzz": torch.zeros(2)}),
                "holds a weight that its config.json has no place for, the first zzz",
            )
            for kind in KINDS
        ),
        *((kind, partial(sharded, lose="weight"), "lacks") for kind in KINDS),
    ],
)
def test_a_weight_that_is_not_where_the_config_says_is_named(
    folder: Any, tmp_path: Path, kind: str, harm: Harm, told: str
) -> None:
    harm(copy_of(folder(kind), tmp_path / "copy"))
    refused = refusal(kind, tmp_path / "copy")
    assert refused.startswith(f"the part {told}")
    assert refused.endswith(f"; {WHOLE}")


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_an_index_are_read_together(folder: Any, tmp_path: Path, kind: str) -> None:
    sharded(copy_of(folder(kind), tmp_path / "copy"))
    ours = load_module(class_of(kind), tmp_path / "copy", "the part").state_dict()
    theirs = class_of(kind).from_pretrained(folder(kind)).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: replaced(weights_of(folder), POINTER), r"{weights} is a Git LFS pointer.*; run git lfs pull"),
        (lambda folder: replaced(folder / "config.json", POINTER), r"{folder}/config.json is a Git LFS pointer"),
        (cut, r"{weights} is cut off or damaged \(.*not fully covered\); get it again, whole"),
        (
            lambda folder: replaced(weights_of(folder), b"\xff" * 400),
            r"{weights} is cut off or damaged \(.*\); get it again, whole",
        ),
        (lambda folder: replaced(weights_of(folder), ""), r"{weights} is empty; get it again, whole"),
        (lambda folder: weights_of(folder).unlink(), r"the part has no weights in {folder}; get it again, whole"),
        (lambda folder: (folder / "config.json").unlink(), r"there is no file {folder}/config.json; get it again, whole"),
        (lambda folder: replaced(folder / "config.json", "{"), r"{folder}/config.json is no JSON \(.*\); get it again, whole"),
        (
            lambda folder: replaced(folder / "config.json", "[" * 100_000),
            r"{folder}/config.json is nested more than 32 deep; get it again, whole",
        ),
        (
            lambda folder: replaced(folder / "config.json", " " * 2**23 + "{}"),
            r"{folder}/config.json is larger than 8 MiB; get it again, whole",
        ),
        (
            lambda folder: replaced(folder / "config.json", '{"a": ' + "9" * 5000 + "}"),
            r"{folder}/config.json is no JSON \(.*\); ",
        ),
        (lambda folder: replaced(folder / "config.json", "[]"), r"{folder}/config.json holds no settings; get it again, whole"),
        (partial(sharded, lose="file"), r"there is no file {stem}-00002-of-00002.safetensors; get it again, whole"),
        (
            lambda folder: (
                replaced(weights_of(folder).with_suffix(".safetensors.index.json"), '{"weight_map": [1]}')
                or weights_of(folder).unlink()
            ),
            r"{stem}.safetensors.index.json does not say which files the weights are in; get it again, whole",
        ),
        (shutil.rmtree, r"there is no folder {folder}; get it again, whole"),
    ],
)
def test_a_damaged_file_is_named(folder: Any, tmp_path: Path, kind: str, harm: Harm, told: str) -> None:
    copy = copy_of(folder(kind), tmp_path / "copy")
    weights = weights_of(copy)
    harm(copy)
    expected = told.format(
        weights=re.escape(str(weights)), folder=re.escape(str(copy)), stem=re.escape(str(weights.with_suffix("")))
    )
    assert re.match(expected, refusal(kind, copy))


def zeroed(weights: Mapping[str, Tensor], share: float) -> Mapping[str, Tensor]:
    """Zeros in the last ``share`` of them: room that a file has taken, and nothing was written to."""
    kept = sorted(weights)[: round(len(weights) * (1 - share))]
    return {name: tensor if name in kept else torch.zeros_like(tensor) for name, tensor in weights.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.67, 0.4])
def test_weights_that_were_never_written_are_refused(folder: Any, tmp_path: Path, kind: str, share: float) -> None:
    reweighted(lambda weights: zeroed(weights, share))(copy_of(folder(kind), tmp_path / "copy"))
    told = r"the part holds nothing but zeros in \d+ of its \d+ matrices, the first \S+; get it again, whole"
    assert re.fullmatch(told, refusal(kind, tmp_path / "copy"))


def test_a_matrix_of_zeros_alone_is_let_pass(tmp_path: Path) -> None:
    module = scaled_vae(0.1, 0.5)
    with torch.no_grad():
        module.decoder.conv_out.weight.zero_()
    module.save_pretrained(tmp_path)
    assert not load_module(class_of("AutoencoderKL"), tmp_path, "the part").decoder.conv_out.weight.any()


def test_weights_that_released_files_have_for_others_may_be_left_out(folder: Any, tmp_path: Path) -> None:
    reweighted(lambda weights: weights | {"lm_head.weight": torch.zeros(2)})(
        copy_of(folder("CLIPTextModel"), tmp_path / "copy")
    )
    assert "lm_head.weight" in refusal("CLIPTextModel", tmp_path / "copy", unused=("lm_head",))
    assert load_module(class_of("CLIPTextModel"), tmp_path / "copy", "the part", unused=(r"lm_head\.weight",))


def test_the_libraries_write_no_tables_beside_the_line(folder: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    without("layers.1.")(copy_of(folder("CLIPTextModel"), tmp_path / "copy"))
    refusal("CLIPTextModel", tmp_path / "copy")
    assert "MISSING" not in "".join(capfd.readouterr())


def test_the_numbers_beside_packed_weights_are_known_by_their_names() -> None:
    module: Any = torch.nn.Linear(2, 2)
    told = {
        "missing_keys": [],
        "mismatched_keys": [],
        "error_msgs": [],
        "unexpected_keys": ["weight.absmax", "weight.quant_map"],
    }
    with pytest.raises(
        UserError, match=r"the part holds 2 weights that its config\.json has no place for, the first weight\.absmax"
    ):
        refuse_gaps("the part", module, told)
    module.hf_quantizer = "as diffusers sets it"
    refuse_gaps("the part", module, told)
    with pytest.raises(
        UserError, match=r"the part holds a weight that its config\.json has no place for, the first other\.absmax"
    ):
        refuse_gaps("the part", module, told | {"unexpected_keys": ["weight.absmax", "other.absmax"]})


@pytest.mark.parametrize(
    ("kind", "name"), [("AutoencoderKL", "diffusion_pytorch_model.bin"), ("T5EncoderModel", "pytorch_model.bin")]
)
def test_pickled_weights_are_read_if_they_are_whole(folder: Any, tmp_path: Path, kind: str, name: str) -> None:
    copy = copy_of(folder(kind), tmp_path / "copy")
    weights = load_file(weights_of(copy))
    weights_of(copy).unlink()
    torch.save(weights, copy / name)
    theirs = class_of(kind).from_pretrained(folder(kind)).state_dict()
    assert all(
        torch.equal(each, theirs[key]) for key, each in load_module(class_of(kind), copy, "the part").state_dict().items()
    )
    whole = (copy / name).read_bytes()
    for damaged in (whole[:-200], whole[:100], b"<html>404</html>"):
        replaced(copy / name, damaged)
        assert refusal(kind, copy) == f"{copy / name} is cut off or damaged; get it again, whole"
