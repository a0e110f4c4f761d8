"""All that is wrong with a run, and all that is known of it, before it begins. Reads no weights, and writes nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from flowfactory.config import loading
from flowfactory.config.component import ComponentConfig
from flowfactory.config.idle_keys import idle_keys
from flowfactory.config.paths import missing_checkpoints
from flowfactory.config.precision import with_precision
from flowfactory.data.prompts import read_sources
from flowfactory.errors import RunError, UserError
from flowfactory.runs.check.encoding import Encoding, count_encoding
from flowfactory.runs.check.recipe import doubts
from flowfactory.runs.check.servers import servers, unreachable
from flowfactory.runs.check.sizes import Sizes, count_sizes
from flowfactory.runs.directory import RunDirectory
from flowfactory.runs.lock import describe_unwritable
from flowfactory.training.prompts import prompt_checks, remarks

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig

T = TypeVar("T")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass
class Checkup:
    """``errors``: what a run would stop at. ``warnings``: what it would go on with, though it is hardly meant.

    ``config`` lacks what is wrong; it, sizes and encoding are None where too little is left to tell.
    """

    config: RunConfig | None = None
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sizes: Sizes | None = None
    encoding: Encoding | None = None


def check_run(
    source: str | Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    out: Path | None = None,
    ranks: int = 1,
    cuda: bool = False,
) -> Checkup:
    """The checkup of the config ``source`` on so many ``ranks``, which compute on CUDA or on a CPU."""
    found = Checkup()
    found.config, found.errors = loading.examine(source, overrides, plugins, out)
    if found.config is not None:
        _look_through(found, found.config, ranks, cuda)
    found.errors = list(dict.fromkeys(found.errors))
    found.warnings = [told for told in dict.fromkeys(found.warnings) if told not in found.errors]
    return found


def _look_through(found: Checkup, config: RunConfig, ranks: int, cuda: bool) -> None:
    """Note what can be said of ``config`` beyond its keys."""
    look = _Looks(found, whole=not found.errors)
    train = look.at(lambda: read_sources(config.prompts.trained, config.prompts.video_fps)) or ()
    heldout = look.at(lambda: read_sources(config.prompts.held_out, config.prompts.video_fps)) or ()
    look.warn(lambda: idle_keys(config))
    for check in look.each(lambda: prompt_checks(config, train, heldout)):
        look.at(check)
    look.warn(lambda: remarks(config, train, heldout))
    if look.whole:
        look.at(lambda: _assemble(config))
    for count in _rank_checks(config, ranks):
        look.at(count)
    found.errors += look.at(lambda: unreachable(list(servers(config)))) or []
    found.errors += look.each(lambda: _offline(config))
    look.warn(lambda: _downloads(config))
    look.warn(lambda: doubts(config, len(train)))
    look.at(lambda: _check_directory(config))
    look.warn(lambda: _begun(config))
    if train:
        found.sizes = look.at(lambda: count_sizes(config, train, heldout))
        settled = look.at(lambda: with_precision(config, cuda).training.precision)
        found.encoding = look.at(lambda: count_encoding(config, train, heldout, settled or ""))


class _Looks:
    """Looks at a config that may lack what is wrong with it: what needs that is passed over."""

    def __init__(self, found: Checkup, whole: bool) -> None:
        self.found, self.whole = found, whole

    def at(self, look: Callable[[], T]) -> T | None:
        """What ``look`` returns; None where it raises what a run would stop at, which is noted."""
        try:
            return look()
        except (UserError, RunError) as error:
            self.found.errors += error.sentences if isinstance(error, UserError) else [str(error)]
        except (AttributeError, TypeError):
            if self.whole:
                raise
        return None

    def each(self, look: Callable[[], Iterator[T]]) -> list[T]:
        """What ``look`` yields."""
        return self.at(lambda: list(look())) or []

    def warn(self, look: Callable[[], Iterator[str]]) -> None:
        """Note what ``look`` yields as warnings."""
        self.found.warnings += self.each(look)


def _assemble(config: RunConfig) -> None:
    from flowfactory.training.assembly import Assembly

    Assembly(config)


def _rank_checks(config: RunConfig, ranks: int) -> Iterator[Callable[[], object]]:
    """What so many ranks must be able to do."""
    from flowfactory.distributed.context import check_count
    from flowfactory.distributed.mesh import mesh_sizes
    from flowfactory.training.drawn_batches import check_drawn_batches

    yield lambda: mesh_sizes(config.distributed, ranks)
    yield lambda: check_count(config.distributed, ranks)
    yield lambda: check_drawn_batches(config, ranks)


def components(config: RunConfig) -> Iterator[tuple[str, ComponentConfig]]:
    """(keys, options) of everything that may hold weights."""
    yield "model", config.model
    for place, rewards in (("rewards", config.rewards), ("evaluation.rewards", config.evaluation.rewards)):
        for label, reward in rewards.items():
            yield f"{place}.{label}", reward


def _missing(config: RunConfig) -> Iterator[tuple[str, str]]:
    for place, options in components(config):
        for key, hub_id in missing_checkpoints(options):
            yield f"{place}.{key}", hub_id


def _is_offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _offline(config: RunConfig) -> Iterator[str]:
    """What cannot be downloaded, since somebody said so."""
    for place, hub_id in _missing(config) if _is_offline() else ():
        yield f"{place}: {hub_id} is not on this machine, and HF_HUB_OFFLINE is set; download it first: hf download {hub_id}"


def _downloads(config: RunConfig) -> Iterator[str]:
    for place, hub_id in _missing(config) if not _is_offline() else ():
        yield f"{place}: {hub_id} is not on this machine; the run downloads it at its start, or do it now: hf download {hub_id}"


def _check_directory(config: RunConfig) -> None:
    """UserError: the run directory cannot be written to; in the words of the run that would find it out."""
    path = config.output.dir
    there = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    if not there.is_dir():
        fault = errno.ENOTDIR
    elif not os.access(there, os.W_OK | os.X_OK):
        fault = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
    else:
        return
    raise UserError(describe_unwritable(path, OSError(fault, os.strerror(fault))))


def _begun(config: RunConfig) -> Iterator[str]:
    where = RunDirectory(config.output.dir)
    with suppress(OSError):
        if where.config.exists() and where.has_begun():
            yield f"output.dir: {where.path} already holds a run; continue it with --resume, or choose another --out"
