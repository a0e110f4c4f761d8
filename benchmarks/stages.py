"""A project in stages on the embedded generator: fine-tuning, learning from there, few-step students, one of two teachers.

    python benchmarks/stages.py [--seeds 1 2 3] [--only base start …] [--workers 1] [--out FOLDER]

One thread a run; the held-out strict score is of 2 pictures for each of 240 prompts, with noise that does not change. Stages
that need another's adapters train those first, and tell of them too. Writes stages.json, run by run; what is there already is
not run again.

sft: LoRA on two rendered pictures of each training prompt. base, start: CRD for as many pictures, from the generator and from
that LoRA. tdm: a student that draws in 4 steps, of the generator in 10 steps under guidance 2; tdm-r1: it goes on from that
student, with a reward. count, other: specialists, by V-GRPO on the prompts that count and on the others; opd: one student of
both, from the generator. The held-out score of these three is of 4 pictures for each prompt.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report import argument_parser, measured_on, run_apart

STAGES = ("sft", "base", "start", "tdm", "tdm-r1", "count", "other", "opd")
BEFORE = {"start": ("sft",), "tdm-r1": ("tdm",), "opd": ("count", "other")}
LORA = {"lora": {"rank": 16, "alpha": 32}}
CRD = {"name": "crd", "timesteps": {"name": "uniform", "count": 2, "shared": True}}
SCORED = {"strict": {"name": "scene", "mode": "strict"}}
LEARNED = {"scene": {"name": "scene", "mode": "partial"}, **SCORED}
DRAWN = {"groups": 16, "group_size": 12, "size": [32, 32], "steps": 8, "guidance": 1, "batch_size": 192, "dynamics": "ode"}
MEMBERS, OF_SPECIALISTS = 2, 4


def run(stage: str, seed: int) -> list[dict[str, Any]]:
    """The stages before one and itself: held-out scores before and after each, of all prompts and of each source."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_files(folder)
        return [_train(each, seed, folder) for each in (*BEFORE.get(stage, ()), stage)]


def _train(stage: str, seed: int, folder: Path) -> dict[str, Any]:
    from flowfactory.config.loading import validate
    from flowfactory.runs.train import train

    records = train(validate(_config(stage, seed, folder), folder=folder), say=lambda _: None).records()
    scores = [{key: value for key, value in record.items() if key.endswith("eval/strict/mean")} for record in records]
    held_out = [score for score in scores if score]
    found = {"stage": stage, "seed": seed, "before": held_out[0], "after": held_out[-1]}
    return found | ({"teacher": _teacher(seed, folder)} if stage.startswith("tdm") else {})


