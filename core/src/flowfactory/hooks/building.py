"""Components from their options."""

from __future__ import annotations

from flowfactory.config.component import ComponentConfig
from flowfactory.discovery.source_places import describe_exception, place_of
from flowfactory.errors import RunError, UserError


def build(config: ComponentConfig, label: str) -> object:
    """What the options make under ``label``. UserError: their ``build`` raises, or returns nothing or a class."""
    try:
        made = config.build(label)
    except (UserError, RunError) as error:
        raise type(error)(f"{label}: {error}") from error
    except Exception as error:
        raise UserError(f"{label}: {place_of(type(config).build)}: {describe_exception(error)}") from error
    if made is None:
        raise UserError(f"{label}: {place_of(type(config).build)} returned nothing; return the component")
    if isinstance(made, type):
        returned = f"returned the class {made.__name__}; return one of it, as {made.__name__}(…)"
        raise UserError(f"{label}: {place_of(type(config).build)} {returned}")
    return made
