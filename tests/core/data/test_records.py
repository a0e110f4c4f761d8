"""A prompt may bring what was made for it: read and checked as pictures are, and part of nothing that is drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from flowfactory.canvas import Canvas
from flowfactory.config.loading import validate
from flowfactory.data.cache_folder import CacheFolder
from flowfactory.data.encode_cache import EncodeCache
from flowfactory.data.media import encode_video
from flowfactory.data.prompts import check_brought, check_pairs, check_records, read_prompts
from flowfactory.errors import UserError
from flowfactory.hooks.calls import Hooks
from flowfactory.runs.resume import fixed_config
from flowfactory.testing.two_parameter import settings
from flowfactory.training.prompts import prepare_prompts, remarks
from flowfactory.training.records import Records
from flowfactory.types import Prompt

KINDS = ("target", "chosen", "rejected")


def picture(path: Path, color: str = "red") -> Path:
    Image.new("RGB", (8, 8), color).save(path)
    return path


def write(folder: Path, *items: Any, name: str = "p.jsonl") -> Path:
    (folder / name).write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return folder / name


def test_a_row_brings_a_target_and_a_pair(tmp_path: Path) -> None:
    files = [picture(tmp_path / f"{kind}.png") for kind in KINDS]
    rows = {"prompt": "a", "target": "target.png"}, {"prompt": "b", "chosen": "chosen.png", "rejected": str(files[2])}
    expected = (Prompt("a", 0, target=files[0]), Prompt("b", 1, chosen=files[1], rejected=files[2]))
    assert read_prompts(write(tmp_path, *rows, {"prompt": "c", "target": None})) == (*expected, Prompt("c", 2))
    (tmp_path / "p.csv").write_text("prompt,Target,CHOSEN,rejected\na,target.png,,\nb,,chosen.png,rejected.png\n")
    assert read_prompts(tmp_path / "p.csv") == expected
    assert [prompt.records for prompt in expected] == [(files[0],), (files[1], files[2])]
    assert expected[0].media == ()  # nothing that a model takes


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_that_is_no_path_is_refused(kind: str, tmp_path: Path) -> None:
    name = "for metadata, take another name"
    for value, told in ((3, f"'{kind}' is no text: 3"), ("blue", f"no file {tmp_path / 'blue'}"), ("", f"'{kind}' is empty")):
        with pytest.raises(UserError) as refused:
            read_prompts(write(tmp_path, {"prompt": "a"}, {"prompt": "b", kind: value}))
        assert str(refused.value).startswith(f"prompts {tmp_path / 'p.jsonl'} line 2: {told}")
        assert str(refused.value).endswith(f"; {kind!r} is a picture or a video; {name}")
    for misspelt in (kind.upper(), f"{kind}s"):
        with pytest.raises(UserError, match=rf"unknown key '{misspelt}'; did you mean '{kind}'\?"):
            read_prompts(write(tmp_path, {"prompt": "a", misspelt: "x"}))


def test_a_path_that_names_no_file_is_told_what_is_wrong_with_it(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    picture(tmp_path / "pictures" / "a.png")
    for value, told in (
        ("pictures", rf"'target': {tmp_path / 'pictures'} is a folder; write the path of a file"),
        ("pictures\\a.png", "write / instead of "),
    ):
        with pytest.raises(UserError, match=told):
            read_prompts(write(tmp_path, {"prompt": "a", "target": value}))


def test_a_pair_of_one_file_is_refused(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png")
    pairs = [Prompt("a", chosen=file, rejected=tmp_path / "b.png"), Prompt("b", chosen=file, rejected=file)]
    with pytest.raises(UserError, match=rf"^prompts.train: 'b' brings {file} as 'chosen' and as 'rejected', so that there is"):
        check_pairs(pairs)
    check_pairs([*pairs[:1], Prompt("c"), Prompt("d", chosen=file)])
    (tmp_path / "below").mkdir()
    with pytest.raises(UserError, match=rf"'e' brings {file} as"):
        check_pairs([Prompt("e", chosen=file, rejected=tmp_path / "below" / ".." / "a.png")])


@pytest.mark.parametrize(
    ("brought", "told"),
    [
        ((), "'x' brings no 'chosen' and no 'rejected', which are learned from; write their paths"),
        (("chosen",), "'x' brings no 'rejected', which is learned from; write its path"),
    ],
)
def test_what_a_prompt_lacks_is_named(brought: tuple[str, ...], told: str, tmp_path: Path) -> None:
    prompt = replace(Prompt("x"), **dict.fromkeys(brought, tmp_path / "a.png"))
    with pytest.raises(UserError, match=told):
        check_brought([prompt], ["chosen", "rejected"], True)


def test_pictures_that_hardly_fill_the_canvas_are_told_of(tmp_path: Path) -> None:
    sizes = {"fine": (16, 20), "tiny": (1, 1), "wide": (600, 2), "long": (90, 16), "turned": (20, 16)}
    for name, size in sizes.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    rows = [{"prompt": name, "target": f"{name}.png"} for name in sizes]
    raw = settings(tmp_path, "policy-gradient") | {"prompts": {"train": str(write(tmp_path, *rows))}}
    raw["sampling"] |= {"size": [16, 16]}
    raw["training"] = {"regularise": {"sft": 0.1}}
    config = validate(raw)
    train, _ = prepare_prompts(config)
    told = "prompts.train: 2 of 5 pictures to learn from are {}, such as {}; bring others, or leave them out"
    assert list(remarks(config, train, ())) == [
        told.format("smaller than is drawn", tmp_path / "tiny.png"),
        told.format("of another shape, and lose more than half of it", tmp_path / "wide.png"),
    ]
    assert list(remarks(validate(raw | {"training": {}}), train, ())) == [], "nothing is learned from them"


def test_records_are_looked_into_before_a_run(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png")
    clip = tmp_path / "clip.mp4"
    pytest.importorskip("av")
    encode_video([Image.new("RGB", (16, 16), color) for color in ("red", "blue")], clip, 8)
    check_records([Prompt("a", target=clip, chosen=good, rejected=good)])
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:-20])
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:60])
    (tmp_path / "words.txt").write_text("no picture")
    for path, kind in ((cut, "picture"), (tmp_path / "cut.mp4", "video"), (tmp_path / "words.txt", "picture")):
        for record in KINDS:
            with pytest.raises(UserError, match=rf"^{kind} {path}: "):
                check_records([Prompt("a", target=good), Prompt("b", **{record: path})])
    raw = settings(tmp_path, "policy-gradient")
    raw["prompts"]["train"] = str(write(tmp_path, {"prompt": "a", "rejected": "cut.png"}))
    with pytest.raises(UserError, match=rf"^picture {cut}: "):
        prepare_prompts(validate(raw))


def test_what_is_encoded_does_not_depend_on_records(tmp_path: Path) -> None:
    cache = EncodeCache(lambda prompts, _: [{"x": torch.zeros(1)} for _ in prompts], "m", CacheFolder(tmp_path / "cache"))
    plain, canvas = Prompt("a"), Canvas(8, 8)
    for kind in KINDS:
        assert cache.key(replace(plain, **{kind: tmp_path / "no such file.png"}), canvas) == cache.key(plain, canvas)


def test_a_resumed_run_may_not_change_them(tmp_path: Path) -> None:
    def checksum(**records: str) -> Any:
        raw["prompts"]["train"] = str(write(tmp_path, {"prompt": "a", **records}))
        return fixed_config(validate(raw))["prompts.train"]

    raw = settings(tmp_path, "policy-gradient")
    picture(tmp_path / "a.png"), picture(tmp_path / "b.png", "blue")
    records: list[dict[str, str]] = [{}, {"target": "a.png"}, {"target": "b.png"}, {"chosen": "a.png"}]
    assert len({checksum(**each) for each in records}) == len(records)
    one = checksum(target="a.png")
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    assert checksum(target="c.png") == one


@pytest.mark.parametrize("frames", [1, 5])
def test_a_record_is_encoded_anew_where_its_frames_are_taken_at_another_rate(frames: int, tmp_path: Path) -> None:
    canvas, path = Canvas(8, 8, frames), picture(tmp_path / "a.png")
    folder = CacheFolder(tmp_path / "cache")
    records = Records(cast("Hooks", None), "m", folder, torch.device("cpu"), {"": canvas}, 8.0)
    cache = EncodeCache(lambda prompts, _: [{"x": torch.zeros(1)} for _ in prompts], "m", folder)
    one, other = (records.as_prompt(Prompt("a", target=path, video_fps=fps), "target") for fps in ("model", "keep"))
    assert one.media == other.media == (path,)
    assert (cache.key(one, canvas) == cache.key(other, canvas)) == (frames == 1)
