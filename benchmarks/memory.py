"""What `flowfactory estimate` says of released models on released cards, as JSON and as the table of docs/memory.md.

    python benchmarks/memory.py [--only NAME …] [--out benchmarks/results]

The checkpoints are folders of configs, as published, without weights, with made-up tokenizers, whose texts are padded to the
same lengths. The figures are estimates: benchmarks/estimate.py tells how near such estimates came where runs could be measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from report import argument_parser, write_results
from transformers import CLIPTextConfig, T5Config, UMT5Config

from flowfactory.config import loading as configs
from flowfactory.runs.estimate.estimate import estimate
from flowfactory.runs.estimate.result import GIB
from flowfactory.runs.estimate.table import verdict

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "shared"))
from flowfactory.testing.tiny_checkpoints import clip_tokenizer, t5_tokenizer

XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
FLUX_SCHEDULE = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
FLUX_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def flux(folder: Path) -> None:
    """FLUX.1-dev: 19 double and 38 single blocks of width 3072, T5-XXL and CLIP-L."""
    parts = {
        "scheduler": FlowMatchEulerDiscreteScheduler(**FLUX_SCHEDULE),
        "vae": _bare(AutoencoderKL, **FLUX_VAE),
        "text_encoder": CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
        "tokenizer": clip_tokenizer(77),
        "text_encoder_2": T5Config(vocab_size=32128, **XXL),
        "tokenizer_2": t5_tokenizer(512),
        "transformer": _bare(FluxTransformer2DModel, guidance_embeds=True),
    }
    _write(folder, "FluxPipeline", parts, {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"})


def wan(folder: Path) -> None:
    """Wan2.1-T2V-14B: 40 blocks of width 5120, UMT5-XXL."""
    parts = {
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        "vae": _bare(AutoencoderKLWan),
        "text_encoder": UMT5Config(vocab_size=256384, **XXL),
        "tokenizer": t5_tokenizer(512),
        "transformer": _bare(WanTransformer3DModel),
    }
    _write(folder, "WanPipeline", parts, {"text_encoder": "UMT5EncoderModel"})


def _bare(kind: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return kind(**options)


def _write(folder: Path, pipeline: str, parts: dict[str, Any], encoders: dict[str, str]) -> None:
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.35.0"}
    for name, part in parts.items():
        of_diffusers = hasattr(part, "save_config")
        (part.save_config if of_diffusers else part.save_pretrained)(folder / name)
        index[name] = ["diffusers" if of_diffusers else "transformers", encoders.get(name, type(part).__name__)]
    (folder / "model_index.json").write_text(json.dumps(index))


CHECKPOINTS = {"flux1": flux, "wan-t2v": wan}
PICTURE = {"groups": 48, "group_size": 16, "size": [512, 512], "steps": 10, "guidance": 3.5, "keep_on": "host"}
VIDEO = {"groups": 16, "group_size": 8, "size": [480, 832], "frames": 81, "steps": 20, "guidance": 5.0, "keep_on": "host"}
SPARING = {"precision": "bf16", "activation_checkpointing": "blocks"}
LORA = {"lora": {"rank": 32, "alpha": 64}}

CASES: dict[str, dict[str, Any]] = {
    "FLUX.1-dev, LoRA, one 24 GB card": {
        "ranks": 1,
        "card": 24,
        "model": {"name": "flux1", "train": LORA, "quantize": "nf4", "decode_batch_size": 1},
        "sampling": {**PICTURE, "batch_size": 2},
        "training": {**SPARING, "batch_size": 2, "optimizer": "adamw8bit"},
    },
    "FLUX.1-dev, LoRA, one 80 GB card": {
        "ranks": 1,
        "card": 80,
        "model": {"name": "flux1", "train": LORA},
        "sampling": {**PICTURE, "batch_size": 8},
        "training": {**SPARING, "batch_size": 8},
    },
    "FLUX.1-dev, full, eight 80 GB cards": {
        "ranks": 8,
        "card": 80,
        "model": {"name": "flux1", "train": "full"},
        "sampling": {**PICTURE, "batch_size": 8},
        "training": {**SPARING, "batch_size": 4, "optimizer": {"name": "adamw", "lr": 1e-5}},
    },
    "Wan2.1-T2V-14B, LoRA, one 80 GB card": {
        "ranks": 1,
        "card": 80,
        "model": {"name": "wan-t2v", "train": LORA, "quantize": "nf4", "decode_batch_size": 1},
        "sampling": {**VIDEO, "batch_size": 1},
        "training": {**SPARING, "batch_size": 1},
    },
    "Wan2.1-T2V-14B, LoRA, eight 80 GB cards": {
        "ranks": 8,
        "card": 80,
        "model": {"name": "wan-t2v", "train": LORA, "decode_batch_size": 1},
        "sampling": {**VIDEO, "batch_size": 1},
        "training": {**SPARING, "batch_size": 1},
    },
}


def foretold(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What ``estimate`` says of ``case``, with the checkpoints in ``folder``."""
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    raw = {
        "model": {**case["model"], "path": str(folder / case["model"]["name"])},
        "algorithm": {"name": "grpo"},
        "rewards": {"size": {"name": "jpeg-size"}},
        "prompts": {"train": str(folder / "prompts.txt")},
        "sampling": {**case["sampling"], "dynamics": {"name": "flow-sde", "sde_steps": [1, 2, 3], "num_sde_steps": 1}},
        "training": case["training"],
        "output": {"dir": str(folder / "run")},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    config = configs.load(path)
    found = estimate(config, case["ranks"], cuda=True)
    return {
        "settings": {key: case[key] for key in ("model", "sampling", "training", "ranks")},
        "gib": {
            "parts": {name: [round(size / GIB, 2) for size in (part.device, part.host)] for name, part in found.parts.items()},
            "phases": {name: round(size / GIB, 2) for name, size in found.phases.items()},
            "peak": round(found.peak / GIB, 2),
            "needed": round(found.needed / GIB, 2),
            "host": round(found.host / GIB, 2),
        },
        # cards are sold by 10^9 bytes, or somewhat less than their name says
        "verdict": verdict(found, config, round(case["card"] * 0.93 * GIB)),
    }


def table(found: dict[str, Any]) -> str:
    """Markdown, a row a case."""
    head = "| run | weights | optimizer | activations | encode | sample | decode | learn | needed | host |"
    lines = [head, "|---|" + "---:|" * 9]
    for name, case in found.items():
        gib = case["gib"]
        cells = [gib["parts"].get(part, [0])[0] for part in ("weights", "optimizer", "activations")]
        cells += [gib["phases"][phase] for phase in ("encode", "sample", "decode", "learn")] + [gib["needed"], gib["host"]]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, make in CHECKPOINTS.items():
            make(Path(name) / kind)
        for key in arguments.only:
            found[key] = foretold(CASES[key], Path(name))
            print(f"{key}: {found[key]['verdict']}", file=sys.stderr)
    write_results(arguments.out / "memory.json", {"estimated": found})
    print(table(found))


if __name__ == "__main__":
    main()
