"""A report of a run directory that somebody else made: of what a run writes, and nothing else of this machine."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin

from flowfactory.control_characters import has_controls
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.report.embedded_media import encode_picture_anew, encode_video_anew
from flowfactory.runs.report.page import write_report
from flowfactory.untrusted_files import Refused

Invoke = Callable[..., tuple[int, str, str]]
MARK = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run directory as a run leaves it, but for its weights, with two evaluations of two prompts."""
    directory = RunDirectory(tmp_path_factory.mktemp("made") / "run")
    directory.path.mkdir()
    directory.config.write_text("advantages: {aggregate: sum}\n")
    directory.facts.write_text(json.dumps({"versions": {"torch": "2"}}))
    for iteration in (0, 3):
        directory.append({"iteration": iteration, "eval/bright/mean": 0.5, "reward/bright/mean": 0.25, "loss": 1.0})
        media = torch.full((2, 3, 8, 8), 0.1 * (iteration + 1))
        directory.write_samples(iteration, media, ("one", "two"), {"bright": torch.tensor([0.5, 0.25])})
    return directory


@pytest.fixture
def run(made: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy, to be tampered with."""
    return RunDirectory(Path(shutil.copytree(made.path, tmp_path / "theirs")))


@pytest.fixture
def secret(tmp_path: Path) -> bytes:
    """What a picture of the reader's own holds, which lies at ``secret.png`` beside the run directory."""
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "secret.png")
    return (tmp_path / "secret.png").read_bytes()


