"""Files of a checkpoint: which of them are read, whether they are whole, and one line where a library cannot read them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint

from flowfactory.errors import RunError, UserError
from flowfactory.models.config_sizes import check_sizes
from flowfactory.untrusted_files import Refused, read_json

AGAIN = "get it again, whole"
CODE = "holds more than tensors and is not read: it could run code; get it as .safetensors"
LFS_POINTER = b"version https://git-lfs"
PICKLES = (".bin", ".pt", ".pth")
LARGEST_SETTINGS, LARGEST_VOCABULARY = 8 * 2**20, 64 * 2**20
"""Bytes: released configs have thousands, vocabularies and lists of weights up to 35 million."""
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""The names of weights as diffusers and transformers save them."""


def check_files(folder: Path, variant: str | None = None) -> None:
    """UserError: ``folder``, or one of its files that a library reads, is not there, or is a Git LFS pointer, cut off or empty.

    Looked at are JSON, vocabularies, and the weights of the ``variant``: their headers alone. UserError too: it has what makes
    some release of a library run code or read another model.
    """
    check_settings(folder)
    _refuse_code(folder)
    for file in weight_files(folder, variant):
        check_file(file)


def check_settings(folder: Path) -> None:
    """As :func:`check_files`, of all but the weights: what tokenizers and picture processors are read from."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; {AGAIN}")
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".model", ".txt", ".jinja") and not file.name.startswith("."):  # macOS leaves ._ files
            check_file(file)


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files that the weights in ``folder`` are read from; empty where there are none of the ``variant``."""
    named = "" if variant is None else f".{variant}"
    for suffix in (".safetensors", ".bin"):
        for stem in STEMS:
            single, index = folder / f"{stem}{named}{suffix}", folder / f"{stem}{suffix}.index{named}.json"
            if single.is_file():
                return [single]
            if index.is_file():
                return [folder / name for name in _shards(index)]
    return []


def variants(folder: Path) -> list[str]:
    """Which variants of its weights ``folder`` has, such as fp16."""
    named = "|".join(STEMS)
    pattern = rf"({named})\.(?!safetensors|bin)(\w+?)(-\d+-of-\d+)?\.(safetensors|bin)"
    found = [re.fullmatch(pattern, file.name) for file in folder.iterdir()]
    return sorted({match[2] for match in found if match})


def _shards(index: Path) -> list[str]:
    found = read_settings(index)
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index} does not say which files the weights are in; {AGAIN}")
    for name in names.values():
        if Path(name).name != name or name in ("", "..") or "\\" in name or not name.isprintable():
            raise UserError(f"{index} names {name[:100]!r}, which is no file beside it; {AGAIN}")
    return sorted(set(names.values()))


def _refuse_code(folder: Path) -> None:
    """UserError: transformers would run something in ``folder``, or something that it names."""
    config = folder / "config.json"
    settings = read_settings(config) if config.is_file() else {}
    if (code := folder / "custom_generate/generate.py").exists():
        raise UserError(f"{code} is code, which is not run; take it away, or choose another model")
    # an adapter's config may name modules to import
    if (adapter := folder / "adapter_config.json").exists() and "_class_name" not in settings:
        raise UserError(f"{adapter} adds an adapter, which is not read; merge it into the weights, or take it away")
    if any("/" in named for named in _attention_kernels(settings)):
        raise UserError(f"{config} names a kernel for its attention, which is code and not run; take attn_implementation out")


