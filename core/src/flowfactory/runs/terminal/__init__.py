"""What a run shows while it goes on: a live view on a terminal, plain lines elsewhere."""

from flowfactory.runs.terminal.terminal import Terminal

__all__ = ["Terminal"]
