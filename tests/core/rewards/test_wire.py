from __future__ import annotations

import email
import json
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.shared import hostile_media

from flowfactory import Prompt, Samples
from flowfactory.rewards.wire.format import decode_request, decode_scores, encode_request, encode_scores
from flowfactory.rewards.wire.multipart import build_multipart, parse_multipart
from flowfactory.rewards.wire.schema import Part, WireError

PIXELS = 10**6
RGB = Image.new("RGB", (5, 4), (10, 20, 30))


def file_of(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = BytesIO()
    picture.save(file, format=kind)
    return file.getvalue()


def media(*shape: int) -> torch.Tensor:
    values = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    values.view(-1)[:4] = torch.tensor([0.0, 1.0, 0.5, 1 / 3])
    return values


def through(samples: Samples, encoding: Any, folder: Path) -> Samples:
    return decode_request(parse_multipart(*build_multipart(encode_request(samples, encoding))), folder, PIXELS)


def of(values: torch.Tensor, **more: Any) -> Samples:
    count = len(values)
    return Samples(values, ("a cat",) * count, torch.arange(count), ({},) * count, **more)


def eight_bits(values: torch.Tensor) -> torch.Tensor:
    """What an 8-bit file keeps, worked out in numpy."""
    return torch.from_numpy(np.rint(values.numpy() * np.float32(255)).astype(np.uint8).astype(np.float32) / np.float32(255))


SHAPES = {"picture": (3, 3, 9, 7), "grey": (2, 1, 6, 8), "clip": (2, 5, 3, 9, 7), "grey clip": (2, 3, 1, 6, 8)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_raw_media_arrive_as_they_were(shape: tuple[int, ...], tmp_path: Path) -> None:
    arrived = through(of(media(*shape)), "raw", tmp_path).media
    assert arrived.dtype == torch.float32
    assert torch.equal(arrived, media(*shape))


def test_raw_has_any_number_of_channels(tmp_path: Path) -> None:
    assert torch.equal(through(of(media(2, 4, 3, 3)), "raw", tmp_path).media, media(2, 4, 3, 3))


@pytest.mark.parametrize("encoding", ["png", "webp", "raw8"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_other_encodings_round_to_eight_bits_and_lose_nothing_else(
    shape: tuple[int, ...], encoding: str, tmp_path: Path
) -> None:
    arrived = through(of(media(*shape)), encoding, tmp_path).media
    assert torch.equal(arrived, eight_bits(media(*shape)))
    assert arrived.is_contiguous()


def test_bf16_media_arrive_exactly_in_raw(tmp_path: Path) -> None:
    values = media(2, 3, 4, 4).bfloat16()
    assert torch.equal(through(of(values), "raw", tmp_path).media, values.float())


def test_what_is_known_of_the_samples_arrives_with_them(tmp_path: Path) -> None:
    picture, clip = tmp_path / "before.jpg", tmp_path / "street.mp4"
    picture.write_bytes(file_of(RGB, "JPEG"))
    clip.write_bytes(b"anything")
    metadata = {"count": 3, "relation": "links von", "nested": {"x": [1.5, None, True]}}
    sources = (
        Prompt("ein Bär", 7, metadata, "unscharf", (picture, picture), None, None),
        Prompt("two\nlines", 8, {}, None, (picture,), clip, clip),
    )
    there = tmp_path / "there"
    there.mkdir()
    sent = Samples(media(2, 3, 4, 4), ("ein Bär", "two\nlines"), torch.tensor([-5, 2**40]), (metadata, {}), sources, 23.976)
    arrived = through(sent, "raw", there)
    assert (arrived.prompts, arrived.metadata, arrived.frame_rate) == (sent.prompts, sent.metadata, sent.frame_rate)
    assert torch.equal(arrived.groups, sent.groups)
    for before, after in zip(sources, arrived.sources, strict=True):
        assert (after.text, after.index, after.negative) == (before.text, before.index, before.negative)
        assert after.metadata == before.metadata
        assert [path.read_bytes() for path in after.media] == [path.read_bytes() for path in before.media]
        assert [path.suffix for path in after.media] == [path.suffix for path in before.media]
        assert all(path.parent == there for path in after.media)
    assert arrived.sources[1].video == arrived.sources[1].audio


def test_a_file_that_a_group_shares_goes_once(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(file_of(RGB))
    sources = (Prompt("a cat", images=(picture,)),) * 3
    assert [part.name for part in encode_request(of(media(3, 3, 4, 4), sources=sources), "png")] == [
        *("request", "media-0", "media-1", "media-2", "file-0"),
    ]


def test_the_body_is_what_another_library_reads() -> None:
    parts = [
        Part("request", "application/json", b"{}"),
        Part("m", "image/png", bytes(range(256)) * 5),
        Part("e", "x/y", b""),
    ]
    content_type, body = build_multipart(parts)
    message = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    read = [(p.get_param("name", header="content-disposition"), p.get_content_type()) for p in message.get_payload()]  # type: ignore[union-attr]
    assert read == [("request", "application/json"), ("m", "image/png"), ("e", "x/y")]
    assert {name: bytes(content) for name, content in parse_multipart(content_type, body).items()} == {
        p.name: p.content for p in parts
    }


def test_the_body_of_another_library_is_read() -> None:
    contents = {"request": b'{"a": 1}', "b": b"\r\n--\r\n\r\n" * 9, "empty": b""}
    files = {name: (f"the {name}.bin", content, "application/octet-stream") for name, content in contents.items()}
    request = httpx2.Request("POST", "http://host/", files=files)
    found = parse_multipart(request.headers["content-type"], request.read())
    assert {name: bytes(content) for name, content in found.items()} == contents


def test_a_picture_that_somebody_else_wrote_is_read(tmp_path: Path) -> None:
    request = b'{"version": 1, "samples": [{"prompt": "p", "media": {"part": "m", "type": "image/png"}}]}'
    read = decode_request({"request": request, "m": file_of(RGB)}, tmp_path, PIXELS)
    assert read.media.shape == (1, 3, 4, 5)
    assert read.media[0, :, 2, 3].mul(255).tolist() == pytest.approx([10, 20, 30])
    assert (read.groups.tolist(), read.metadata, read.frame_rate) == ([0], ({},), None)


def test_a_lossy_video_is_read_too(tmp_path: Path) -> None:
    from flowfactory.data import media as files

    path = files.write_media(torch.linspace(0, 1, 4).reshape(4, 1, 1, 1).expand(4, 3, 16, 24), tmp_path / "c", 8)
    request = b'{"version": 1, "frame_rate": 8, "samples": [{"prompt": "p", "media": {"part": "m", "type": "video/mp4"}}]}'
    read = decode_request({"request": request, "m": path.read_bytes()}, tmp_path, PIXELS)
    assert read.media.shape == (1, 4, 3, 16, 24)
    assert read.media.mean((0, 2, 3, 4)).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=0.03)


def sample(**medium: Any) -> dict[str, Any]:
    return {"prompt": "p", "media": {"part": "m", "type": "image/png", **medium}}


def raw(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    return sample(type="application/octet-stream", shape=shape, dtype=dtype)


def huge_png() -> bytes:
    """A few bytes that say that they are 50000 x 50000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


MATROSKA = sample(type="video/x-matroska")
EPS = file_of(RGB, "EPS")
WRONG: dict[str, tuple[Any, bytes, str]] = {
    "no json": (b"{", b"", r"^request: invalid JSON"),
    "nested too deep": (b"[" * 10**6, b"", r"^request: its JSON is nested too deep; flatten the metadata$"),
    "metadata nested too deep": (
        b'{"version": 1, "samples": [{"metadata": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}]}",
        b"",
        r"^request: its JSON is nested too deep; flatten the metadata$",
    ),
    "a number of many digits": (b'{"version": ' + b"9" * 10**6 + b"}", b"", r"^request: invalid JSON: number out of range"),
    "half a character": (b'{"version": "\\ud800"}', b"", r"^request: invalid JSON"),
    "json without end": (b"[" + b"[]," * (6 * 2**20), b"", r"^request: more than 16 MiB of JSON; send fewer samples at once$"),
    "no object": ([], b"", r"^request: input should be"),
    "another version": ({"version": 2, "samples": [sample()]}, b"", r"^request\.version: input should be 1$"),
    "no samples": ({"version": 1, "samples": []}, b"", r"^request\.samples: .* at least 1 item"),
    "no prompt": (
        {"version": 1, "samples": [{"media": {"part": "m", "type": "image/png"}}]},
        b"",
        r"^request\.samples\.0\.prompt",
    ),
    "unknown key": ({"version": 1, "samples": [{**sample(), "promt": "x"}]}, b"", r"^request\.samples\.0\.promt: extra"),
    "unknown type": ([sample(type="image/tiff")], b"", r"^request\.samples\.0\.media\.type"),
    "group too large": ([{**sample(), "group": 2**63}], b"", r"^request\.samples\.0\.group"),
    "no such part": ([sample(part="other")], b"", r"^there is no part 'other', which the request names$"),
    "no such file": ([{**sample(), "images": [{"part": "x"}]}], file_of(RGB), r"^there is no part 'x'"),
    "a file with a path": ([{**sample(), "images": [{"part": "m", "suffix": "/../../x"}]}], file_of(RGB), r"images\.0\.suffix"),
    "a file that is no picture": (
        [{**raw(3, 1, 1), "images": [{"part": "m"}]}],
        bytes(12),
        r"^part 'm': no picture that can be read$",
    ),
    "no png": ([sample()], b"\xff" * 100, r"^part 'm': no PNG that can be read$"),
    "half a png": ([sample()], file_of(RGB)[:50], r"^part 'm': no PNG that can be read"),
    "png for webp": ([sample(type="image/webp")], file_of(RGB), r"^part 'm': no WEBP that can be read"),
    "transparent": ([sample()], file_of(RGB.convert("RGBA")), r"^part 'm': its mode is RGBA; write it with 8 bits"),
    "16 bits": ([sample()], file_of(Image.new("I;16", (2, 2))), r"^part 'm': its mode is I;16"),
    "no video": ([sample(type="video/x-matroska")], b"\x1a\x45\xdf\xa3" + b"\0" * 99, r"^part 'm': no video that can be read"),
    "raw too short": ([raw(3, 2, 2)], bytes(47), r"^part 'm': float32 \[3, 2, 2\] is 48 bytes, and there are 47$"),
    "raw too long": ([raw(3, 2, 2, dtype="uint8")], bytes(13), r"^part 'm': uint8 \[3, 2, 2\] is 12 bytes, and there are 13$"),
    "raw that would be endless": ([raw(3, 2**40, 2**40)], b"", r"is 14507109835375550096474112 bytes, and there are 0$"),
    "raw without shape": ([sample(type="application/octet-stream", dtype="uint8")], b"", r"dtype and shape belong"),
    "raw in a line": ([raw(12)], bytes(48), r"shape \[12\] must be \[C, H, W\] or \[F, C, H, W\]"),
    "raw of nothing": ([raw(3, 0, 2)], b"", r"^request\.samples\.0\.media\.shape\.1"),
    "raw of another dtype": ([raw(3, 2, 2, dtype="float16")], bytes(24), r"^request\.samples\.0\.media\.dtype"),
    "shape of a png": ([sample(shape=[3, 4, 5])], file_of(RGB), r"dtype and shape belong"),
    "different shapes": ([sample(), raw(3, 5, 5, dtype="uint8")], file_of(RGB), r"^part 'm': uint8 \[3, 5, 5\] is 75"),
    "a bomb": ([sample()], huge_png(), r"more than 1000000 pixels together|more than 179 megapixels"),
    "a list as a video": ([MATROSKA], b"ffconcat version 1.0\nfile 'x.mkv'\n", r"^part 'm': no video that can be read"),
    "an mp4 for matroska": ([MATROSKA], hostile_media.mp4(hostile_media.index(1)), r"^part 'm': no video that can be read"),
    "an index that lies": ([sample(type="video/mp4")], hostile_media.VIDEOS["frames.mp4"](), r"tells of 170000000 frames"),
    "a program": ([{**raw(1, 1, len(EPS), dtype="uint8"), "images": [{"part": "m"}]}], EPS, r"^part 'm': no picture that can"),
    "many of one": (
        [raw(1, 100, 100, dtype="uint8")] * 101,
        bytes(10_000),
        r"^media have more than 1000000 pixels together; send",
    ),
}


@pytest.mark.parametrize(("request_", "part", "said"), WRONG.values(), ids=WRONG)
def test_a_request_that_is_off_is_refused_in_a_sentence(request_: Any, part: bytes, said: str, tmp_path: Path) -> None:
    whole = {"version": 1, "samples": request_} if isinstance(request_, list) and request_ else request_
    body = whole if isinstance(whole, bytes) else json.dumps(whole).encode()
    with pytest.raises(WireError, match=said) as caught:
        decode_request({"request": body, "m": part}, tmp_path, PIXELS)
    assert "\n" not in str(caught.value)


def test_media_of_different_shapes_are_refused(tmp_path: Path) -> None:
    numbers = {"part": "n", "type": "application/octet-stream", "dtype": "uint8", "shape": [1, 4, 5]}
    request = json.dumps({"version": 1, "samples": [sample(), {"prompt": "p", "media": numbers}]})
    with pytest.raises(WireError, match=r"^sample 1 has shape \[1, 4, 5\] and sample 0 \[3, 4, 5\]; send them in separate"):
        decode_request({"request": request.encode(), "m": file_of(RGB), "n": bytes(20)}, tmp_path, PIXELS)


def test_a_video_of_too_many_frames_is_refused(tmp_path: Path) -> None:
    clip = of(torch.zeros(1, 30, 3, 20, 20))
    body = build_multipart(encode_request(clip, "png"))
    assert len(decode_request(parse_multipart(*body), tmp_path, 30 * 400).media[0]) == 30
    with pytest.raises(WireError, match=r"^part 'media-0': media have more than 11999 pixels"):
        decode_request(parse_multipart(*body), tmp_path, 30 * 400 - 1)


def test_a_large_picture_that_a_prompt_brings_is_refused(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(huge_png())
    sent = of(media(1, 3, 4, 4), sources=(Prompt("p", images=(picture,)),))
    with pytest.raises(WireError, match=r"pixels|decompression bomb"):
        through(sent, "png", tmp_path)


BODY = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n'
TORN: dict[str, tuple[str, bytes, str]] = {
    "json": ("application/json", BODY, "expected multipart/form-data with its boundary"),
    "no boundary": ("multipart/form-data", BODY, "expected multipart/form-data with its boundary"),
    "another boundary": ("multipart/form-data; boundary=c", BODY, "does not begin with its boundary"),
    "nothing": ("multipart/form-data; boundary=b", b"", "does not begin with its boundary"),
    "no end": ("multipart/form-data; boundary=b", BODY[:-9], "the body ends within a part"),
    "text behind a boundary": (
        "multipart/form-data; boundary=b",
        BODY.replace(b"--b--", b"--bad"),
        "neither a line nor the end",
    ),
    "no headers": ("multipart/form-data; boundary=b", b"--b\r\nx\r\n--b--", "no blank line"),
    "no name": ("multipart/form-data; boundary=b", BODY.replace(b"name=", b"nome="), "has no name"),
    "two of a name": ("multipart/form-data; boundary=b", BODY[:-7] + BODY[0:], "two parts 'a'"),
    "endless headers": ("multipart/form-data; boundary=b", b"--b\r\n" + b"x: y\r\n" * 5000 + b"\r\n\r\n--b--", "no blank line"),
}


@pytest.mark.parametrize(("content_type", "body", "said"), TORN.values(), ids=TORN)
def test_a_torn_body_is_refused_in_a_sentence(content_type: str, body: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        parse_multipart(content_type, body)


def test_an_untorn_body_is_not() -> None:
    assert bytes(parse_multipart('Multipart/Form-Data; charset=utf-8; boundary="b"', BODY)["a"]) == b"x"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_body_however_broken_raises_anything_else(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content_type, body = FUZZED
    broken = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(broken) - 1))
        broken[place : place + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=8))
    with suppress(WireError):
        read = decode_request(parse_multipart(content_type, bytes(broken)), tmp_path_factory.getbasetemp(), 10_000)
        assert len(read.prompts) == len(read.media)


FUZZED = build_multipart([*encode_request(of(media(2, 3, 6, 6)), "webp"), Part("other", "x/y", b"z")])


def test_what_a_format_cannot_hold_is_refused_where_it_is_sent(tmp_path: Path) -> None:
    with pytest.raises(WireError, match=r"^media have 4 channels; png has 1 or 3: write 'encoding: raw'$"):
        encode_request(of(media(1, 4, 2, 2)), "png")
    with pytest.raises(WireError, match=r"^the metadata of a prompt cannot be written as JSON: .*PosixPath"):
        encode_request(Samples(media(1, 3, 2, 2), ("p",), torch.tensor([0]), ({"x": tmp_path},)), "png")
    with pytest.raises(WireError, match=r"gone\.png: cannot be read: No such file"):
        encode_request(of(media(1, 3, 2, 2), sources=(Prompt("p", images=(tmp_path / "gone.png",)),)), "png")


def test_scores_arrive_bit_by_bit() -> None:
    scores = torch.tensor([0.1, -1e-40, 3.4e38, 0.0, 1 / 3])
    assert torch.equal(decode_scores(encode_scores(scores, "odd"), 5), scores)
    assert decode_scores(encode_scores(scores, "odd"), 5).dtype == torch.float32


def test_scores_that_float32_does_not_hold_arrive_in_float64() -> None:
    for scores in (torch.tensor([0.1, 1e6 + 1e-6], dtype=torch.float64), torch.tensor([-1e39, 0.0], dtype=torch.float64)):
        found = decode_scores(encode_scores(scores, "odd"), 2)
        assert found.dtype == torch.float64
        assert torch.equal(found, scores)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>busy</html>", "answered no JSON: '<html>busy</html>'"),
        (b"", "answered no JSON: ''"),
        (b'{"scores": [1, 2', "answered no JSON"),
        (b"\xff\xfe\xff", "answered no JSON"),
        (b"[1, 2]", r"answered no list of scores: '\[1, 2\]'"),
        (b'{"score": [1, 2]}', "answered no list of scores"),
        (b'{"scores": 3}', "answered no list of scores"),
        (b'{"scores": [1]}', "answered 1 scores for 2 samples"),
        (b'{"scores": [1, 2, 3]}', "answered 3 scores for 2 samples"),
        (b'{"scores": [1, NaN]}', "answered NaN for sample 1; scores must be finite numbers"),
        (b'{"scores": [-Infinity, 1]}', "answered -Infinity for sample 0"),
        (b'{"scores": [1, 1e309]}', r"answered Infinity for sample 1"),
        (b'{"scores": [1' + b"0" * 400 + b", 1]}", "answered 10000.* for sample 0"),
        (b'{"scores": [1, null]}', "answered null for sample 1"),
        (b'{"scores": [true, 1]}', "answered true for sample 0"),
        (b'{"scores": ["1", 1]}', 'answered "1" for sample 0'),
        (b'{"scores": [' + b"[" * 500 + b"]" * 500 + b", 1]}", r"answered no JSON: '\{\"scores\": \[\["),
        (b"[" * 10**6, "answered no JSON"),
        (b'{"scores": [' + b"9" * 10**6 + b", 1]}", "answered no JSON"),
        (b'{"scores": [[1], 1]}', r"answered \[1\] for sample 0"),
    ],
)
def test_an_answer_that_is_off_is_no_score(body: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said):
        decode_scores(body, 2)


def test_a_body_of_very_many_parts_is_refused_before_they_are_held() -> None:
    told, body = build_multipart(Part(str(number), "text/plain", b"") for number in range(100_001))
    with pytest.raises(WireError, match=r"^there are more than 100000 parts; send fewer samples in a request$"):
        parse_multipart(told, body)
