"""The process that answers requests, from when it listens until it is asked to stop."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Callable

import uvicorn

from flowfactory.rewards.serving.limited_log import limit_logs
from flowfactory.rewards.serving.listening import BoundedListener, port_in_use
from flowfactory.rewards.serving.protocol import TimedProtocol
from flowfactory.rewards.serving.service import Service


def serve(
    service: Service,
    listener: BoundedListener,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    tls: ssl.SSLContext | None = None,
) -> None:
    """Answer until SIGTERM or Ctrl+C, and then what was accepted; a second Ctrl+C leaves the rest."""
    limit_logs(warn)
    config = uvicorn.Config(
        service.app(),
        http=TimedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,
    )
    config.load()
    config.ssl = tls
    listener.encrypted = tls is not None
    server = uvicorn.Server(config)
    for each in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises again what it was stopped by
        signal.signal(each, server.handle_exit)
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(2048)
    except OSError as error:  # somebody else began to listen while weights were read
        raise port_in_use(host, port) from error
    scheme = "https" if tls is not None else "http"
    say(f"serving {service.name} at {scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        server.run(sockets=[listener])
    finally:
        service.close()