def _config(stage: str, seed: int, folder: Path) -> dict[str, Any]:
    """The config of a stage, whose run goes to ``folder / stage``."""
    raw: dict[str, Any] = {
        "model": {"name": "tiny", "train": LORA},
        "algorithm": CRD,
        "rewards": LEARNED,
        "prompts": {"train": "train.txt", "heldout": "heldout.txt"},
        "sampling": DRAWN,
        "training": {"iterations": 30, "updates": 4, "batch_size": 48, "optimizer": {"lr": 1e-3}, "warmup": 5},
        "evaluation": {"rewards": SCORED, "members": MEMBERS},
        "output": {"dir": str(folder / stage), "checkpoint_every": 1000},
        "seed": seed,
        "device": "cpu",
    }
    if stage == "sft":
        raw |= {"algorithm": "sft", "rewards": {}, "prompts": raw["prompts"] | {"train": "pictures"}}
        raw["sampling"] = DRAWN | {"groups": 96}
        raw["training"] = {"iterations": 60, "batch_size": 96, "optimizer": {"lr": 1e-3}, "warmup": 5}
    elif stage == "start":
        raw["model"] = {"name": "tiny", "train": {"lora": {"from": str(folder / "sft")}}}
    elif stage in ("tdm", "tdm-r1"):
        raw["algorithm"] = {"name": stage, "teacher_guidance": 2}
        raw["sampling"] = DRAWN | {"groups": 8, "steps": 4}
        raw["training"] = {"iterations": 60, "batch_size": 96, "optimizer": {"lr": 1e-3}}
        if stage == "tdm-r1":  # whose teacher is the generator without the adapters
            raw["model"] = {"name": "tiny", "train": {"lora": {"from": str(folder / "tdm")}}}
            raw["algorithm"] |= {"fake": {"steps": 5, "lr": 1e-3}, "surrogate": {"steps": 1, "lr": 1e-3}}
            raw["training"]["optimizer"] = {"lr": 2.5e-4}
    elif stage in ("count", "other"):
        raw |= {"algorithm": "v-grpo", "prompts": {"train": {stage: _source(stage)}}}
        raw["training"] |= {"iterations": 40, "optimizer": {"lr": 5e-4}, "decay": "cosine"}
    elif stage == "opd":
        raw["training"]["iterations"] = 60
        teachers = {name: str(folder / name) for name in ("count", "other")}
        raw |= {"algorithm": {"name": "opd", "teachers": teachers}, "rewards": {}}
        raw["prompts"] = {"train": {name: _source(name) for name in teachers}}
    if stage in ("count", "other", "opd"):
        raw["evaluation"] |= {"members": OF_SPECIALISTS}
    return raw


def _source(name: str) -> dict[str, str]:
    return {"file": f"{name}.txt", "heldout": f"heldout-{name}.txt"}


def _write_files(folder: Path) -> None:
    """Prompts, all and by kind, and two rendered pictures of each that is trained on."""
    from flowfactory_tiny import FOLDER
    from flowfactory_tiny.render_files import write_pictures
    from flowfactory_tiny.scenes import parse_caption

    for name, prefix in (("train", ""), ("heldout", "heldout-")):
        captions = (FOLDER / "data" / f"{name}.txt").read_text().splitlines()
        counted = [caption for caption in captions if parse_caption(caption).kind == "counted"]
        others = [caption for caption in captions if caption not in set(counted)]
        for file, lines in ((name, captions), (f"{prefix}count", counted), (f"{prefix}other", others)):
            (folder / f"{file}.txt").write_text("\n".join(lines) + "\n")
    write_pictures(folder / "pictures", (folder / "train.txt").read_text().splitlines(), each=2)


def _teacher(seed: int, folder: Path) -> float:
    """The held-out score of the generator in 10 steps under guidance 2."""
    from flowfactory.config.loading import validate
    from flowfactory.training.evaluation import evaluate
    from flowfactory.training.setup import prepare_run

    raw = _config("base", seed, folder)
    raw["evaluation"] = raw["evaluation"] | {"steps": 10, "guidance": 2}
    made = prepare_run(validate(raw, folder=folder))
    figures: Mapping[str, float] = evaluate(made.sampler, made.assembly, made.config, made.heldout, keep=0).metrics()
    return figures["eval/strict/mean"]


def main() -> None:
    parser = argument_parser(__doc__, seeds=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=[name for name in STAGES if name not in sum(BEFORE.values(), ())])
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    file = chosen.out / "stages.json"
    runs: list[dict[str, Any]] = json.loads(file.read_text())["runs"] if file.exists() else []
    done = {(r["stage"], r["seed"]) for r in runs}
    wanted = [(stage, seed) for seed in chosen.seeds for stage in chosen.only if (stage, seed) not in done]
    for found in run_apart(run, wanted, chosen.workers):
        print(found, flush=True)
        runs += [each for each in found if (each["stage"], each["seed"]) not in done]
        done |= {(each["stage"], each["seed"]) for each in found}
        runs.sort(key=lambda r: (STAGES.index(r["stage"]), r["seed"]))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({"members": MEMBERS, "members_of_specialists": OF_SPECIALISTS, "runs": runs, **measured_on()}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
