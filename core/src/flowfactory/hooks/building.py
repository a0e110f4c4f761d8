"""Components from their options."""

from __future__ import annotations

from collections.abc import Coroutine, Generator

from flowfactory.config.component import ComponentConfig
from flowfactory.discovery.source_places import describe_exception, place_of
from flowfactory.errors import RunError, UserError


def build(config: ComponentConfig, label: str) -> object:
    """What the options make under ``label``. UserError: their ``build`` raises, or returns nothing or a class."""
    try:
        made = config.build(label)
    except (UserError, RunError) as error:
        raise type(error)(f"{label}: {error}") from error
    except (Exception, SystemExit) as error:
        advice = "; write build(self, label)" if isinstance(error, TypeError) and "build()" in str(error) else ""
        raise UserError(f"{label}: {place_of(type(config).build)}: {describe_exception(error)}{advice}") from error
    if isinstance(made, type):
        returned = f"the class {made.__name__}; return one of it, as {made.__name__}(…)"
    elif made is None or made is config or isinstance(made, _NO_COMPONENT):
        kind = "nothing" if made is None else "the options themselves" if made is config else f"a {type(made).__name__}"
        returned = f"{kind}; return the component"
    else:
        return made
    raise UserError(f"{label}: {place_of(type(config).build)} returned {returned}")


_NO_COMPONENT = (str, bytes, int, float, list, tuple, dict, set, Generator, Coroutine)
