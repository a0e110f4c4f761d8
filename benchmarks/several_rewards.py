"""Three rewards whose spreads are 1 : 100 : 0.01, learned together: GDPO against the weighted sum, as JSON and curves.

    python benchmarks/several_rewards.py [--seeds 1 2 3] [--iterations 20] [--out benchmarks/results]

On the embedded generator the three rewards are the brightness of a picture, red less blue, and green less the mean of both.
Their scales are chosen so that their standard deviations within groups, before training, are 1, 100 and 0.01; their weights are
1. A gain is the rise of the mean held-out reward (fixed prompts and noise) in units of that standard deviation: a reward is
learned where it gains. Writes several_rewards.json and several_rewards.svg: the gain by iteration, GDPO whole, the sum dashed,
the mean of the seeds.
"""

import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from line_chart import COLOURS, Style, chart
from report import argument_parser, machine, write_results

from flowfactory.config import loading
from flowfactory.rl.groups import group_std
from flowfactory.runs.train import train
from flowfactory.runs.versions import versions
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import prepare_run

PLUGIN = Path(__file__).parent / "attributes.py"
SPREADS = {"bright": 1.0, "warm": 100.0, "green": 0.01}
EVERY = 5


def settings(scales: dict[str, float]) -> list[str]:
    rewards = {label: {"name": "attribute", "what": label, "scale": scale} for label, scale in scales.items()}
    return [f"rewards={json.dumps(rewards)}", "evaluation.rewards={}", "sampling.keep_as=float32"]


def scales() -> dict[str, float]:
    """What gives each reward its spread within the groups of a first iteration."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*settings(dict.fromkeys(SPREADS, 1.0)), "seed=0", "sampling.groups=48", "prompts.heldout=null"]
        run = prepare_run(loading.load("quickstart", options, [PLUGIN], Path(folder) / "run"))
        run.assembly.hooks.run_started(run.info, run.policy)
        found = collect_rollouts(run, 0, Timer(torch.device("cpu"))).experience
    spreads = {label: float(group_std(found.rewards[label], found.groups).square().mean().sqrt()) for label in SPREADS}
    return {label: wanted / spreads[label] for label, wanted in SPREADS.items()}


def run(aggregate: str, seed: int, iterations: int, chosen: dict[str, float]) -> dict[str, Any]:
    """The gain of each reward at each evaluation."""
    options = [f"advantages.aggregate={aggregate}", f"seed={seed}", f"training.iterations={iterations}"]
    options += [f"evaluation.every={EVERY}", "evaluation.members=2", *settings(chosen)]
    with tempfile.TemporaryDirectory() as folder:
        directory = train(loading.load("quickstart", options, [PLUGIN], Path(folder) / "run"), say=lambda _: None)
        records = directory.records()
    evaluated = [record for record in records if "eval/bright/mean" in record]
    gains = {
        label: [
            [record["iteration"], round((record[f"eval/{label}/mean"] - evaluated[0][f"eval/{label}/mean"]) / spread, 3)]
            for record in evaluated
        ]
        for label, spread in SPREADS.items()
    }
    shares = {label: round(mean(record[f"advantage/{label}/share"] for record in records[1:]), 4) for label in SPREADS}
    return {"aggregate": aggregate, "seed": seed, "gains": gains, "shares_of_the_advantage": shares}


def main() -> None:
    parser = argument_parser(__doc__, seeds=[1, 2, 3])
    parser.add_argument("--iterations", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = scales()
    runs = [run(kind, seed, arguments.iterations, chosen) for kind in ("gdpo", "sum") for seed in arguments.seeds]
    curves = {
        (kind, label): [
            (points[0][0], mean(gain for _, gain in points))
            for points in zip(*(r["gains"][label] for r in runs if r["aggregate"] == kind), strict=True)
        ]
        for kind in ("gdpo", "sum")
        for label in SPREADS
    }
    result = {
        "spreads": SPREADS,
        "scales": {label: round(scale, 6) for label, scale in chosen.items()},
        "mean_gain": {f"{kind}, {label}": round(points[-1][1], 3) for (kind, label), points in curves.items()},
        "least_gain": {
            f"{kind}, {label}": min(r["gains"][label][-1][1] for r in runs if r["aggregate"] == kind) for kind, label in curves
        },
        "runs": runs,
        "machine": machine(),
        "versions": versions(),
    }
    styles = [Style(COLOURS[list(SPREADS).index(label)], kind == "sum") for kind, label in curves]
    drawn = chart(*curves.values(), styles=styles, width=640, height=320)
    text = write_results(arguments.out / "several_rewards.json", result)
    (arguments.out / "several_rewards.svg").write_text(drawn + "\n")
    print(text)


if __name__ == "__main__":
    main()
