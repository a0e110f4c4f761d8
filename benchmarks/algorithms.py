"""Transformer forwards and backwards of one iteration of every algorithm, as JSON.

    python benchmarks/algorithms.py [--out benchmarks/results]

Runs four small iterations of each on the embedded generator and counts the third, in multiples of the pictures that the
iteration draws: 6.0 is six forwards a picture. "sample" draws, "train" is differentiable, "no_grad" is not. Writes
algorithms.json and prints it as a table. No figure depends on the machine.
"""

import tempfile
from pathlib import Path
from typing import Any

from report import argument_parser, write_results

from flowfactory.config import loading
from flowfactory.runs.train import train
from flowfactory.runs.versions import versions
from flowfactory.testing import ForwardCount

SDE, ODE = "{name: flow-sde, num_sde_steps: 2}", "ode"
VARIANTS = {
    "grpo": ("{name: grpo}", SDE),
    "grpo, kl": ("{name: grpo, kl: 0.01}", SDE),
    "grpo-guard": ("{name: grpo-guard}", SDE),
    "dppo": ("{name: dppo}", SDE),
    "nft": ("{name: nft}", ODE),
    "nft, kl": ("{name: nft, kl: 0.01}", ODE),
    "awm": ("{name: awm, kl: 0, ema_kl: 0, timesteps: uniform}", ODE),
    "awm, both kl": ("{name: awm, kl: 0.01, ema_kl: 0.01, timesteps: uniform}", ODE),
    "dpo": ("{name: dpo}", ODE),
    "dgpo": ("{name: dgpo}", ODE),
    "dgpo, groups spread": ("{name: dgpo}", ODE),
    "dgpo, kl": ("{name: dgpo, kl: 0.01}", ODE),
    "crd": ("{name: crd}", ODE),
    "crd, groups spread": ("{name: crd}", ODE),
    "crd, kl": ("{name: crd, kl: 0.01}", ODE),
}
PICTURES = 4 * 6
SMALL = ["sampling.groups=4", "sampling.group_size=6", "sampling.steps=4", "training.iterations=4", "prompts.heldout=null"]


def count(algorithm: str, dynamics: str, batch_size: int, updates: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        options = [*SMALL, f"algorithm={algorithm}", f"sampling.dynamics={dynamics}", f"training.updates={updates}"]
        options += [f"training.batch_size={batch_size}", "training.optimizer.lr=1e-5"]
        counted = ForwardCount()
        train(loading.load("quickstart", options, out=Path(folder) / "run"), observers=[counted], say=lambda _: None)
    found = counted.iterations[3]
    return {name: round(found.get(name, 0) / PICTURES, 3) for name in ("sample", "train", "no_grad", "backward")}


def main() -> None:
    parser = argument_parser(__doc__)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, (algorithm, dynamics) in VARIANTS.items():
        for updates in (1, 2):
            batch_size = 4 if "spread" in name else 12
            rows.append({"algorithm": name, "updates": updates} | count(algorithm, dynamics, batch_size, updates))
    print("| algorithm | updates | sample | train | no_grad | backward |\n|---|---|---|---|---|---|")
    for row in rows:
        print("|", " | ".join(str(value) for value in row.values()), "|")
    result = {"settings": SMALL, "pictures": PICTURES, "rows": rows, "versions": versions()}
    write_results(arguments.out / "algorithms.json", result)


if __name__ == "__main__":
    main()
