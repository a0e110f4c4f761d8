"""A reward that is fooled, what says so and when, and what keeps the pictures: the bundled example `hacking`.

    python benchmarks/hacking.py [--seeds 1 2 3] [--workers 2] [--out FOLDER]

Trains with the share of the named colours as it is, with an adaptive KL and with NormGuard, one thread a run. Of every run: the
training reward, the held-out strict score on the way, and the iteration in which the drift alarm and the rule of `flowfactory
doctor` for fooled rewards first spoke. Writes hacking.json, and in docs hacking.inc, the table, and for the first seed
hacking_NAME.svg: some of the held-out prompts (columns) by evaluation (rows).
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from report import SCORE, argument_parser, draw_sheet, markdown, measured_on, run_apart, write_results

PAGES = Path(__file__).parents[1] / "docs"
VARIANTS: dict[str, list[str]] = {
    "as it is": [],
    "adaptive KL": ["algorithm.kl={name: adaptive, target: 0.02, start: 0.1}"],
    "NormGuard": ["algorithm.norm_guard=10"],
}
ROWS, PICTURES = 5, 8


def run(variant: str, seed: int) -> dict[str, Any]:
    """One training, and what it came to."""
    import torch

    from flowfactory.config import loading
    from flowfactory.drift.alarm import drift_alarms
    from flowfactory.runs.doctor.hacked import hacking_warnings
    from flowfactory.runs.train import train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = loading.load("hacking", [f"seed={seed}", *VARIANTS[variant]], out=Path(folder) / "run")
        directory = train(config, say=lambda _: None)
        records = directory.records()
        if seed == 1:
            folders = sorted((directory.path / "samples").glob("[0-9]*"))
            chosen = [folders[round(i * (len(folders) - 1) / (ROWS - 1))] for i in range(ROWS)]
            rows = {f"after {int(folder.name)}": folder for folder in chosen}
            draw_sheet(rows, PICTURES, PAGES / f"hacking_{variant.replace(' ', '_').lower()}.svg")
    alarms = drift_alarms(records)
    fallen = [record["iteration"] for at, record in enumerate(records) if any(hacking_warnings(records[: at + 1]))]
    return {
        "variant": variant,
        "options": VARIANTS[variant],
        "seed": seed,
        "reward": [round(record["reward/colour/mean"], 4) for record in records if record["iteration"]],
        "strict": [[record["iteration"], round(record[SCORE], 4)] for record in records if SCORE in record],
        "drift": [[alarm.iteration, alarm.name, round(alarm.z, 1)] for alarm in alarms],
        "held_out_fell": fallen[0] if fallen else None,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as Markdown, with means over the first and the last five iterations."""
    rows = []
    for found in runs:
        first, last = (sum(found["reward"][part]) / 5 for part in (slice(None, 5), slice(-5, None)))
        before, after = (f"{100 * found['strict'][at][1]:.1f} %" for at in (0, -1))
        drift = f"{found['drift'][0][0]}, {found['drift'][0][1].rpartition('/')[2]}" if found["drift"] else "none"
        fell = found["held_out_fell"] or "none"
        rows.append((found["variant"], found["seed"], f"{first:.3f}, {last:.3f}", before, after, drift, fell))
    told = ("drift alarm, iteration", "held-out fell, iteration")
    return markdown(("", "seed", "reward, first and last", "strict before", "after", *told), rows)


def main() -> None:
    parser = argument_parser(__doc__, seeds=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()

    runs: list[dict[str, Any]] = []
    for found in run_apart(run, [(name, seed) for name in VARIANTS for seed in chosen.seeds], chosen.workers):
        runs.append(found)
        print(json.dumps(found), flush=True)
        runs.sort(key=lambda found: (list(VARIANTS).index(found["variant"]), found["seed"]))
        write_results(chosen.out / "hacking.json", {"runs": runs, **measured_on()})
        (PAGES / "hacking.inc").write_text(table(runs))


if __name__ == "__main__":
    main()
