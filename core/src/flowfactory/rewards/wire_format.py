"""The format in which samples go to a reward in another process, and its scores come back.

POST /score takes multipart/form-data (RFC 7578) with these parts:

  request    JSON: {"version": 1, "frame_rate": null, "samples": [SAMPLE, ...]}
  others     one for each medium and each file, under the names that the JSON gives them

SAMPLE is {"prompt": text, "media": MEDIUM} and, where it has them,
  "group": an integer, the same for the samples that are compared with one another; 0 when left out
  "index": the number of the prompt; "metadata": an object; "negative": text
  "images": [FILE, ...], "video": FILE, "audio": FILE, what the prompt itself brings

MEDIUM is {"part": name, "type": TYPE}, and TYPE is one of
  image/png, image/webp       a picture, 8 bits, grey or RGB; WebP is RGB
  video/x-matroska, video/mp4 a video in any codec that FFmpeg reads; FFV1 in Matroska is exact
  application/octet-stream    numbers: "dtype" is "float32" (in [0, 1]) or "uint8" (0 to 255), "shape" is [C, H, W], or
                              [F, C, H, W] for a video; the last axis goes fastest, the low byte comes first
All media of a request have one shape. FILE is {"part": name, "suffix": ".png"}; several samples may name one part.

The answer is JSON, {"scores": [a number a sample, in order]}, higher is better; or, with a status other than 200,
{"error": "one sentence"}. Groups that a reward compares must be whole, unless GET /health says that it is pointwise.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from flowfactory.config.strict import Strict
from flowfactory.data.media import FRAME_RATE, pyav
from flowfactory.types import Prompt, Samples

VERSION = 1
LARGEST = torch.finfo(torch.float32).max
Encoding = Literal["png", "webp", "raw", "raw8"]
"""How media travel: pictures as PNG or lossless WebP and videos as FFV1, in 8 bits; or numbers, float32 or uint8."""


class WireError(Exception):
    """A request or an answer that is not as it should be, in one sentence."""


class Part(NamedTuple):
    """One part of a multipart body."""

    name: str
    type: str
    content: bytes | memoryview


class Medium(Strict):
    """Where a medium is and how it is to be read."""

    part: str
    type: Literal["image/png", "image/webp", "video/x-matroska", "video/mp4", "application/octet-stream"]
    dtype: Literal["float32", "uint8"] | None = None
    shape: tuple[Annotated[int, Field(ge=1)], ...] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Medium:
        raw = self.type == "application/octet-stream"
        if raw != (self.dtype is not None) or raw != (self.shape is not None):
            raise ValueError("dtype and shape belong to application/octet-stream, which wants both")
        if self.shape is not None and len(self.shape) not in (3, 4):
            raise ValueError(f"shape {list(self.shape)} must be [C, H, W] or [F, C, H, W]")
        return self


class File(Strict):
    """A file that a prompt brings."""

    part: str
    suffix: str = Field("", pattern=r"^(\.[A-Za-z0-9]{1,8})?$")


class Sample(Strict):
    """One sample."""

    prompt: str
    media: Medium
    group: int = Field(0, ge=-(2**63), lt=2**63)
    index: int = 0
    metadata: dict[str, Any] = Field({})
    negative: str | None = None
    images: tuple[File, ...] = ()
    video: File | None = None
    audio: File | None = None


class Request(Strict):
    """The part ``request``."""

    version: Literal[1]
    samples: tuple[Sample, ...] = Field(min_length=1)
    frame_rate: float | None = Field(None, gt=0)


def parts_of(samples: Samples, encoding: Encoding) -> list[Part]:
    """The request for the scores of ``samples``; a file that several prompts bring goes once.

    WireError: media or metadata cannot be written so. UserError: a file cannot be read, or videos lack PyAV.
    """
    media = samples.media.detach().cpu()
    files: dict[Path, Part] = {}

    def sent(path: Path) -> dict[str, str]:
        if path not in files:
            files[path] = Part(f"file-{len(files)}", "application/octet-stream", _bytes(path))
        suffix = path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", path.suffix) else ""
        return {"part": files[path].name, "suffix": suffix}

    written = [_written(f"media-{i}", medium, encoding, samples.frame_rate) for i, medium in enumerate(media)]
    told = []
    for i, (prompt, metadata) in enumerate(zip(samples.prompts, samples.metadata, strict=True)):
        sample: dict[str, Any] = {"prompt": prompt, "group": int(samples.groups[i]), "media": written[i][0]}
        if metadata:
            sample["metadata"] = dict(metadata)
        if samples.sources:
            source = samples.sources[i]
            sample["index"] = source.index
            if source.negative is not None:
                sample["negative"] = source.negative
            if source.images:
                sample["images"] = [sent(path) for path in source.images]
            sample |= {key: sent(path) for key, path in (("video", source.video), ("audio", source.audio)) if path is not None}
        told.append(sample)
    try:
        request = json.dumps({"version": VERSION, "frame_rate": samples.frame_rate, "samples": told})
    except (TypeError, ValueError) as error:
        raise WireError(f"the metadata of a prompt cannot be written as JSON: {error}") from error
    return [Part("request", "application/json", request.encode()), *(part for _, part in written), *files.values()]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WireError(f"{path}: cannot be read: {error.strerror}") from error


def _written(name: str, medium: Tensor, encoding: Encoding, frame_rate: float | None) -> tuple[dict[str, Any], Part]:
    """What is said of ``medium`` [C, H, W] or [F, C, H, W], and its part."""
    if encoding in ("raw", "raw8"):
        array = medium.float().numpy().astype("<f4") if encoding == "raw" else rounded(medium).numpy()
        dtype = "float32" if encoding == "raw" else "uint8"
        told = {"dtype": dtype, "shape": list(array.shape)}
        return _told(Part(name, "application/octet-stream", array.tobytes()), **told)
    if medium.shape[-3] not in (1, 3):
        raise WireError(f"media have {medium.shape[-3]} channels; {encoding} has 1 or 3: write 'encoding: raw'")
    frames = rounded(medium).movedim(-3, -1).numpy()
    if medium.dim() == 4:
        return _told(Part(name, "video/x-matroska", _ffv1(frames, frame_rate or FRAME_RATE)))
    if encoding == "webp" and medium.shape[0] == 3:  # WebP knows no grey
        file = BytesIO()
        Image.fromarray(frames).save(file, format="WEBP", lossless=True, quality=0)
        return _told(Part(name, "image/webp", file.getvalue()))
    return _told(Part(name, "image/png", png(frames)))


def _told(part: Part, **more: Any) -> tuple[dict[str, Any], Part]:
    return {"part": part.name, "type": part.type, **more}, part


def rounded(media: Tensor) -> Tensor:
    """uint8 of media in [0, 1]: what an 8-bit file keeps."""
    return (media.float().clamp(0, 1) * 255).round().byte()


def png(picture: NDArray[np.uint8]) -> bytes:
    """The file of ``picture`` [H, W, C], uint8, C 1 or 3."""
    file = BytesIO()
    # the least compression: time counts for more than bytes on the way to a server
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def _ffv1(frames: NDArray[np.uint8], frame_rate: float) -> bytes:
    """The file of ``frames`` [F, H, W, C]."""
    av = pyav()
    grey = frames.shape[-1] == 1
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(frame_rate).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "gray" if grey else "bgr0"  # FFV1 has RGB in this order alone
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame[..., 0] if grey else frame, format="gray" if grey else "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file.getvalue()


def samples_of(parts: Mapping[str, bytes | memoryview], folder: Path, max_pixels: int) -> Samples:
    """The samples of a request, media float32 on the CPU; files of prompts are written to ``folder``.

    WireError: something is not as the format has it, or media are more than ``max_pixels`` together, which is found out
    before they are read. UserError: videos lack PyAV.
    """
    if "request" not in parts:
        raise WireError("there is no part 'request'")
    try:
        request = Request.model_validate_json(bytes(parts["request"]))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WireError(f"request{'.' if where else ''}{where}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
    room = Room(max_pixels)
    read = [_read(sample.media, _part(parts, sample.media.part), room) for sample in request.samples]
    for i, medium in enumerate(read):
        if medium.shape != read[0].shape:
            raise WireError(
                f"sample {i} has shape {list(medium.shape)} and sample 0 {list(read[0].shape)}; send them in separate requests"
            )
    kept: dict[str, Path] = {}

    def file(wanted: File | None, picture: bool = False) -> Path | None:
        if wanted is None:
            return None
        if wanted.part not in kept:
            content = _part(parts, wanted.part)
            if picture:
                _measure(wanted.part, content, room)
            kept[wanted.part] = folder / f"{len(kept)}{wanted.suffix}"
            kept[wanted.part].write_bytes(content)
        return kept[wanted.part]

    sources = []
    for sample in request.samples:
        images = tuple(path for path in (file(image, picture=True) for image in sample.images) if path)
        video, audio = file(sample.video), file(sample.audio)
        sources.append(Prompt(sample.prompt, sample.index, sample.metadata, sample.negative, images, video, audio))
    return Samples(
        media=torch.stack(read),
        prompts=tuple(sample.prompt for sample in request.samples),
        groups=torch.tensor([sample.group for sample in request.samples], dtype=torch.int64),
        metadata=tuple(sample.metadata for sample in request.samples),
        sources=tuple(sources),
        frame_rate=request.frame_rate,
    )


class Room:
    """How many pixels may still be read."""

    def __init__(self, pixels: int) -> None:
        self._all = self._left = pixels

    def take(self, pixels: int) -> None:
        """WireError: there are not as many left."""
        self._left -= pixels
        if self._left < 0:
            raise WireError(f"media have more than {self._all} pixels together; send fewer in a request")


def _part(parts: Mapping[str, bytes | memoryview], name: str) -> bytes | memoryview:
    if name not in parts:
        raise WireError(f"there is no part {name!r}, which the request names")
    return parts[name]


def _read(medium: Medium, content: bytes | memoryview, room: Room) -> Tensor:
    """float32, [C, H, W] or [F, C, H, W]."""
    if medium.type == "application/octet-stream":
        return _numbers(medium, content, room)
    try:
        frames = _picture(medium, content, room) if medium.type.startswith("image/") else _video(medium, content, room)
    except WireError as error:
        raise WireError(f"part {medium.part!r}: {error}") from error
    return torch.from_numpy(frames).movedim(-1, -3).contiguous().float() / 255


def _numbers(medium: Medium, content: bytes | memoryview, room: Room) -> Tensor:
    assert medium.shape is not None
    size = math.prod(medium.shape) * (4 if medium.dtype == "float32" else 1)
    if len(content) != size:
        raise WireError(
            f"part {medium.part!r}: {medium.dtype} {list(medium.shape)} is {size} bytes, and there are {len(content)}"
        )
    room.take(math.prod(medium.shape) // medium.shape[-3])
    if medium.dtype == "float32":
        return torch.from_numpy(np.frombuffer(content, "<f4").reshape(medium.shape).astype(np.float32))
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(medium.shape).astype(np.float32)) / 255


def _picture(medium: Medium, content: bytes | memoryview, room: Room) -> NDArray[np.uint8]:
    """[H, W, C]."""
    kind = medium.type.removeprefix("image/").upper()
    try:
        with Image.open(BytesIO(content), formats=(kind,)) as picture:
            room.take(picture.width * picture.height)
            if picture.mode not in ("L", "RGB"):
                raise WireError(f"its mode is {picture.mode}; write it with 8 bits, grey or RGB")
            array = np.array(picture)
    except WireError:
        raise
    except Exception as error:  # Pillow raises whatever a decoder stumbles over
        raise WireError(f"no {kind} that can be read: {error}") from error
    return array if array.ndim == 3 else array[..., None]


def _measure(name: str, content: bytes | memoryview, room: Room) -> None:
    try:
        with Image.open(BytesIO(content)) as picture:
            room.take(picture.width * picture.height)
    except WireError:
        raise
    except Exception as error:
        raise WireError(f"part {name!r}: no picture that can be read: {error}") from error


def _video(medium: Medium, content: bytes | memoryview, room: Room) -> NDArray[np.uint8]:
    """[F, H, W, C]."""
    av = pyav()
    frames: list[NDArray[np.uint8]] = []
    try:
        with av.open(BytesIO(content), format="mp4" if medium.type == "video/mp4" else "matroska") as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            height, width = stream.codec_context.height, stream.codec_context.width
            kind = "gray" if stream.codec_context.pix_fmt == "gray" else "rgb24"
            room.take(height * width)
            for frame in container.decode(stream):
                if frames:
                    room.take(height * width)
                frames.append(frame.to_ndarray(format=kind))
                if frames[-1].shape[:2] != (height, width):
                    raise WireError("its frames differ in size")
    except WireError:
        raise
    except Exception as error:  # as for pictures
        raise WireError(f"no video that can be read: {error}") from error
    if not frames:
        raise WireError("a video without frames")
    clip: NDArray[np.uint8] = np.stack(frames)
    return clip if clip.ndim == 4 else clip[..., None]


def multipart(parts: Iterable[Part]) -> tuple[str, bytes]:
    """The Content-Type and the body."""
    boundary = secrets.token_hex(16)
    pieces: list[bytes | memoryview] = []
    for part in parts:
        # a file name is what makes a part a file for many a library on the other side
        name = f'name="{part.name}"' + ("" if part.type == "application/json" else f'; filename="{part.name}"')
        head = f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\nContent-Type: {part.type}\r\n\r\n"
        pieces += [head.encode(), part.content, b"\r\n"]
    return f"multipart/form-data; boundary={boundary}", b"".join([*pieces, f"--{boundary}--\r\n".encode()])


def parts_in(content_type: str, body: bytes) -> dict[str, memoryview]:
    """The contents of a multipart body by the names of its parts, not copied. WireError: it is none, or is not whole."""
    found = re.fullmatch(r"multipart/form-data\s*;.*?\bboundary=(\"[^\"]{1,70}\"|[^\s;\"]{1,70}).*", content_type, re.I | re.S)
    if not found:
        raise WireError(f"Content-Type is {content_type[:100]!r}; expected multipart/form-data with its boundary")
    boundary = b"--" + found[1].strip('"').encode()
    view = memoryview(body)
    parts: dict[str, memoryview] = {}
    if not body.startswith(boundary):
        raise WireError("the body does not begin with its boundary")
    place = len(boundary)
    while not body.startswith(b"--", place):
        if not body.startswith(b"\r\n", place):
            raise WireError("a boundary is followed by neither a line nor the end")
        end = body.find(b"\r\n" + boundary, place + 2)
        if end < 0:
            raise WireError("the body ends within a part")
        blank = body.find(b"\r\n\r\n", place, min(end, place + 8192))
        if blank < 0:
            raise WireError("a part has no blank line after its headers")
        name = _name(body[place:blank])
        if name in parts:
            raise WireError(f"there are two parts {name!r}")
        parts[name] = view[blank + 4 : end]
        place = end + 2 + len(boundary)
    return parts


def _name(head: bytes) -> str:
    for line in head.decode("latin-1").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            found = re.search(r';\s*name=("([^"]*)"|[^\s;"]+)', value, re.I)
            if found:
                return found[2] if found[2] is not None else found[1]
    raise WireError("a part has no name in its Content-Disposition")


def answer_of(scores: Tensor) -> bytes:
    """The body that carries ``scores`` [B]."""
    return json.dumps({"scores": scores.tolist()}).encode()


def scores_in(body: bytes, count: int) -> Tensor:
    """float32 [count]. WireError: the answer holds something else."""
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise WireError(f"answered no JSON: {shown(body)}") from error
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, list):
        raise WireError(f"answered no list of scores: {shown(body)}")
    if len(scores) != count:
        raise WireError(f"answered {len(scores)} scores for {count} samples")
    for i, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= LARGEST:
            raise WireError(f"answered {json.dumps(score)[:50]} for sample {i}; scores must be finite numbers")
    return torch.tensor(scores, dtype=torch.float32)


def shown(body: bytes | str) -> str:
    """The beginning of what a server said, on one line."""
    text = body if isinstance(body, str) else body[:1000].decode("utf-8", "replace")
    line = " ".join(text.split())
    return repr(line[:160] + ("…" if len(line) > 160 else ""))


def error_in(body: bytes) -> str:
    """The sentence of an answer that is an error: this format's, FastAPI's and OpenAI's; else how it begins."""
    found: Any
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    for key in ("error", "message", "detail"):
        while isinstance(found, dict) and key in found:
            found = found[key]
    return " ".join(found.split())[:500] if isinstance(found, str) and found else shown(body)


__all__: Sequence[str] = (
    "Encoding",
    "Part",
    "WireError",
    "answer_of",
    "error_in",
    "multipart",
    "parts_in",
    "parts_of",
    "png",
    "rounded",
    "samples_of",
    "scores_in",
    "shown",
)