def _attention_kernels(settings: object) -> Iterator[str]:
    """What a config, or one within it, says that attention is computed with."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if "attn_implementation" in key and isinstance(value, str):
                yield value
            yield from _attention_kernels(value)


def check_file(file: Path) -> None:
    """UserError: ``file`` is a Git LFS pointer, empty, cut off, not there, or is named .json and holds something else."""
    if not file.is_file():
        raise UserError(f"there is no file {file}; {AGAIN}")
    with file.open("rb") as opened:
        start = opened.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise UserError(f"{file} is a Git LFS pointer, which stands for the file; run git lfs pull there, or download the file")
    if not start and file.suffix in (".json", ".safetensors", ".model", *PICKLES):
        raise UserError(f"{file} is empty; {AGAIN}")
    if file.suffix == ".json":
        _parse_settings(file)
    if file.suffix in PICKLES:
        if not _is_pickled(file, start):
            raise UserError(f"{file} is cut off or damaged; {AGAIN}")
        if start.startswith(b"PK"):
            _refuse_programs(file)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="np"):  # PyTorch's way counts the whole file as memory
                pass
        except SafetensorError as error:
            raise UserError(f"{file} is cut off or damaged ({one_line(error)}); {AGAIN}") from error


def read_settings(file: Path) -> Any:
    """What the JSON ``file`` holds, a mapping where it is a config. UserError: as :func:`check_file`."""
    check_file(file)
    return _parse_settings(file)


def _parse_settings(file: Path) -> Any:
    settings = file.name.endswith(("config.json", "model_index.json"))
    try:
        found = read_json(file, LARGEST_SETTINGS if settings else LARGEST_VOCABULARY)
    except Refused as refused:
        raise UserError(f"{file} {refused}; {AGAIN}") from refused
    if settings and not isinstance(found, dict):
        raise UserError(f"{file} holds no settings; {AGAIN}")
    if settings:
        check_sizes(file, found)
    return found


def is_local(path: Path | str) -> bool:
    """Whether ``path`` can only be a folder of this machine, and no hub id."""
    return Path(path).is_absolute() or Path(path).is_dir()


def _is_pickled(file: Path, start: bytes) -> bool:
    """Whether ``file`` is what torch.save writes: an archive that is whole, or a bare pickle as before PyTorch 1.6."""
    return zipfile.is_zipfile(file) if start.startswith(b"PK") else start.startswith(b"\x80")


def _refuse_programs(file: Path) -> None:
    """UserError: the archive ``file`` names functions or classes that make no tensors; it is not unpickled."""
    try:
        unsafe = get_unsafe_globals_in_checkpoint(file)
    except Exception as error:  # of archives that torch.save did not write
        if "torchscript" not in str(error).lower():
            return  # whoever reads it says more, and reads tensors alone
        unsafe = ["a program"]
    # torchao's tensors are known to torch once its reader has imported it
    if any(name.split(".")[0] not in ("torch", "torchao") for name in unsafe):
        raise UserError(f"{file} {CODE}")


@contextmanager
def reading(source: str, kind: type[Exception] = UserError) -> Iterator[None]:
    """Within it whatever a library raises is an error of ``kind``, one line that begins with ``source``."""
    try:
        yield
    except (UserError, RunError, torch.OutOfMemoryError):
        raise
    except MemoryError as error:
        raise kind(f"{source} takes more memory than this machine has; use one with more, or {AGAIN}") from error
    except Exception as error:
        raise kind(f"{source} cannot be read: {_explain(error)}") from error


def _explain(error: BaseException) -> str:
    """What to do about a hub that does not give its files, else what the library says."""
    from huggingface_hub import errors

    if any(isinstance(link, UnpicklingError) and "weights_only" in str(link) for link in _chain(error)):
        return f"it {CODE}"
    if "custom code" in str(error) and "trust_remote_code" in str(error):
        return "it needs code that it brings, which is not run; choose a model that the library itself has"

    def raised(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in _chain(error))

    if raised(errors.GatedRepoError):
        return "the hub gives it to those alone who accepted its licence; do so on its page, then log in: hf auth login"
    if raised(errors.RepositoryNotFoundError):
        return "the hub has no such id that you may read; correct it, give a folder, or log in: hf auth login"
    if raised(errors.LocalEntryNotFoundError, ConnectionError):
        return "it is not on this machine, and the hub is out of reach; give a folder, or download it first: hf download"
    told = one_line(error if isinstance(error, OSError | ImportError) else f"{type(error).__name__}: {error}")
    # what libraries raise of a value that they did not expect, most often without the key that it stands under
    odd = isinstance(error, LookupError | TypeError | AttributeError | ValueError | ArithmeticError)
    return f"{told}; a file of it holds what its library does not take; {AGAIN}" if odd else told


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what it comes from, and so on."""
    chain = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    return chain


def one_line(told: object) -> str:
    """What a library says, to stand within a sentence."""
    return " ".join(str(told).split()).rstrip(".")
