"""The prompt files of the package, chosen from all captions of `scenes`: `python -m flowfactory_tiny.prompt_files`."""

import random
from pathlib import Path

from flowfactory_tiny.scenes import KINDS, Kind, enumerate_descriptions, write_caption

DATA = Path(__file__).with_name("data")
SEED = 0
SPLITS: dict[str, dict[Kind, int]] = {
    "train": {"single": 180, "pair": 320, "counted": 100},
    "validation": {"single": 40, "pair": 60, "counted": 50},
    "heldout": {"single": 60, "pair": 90, "counted": 90},
}
"""How many captions of each kind there are to train on, to choose hyper-parameters by, and to judge by in the end."""


def choose_captions() -> dict[str, list[str]]:
    """The captions of each split, no caption twice; the kinds are mixed in a fixed random order."""
    rng = random.Random(SEED)
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for kind in KINDS:
        captions = [write_caption(description) for description in enumerate_descriptions(kind)]
        chosen = rng.sample(captions, sum(counts[kind] for counts in SPLITS.values()))
        for name, counts in SPLITS.items():
            splits[name] += chosen[: counts[kind]]
            chosen = chosen[counts[kind] :]
    for captions in splits.values():
        rng.shuffle(captions)
    return splits


def write_files(folder: Path) -> None:
    """Writes `train.txt`, `validation.txt` and `heldout.txt` to `folder`, one caption a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, captions in choose_captions().items():
        (folder / f"{name}.txt").write_text("".join(f"{text}\n" for text in captions), encoding="utf-8")


if __name__ == "__main__":
    write_files(DATA)
