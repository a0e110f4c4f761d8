"""``flowfactory serve``."""

from __future__ import annotations

from typing import Annotated

import typer

from flowfactory.cli.options import Plugins, typed_path
from flowfactory.cli.output import say, warn


def serve(
    reward: Annotated[str, typer.Argument(metavar="REWARD", help="A reward's name, or a YAML file with one and its options.")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="key=value", help="An option; YAML. May repeat.")] = None,
    plugin: Plugins = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is all that this machine has.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.")] = 8100,
    token_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable with the token that requests must carry.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = "auto",
    queue: Annotated[int, typer.Option(metavar="N", min=0, help="Requests that wait while one is computed.")] = 64,
    max_request: Annotated[int, typer.Option(metavar="MIB", min=1, help="The largest request.")] = 256,
    max_megapixels: Annotated[int, typer.Option(metavar="N", min=1, help="Of all media of a request together.")] = 256,
) -> None:
    """Compute REWARD for others, over HTTP."""
    from flowfactory.rewards import server as serving
    from flowfactory.rewards.wire import read_token

    serving.require_dependencies()
    from flowfactory.distributed.mesh import resolve_device

    name, config = serving.load_reward(str(typed_path(reward)), sets or [], plugin or [])
    token = read_token("--token-env", token_env)
    chosen = resolve_device(device)
    with serving.bind(host, port) as listener:
        if token is None and not serving.is_local(host):
            warn(f"warning: anyone who can reach {host} can request scores; require a token with --token-env NAME")
        limits = serving.Limits(max_request * 2**20, max_megapixels * 10**6, queue)
        serving.serve(serving.Service(name, config, plugin or [], str(chosen), limits, token), listener, say)
