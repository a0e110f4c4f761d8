"""How long the report of a long run takes, and how large it gets: 10,000 iterations, 100 evaluations of 16 pictures.

    python benchmarks/long_report.py [--sides 64 512] [--out FOLDER]

The run directory is made of random figures and of waves with noise, pictures with their small copies as a run writes them.
``flowfactory report`` is a process of its own, whose processor seconds are counted: start-up, every figure, every picture.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from report import argument_parser, measured_on, write_results

from flowfactory.runs.report import small_copies

ITERATIONS, EVERY, PICTURES = 10_000, 100, 16
FIGURES = (
    *(f"reward/{label}/{figure}" for label in ("scene", "strict") for figure in ("mean", "std", "flat", "group_std")),
    *(f"advantages/{label}/share" for label in ("scene", "strict")),
    *("loss", "kl", "ratio/deviation", "clip_fraction", "grad_norm", "lr", "velocity_norm", "effective_sample_size"),
    *(f"seconds/{phase}" for phase in ("sample", "reward", "drift", "update")),
    *(f"drift/{name}/mean" for name in ("luma", "saturation", "edges", "entropy", "bytes", "grid", "distance")),
    *(f"grad_norm/block {i}" for i in range(20)),
)


def make_run(path: Path, side: int) -> None:
    """A run directory whose pictures are ``side`` pixels wide and high."""
    random = np.random.default_rng(0)
    path.mkdir()
    config = "model: {name: tiny}\nalgorithm: {name: nft}\nrewards: {scene: {name: scene}, strict: {name: scene}}\n"
    (path / "config.yaml").write_text(f"{config}training: {{iterations: {ITERATIONS}}}\n")
    with (path / "metrics.jsonl").open("w") as lines:
        for iteration in range(ITERATIONS + 1):
            record = {"iteration": iteration}
            if iteration:
                record |= dict(zip(FIGURES, random.normal(1, 0.1, len(FIGURES)).tolist(), strict=True))
            if iteration % EVERY == 0:
                record |= {"eval/strict/mean": 0.2 + iteration / 20_000, "eval/strict/std": 0.4, "eval/samples": 960}
                write_pictures(path / "samples" / f"{iteration:06d}", iteration, side, random)
            lines.write(json.dumps(record) + "\n")


def write_pictures(folder: Path, shift: int, side: int, random: np.random.Generator) -> None:
    """Those of one evaluation, and their index."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[0:side, 0:side] / side
    index = []
    for number in range(PICTURES):
        waves = np.stack([np.sin(6 * x + shift + number), np.cos(5 * y * x + number), np.sin(9 * (x + y) + shift)], -1)
        pixels = (128 + 100 * waves + random.normal(0, 6, waves.shape)).clip(0, 255).astype("uint8")
        file = folder / f"{number:03d}.png"
        Image.fromarray(pixels).save(file)
        small_copies.write(file)
        index.append({"file": file.name, "prompt": f"prompt {number}", "scores": {"strict": float(random.random())}})
    (folder / "index.json").write_text(json.dumps(index))


def measure(side: int) -> dict[str, float]:
    """Processor seconds, bytes of the page, and of the run's pictures how many evaluations it shows."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make_run(run, side)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "flowfactory", "report", str(run)], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        page = (run / "report.html").read_text()
        (names,) = [line.split('data-names="')[1].split('"')[0] for line in page.splitlines() if 'data-names="' in line][:1]
        return {
            "side": side,
            "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
            "megabytes": round((run / "report.html").stat().st_size / 1e6, 2),
            "evaluations_shown": 1 + len(names.split("|")),
        }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 512])
    chosen = parser.parse_args()
    sizes = {"iterations": ITERATIONS, "evaluations": ITERATIONS // EVERY + 1, "pictures": PICTURES}
    result = {**sizes, "reports": [measure(side) for side in chosen.sides], **measured_on()}
    print(write_results(chosen.out / "long_report.json", result))


if __name__ == "__main__":
    main()
