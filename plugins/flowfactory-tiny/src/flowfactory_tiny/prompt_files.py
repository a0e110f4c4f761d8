"""The prompt files of the package, chosen from all captions of `scenes`: `python -m flowfactory_tiny.prompt_files`."""

import random
from pathlib import Path

from flowfactory_tiny.scenes import KINDS, Kind, enumerate_descriptions, write_caption

DATA = Path(__file__).with_name("data")
SEED = 0
TRAIN: dict[Kind, int] = {"single": 180, "pair": 270, "counted": 150}
HELDOUT: dict[Kind, int] = {"single": 60, "pair": 90, "counted": 90}


def choose_captions() -> tuple[list[str], list[str]]:
    """600 training and 240 held-out captions, no caption twice; the kinds are mixed in a fixed random order."""
    rng = random.Random(SEED)
    train, heldout = [], []
    for kind in KINDS:
        chosen = rng.sample(
            [write_caption(description) for description in enumerate_descriptions(kind)], TRAIN[kind] + HELDOUT[kind]
        )
        train += chosen[: TRAIN[kind]]
        heldout += chosen[TRAIN[kind] :]
    rng.shuffle(train)
    rng.shuffle(heldout)
    return train, heldout


def write_files(folder: Path) -> None:
    """Writes `train.txt` and `heldout.txt` to `folder`, one caption a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, captions in zip(("train", "heldout"), choose_captions(), strict=True):
        (folder / f"{name}.txt").write_text("".join(f"{text}\n" for text in captions), encoding="utf-8")


if __name__ == "__main__":
    write_files(DATA)
