"""Bytes of optimizer state a weight, and what 8 bits learn against 32, as JSON.

    python benchmarks/optimizers.py [--seeds 1 2 3] [--steps 100] [--out benchmarks/results]

Trains all weights of the embedded generator's transformer by flow matching on pictures of its own, turned upside down, so that
there is something to learn: the same pictures for every run, another order and other noise for every seed. The loss is that of
pictures that were not trained on, with noise that does not change. Bytes are those of the optimizer's own tensors. "apart" is
the mean over the seeds of the loss with 8 bits less the loss with 32; "noise" is the standard deviation over the seeds with 32.
Writes optimizers.json and prints it as a table.
"""

import copy
import random
import time
from statistics import mean, stdev
from typing import Any

import torch
from report import argument_parser, machine, write_results
from torch import Tensor

from flowfactory.config.schema import TrainingConfig
from flowfactory.runs.versions import versions
from flowfactory.training import optimizers
from flowfactory_tiny import FOLDER, pretrain, scenes, untrained

OPTIMIZERS = {"adamw": 3e-4, "adamw8bit": 3e-4, "lion": 6e-5, "lion8bit": 6e-5}
PICTURES, HELD_OUT, BATCH = 320, 64, 16


def drawn(pipeline: Any) -> tuple[Tensor, list[str]]:
    """Latents of the generator's own pictures [B, 8, 8, 8], upside down, and their captions."""
    rng = random.Random(0)
    captions = [scenes.sample_scene(rng).caption for _ in range(PICTURES)]
    options = {"num_inference_steps": 8, "guidance_scale": 1.0, "height": untrained.SIZE, "width": untrained.SIZE}
    found = []
    for start in range(0, PICTURES, HELD_OUT):
        generator = torch.Generator().manual_seed(start)
        some = captions[start : start + HELD_OUT]
        found.append(
            pipeline(some, max_sequence_length=1, output_type="latent", generator=generator, return_dict=False, **options)[0]
        )
    return torch.cat(found).flip(2), captions


def held_out(pipeline: Any, latents: Tensor, captions: list[str]) -> float:
    with torch.no_grad():
        losses = [
            pretrain.flow_loss(pipeline, latents[-HELD_OUT:], captions[-HELD_OUT:], torch.Generator().manual_seed(place))
            for place in range(8)
        ]
    return mean(float(loss) for loss in losses)


def run(name: str, seed: int, steps: int, start: Any, latents: Tensor, captions: list[str]) -> dict[str, Any]:
    pipeline = copy.copy(start)
    pipeline.transformer = copy.deepcopy(start.transformer).requires_grad_(True)
    parameters = dict(pipeline.transformer.named_parameters())
    chosen = TrainingConfig.model_validate({"optimizer": {"name": name, "lr": OPTIMIZERS[name]}}).optimizer
    optimizer = optimizers.build(chosen, parameters)
    generator = torch.Generator().manual_seed(seed)
    before = held_out(pipeline, latents, captions)
    started = time.perf_counter()
    for step in range(steps):
        rows = torch.randint(PICTURES - HELD_OUT, (BATCH,), generator=generator)
        loss = pretrain.flow_loss(pipeline, latents[rows], [captions[row] for row in rows.tolist()], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step(chosen.lr * (1 - step / steps))
    seconds = time.perf_counter() - started
    state = sum(value.nbytes for key, value in optimizer.state().items() if not key.endswith("/step"))
    return {
        "optimizer": name,
        "seed": seed,
        "weights": sum(parameter.numel() for parameter in parameters.values()),
        "state_bytes": state,
        "before": before,
        "after": held_out(pipeline, latents, captions),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argument_parser(__doc__, seeds=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    from diffusers import StableDiffusion3Pipeline

    start = StableDiffusion3Pipeline.from_pretrained(FOLDER / "pipeline", text_encoder_3=None, tokenizer_3=None).to(
        torch.float32
    )
    start.set_progress_bar_config(disable=True)
    for part in (start.text_encoder, start.text_encoder_2, start.transformer):
        part.requires_grad_(False)
    latents, captions = drawn(start)
    runs = [run(name, seed, arguments.steps, start, latents, captions) for name in OPTIMIZERS for seed in arguments.seeds]

    after = {name: [r["after"] for r in runs if r["optimizer"] == name] for name in OPTIMIZERS}
    rows: list[dict[str, Any]] = []
    for name, losses in after.items():
        one = next(r for r in runs if r["optimizer"] == name)
        rows.append(
            {
                "optimizer": name,
                "bytes_a_weight": round(one["state_bytes"] / one["weights"], 3),
                "before": round(one["before"], 5),
                "after": round(mean(losses), 5),
            }
        )
        if exact := after.get(name.removesuffix("8bit")) if name.endswith("8bit") else None:
            rows[-1]["apart"] = round(mean(a - b for a, b in zip(losses, exact, strict=True)), 5)
            rows[-1]["noise"] = round(stdev(exact), 5)
    result = {"steps": arguments.steps, "batch": BATCH, "rates": OPTIMIZERS, "rows": rows, "runs": runs}
    write_results(arguments.out / "optimizers.json", result | {"machine": machine(), "versions": versions()})
    print("| optimizer | bytes a weight | before | after | apart | noise |\n|---|---|---|---|---|---|")
    for row in rows:
        print("|", " | ".join(str(row.get(key, "")) for key in (*rows[0], "apart", "noise")), "|")


if __name__ == "__main__":
    main()
