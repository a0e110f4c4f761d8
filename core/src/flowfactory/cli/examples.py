"""What every ``--help`` ends with: two commands to copy, and where more is told."""

from __future__ import annotations

from collections.abc import Mapping

from flowfactory.docs_address import page

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "": ("flowfactory run quickstart", "flowfactory init --model flux1 --algorithm nft --reward ocr"),
    "run": ("flowfactory run quickstart --set training.iterations=2", "flowfactory run config.yaml --nproc 8 --out runs/first"),
    "init": ("flowfactory init", "flowfactory init --model flux1 --algorithm nft --reward ocr --memory 24GB"),
    "check": ("flowfactory check quickstart", "flowfactory check config.yaml --nproc 8 --memory 80GB"),
    "sample": ('flowfactory sample runs/first "a red circle"', "flowfactory sample runs/first --prompts more.txt --count 4"),
    "eval": ("flowfactory eval runs/first", "flowfactory eval runs/first --checkpoint best"),
    "export": ("flowfactory export runs/first lora", "flowfactory export runs/first lora --format comfyui"),
    "estimate": ("flowfactory estimate quickstart", "flowfactory estimate config.yaml --card 24 --nproc 8"),
    "report": ("flowfactory report runs/first", "flowfactory report runs/first runs/second --out page.html"),
    "runs": ("flowfactory runs", "flowfactory runs /data/runs"),
    "doctor": ("flowfactory doctor runs/first", "flowfactory doctor runs/first --json"),
    "schema": ("flowfactory schema", "flowfactory schema --plugin brightness.py"),
    "licences": ("flowfactory licences", "flowfactory licences --json"),
    "serve": ("flowfactory serve jpeg-size", "flowfactory serve ocr --set resolution=512 --port 8101"),
    "plugins": ("flowfactory plugins list", "flowfactory plugins show nft"),
    "plugins list": ("flowfactory plugins list", "flowfactory plugins list --kind reward --json"),
    "plugins show": ("flowfactory plugins show ocr", "flowfactory plugins show brightness --plugin brightness.py"),
    "plugins new": ("flowfactory plugins new reward sharpness", "flowfactory plugins new model sana --family --out packages"),
    "plugins check": ("flowfactory plugins check brightness", "flowfactory plugins check brightness.py --set target=0.8"),
    "cache": ("flowfactory cache", "flowfactory cache clear --older-than 30d"),
    "cache show": ("flowfactory cache show", "flowfactory cache"),
    "cache clear": ("flowfactory cache clear --older-than 30d", "flowfactory cache clear --yes"),
}
"""By the words of a command."""


def epilog(command: str) -> str | None:
    """What the help of ``command`` ends with; None where nothing is known of it."""
    if command not in EXAMPLES:
        return None
    return "\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[command]), "", f"More: {page('cli')} in the repository"])
