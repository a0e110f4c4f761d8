"""``flowfactory serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowfactory.cli.options import Plugins, typed_path
from flowfactory.cli.output import say, warn
from flowfactory.errors import UserError


def _timeout(text: str | float) -> float:
    """Seconds that a timer takes. UserError: anything else, such as nan, which is in every range."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= 10_000_000:
        raise UserError("--timeout: give a number of seconds, at least 0.001 and at most 10000000")
    return seconds


def serve(
    reward: Annotated[str, typer.Argument(metavar="REWARD", help="A reward's name, or a YAML file with one and its options.")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="key=value", help="An option; YAML. May repeat.")] = None,
    plugin: Plugins = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is all that this machine has.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.")] = 8100,
    token_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable with the token that requests must carry.")
    ] = None,
    certfile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=typed_path, help="The certificate, and its chain, in PEM; serves HTTPS."),
    ] = None,
    keyfile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=typed_path, help="Its key, where the certificate's file does not hold it."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", parser=_timeout, help="For one request; then the reward is started anew."),
    ] = 600,
    queue: Annotated[int, typer.Option(metavar="N", min=0, help="Requests that wait while one is computed.")] = 64,
    max_request: Annotated[int, typer.Option(metavar="MIB", min=1, help="The largest request.")] = 256,
    max_waiting: Annotated[int, typer.Option(metavar="MIB", min=1, help="All requests that arrive or wait, together.")] = 1024,
    max_megapixels: Annotated[int, typer.Option(metavar="N", min=1, help="Of all media of a request together.")] = 256,
) -> None:
    """Compute REWARD for others, over HTTP."""
    from flowfactory.rewards.serving.certificates import load_certificate
    from flowfactory.rewards.serving.dependencies import require_dependencies
    from flowfactory.rewards.serving.listening import bind, is_local
    from flowfactory.rewards.serving.reward_file import load_reward
    from flowfactory.rewards.wire import read_token

    require_dependencies()
    from flowfactory.rewards.serving import server
    from flowfactory.rewards.serving.service import Limits, Service

    name, config = load_reward(str(typed_path(reward)), sets or [], plugin or [])
    token = read_token("--token-env", token_env)
    tls = load_certificate(certfile, keyfile)
    with bind(host, port) as listener:
        if token is None and not is_local(host):
            warn(f"warning: anyone who can reach {host} can request scores; require a token with --token-env NAME")
        limits = Limits(max_request * 2**20, max_megapixels * 10**6, queue, max_waiting * 2**20, timeout)
        server.serve(Service(name, config, plugin or [], device, limits, token), listener, say, warn, tls)
