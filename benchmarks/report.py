"""What every benchmark says and writes: its options, its figures, and the machine that they were measured on."""

import argparse
import json
import math
import os
import platform
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from html import escape
from pathlib import Path
from statistics import stdev
from textwrap import wrap
from typing import Any

SCORE = "eval/strict/mean"
"""The held-out score of the tiny world in the records of a run."""
ALONE = "<style>svg:root{color:#1f2328}@media(prefers-color-scheme:dark){svg:root{color:#e6edf3}}</style>"
"""What an SVG needs where it is an image of its own, which has no page to take its colour from."""


def machine() -> dict[str, Any]:
    """Processor, threads and versions of the machine."""
    import torch  # not above: a benchmark may set the number of threads first

    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def measured_on() -> dict[str, Any]:
    """The machine, and the versions of the packages, which are not imported before."""
    from flowfactory.runs.versions import versions

    return {"machine": machine(), "versions": versions()}


def resident(which: str) -> float:
    """Megabytes of this process, VmRSS now or VmHWM at most."""
    # not getrusage: its maximum is the parent's where that was larger
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def argument_parser(text: str | None, seeds: Sequence[int] = ()) -> argparse.ArgumentParser:
    """A parser that shows ``text`` as it stands, with ``--out``, the folder of the figures, and ``--seeds`` where there are."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    if seeds:
        parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    return parser


def write_results(path: Path, result: dict[str, Any]) -> str:
    """Write ``result`` to ``path`` as JSON, whose text is returned."""
    text = json.dumps(result, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return text


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(map(str, cells))} |" for cells in rows)]
    return "\n".join(lines) + "\n"


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean of 2 to 5 ``values``, by Student's t."""
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
    return quantile[len(values)] * stdev(values) / math.sqrt(len(values))


def run_apart(run: Callable[..., dict[str, Any]], jobs: Iterable[Sequence[Any]], workers: int) -> Iterator[dict[str, Any]]:
    """What ``run(*job)`` gives of each of ``jobs``, as each ends: ``workers`` at a time, in processes of one thread."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with ProcessPoolExecutor(workers) as pool:
        for future in as_completed([pool.submit(run, *job) for job in jobs]):
            yield future.result()


def draw_sheet(rows: Mapping[str, Path], pictures: int, file: Path, width: int = 92) -> None:
    """Write ``file``, an SVG: the first ``pictures`` of each folder of samples in ``rows``, with their prompts below.

    A mark says which ones are strictly right. The text is for light and dark, alone or inside a page.
    """
    indices = [json.loads((folder / "index.json").read_text())[:pictures] for folder in rows.values()]
    left, top, side = 62, 4, width - 8
    height = top + width * len(rows) + 74
    drawn = ""
    for y, (label, folder, index) in enumerate(zip(rows, rows.values(), indices, strict=True)):
        drawn += f"<text x='0' y='{top + width * y + side / 2 + 4:.0f}' font-weight='600'>{escape(label)}</text>"
        for x, entry in enumerate(index):
            content = b64encode((folder / entry["file"]).read_bytes()).decode()
            at = f"x='{left + width * x}' y='{top + width * y}' width='{side}' height='{side}'"
            drawn += f"<image {at} style='image-rendering:pixelated' href='data:image/png;base64,{content}'/>"
            right = entry["scores"]["strict"] == 1
            mark = f"cx='{left + width * x + side - 9}' cy='{top + width * y + 9}' r='8'"
            drawn += f"<circle {mark} fill='{'#15803d' if right else '#b91c1c'}'/>"
            place = f"x='{left + width * x + side - 9}' y='{top + width * y + 13}' text-anchor='middle' fill='#fff'"
            drawn += f"<text {place} font-size='11'>{'✓' if right else '✗'}</text>"
    for x, entry in enumerate(indices[0]):
        for line, words in enumerate(wrap(entry["prompt"], 15)):
            place = f"x='{left + width * x}' y='{top + width * len(rows) + 10 + 13 * line}'"
            drawn += f"<text {place} font-size='11'>{escape(words)}</text>"
    box = f"viewBox='0 0 {left + width * pictures} {height}' role='img' font-family='sans-serif' font-size='13'"
    title = f"<title>The same prompts with the same noise: {', '.join(rows)}</title>"
    file.write_text(f"<svg xmlns='http://www.w3.org/2000/svg' {box} fill='currentColor'>{title}{ALONE}{drawn}</svg>\n")
