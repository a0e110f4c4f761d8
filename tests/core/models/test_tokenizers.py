"""A tokenizer has its files, tells words apart, and has ids that its encoder knows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from damaged import POINTER, Harm, copy_of, replaced

from flowfactory import UserError
from flowfactory.models import check_vocabulary, load_tokenizer
from flowfactory.testing.tiny_checkpoints import clip_tokenizer, qwen_tokenizer, t5_tokenizer

KINDS = {"CLIPTokenizer": clip_tokenizer, "T5Tokenizer": t5_tokenizer, "Qwen2Tokenizer": qwen_tokenizer}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tokenizers")
    for kind, make in KINDS.items():
        make().save_pretrained(root / kind)
    return root


def emptied(folder: Path) -> None:
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text())
    found["model"] |= {"vocab": [["<unk>", 0.0]] if isinstance(found["model"]["vocab"], list) else {}, "merges": []}
    replaced(file, json.dumps(found))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            r"the part has no (vocab.json|spiece.model) in {folder}; get it",
        ),
        (
            lambda folder: replaced(folder / "tokenizer.json", POINTER),
            r"{folder}/tokenizer.json is a Git LFS pointer.*; run git lfs",
        ),
        (
            lambda folder: replaced(folder / "tokenizer.json", "{"),
            r"{folder}/tokenizer.json is no JSON \(.*\); get it again, whole",
        ),
        (lambda folder: replaced(folder / "tokenizer.json", "{}"), r"the part cannot be read: KeyError: "),
        (lambda folder: replaced(folder / "spiece.model", POINTER), r"{folder}/spiece.model is a Git LFS pointer"),
        (emptied, r"the part (gives different words the same ids: its vocabulary is not there|cannot be read)"),
    ],
)
def test_a_tokenizer_without_its_vocabulary_is_refused(root: Path, tmp_path: Path, kind: str, harm: Harm, told: str) -> None:
    copy = copy_of(root / kind, tmp_path / "copy")
    harm(copy)
    with pytest.raises(UserError, match=told.format(folder=re.escape(str(copy)))) as refused:
        load_tokenizer(getattr(transformers, kind), copy, "the part")
    assert "\n" not in str(refused.value)


def spelled(root: Path, kind: str, folder: Path) -> Path:
    """The tokenizer as releases before tokenizer.json have it."""
    model = json.loads((root / kind / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]))
    return folder


@pytest.mark.parametrize("lacking", ["vocab.json", "merges.txt"])
def test_words_and_merges_are_both_needed(root: Path, tmp_path: Path, lacking: str) -> None:
    kind = transformers.CLIPTokenizer
    whole = load_tokenizer(kind, spelled(root, "CLIPTokenizer", tmp_path), "the part")
    assert whole("a red cat").input_ids == clip_tokenizer()("a red cat").input_ids
    (tmp_path / lacking).unlink()
    with pytest.raises(UserError, match=f"the part has no {lacking} in "):
        load_tokenizer(kind, tmp_path, "the part")


@pytest.mark.parametrize("kind", ["CLIPTokenizer", "Qwen2Tokenizer"])
def test_merges_that_are_cut_off_are_refused(root: Path, tmp_path: Path, kind: str) -> None:
    merges = spelled(root, kind, tmp_path) / "merges.txt"
    lines = merges.read_text().split("\n")
    assert load_tokenizer(getattr(transformers, kind), tmp_path, "the part")("red").input_ids
    for kept in (0, 1, len(lines) // 2):
        merges.write_text("\n".join(lines[:kept]))
        told = rf"^the part is cut off: the merges\.txt in {tmp_path} makes \d+ of the \d+ tokens that vocab\.json has beside "
        with pytest.raises(UserError, match=told):
            load_tokenizer(getattr(transformers, kind), tmp_path, "the part")
    copy_of(root / kind, tmp_path / "copy")
    replaced(tmp_path / "copy" / "merges.txt", "")  # is not read beside a tokenizer.json
    load_tokenizer(getattr(transformers, kind), tmp_path / "copy", "the part")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_whole_is_read_as_transformers_reads_it(root: Path, kind: str) -> None:
    made: Any = getattr(transformers, kind)
    tokenizer = load_tokenizer(made, root / kind, "the part")
    assert tokenizer("a photo of a cat").input_ids == made.from_pretrained(root / kind)("a photo of a cat").input_ids
    check_vocabulary(tokenizer, len(tokenizer), "the part")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.9, 1.3])
def test_ids_that_do_not_go_with_the_encoder_are_refused(root: Path, kind: str, share: float) -> None:
    tokenizer = load_tokenizer(getattr(transformers, kind), root / kind, "the part")
    size = int(len(tokenizer) * share)
    with pytest.raises(
        UserError,
        match=f"^the part has ids up to {len(tokenizer) - 1}, and its encoder has {size} embeddings; get the ",
    ):
        check_vocabulary(tokenizer, size, "the part")
