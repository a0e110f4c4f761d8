"""Where training starts from adapters that are there already: which files they are in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from flowfactory.checkpoint_names import FOLDER, MANIFEST, lies_in_checkpoint, list_checkpoints
from flowfactory.config.paths import LocalPath
from flowfactory.config.strict import Strict
from flowfactory.errors import UserError

DIFFUSERS_FILE, PEFT_FILE = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
"""What adapters are called as diffusers and as peft save them."""
SUFFIX = ".safetensors"
FIRST = "transformer"
"""The pipeline's first transformer; and what diffusers wants before each name, whichever transformer it loads them into."""

if TYPE_CHECKING:
    WarmStart = Strict
else:  # words of Python, which only so can be names of fields
    WarmStart = create_model(
        "WarmStart",
        __base__=Strict,
        __doc__="Adapters that are there before training.",
        **{
            "from": (
                LocalPath | None,
                Field(
                    None,
                    examples=["lora.safetensors", "runs/sft"],
                    description="adapters to start from: a file, a folder, or a run directory, whose last checkpoint counts",
                ),
            ),
            "as": (
                Literal["start", "base"],
                Field(
                    "start",
                    description="start: they are what trains, with their own rank, alpha and targets, and a KL's reference; "
                    "base: they are added to the frozen weights, and new ones train on top",
                ),
            ),
        },
    )


def started_from(lora: Any) -> Path | None:
    """Where the adapters are that a LoraConfig begins with; None: training begins with new ones on the model as it is."""
    found: Path | None = getattr(lora, "from")
    return found


def is_base(lora: Any) -> bool:
    """Whether they are added to the frozen weights."""
    return bool(getattr(lora, "as") == "base")


def find_adapters(path: Path) -> dict[str, Path]:
    """{transformer: file}: of a file alone ``transformer``, whose names of weights may tell another.

    ValueError: there are none; one sentence.
    """
    if path.is_file():
        if path.suffix.lower() != SUFFIX:
            raise ValueError(f"{path} is no {SUFFIX} file, and no other is read; save the adapters as one")
        return {FIRST: path}
    if not path.is_dir():
        raise ValueError(f"there is no file or folder {path}")
    folder = pinned(path)
    found = _adapter_files(folder)
    if not found:
        raise ValueError(_nothing_in(folder))
    return found


def whole_weights(path: Path) -> Path | None:
    """The checkpoint at ``path``, or the last one of a run directory, of a run that trained all weights; None: it is of none.

    UserError: a run's folder of checkpoints cannot be read.
    """
    try:
        folder = pinned(path) if path.is_dir() else path
        whole = (folder / MANIFEST).is_file() and not _adapter_files(folder)
    except (ValueError, OSError):
        return None
    return folder if whole else None


def _adapter_files(folder: Path) -> dict[str, Path]:
    """Those in ``folder``, by the transformer that they are for."""
    first = _adapter_file(folder)
    found = {FIRST: first} if first else {}
    inner = sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name.startswith(FIRST))
    return found | {entry.name: file for entry in inner if (file := _adapter_file(entry))}


def pinned(path: Path) -> Path:
    """``path``, or of a run directory its last checkpoint, which stays when the run goes on.

    ValueError: it has none. UserError: its folder of them cannot be read.
    """
    if (path / FOLDER).is_dir() or ((path / "config.yaml").is_file() and (path / "run.json").is_file()):
        return _last_checkpoint(path)
    return path


def _adapter_file(folder: Path) -> Path | None:
    known = [folder / name for name in (DIFFUSERS_FILE, PEFT_FILE)]
    if there := next((file for file in known if file.is_file()), None):
        return there
    if lies_in_checkpoint(folder):  # of a run, which has other files of that kind
        return None
    others = sorted(file for file in folder.glob(f"*{SUFFIX}") if file.is_file())
    if len(others) > 1:
        names = ", ".join(file.name for file in others[:3])
        raise ValueError(f"{folder} holds {len(others)} {SUFFIX} files ({names} …); name the one that is meant")
    return others[0] if others else None


def _last_checkpoint(run: Path) -> Path:
    if there := list_checkpoints(run / FOLDER):
        return there[-1]
    raise ValueError(f"the run directory {run} has no checkpoint yet")


def _nothing_in(folder: Path) -> str:
    if lies_in_checkpoint(folder):
        return f"{folder} holds no adapters: its run trained all weights; export it, and name the export as model.path"
    return f"{folder} holds no adapters: no {DIFFUSERS_FILE}, no {PEFT_FILE}"


def find_error(path: Path) -> str | None:
    """Why no adapters can be read at ``path``; None where there are some."""
    try:
        find_adapters(path)
    except (ValueError, UserError) as error:
        return str(error)
    except OSError as error:
        return f"{os.fspath(path)} cannot be read: {error.strerror}"
    return None
