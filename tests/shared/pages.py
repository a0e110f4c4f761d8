"""The pages of the documentation, the blocks of code on them, and the files that those are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from flowfactory_tiny.render_files import write_pairs, write_pictures

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READMES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("*/README.md"), *ROOT.glob("plugins/*/README.md")]
WRITTEN = [*PAGES, *READMES]


@dataclass(frozen=True)
class Block:
    page: Path
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file it is, if its first line says so: then it is whole."""
        match = re.match(r"# (\w+\.(?:py|yaml|toml))\n", self.text)
        return match.group(1) if match else None


def blocks_of(page: Path) -> list[Block]:
    """Those of code; what a directive makes is none."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(page, language, text) for language, text in found]


BLOCKS = [block for page in WRITTEN for block in blocks_of(page)]
WHOLE = {block.file: block for block in BLOCKS if block.file}


def write_files(folder: Path) -> None:
    """Every file of the pages, the prompts that their configs name, pictures of them, and teachers that are but looked for."""
    for name in ("text", "people"):
        (folder / f"{name}.safetensors").touch()
    for name, block in WHOLE.items():
        (folder / name).write_text(block.text, encoding="utf-8")
    for file, colour in {"prompts.txt": "red", "heldout.txt": "yellow"}.items():
        (folder / file).write_text(
            f"a {colour} circle on white\ntwo {colour} rings on black\na green square above a {colour} cross on gray\n",
            encoding="utf-8",
        )
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / file).write_bytes((folder / file).read_bytes())
    captions = (folder / "prompts.txt").read_text(encoding="utf-8").splitlines()
    write_pictures(folder / "data" / "pictures", captions)
    write_pairs(folder / "data", captions)
