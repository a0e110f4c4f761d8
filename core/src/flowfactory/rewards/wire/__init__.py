"""The format in which samples go to a reward in another process, and its scores come back."""

from flowfactory.rewards.wire.format import decode_scores, encode_request, excerpt
from flowfactory.rewards.wire.media import encode_png
from flowfactory.rewards.wire.multipart import build_multipart
from flowfactory.rewards.wire.schema import VERSION, Encoding, WireError
from flowfactory.rewards.wire.token import read_token

__all__ = [
    "VERSION",
    "Encoding",
    "WireError",
    "build_multipart",
    "decode_scores",
    "encode_png",
    "encode_request",
    "excerpt",
    "read_token",
]
