"""What every benchmark says and writes: its options, its figures, and the machine that they were measured on."""

import argparse
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import stdev
from typing import Any

SCORE = "eval/strict/mean"
"""The held-out score of the tiny world in the records of a run."""


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


def draw_sheet(folders: Sequence[Path], pictures: int, file: Path) -> None:
    """Write the first ``pictures`` of each of ``folders``, a row each, to ``file``, a PNG, at twice their size."""
    from PIL import Image

    rows = [[Image.open(picture) for picture in sorted(folder.glob("*.png"))[:pictures]] for folder in folders]
    side = rows[0][0].width + 2
    sheet = Image.new("RGB", (side * pictures, side * len(rows)), (64, 64, 64))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * side + 1, y * side + 1))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(file, optimize=True)
