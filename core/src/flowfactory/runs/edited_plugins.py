"""One-file plugins that were edited between the parts of a run: their path is in its config, and what they hold is not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from flowfactory.runs.facts import add_facts, read_facts
from flowfactory.types import Say

PLUGINS = "plugins"
"""The key of run.json: the checksum of each file by its name."""


def note_plugins(facts: Path, files: Sequence[Path], say: Say) -> None:
    """Write down in run.json what ``files`` hold; ``say`` hears of those that held something else when the run last went on.

    OSError: run.json cannot be written, or one of them not read.
    """
    known = read_facts(facts).get(PLUGINS)
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    for name in (name for name in found if isinstance(known, dict) and known.get(name, found[name]) != found[name]):
        say(
            f"warning: {name} was edited since the run went so far: what is measured from now on may not compare with what was "
            "measured before; begin anew with another --out, unless nothing of it matters"
        )
    if files:
        add_facts(facts, {PLUGINS: found})
