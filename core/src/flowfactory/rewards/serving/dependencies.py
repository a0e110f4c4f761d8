"""What serving needs beside core."""

from __future__ import annotations

from importlib.util import find_spec

from flowfactory.errors import UserError


def require_dependencies() -> None:
    """UserError: what serves is not installed."""
    for module in ("fastapi", "uvicorn"):
        if find_spec(module) is None:
            raise UserError(f"flowfactory serve needs {module}: pip install 'flowfactory[serve]'")
