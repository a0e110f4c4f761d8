"""The servers that a config names: whether something listens there."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from flowfactory.runs.trust import reaches

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

SECONDS = 3.0
"""That a connection may take."""
PORTS = {"http": 80, "https": 443}


class Server(NamedTuple):
    """The keys down to where a config names it, and its address."""

    place: str
    url: str


def servers(config: RunConfig) -> Iterator[Server]:
    """Every one that is asked over HTTP, each address once."""
    found: dict[str, str] = {}
    for reach in reaches(config):
        values = reach.value if isinstance(reach.value, list | tuple) else [reach.value]
        for value in values:
            if isinstance(value, str) and urlsplit(value).scheme in PORTS and urlsplit(value).hostname:
                found.setdefault(value, ".".join(reach.keys))
    yield from (Server(place, url) for url, place in found.items())


def unreachable(asked: Sequence[Server], seconds: float = SECONDS) -> list[str]:
    """A sentence for each of the servers that takes no connection. What is behind a proxy is not known, and passed over."""
    if not asked:
        return []
    with ThreadPoolExecutor(min(32, len(asked))) as threads:
        reasons = list(threads.map(lambda server: _refusal(server.url, seconds), asked))
    todo = "start it, or see whether the address is right"
    told = zip(asked, reasons, strict=True)
    return [f"{server.place}: {server.url} cannot be reached: {reason}; {todo}" for server, reason in told if reason]


def _refusal(url: str, seconds: float) -> str:
    """Why nothing can be asked at ``url``; "" where something listens there, or a proxy is in between."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        port = parts.port or PORTS[parts.scheme]
    except ValueError as error:
        return str(error)
    local = host in ("localhost", "127.0.0.1", "::1")
    if not local and ({parts.scheme, "all"} & set(getproxies())) and not proxy_bypass(host):
        return ""
    try:
        with socket.create_connection((host, port), seconds):
            return ""
    except TimeoutError:
        return f"no connection within {seconds:g} s"
    except OSError as error:
        return error.strerror or str(error)
