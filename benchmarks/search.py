"""A grid of hyper-parameters on the embedded generator, judged by prompts that are neither trained on nor held out.

    python benchmarks/search.py EXAMPLE NAME=VALUE[,VALUE …] … [--set a.b=value …] [--seeds 1] [--workers 2] [--out FOLDER]

    python benchmarks/search.py quickstart training.optimizer.lr=1e-4,2e-4 sampling.guidance=1,2

Runs the bundled example with every combination of the values, one thread a run, and evaluates it with 2 pictures for each of
the 150 validation prompts, before, at five places on the way and at the end. Adds to search.json, and writes docs/search.inc, a
table of all that is there; what is there already is not run again.
"""

import itertools
import json
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import SCORE, argument_parser, markdown, measured_on, run_apart

MEMBERS, PLACES = 2, 6
TABLE = Path(__file__).parents[1] / "docs" / "search.inc"


def run(example: str, options: Sequence[str], seed: int) -> dict[str, Any]:
    """One training: the validation scores on its way."""
    import torch

    from flowfactory.config import loading
    from flowfactory.runs.train import train
    from flowfactory_tiny.prompt_files import DATA

    torch.set_num_threads(1)
    fixed = [f"seed={seed}", f"evaluation.members={MEMBERS}", f"prompts.heldout={DATA / 'validation.txt'}"]
    iterations = loading.load(example, [*fixed, *options]).training.iterations
    fixed += [f"evaluation.every={max(1, iterations // PLACES)}", f"output.checkpoint_every={iterations}"]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = loading.load(example, [*fixed, *options], out=Path(folder) / "run")
        records = train(config, say=lambda _: None).records()
    return {
        "example": example,
        "options": list(options),
        "seed": seed,
        "validation": [[record["iteration"], round(record[SCORE], 4)] for record in records if SCORE in record],
        "reward": [round(record["reward/scene/mean"], 4) for record in records if record["iteration"]],
        "seconds": round(time.perf_counter() - started),
    }


def combinations(axes: Sequence[str]) -> list[list[str]]:
    """Every combination of the values in ``axes``, each NAME=VALUE,VALUE; a value in brackets or braces may have commas."""
    names, values = [], []
    for axis in axes:
        name, _, text = axis.partition("=")
        names.append(name)
        values.append([text] if text[:1] in "[{" else text.split(","))
    return [[f"{name}={value}" for name, value in zip(names, chosen, strict=True)] for chosen in itertools.product(*values)]


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs as Markdown: those of each example together, the best end first."""
    rows = []
    for found in sorted(runs, key=lambda r: (r["example"], -r["validation"][-1][1])):
        before, *way, after = (f"{100 * score:.1f}" for _, score in found["validation"])
        options = f"`{' '.join(found['options']) or 'as bundled'}`"
        rows.append((found["example"], options, found["seed"], before, ", ".join(way), after, found["seconds"]))
    return markdown(("example", "options", "seed", "before", "on the way", "after", "seconds"), rows)


def main() -> None:
    parser = argument_parser(__doc__, seeds=[1])
    parser.add_argument("example")
    parser.add_argument("axes", nargs="*", help="NAME=VALUE,VALUE")
    parser.add_argument("--set", action="append", default=[], dest="fixed", help="a.b=value, the same for all")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    file = chosen.out / "search.json"
    chosen.out.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = json.loads(file.read_text())["runs"] if file.exists() else []
    done = {(r["example"], shlex.join(r["options"]), r["seed"]) for r in runs}
    wanted = [(chosen.example, [*chosen.fixed, *axes], seed) for seed in chosen.seeds for axes in combinations(chosen.axes)]
    wanted = [(example, options, seed) for example, options, seed in wanted if (example, shlex.join(options), seed) not in done]
    for found in run_apart(run, wanted, chosen.workers):
        runs.append(found)
        print(table(runs[-1:]).splitlines()[-1], flush=True)
        file.write_text(json.dumps({"runs": runs, **measured_on()}) + "\n")
        TABLE.write_text(table(runs))
    print(table(runs))


if __name__ == "__main__":
    main()
