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
  video/x-matroska, video/mp4 a video in any usual codec; FFV1 in Matroska is exact
  application/octet-stream    numbers: "dtype" is "float32" (in [0, 1]) or "uint8" (0 to 255), "shape" is [C, H, W], or
                              [F, C, H, W] for a video; the last axis goes fastest, the low byte comes first
All media of a request have one shape. FILE is {"part": name, "suffix": ".png"}; several samples may name one part.

The answer is JSON, {"scores": [a number a sample, in order], "reward": name}, higher is better, where "reward" is that of
GET /health and may lack; or, with a status other than 200, {"error": "one sentence"}. Groups that a reward compares must
be whole, unless GET /health says that it is pointwise.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from flowfactory.rewards.wire.media import PixelBudget, count_pixels, decode_medium, encode_medium
from flowfactory.rewards.wire.schema import VERSION, Encoding, File, Part, Request, WireError
from flowfactory.types import Prompt, Samples
from flowfactory.untrusted_files import Refused, parse_json

LARGEST_REQUEST = 16 * 2**20
"""Bytes of the JSON, which takes many times as much memory once it is read."""
LARGEST = sys.float_info.max


def encode_request(samples: Samples, encoding: Encoding) -> list[Part]:
    """The request for the scores of ``samples``; a file that several prompts bring goes once.

    WireError: media or metadata cannot be written so. UserError: a file cannot be read, or videos lack PyAV.
    """
    media = samples.media.detach().cpu()
    files: dict[Path, Part] = {}

    def sent(path: Path) -> dict[str, str]:
        if path not in files:
            files[path] = Part(f"file-{len(files)}", "application/octet-stream", _read_bytes(path))
        suffix = path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", path.suffix) else ""
        return {"part": files[path].name, "suffix": suffix}

    written = [encode_medium(f"media-{i}", medium, encoding, samples.frame_rate) for i, medium in enumerate(media)]
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


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WireError(f"{path}: cannot be read: {error.strerror}") from error


def decode_request(parts: Mapping[str, bytes | memoryview], folder: Path, max_pixels: int) -> Samples:
    """The samples of a request, media float32 on the CPU; files of prompts are written to ``folder``.

    WireError: something is not as the format has it, or media are more than ``max_pixels`` together, which is found out
    before they are read. UserError: videos lack PyAV.
    """
    if "request" not in parts:
        raise WireError("there is no part 'request'")
    if len(parts["request"]) > LARGEST_REQUEST:
        raise WireError(f"request: more than {LARGEST_REQUEST >> 20} MiB of JSON; send fewer samples at once")
    try:
        request = Request.model_validate_json(bytes(parts["request"]))
    except ValidationError as error:
        first = error.errors()[0]
        if "recursion limit" in first["msg"]:
            raise WireError("request: its JSON is nested too deep; flatten the metadata") from error
        where = ".".join(str(part) for part in first["loc"])
        raise WireError(f"request{'.' if where else ''}{where}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
    room = PixelBudget(max_pixels)
    read = [decode_medium(sample.media, _part(parts, sample.media.part), room) for sample in request.samples]
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
                count_pixels(wanted.part, content, room)
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


def _part(parts: Mapping[str, bytes | memoryview], name: str) -> bytes | memoryview:
    if name not in parts:
        raise WireError(f"there is no part {name!r}, which the request names")
    return parts[name]


def encode_scores(scores: Tensor, reward: str) -> bytes:
    """The body that carries ``scores`` [B] of ``reward``."""
    return json.dumps({"scores": scores.tolist(), "reward": reward}).encode()


def decode_scores(body: bytes, count: int, reward: str | None = None) -> Tensor:
    """[count], float32 where that holds all of them exactly, else float64.

    WireError: the answer holds something else, or says that it is of another reward than ``reward``.
    """
    try:
        answer = parse_json(body)
    except Refused as error:
        raise WireError(f"answered no JSON: {excerpt(body)}") from error
    scores = answer.get("scores") if isinstance(answer, dict) else None
    said = answer.get("reward") if isinstance(answer, dict) else None
    if reward is not None and said is not None and said != reward:
        raise WireError(f"serves {excerpt(str(said))} now, and {reward!r} before; see what was started there")
    if not isinstance(scores, list):
        raise WireError(f"answered no list of scores: {excerpt(body)}")
    if len(scores) != count:
        raise WireError(f"answered {len(scores)} scores for {count} samples")
    for i, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) <= LARGEST:
            raise WireError(f"answered {json.dumps(score)[:50]} for sample {i}; scores must be finite numbers")
    found = torch.tensor([float(score) for score in scores], dtype=torch.float64)
    # JSON names no dtype, which tells how finely scores are rounded; those of float32 would hardly come from elsewhere
    return found.float() if torch.equal(found.float().double(), found) else found


def excerpt(body: bytes | str) -> str:
    """The beginning of what a server said, on one line."""
    text = body if isinstance(body, str) else body[:1000].decode("utf-8", "replace")
    line = " ".join(text.split())
    return repr(line[:160] + ("…" if len(line) > 160 else ""))
