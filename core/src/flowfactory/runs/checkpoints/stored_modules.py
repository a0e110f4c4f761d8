"""The modules in a checkpoint, read tensor by tensor; no model is made for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from flowfactory.config.wording import written
from flowfactory.distributed.sharding import non_finite
from flowfactory.errors import RunError, UserError
from flowfactory.policy import lora
from flowfactory.policy.lora import Adapters
from flowfactory.runs.checkpoints.files import Damaged
from flowfactory.runs.checkpoints.manifest import Manifest
from flowfactory.runs.checkpoints.roles import FROZEN, KEPT, PRESENT, WEIGHTS, kept_role
from flowfactory.runs.checkpoints.shards import StoredTensor, own_rows, read_index, read_rows
from flowfactory.runs.checkpoints.tensor_file import AT_ONCE, Entry, in_order, write_tensors


@dataclass(frozen=True)
class StoredModule:
    """What a checkpoint has of a module: its tensors by the names that its parameters have, and what was put on it."""

    name: str
    adapters: Adapters | None
    tensors: Mapping[str, StoredTensor]

    def entries(self) -> list[Entry]:
        """Its tensors as they may lie in a file."""
        return in_order(Entry(name, stored.shape, stored.dtype) for name, stored in self.tensors.items())

    def read(self, names: Iterable[str]) -> Iterator[Tensor]:
        """Its tensors of these ``names``, one after the other; small ones are read together.

        Damaged: one is not finite, or as :func:`read_rows`. OSError: it cannot be read.
        """
        for together in self._batches(names):
            found = {name: torch.empty(self.tensors[name].shape, dtype=self.tensors[name].dtype) for name in together}
            read_rows(self.tensors, own_rows(found))
            if bad := non_finite(found):
                raise Damaged(f"{self.name}.{bad[0]} is not finite")
            while found:  # the caller alone holds what it was given
                yield found.pop(next(iter(found)))

    def _batches(self, names: Iterable[str]) -> Iterator[list[str]]:
        batch: list[str] = []
        size = 0
        for name in names:
            stored = self.tensors[name]
            own = stored.row_bytes * (stored.shape[0] if stored.shape else 1)
            if batch and size + own > AT_ONCE:
                yield batch
                batch, size = [], 0
            batch.append(name)
            size += own
        yield batch

    @cached_property
    def exported(self) -> Adapters | None:
        """Its adapters as others have them: with those that are a part of the frozen weights, of the sum of both ranks."""
        if self.adapters is None or not (base := self._base):
            return self.adapters
        rank = self.adapters.rank + max(self.tensors[name].shape[0] for name in base.values() if _is_down(name))
        layers = {_layer_of(name) for name in (*base, *self._own)}
        return Adapters(rank, float(rank), tuple(sorted(layers)))

    def folded_entries(self) -> list[Entry]:
        """Its adapters as others name them, see :func:`lora.exported_name`."""
        names = dict.fromkeys((*self._own, *self._base))
        return in_order(Entry(name, self._shape(name), torch.float32 if self._base else self._dtype(name)) for name in names)

    def folded(self, entries: Sequence[Entry]) -> Iterator[Tensor]:
        """The numbers of :meth:`folded_entries`, such that the product of two is what an adapter adds."""
        assert self.adapters is not None
        if not self._base:
            factors = self.read(self._own[entry.name] for entry in entries)
            yield from (self.adapters.fold(entry.name, factor) for entry, factor in zip(entries, factors, strict=True))
            return
        for entry in entries:
            axis = 0 if _is_down(entry.name) else 1
            own, base = self._own.get(entry.name), self._base.get(entry.name)
            parts = [self.adapters.fold(entry.name, factor) for factor in self.read([own] if own else [])]
            parts += self.read([base] if base else [])
            missing = entry.shape[axis] - sum(part.shape[axis] for part in parts)
            shape = [missing if place == axis else length for place, length in enumerate(entry.shape)]
            yield torch.cat([*(part.float() for part in parts), torch.zeros(shape)], axis)

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = list(self.tensors[self._own.get(name) or self._base[name]].shape)
        if self._base and self.exported:
            shape[0 if _is_down(name) else 1] = self.exported.rank
        return tuple(shape)

    def _dtype(self, name: str) -> torch.dtype:
        return self.tensors[self._own[name]].dtype

    @cached_property
    def _own(self) -> dict[str, str]:
        """By the names that others have, those of the adapters that train."""
        return self._named(lora.ADAPTER)

    @cached_property
    def _base(self) -> dict[str, str]:
        """Those of the adapters that are a part of the frozen weights."""
        return self._named(lora.BASE)

    def _named(self, adapter: str) -> dict[str, str]:
        names = {name: lora.exported_name(name, adapter) for name in self.tensors}
        return {exported: name for name, exported in names.items() if exported}


def _is_down(name: str) -> bool:
    """Whether it is the factor whose first axis is the rank."""
    return ".lora_A." in name or ".lora_embedding_A" in name


def _layer_of(name: str) -> str:
    return name.partition(".lora_")[0]


def read_modules(path: Path, weights: str | None = None) -> list[StoredModule]:
    """The modules of a checkpoint, with the weights kept as ``weights``, the trained ones when None. Reads headers alone.

    UserError: nothing is kept under that name. RunError: a module has no weights. Damaged, OSError: as :func:`read_index`.
    """
    manifest = Manifest.read(path)
    if weights is not None and kept_role(weights) not in manifest.roles():
        known = ", ".join(manifest.kept()) or "none"
        raise UserError(f"{path} keeps no weights called {weights!r}; there is {known}")
    index = read_index(manifest.shards(path, [WEIGHTS, *([] if weights is None else [kept_role(weights)])]))
    found = stored_modules(manifest.modules, index, PRESENT if weights is None else f"{KEPT}{weights}/")
    for module in found:
        if not module.tensors:
            raise RunError(f"{path} has no weights of its module {written(module.name)}; choose another checkpoint")
    return found


def stored_modules(
    modules: Mapping[str, Adapters | None], index: Mapping[str, StoredTensor], place: str = PRESENT
) -> list[StoredModule]:
    """The ``modules`` with the weights of theirs in ``index`` whose names begin with ``place``, and what does not train."""
    return [
        StoredModule(name, adapters, _below(f"{FROZEN}{name}.", index) | _below(f"{place}{name}.", index))
        for name, adapters in modules.items()
    ]


def _below(beginning: str, index: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    return {name.removeprefix(beginning): stored for name, stored in index.items() if name.startswith(beginning)}


def write_adapters(modules: Sequence[StoredModule], folder: Path) -> list[Path]:
    """Write adapters as ``pipeline.load_lora_weights`` reads them, and return each module's file."""
    files = []
    for module in modules:
        exported = module.exported
        assert exported is not None
        file, entries = lora.adapter_path(folder, module.name), module.folded_entries()
        file.parent.mkdir(exist_ok=True)
        named = [entry._replace(name=f"{lora.FIRST}.{entry.name}") for entry in entries]
        write_tensors(file, named, module.folded(entries), lora.adapter_header(exported))
        files.append(file)
    return files