class Page(HTMLParser):
    """The elements of a page and what its pictures and videos hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.media: list[bytes] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.media += [base64.b64decode((value or "").partition(",")[2]) for name, value in attrs if name == "src"]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def report(run: RunDirectory, invoke: Invoke) -> tuple[Page, str]:
    code, out, err = invoke("report", run.path)
    assert (code, out) == (0, f"{run.report}\n")
    assert all(line.startswith("warning: ") for line in err.splitlines())
    page = Page(run.report.read_text(encoding="utf-8"))
    assert page.tags.count("script") == page.tags.count("style") == 1
    return page, err


def first_file(run: RunDirectory) -> Path:
    return run.samples / "000000/000.png"


def rename_in_index(run: RunDirectory, name: object) -> None:
    path = run.samples / "000000/index.json"
    index = json.loads(path.read_text())
    index[0]["file"] = name
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["{}/secret.png", "../../../secret.png", "../000003/../../../secret.png", "link/secret.png", 7, None]
)
def test_names_that_lead_elsewhere_are_left_out(
    name: object, run: RunDirectory, secret: bytes, invoke: Invoke, tmp_path: Path
) -> None:
    (run.samples / "000000/link").symlink_to(tmp_path)
    rename_in_index(run, name.format(tmp_path) if isinstance(name, str) else name)
    page, err = report(run, invoke)
    assert secret not in page.media
    assert len(page.media) == 3
    index = run.samples / "000000/index.json"
    assert err == f"warning: {index}: what is no sample with the name of a file in that folder is left out\n"


@pytest.mark.parametrize("kind", ["link", "hard to open", "pipe", "device", "folder", "missing"])
def test_what_is_no_file_of_the_run_is_left_out(
    kind: str, run: RunDirectory, secret: bytes, invoke: Invoke, tmp_path: Path
) -> None:
    path = first_file(run)
    path.unlink()
    if kind == "link":
        path.symlink_to(tmp_path / "secret.png")
    elif kind == "hard to open":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    page, err = report(run, invoke)
    assert secret not in page.media
    assert len(page.media) == 3
    assert err.startswith(f"warning: {path} ")
    assert err.count("\n") == 1
    assert "000.png is left out" in page.text


@pytest.mark.parametrize(
    "place", ["samples", "samples/000000", "samples/000000/index.json", "run.json", "metrics.jsonl", "config.yaml"]
)
def test_links_out_of_the_run_are_not_followed(place: str, run: RunDirectory, invoke: Invoke, tmp_path: Path) -> None:
    (run.path / place).rename(tmp_path / "moved")
    (run.path / place).symlink_to(tmp_path / "moved")
    before = report(run, invoke)
    assert f"leads out of {run.path}" in before[1]
    if place != "run.json":
        assert len(before[0].media) < 4 or "aggregate" not in before[0].text


def test_a_link_to_the_run_is_no_link_out_of_it(run: RunDirectory, invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(run.path)
    page, err = report(RunDirectory(tmp_path / "latest"), invoke)
    assert (len(page.media), err) == (4, "")


def picture(kind: str, **options: object) -> bytes:
    found = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(found, format=kind, **options)
    return found.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        f"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'>{MARK}</svg>".encode(),
        f"<html>{MARK}".encode(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        b"",
        b"\x89PNG\r\n\x1a\n",
        *map(picture, ("GIF", "JPEG", "BMP", "TIFF", "WEBP")),
        picture("PNG")[:45],
    ],
)
def test_what_is_no_png_is_not_embedded(content: bytes, run: RunDirectory, invoke: Invoke) -> None:
    first_file(run).write_bytes(content)
    page, err = report(run, invoke)
    assert len(page.media) == 3
    assert err == f"warning: {first_file(run)} is no PNG that can be read; left out of the report\n"


def test_a_picture_is_embedded_by_its_pixels_alone(run: RunDirectory, invoke: Invoke) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", MARK)
    profiled = picture("PNG", pnginfo=info, icc_profile=b"profile" + MARK.encode(), exif=b"Exif\0\0" + MARK.encode())
    first_file(run).write_bytes(profiled + MARK.encode())
    page, err = report(run, invoke)
    assert (len(page.media), err) == (4, "")
    assert not any(MARK.encode() in medium for medium in page.media)
    with Image.open(io.BytesIO(page.media[0])) as shown:
        assert shown.convert("RGB").tobytes() == bytes([255, 0, 0] * 64)
        assert shown.info == {}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_bomb_costs_no_memory(run: RunDirectory, invoke: Invoke) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 10_000_000)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    first_file(run).write_bytes(bomb)
    started = time.monotonic()
    page, err = report(run, invoke)
    assert len(page.media) == 3
    assert err.count("\n") == 1
    assert time.monotonic() - started < 5
    with pytest.raises(Refused, match="megapixels"):
        encode_picture_anew(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", rows)
        )


def test_a_video_is_decoded_and_encoded_anew(run: RunDirectory, invoke: Invoke) -> None:
    av = pytest.importorskip("av")
    frames = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for iteration in (0, 3):
        run.write_samples(iteration, frames, ("one", "two"), {"bright": torch.tensor([0.5, 0.25])}, 12.5)
    clip = run.samples / "000000/000.mp4"
    clip.write_bytes(clip.read_bytes() + MARK.encode())
    (run.samples / "000000/001.mp4").write_bytes(f"ffconcat version 1.0\nfile {first_file(run)}\n".encode())
    page, err = report(run, invoke)
    assert err == f"warning: {run.samples / '000000/001.mp4'} is no MP4 that can be read; left out of the report\n"
    assert len(page.media) == 3
    assert not any(MARK.encode() in medium for medium in page.media)
    with av.open(io.BytesIO(page.media[0]), format="mp4") as shown, av.open(str(clip)) as written:
        assert (shown.streams.video[0].average_rate, shown.streams.video[0].frames) == (12.5, 5)
        for one, other in zip(shown.decode(video=0), written.decode(video=0), strict=True):
            difference = one.to_ndarray(format="rgb24").astype(float) - other.to_ndarray(format="rgb24")
            assert abs(difference).mean() < 16  # what a second encoding costs of noise


def test_a_video_of_another_kind_is_not_decoded(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for packet in [*stream.encode(av.VideoFrame.from_image(Image.new("RGB", (16, 16)))), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(Refused, match=r"H\.264"):
        encode_video_anew((tmp_path / "clip.mp4").read_bytes())


ODD_LINES = [
    "[]",
    "7",
    '"text"',
    "null",
    "{",
    "{}",
    '{"iteration": "0"}',
    '{"iteration": true}',
    '{"iteration": 1e3}',
    '{"iteration": -1}',
    '{"iteration": ' + "9" * 5000 + "}",
    '{"iteration": 3, "loss": "<b>", "kl": null, "eval/bright/mean": [1], "grad_norm": {"a": 1}}',
    '{"iteration": 3, "loss": 1e400, "eval/bright/mean": NaN, "reward/bright/mean": -Infinity}',
    '{"iteration": 3, "eval/bright/mean": 1e308, "eval/bright/std": 1e300, "eval/samples": 0}',
    '{"iteration": 3, "eval/bright/mean": 0, "eval/bright/std": 1, "eval/samples": 0}',
    '{"iteration": 3, "eval/bright/mean": 0, "eval/bright/std": 1, "eval/samples": -1}',
    '{"iteration": 3, "loss": ' + "9" * 400 + "}",
    '{"iteration": 3, "advantage/a/other": 1, "advantage/b/other": 0, "reward/a/flat": 0, "reward/b/flat": 0}',
    '{"iteration": 3, "eval/' + MARK + '/mean": 1, "reward/' + MARK + '/mean": 1, "\\ud800": 1, "eval/\\ud800/mean": 1}',
    '{"iteration": 3, "eval//mean": 1, "eval/mean": 1, "reward/mean": 1, "reward/a/b/mean": 1}',
    '{"iteration": 3, "drift/luma": 1e99, "drift/luma/std": 1e99, "drift/groups": 0, "reward/bright/mean": 1e99}',
    '{"iteration": 3, "drift/luma": 1e99, "drift/luma/std": -1e99, "drift/groups": 1, "drift//std": 1, "drift/std": 1}',
    '{"iteration": 3, "drift/heldout/' + MARK + '": 1, "drift/heldout/' + MARK + '/std": 1e-300, "drift/heldout/groups": 4}',
    "[" * 100_000,
]


@pytest.mark.parametrize("line", ODD_LINES, ids=range(len(ODD_LINES)))
def test_odd_figures_are_left_out(line: str, run: RunDirectory, invoke: Invoke) -> None:
    with run.metrics.open("a") as file:
        file.write(f'{line}\n\xff\n{{"iteration": 4, "loss": 2.0}}\n')
    page, err = report(run, invoke)
    assert f"{run.metrics} line " in err
    assert len(page.media) >= 2
    assert "loss" in page.text
    assert not re.search(r'(points|data-y|data-spread)="[^"]*(nan|inf)', run.report.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        "null",
        '{"versions": []}',
        '{"versions": {"a": 1}}',
        '{"versions": {"a": ["<b>"]}}',
        "[" * 100_000,
        '{"versions": {"' + MARK + '": "' + MARK + '"}}',
        '{"versions": {"a": "\\ud800"}}',
        " " * (2 * 2**20),
    ],
    ids=range(10),
)
def test_odd_facts_are_left_out(text: str, run: RunDirectory, invoke: Invoke) -> None:
    run.facts.write_text(text)
    page, _ = report(run, invoke)
    assert len(page.media) == 4


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "7",
        '{"a": 1}',
        "[7]",
        "[[]]",
        '["000.png"]',
        '[{"file": "000.png"}]',
        '[{"file": "000.png", "prompt": 1, "scores": {}}]',
        '[{"file": "000.png", "prompt": "a", "scores": []}]',
        "[" * 100_000,
        '[{"file": "../000.png", "prompt": "a", "scores": {}}]',
    ],
)
def test_an_odd_index_is_left_out(text: str, run: RunDirectory, invoke: Invoke) -> None:
    (run.samples / "000000/index.json").write_text(text)
    page, err = report(run, invoke)
    assert len(page.media) == 2, "those of the other evaluation"
    assert str(run.samples / "000000/index.json") in err


def test_odd_prompts_and_scores_are_text(run: RunDirectory, invoke: Invoke) -> None:
    path = run.samples / "000000/index.json"
    scores = {MARK: 1.0, "text": MARK, "nothing": None, "infinite": float("inf"), "\ud800": 0.5}
    path.write_text(json.dumps([{"file": "000.png", "prompt": f"'>{MARK}\ud800", "scores": scores}]))
    page, _ = report(run, invoke)
    assert f"'>{MARK}\\ud800" in page.text
    assert len(page.media) == 3


def test_what_a_terminal_obeys_is_escaped_in_a_report(run: RunDirectory, invoke: Invoke) -> None:
    odd = "a\x1b[31mb\x9bc\rd\u202ee\ud800"
    shown = r"a\x1b[31mb\x9bc\rd\u202ee\ud800"
    run.config.write_text("# red \x1b[31m\nadvantages: {aggregate: sum}\n")
    run.facts.write_text(json.dumps({"end": {"how": "failed", "sentence": odd}, "versions": {"torch": odd}}))
    for path in run.samples.rglob("index.json"):
        path.write_text(json.dumps([{"file": "000.png", "prompt": odd, "scores": {odd: 0.5}}]))
    with run.metrics.open("a") as file:
        file.write(json.dumps({"iteration": 4, f"reward/{odd}/mean": 0.5}) + "\n")
    report(run, invoke)
    text = run.report.read_bytes().decode()
    assert not has_controls(text.replace("\n", ""))
    assert f"The run failed: {shown}" in text
    assert text.count(shown) >= 4
    assert r"# red \x1b[31m" in text


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"- 1", b"advantages: [1]", b"a: &a [*a]", b"", b"!!python/object:os.system {}"]
)
def test_an_odd_config_has_a_report_too(content: bytes, run: RunDirectory, invoke: Invoke) -> None:
    run.config.write_bytes(content)
    assert len(report(run, invoke)[0].media) == 4


def test_a_browser_is_told_to_run_our_script_alone_and_to_fetch_nothing(run: RunDirectory, invoke: Invoke) -> None:
    report(run, invoke)
    text = run.report.read_text()
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="(.*?)"/>', text)
    hashes = {}
    for name in ("style", "script"):
        (content,) = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        hashes[name] = "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    assert html.unescape(policy) == (
        f"default-src 'none'; img-src data:; media-src data:; style-src '{hashes['style']}'; "
        f"script-src '{hashes['script']}'; base-uri 'none'; form-action 'none'"
    )
    assert text.index("Content-Security-Policy") < text.index("<title>") < text.index("<style>")


@pytest.mark.parametrize(
    ("name", "start", "piece", "limit"),
    [
        ("samples/000000/index.json", "[{}", ",{}", "8 MiB"),
        ("config.yaml", "a: [1", ",1", "512 KiB"),
        ("run.json", "[1", ",1", "1 MiB"),
    ],
)
def test_files_that_are_larger_than_a_run_writes_are_left_out_at_once(
    name: str, start: str, piece: str, limit: str, run: RunDirectory, invoke: Invoke
) -> None:
    (run.path / name).write_text(start + piece * (2**26 // len(piece)) + ("" if name == "config.yaml" else "]"))
    began = time.monotonic()
    code, _, err = invoke("report", run.path)
    assert time.monotonic() - began < 1
    assert (code, err) == (0, f"warning: {run.path / name} is larger than {limit}; left out\n")


@pytest.mark.parametrize(
    ("limit", "most", "line"), [("MOST_BYTES", 5000, 0), ("MOST_LINES", 100, 101), ("MOST_VALUES", 200, 101)]
)
def test_of_endless_metrics_the_first_are_shown(
    limit: str, most: int, line: int, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.metrics.write_text("".join(f'{{"iteration": {n}, "loss": 1}}\n' for n in range(1000, 2000)))
    monkeypatch.setattr(f"flowfactory.runs.metrics_file.{limit}", most)
    told: list[str] = []
    length = len(run.metrics.read_text().splitlines()[0]) + 1
    line = most // length + 1 if limit == "MOST_BYTES" else line
    assert [record["iteration"] for record in run.records(told.append)] == list(range(1000, 999 + line))
    assert told == [f"warning: {run.metrics}: what is from line {line} on is passed over: it is too much for a report"]


def test_a_long_run_has_a_page_that_shows_its_peaks(run: RunDirectory) -> None:
    figures = [1.0] * 20_000
    figures[7777], figures[12_345] = 9.0, -5.0
    run.metrics.write_text("".join(json.dumps({"iteration": n, "loss": loss}) + "\n" for n, loss in enumerate(figures)))
    page = write_report(run.path).read_text()
    assert len(page) < 200_000
    (line, _) = re.findall('<polyline points="(.*?)"', page)
    heights = [float(place.split(",")[1]) for place in line.split()]
    assert 3 <= len(heights) <= 1000
    assert sum(height == min(heights) for height in heights) == sum(height == max(heights) for height in heights) == 1
