"""The JSON of a request, and the parts that carry media."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from flowfactory.config.strict import Strict

VERSION = 1
"""Of the format; a server refuses requests of another."""
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
    def _check_together(self) -> Medium:
        raw = self.type == "application/octet-stream"
        if raw != (self.dtype is not None) or raw != (self.shape is not None):
            raise ValueError("dtype and shape belong to application/octet-stream, which needs both")
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
