"""The token that requests carry, as ``Authorization: Bearer TOKEN``."""

from __future__ import annotations

import os
import re

from flowfactory.errors import UserError


def read_token(option: str, variable: str | None) -> str | None:
    """What the environment variable holds, without spaces around it; None where none is named.

    UserError, which begins with ``option``: nothing is in it, or what cannot stand in a header as one word.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(f"{option} {variable}: this environment variable is not set; put the token into it")
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"{option} {variable}: a token has printable ASCII characters alone, and no spaces")
    return token
