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
from flowfactory.data.prompts import check_records, read_prompts
from flowfactory.errors import UserError
from flowfactory.hooks.calls import Hooks
from flowfactory.runs.resume import fixed_config
from flowfactory.testing.two_parameter import settings
from flowfactory.training.prompts import prepare_prompts
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
    records = Records(cast("Hooks", None), "m", folder, torch.device("cpu"), canvas, 8.0)
    cache = EncodeCache(lambda prompts, _: [{"x": torch.zeros(1)} for _ in prompts], "m", folder)
    one, other = (records.as_prompt(Prompt("a", target=path, video_fps=fps), "target") for fps in ("model", "keep"))
    assert one.media == other.media == (path,)
    assert (cache.key(one, canvas) == cache.key(other, canvas)) == (frames == 1)
