"""A judge behind the OpenAI protocol that answers from the brightness of the pictures it is shown."""

from __future__ import annotations

import base64
import json
import math
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from scripted_server import Request, ScriptedServer

MODEL = "bright-judge"
REST = 0.1  # of the probability goes to other words


def configure(kind: Any, server: ScriptedServer, **options: Any) -> Any:
    """The config of a reward ``kind`` that asks the judge behind ``server``."""
    return kind(url=f"{server.url}/v1", model=MODEL, **options)


def texts(asked: Request) -> list[str]:
    return [part["text"] for part in asked.json["messages"][-1]["content"] if part["type"] == "text"]


def pictures(asked: Request) -> list[np.ndarray[Any, Any]]:
    """uint8 [H, W, C] each."""
    parts = [part for part in asked.json["messages"][-1]["content"] if part["type"] == "image_url"]
    found = []
    for part in parts:
        head, _, content = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        found.append(np.array(Image.open(BytesIO(base64.b64decode(content)))))
    return found


def brightness(asked: Request) -> list[float]:
    return [float(picture.mean() / 255) for picture in pictures(asked)]


def tops(shares: dict[str, float]) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": math.log(share)} for token, share in shares.items() if share > 0]


def completion(content: str | None, shares: dict[str, float] | None = None, **more: Any) -> bytes:
    """An answer whose first token has ``shares``."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    if shares is not None:
        likeliest = sorted(tops(shares), key=lambda top: -top["logprob"])
        choice["logprobs"] = {"content": [{**likeliest[0], "top_logprobs": likeliest}]}
    choice["message"].update(more.pop("message", {}))
    return json.dumps({"object": "chat.completion", "model": MODEL, "choices": [{**choice, **more}]}).encode()


def yes_or_no(asked: Request) -> bytes:
    """Yes with the mean brightness of all pictures, in several spellings."""
    if asked.path.endswith("/models"):
        return b'{"data": []}'
    yes = sum(brightness(asked)) / len(brightness(asked))
    p, q = yes * (1 - REST), (1 - yes) * (1 - REST)
    shares = {"Yes": p / 2, " yes": p / 4, "YES.": p / 4, "No": q * 3 / 4, "▁no": q / 4, "I": REST / 2, "Yesterday": REST / 2}
    return completion("Yes" if p > q else "No", shares)


def a_or_b(asked: Request) -> bytes:
    """The brighter of two, with a liking for A: P(A) = 0.5 + 0.35 (a - b) + 0.1."""
    if asked.path.endswith("/models"):
        return b'{"data": []}'
    a, b = brightness(asked)[-2:]
    first = (0.6 + 0.35 * (a - b)) * (1 - REST)
    shares = {"A": first * 0.75, " a": first * 0.25, "B": 1 - REST - first, "Both": REST}
    return completion("A" if first > (1 - REST) / 2 else "B", shares)
