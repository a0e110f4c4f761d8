"""Peak memory and seconds of a run's start, with the conditions of its prompts in the cache and not, as JSON.

    python benchmarks/encode_cache.py [--prompts 64] [--rounds 3] [--out benchmarks/results]

Builds a Stable Diffusion 3 checkpoint of random weights whose text encoders are most of it, then starts a run up to its weights
being in place, in a fresh process each: cold, with an empty cache (the encoders are loaded, used and freed), and warm, with the
cache that this left (they are never loaded). Memory is the largest resident size beyond what the imports take. Writes
encode_cache.json and prints a table. Ratios are within a round; megabytes and seconds are of this machine and this checkpoint.
"""

import argparse
import json
import os
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from report import argument_parser, machine, resident, write_results

from flowfactory.config.loading import validate
from flowfactory.runs.versions import versions
from flowfactory.testing.two_parameter import FILE
from flowfactory.training.setup import prepare_run

SHARED = Path(__file__).parents[1] / "tests" / "shared"
T5_WIDTH, CLIP_WIDTH, LENGTH = 1024, 384, 32
WORDS = (("red", "blue", "green", "grey"), ("cat", "boat", "lamp", "tree", "house"), ("at dawn", "in snow", "on a hill"))


def build(folder: Path) -> None:
    """Save the checkpoint."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

    sys.path.insert(0, str(SHARED))
    from flowfactory.testing.tiny_checkpoints import kl_vae, sd3_transformer

    torch.manual_seed(0)
    letters = string.ascii_letters + string.digits + string.punctuation
    marks = ["<|startoftext|>", "<|endoftext|>"]
    clip_words = {word: i for i, word in enumerate([*letters, *(letter + "</w>" for letter in letters), *marks])}
    t5_words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -4.0) for letter in letters)]

    def clip() -> tuple[Any, Any]:
        tokenizer = CLIPTokenizer(vocab=clip_words, merges=[], model_max_length=LENGTH)
        sizes = {"hidden_size": CLIP_WIDTH, "intermediate_size": 4 * CLIP_WIDTH, "projection_dim": CLIP_WIDTH}
        depths = {"num_hidden_layers": 6, "num_attention_heads": 6, "max_position_embeddings": LENGTH}
        marked = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = CLIPTextConfig(**sizes, **depths, **marked)
        return CLIPTextModelWithProjection(config), tokenizer

    (text_encoder, tokenizer), (text_encoder_2, tokenizer_2) = clip(), clip()
    transformer = sd3_transformer(32, 16, 6, (8, 32), T5_WIDTH, 2 * CLIP_WIDTH)
    vae = kl_vae((32, 64), 16, shift=0.06)
    t5 = T5Config(
        d_model=T5_WIDTH,
        d_kv=64,
        d_ff=2816,
        num_layers=12,
        num_heads=16,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=T5EncoderModel(t5),
        tokenizer_3=T5Tokenizer(vocab=t5_words, extra_ids=0, additional_special_tokens=None, model_max_length=LENGTH),
    ).save_pretrained(folder)


def settings(folder: Path, count: int) -> dict[str, Any]:
    """The config of the run, whose checkpoint and prompts lie in ``folder``."""
    colours, things, places = WORDS
    lines = [f"{colours[i % 4]} {things[i % 5]} {places[i % 3]}, number {i}" for i in range(count)]
    (folder / "prompts.txt").write_text("\n".join(lines))
    return {
        "model": {"name": "sd3", "path": str(folder / "checkpoint"), "max_sequence_length": LENGTH},
        "algorithm": "grpo",
        "rewards": {"light": "bright"},
        "prompts": {"train": str(folder / "prompts.txt")},
        "sampling": {"size": [64, 64], "guidance": 4, "dynamics": "flow-sde"},
        "output": {"dir": str(folder / "run")},
        "plugins": [FILE],
        "device": "cpu",
    }


def start(config: Path) -> None:
    """Start the run and print what it took; what both kinds of start import is there before."""
    import diffusers
    import peft  # noqa: F401
    import transformers

    import flowfactory_sd3.sd3  # noqa: F401

    for module, names in (
        (diffusers, ("StableDiffusion3Pipeline",)),
        (transformers, ("CLIPTextModelWithProjection", "CLIPTokenizer", "T5EncoderModel", "T5Tokenizer")),
    ):
        for name in names:
            getattr(module, name)
    run_config = validate(json.loads(config.read_text()))
    before = resident("VmRSS")
    started = time.perf_counter()
    run = prepare_run(run_config)
    seconds = time.perf_counter() - started
    assert run.policy.parameters
    print(json.dumps({"seconds": round(seconds, 2), "peak_mb": round(resident("VmHWM") - before)}))


def measured(config: Path, cache: Path) -> dict[str, Any]:
    """A start in a process of its own."""
    known = len(list(cache.rglob("*.safetensors")))
    environment = {**os.environ, "FLOWFACTORY_CACHE": str(cache)}
    command = [sys.executable, __file__, "--start", str(config)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return {**found, "encoded": len(list(cache.rglob("*.safetensors"))) - known}


def megabytes(folder: Path, part: str) -> float:
    return round(sum(file.stat().st_size for file in folder.glob(f"{part}/*.safetensors")) / 2**20)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build or arguments.start:
        build(arguments.build) if arguments.build else start(arguments.start)
        return
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own, so that this one stays small
        subprocess.run([sys.executable, __file__, "--build", str(folder / "checkpoint")], check=True, stderr=subprocess.DEVNULL)
        config = folder / "config.json"
        config.write_text(json.dumps(settings(folder, arguments.prompts)))
        rounds = []
        for number in range(arguments.rounds):
            cold, warm = (measured(config, folder / f"cache-{number}") for _ in range(2))
            ratios = {f"{key}_ratio": round(warm[key] / cold[key], 3) for key in ("seconds", "peak_mb")}
            rounds.append({"cold": cold, "warm": warm, **ratios})
        parts = {part: megabytes(folder / "checkpoint", part) for part in ("text_encoder*", "transformer", "vae")}
    result = {
        "prompts": arguments.prompts,
        "checkpoint_mb": {"text_encoders": parts.pop("text_encoder*"), **parts},
        "seconds_ratio": median(found["seconds_ratio"] for found in rounds),
        "peak_mb_ratio": median(found["peak_mb_ratio"] for found in rounds),
        "rounds": rounds,
        "took_seconds": round(time.perf_counter() - began),
        "machine": machine(),
        "versions": versions(),
    }
    write_results(arguments.out / "encode_cache.json", result)
    print("| round | cache | encoded | seconds | peak MB |\n|---|---|---|---|---|")
    for number, found in enumerate(rounds, 1):
        for kind in ("cold", "warm"):
            values = found[kind]
            print(f"| {number} | {kind} | {values['encoded']} | {values['seconds']} | {values['peak_mb']} |")
    print(f"warm / cold, median: {result['seconds_ratio']} of the seconds, {result['peak_mb_ratio']} of the memory")


if __name__ == "__main__":
    main()
