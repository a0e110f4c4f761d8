"""Files of rendered scenes to learn from: pictures with captions, and pairs of a right and a mistaken picture.

``python -m flowfactory_tiny.render_files FOLDER`` writes both for the training prompts of this package, and its prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from flowfactory_tiny import FOLDER
from flowfactory_tiny.scenes import compose, mistake, parse_caption, render


def write_pictures(folder: Path, captions: Sequence[str], each: int = 1, seed: int = 0) -> None:
    """``each`` pictures of every caption, with the caption in a ``.txt`` beside each: what ``prompts.train`` reads."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(caption for caption in captions for _ in range(each)):
        _save(render([compose(parse_caption(caption), rng)])[0], folder / f"{number:05d}.png")
        (folder / f"{number:05d}.txt").write_text(caption + "\n")


def write_pairs(folder: Path, captions: Sequence[str], seed: int = 0) -> Path:
    """``pairs.jsonl``: for every caption a picture that it is true of, ``chosen``, and a mistaken one, ``rejected``.

    The former is its ``target`` too.
    """
    rng = random.Random(seed)
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, caption in enumerate(captions):
        told = parse_caption(caption)
        line = {"prompt": caption}
        for key, shown in (("chosen", told), ("rejected", mistake(told, rng))):
            line[key] = f"pairs/{number:05d}-{key}.png"
            _save(render([compose(shown, rng, caption)])[0], folder / line[key])
        lines.append(json.dumps(line | {"target": line["chosen"]}))
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def _save(picture: Tensor, path: Path) -> None:
    pixels = picture.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0)
    Image.fromarray(pixels.contiguous().numpy()).save(path)


def main() -> None:
    """Write the files that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m flowfactory_tiny.render_files", description=__doc__)
    parser.add_argument("folder", type=Path, help="where pictures, pairs.jsonl, prompts.txt and heldout.txt are written")
    parser.add_argument("--each", type=int, default=2, help="pictures of every caption (2)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, written in (("train.txt", "prompts.txt"), ("heldout.txt", "heldout.txt")):
        shutil.copyfile(FOLDER / "data" / name, given.folder / written)
    captions = (given.folder / "prompts.txt").read_text().splitlines()
    write_pictures(given.folder / "pictures", captions, given.each, given.seed)
    file = write_pairs(given.folder, captions, given.seed)
    told = f"{len(captions) * given.each} pictures with captions in {given.folder / 'pictures'}"
    sys.stdout.write(f"{told}, {len(captions)} pairs in {file}, their prompts and held-out ones beside\n")


if __name__ == "__main__":
    main()
