"""The same config is the same work on one rank, two and three."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_flux
import tiny_qwen_image
import tiny_wan
import torch
from diffusers import FluxTransformer2DModel
from record_files import write_records
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowfactory.runs.directory import RunDirectory

RECORDER = str(Path(__file__).parent / "recorder.py")
LORA = {"lora": {"rank": 2, "alpha": 4}}
GRPO = {"name": "grpo", "clip_range": 0.05}
TIMES = {"name": "uniform", "count": 2}
GATED = {"coefficient": 0.5, "gate": {"share": 0.25}, "refresh": {"every": 3, "above": 1e-2}}
ADAPTIVE = {"name": "adaptive", "target": 1e-3, "start": 0.1}
NFT = {"name": "nft", "timesteps": TIMES}
SDE = {"name": "flow-sde", "noise_level": 0.7}
LATE = {**SDE, "sde_steps": [1]}
COUNTS = (1, 2, 3)
BASIC = ("lora-grpo", "full-grpo", "lora-nft", "full-nft")
HALF = {
    "training": {"precision": "bf16", "iterations": 2},
    "sampling": {"group_size": 3},
    "prompts": {"heldout": None},
}
BF16 = ("bf16-lora", "bf16-full")
NOT_TOLD = ("seconds/", "peak_memory_mb")
START = "adapters.safetensors"
"""Beside the runs: what some of them start from."""
RECORDS = {"train": "records.jsonl"}
"""Beside the runs: what some of them learn from, five prompts of as many lengths, with a picture of each kind."""
SOURCES = {"cats": "a cat\n", "rest": "a photo of a red circle\na dog in the rain, from far away\n"}
"""Beside the runs: the prompts of two teachers, and the adapters of each."""

# name: model, its options, algorithm, sections set on top
CASES: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
    "lora-grpo": ("flux1", LORA, GRPO, {"training": {"updates": 2, "epochs": 2}}),
    "full-grpo": ("flux1", "full", GRPO, {"training": {"updates": 2}}),
    "lora-nft": ("flux1", LORA, NFT, {"training": {"kept_on": "host"}}),
    "full-nft": ("flux1", "full", NFT, {"training": {"updates": 3}, "distributed": {"gather_to_sample": True}}),
    # the samples whose rewards disagree most are those of all ranks, and the copy that is taken anew is divided
    "gated": (
        "flux1",
        "full",
        GRPO | {"kl": GATED},
        {"training": {"updates": 2}, "rewards": {"watched": {"name": "contrast", "weight": 0}}},
    ),
    # the reference is by value, and divided
    "started": ("flux1", {"lora": {"from": START}}, GRPO | {"kl": 0.1}, {"training": {"updates": 2}}),
    # a rank may have no sample of a teacher that another one asks
    "taught": (
        "flux1",
        LORA,
        {"name": "opd", "self_normalize": True, "teacher_guidance": 2.0},
        {"sampling": {"groups": 5, "group_size": 1, "guidance": 3.0}, "training": {"updates": 2, "timesteps_per_forward": 2}},
    ),
    # and one that trains whole swaps what it started from in for them
    "taught whole": ("flux1", "full", {"name": "opd"}, {"sampling": {"groups": 5, "group_size": 1}}),
    # a group is larger than the samples of a forward, and than the share of a rank
    "dgpo": ("flux1", LORA, {"name": "dgpo", "kl": ADAPTIVE, "timesteps": TIMES}, {"sampling": {"groups": 1, "group_size": 7}}),
    "dpo": (
        "flux1",
        LORA,
        {"name": "dpo", "timesteps": TIMES},
        {"sampling": {"groups": 5, "group_size": 2, "dynamics": "dpm-solver"}},
    ),
    # texts of other lengths have forwards of their own, and so do experts
    "ragged": ("qwen-image", "full", GRPO | {"kl": 0.01}, {"sampling": {"guidance": 4.0, "group_size": 3}}),
    "experts": (
        "wan-t2v",
        LORA,
        NFT | {"kl": 0.1},
        {"sampling": {"size": [16, 16], "frames": 1, "guidance": 3.0, "dynamics": "heun"}},
    ),
    # a group is in parts of several batches and ranks, each of which draws its first step
    "prefix": (
        "qwen-image",
        "full",
        GRPO,
        {
            "sampling": {"guidance": 4.0, "shared_noise": "prefix", "dynamics": LATE},
            "evaluation": {"dynamics": "dpm-solver"},
        },
    ),
    # each rank writes back to the others what they drew: means, and log-densities
    "recomputed": (
        "flux1",
        LORA,
        {"name": "grpo-guard", "clip_range": 0.05, "kl": 0.01},
        {
            "training": {"recompute_log_prob": True, "batch_size": 2, "timesteps_per_forward": 2},
            "sampling": {"keep_on": "host", "group_size": 5},
        },
    ),
    # each prompt has a recorded step of its own
    "windows": (
        "flux1",
        LORA,
        {"name": "flash-grpo", "clip_range": 0.05},
        {"sampling": {"dynamics": SDE | {"num_sde_steps": 1}, "groups": 4, "group_size": 3}, "training": {"updates": 2}},
    ),
    # each role has weights and an optimizer of its own, which are divided as the student's are
    "roles": (
        "qwen-image",
        "full",
        {"name": "tdm-r1", "fake": {"steps": 2}, "teacher_guidance": 3.0},
        {"sampling": {"group_size": 3}, "training": {"updates": 2}},
    ),
    "adapted roles": ("flux1", LORA, {"name": "dmd2", "fake": {"steps": 2}}, {"training": {"updates": 2}, "rewards": {}}),
    "whole weights": ("flux1", "full", GRPO, {"distributed": {"shard": 1}, "training": {"updates": 2}}),
    "host": (
        "flux1",
        "full",
        NFT,
        {
            "training": {"kept_on": "host", "activation_checkpointing": "blocks"},
            "sampling": {"keep_on": "host"},
            "distributed": {"offload": True, "reward_ranks": "first"},
        },
    ),
    # its blocks of 256 stay whole on two ranks; three cut some, and then it follows one rank closely alone
    "8-bit": ("flux1", "full", GRPO, {"training": {"optimizer": {"name": "adamw8bit", "lr": 1e-4}}}),
    # every rank has other batches than one rank alone, and in bf16 they are other numbers
    "bf16-lora": ("flux1", LORA, GRPO, HALF),
    "bf16-full": ("flux1", "full", GRPO, HALF),
    # forwards with a graph are held beside others, and reference weights are swapped in meanwhile
    "kept graphs": (
        "flux1",
        "full",
        GRPO | {"kl": 0.01},
        {"training": {"keep_graphs": True, "batch_size": 4}, "sampling": {"batch_size": 4, "shared_noise": "start"}},
    ),
    # each rank leaves out blocks where its own samples allow it, of weights that all of them gather
    "left out": (
        "flux1",
        LORA,
        NFT,
        {"sampling": {"feature_cache": {"name": "first-block", "threshold": 0.5}, "steps": 6, "group_size": 3}},
    ),
    # two ranks share each forward: tokens of a picture and of a text; of texts that are padded for it; and of a video
    "divided": (
        "flux1",
        "full",
        GRPO,
        {
            "training": {"updates": 2, "activation_checkpointing": "blocks"},
            "distributed": {"context": 2, "shard": 1},
            "sampling": {"shared_noise": "prefix", "dynamics": LATE},
        },
    ),
    "divided ragged": (
        "qwen-image",
        "full",
        GRPO | {"kl": 0.01},
        {"sampling": {"size": [32, 32], "guidance": 4.0, "group_size": 3}, "distributed": {"context": 2}},
    ),
    "divided video": (
        "wan-t2v",
        LORA,
        NFT | {"kl": 0.1},
        {
            "sampling": {"size": [16, 32], "frames": 5, "guidance": 3.0},
            "distributed": {"context": 2, "reward_ranks": "first", "gather_to_sample": True},
        },
    ),
    # five records in two optimizer steps: whatever the ranks, one of them has nothing of its own in a forward
    "sft": ("qwen-image", "full", {"name": "sft"}, {"prompts": RECORDS, "sampling": {"groups": 5}, "training": {"updates": 2}}),
    "offline-dpo": (
        "flux1",
        LORA,
        {"name": "offline-dpo", "beta": 100},
        {"prompts": RECORDS, "sampling": {"groups": 5}, "training": {"updates": 2, "epochs": 2}},
    ),
    # the gradient of the algorithm is divided by the losses of all ranks before that of the records joins
    "regularised": (
        "flux1",
        "full",
        GRPO | {"kl": 0.01},
        {
            "prompts": RECORDS,
            "sampling": {"groups": 3},
            "training": {"updates": 2, "epochs": 2, "regularise": {"sft": 0.5}},
            "distributed": {"shard": 1},
        },
    ),
    # records are noised to where an expert is that does not train, too
    "regularised experts": (
        "wan-t2v",
        LORA,
        NFT | {"kl": 0},
        {
            "model": {"experts": "high"},
            "prompts": RECORDS,
            "sampling": {"size": [16, 16], "frames": 1, "groups": 3, "group_size": 3},
            "training": {"updates": 2, "regularise": {"sft": 0.5}},
        },
    ),
    "whole experts": ("wan-t2v", "full", NFT, {"distributed": {"shard": 1}, "sampling": {"size": [16, 16], "frames": 1}}),
}


# every one on two ranks; on three, which get unequal shares, each algorithm and each way to train once
THREE = ("lora-grpo", "full-nft")
# the rest by nox -s distributed on three; a mesh of two by two on four
SELDOM = ("regularised experts", "adapted roles")
"""By nox -s distributed alone: each is near to others."""
PAIRS = [
    (name, count) for name in CASES for count in COUNTS[1:] if name not in (*BF16, *SELDOM) and (name in THREE or count == 2)
]
EXACT = [name for name in CASES if name not in (*BF16, *SELDOM)]
DIVIDED = [name for name in CASES if name.startswith("divided")]
LONGER = (
    [(name, 3) for name in CASES if name not in (*THREE, *BF16, *DIVIDED, "8-bit", "kept graphs")]
    + [(name, 2) for name in SELDOM]
    + [(name, 4) for name in ("lora-grpo", "full-nft", "experts", "divided ragged", "divided video")]
)
every = pytest.mark.parametrize(
    ("name", "count"), [*PAIRS, *(pytest.param(*pair, marks=pytest.mark.distributed) for pair in LONGER)]
)


class Runs:
    """The run directories, made when they are asked for: all that a number of ranks does, in one group."""

    def __init__(self, together: Any, root: Path) -> None:
        self.root, self.together = root, together
        self.checkpoints = {
            "flux1": tiny_flux.flux1(root / "flux1"),
            "qwen-image": tiny_qwen_image.qwen_image(root / "qwen-image"),
            "wan-t2v": tiny_wan.text_to_video(root / "wan-t2v", "a14b"),
        }
        self.prompts = root / "prompts.txt"
        self.prompts.write_text("a cat\na photo of a red circle\na dog in the rain, from far away\n")
        write_records(root, ("target", "chosen", "rejected"))

        self.write_adapters(START, ("to_q", "to_k", "add_v_proj"), 7)
        self.write_adapters("cats.safetensors", ("to_q", "to_v"), 8)
        self.write_adapters("rest.safetensors", ("add_k_proj",), 9)
        for name, text in SOURCES.items():
            (root / f"{name}.txt").write_text(text)

    def write_adapters(self, file: str, kinds: tuple[str, ...], seed: int) -> None:
        source = torch.Generator().manual_seed(seed)
        layers = [f"transformer_blocks.{i}.attn.{name}" for i in (0, 1) for name in kinds]
        module = FluxTransformer2DModel.load_config(self.checkpoints["flux1"] / "transformer")
        width = module["attention_head_dim"] * module["num_attention_heads"]
        shapes = {"A": (3, width), "B": (width, 3)}
        save_file(
            {f"{x}.lora_{y}.weight": torch.randn(shapes[y], generator=source) / 10 for x in layers for y in shapes},
            self.root / file,
        )

    def __getitem__(self, run: tuple[str, int]) -> Path:
        name, count = run
        folder = self.root / f"{name}-{count}"
        if not folder.exists():
            longer = run in LONGER
            names = [other for other, n in (LONGER if longer else PAIRS) if n == count] if count > 1 else EXACT
            names = list(BF16) if name in BF16 else list(SELDOM) if name in SELDOM and count == 1 else names
            mesh = {"shard": 2, "replicate": 2} if count == 4 else {}
            self.together(count, [self.config(each, count, mesh) for each in names])
        return folder

    def config(self, name: str, count: int, mesh: Mapping[str, int]) -> dict[str, Any]:
        raw = config(name, self.checkpoints, self.prompts, self.root / f"{name}-{count}")
        chosen = raw.get("distributed", {}) | mesh
        return raw | {"distributed": chosen if count > 1 else {**chosen, "context": 1}}


@pytest.fixture(scope="module")
def runs(together: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(together, tmp_path_factory.mktemp("same-work"))


def config(name: str, checkpoints: Mapping[str, Path], prompts: Path, folder: Path) -> dict[str, Any]:
    model, training, algorithm, sections = CASES[name]
    options = {"max_sequence_length": 16} if model == "flux1" else {}
    raw: dict[str, Any] = {
        "model": {"name": model, "path": str(checkpoints[model]), "train": _placed(training, folder.parent), **options},
        "algorithm": algorithm,
        # beside drawing in some: each rank has a thread for its own groups
        "rewards": {"place": {"name": "recorder", "folder": str(folder / "seen"), "concurrent": name in ("dpo", "full-nft")}},
        "prompts": {"train": str(prompts), "heldout": str(prompts)},
        "sampling": {
            "groups": 2,
            "group_size": 4,
            "size": [16, 16],
            "steps": 3,
            "batch_size": 3,
            "dynamics": SDE if algorithm["name"].startswith("grpo") else "ode",
        },
        "training": {"iterations": 5 if name in BASIC else 3, "batch_size": 3, "optimizer": {"lr": 1e-3, "eps": 1e-4}},
        "output": {"dir": str(folder), "checkpoint_every": 100},
        "plugins": [RECORDER],
        "device": "cpu",
    }
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    raw["prompts"]["train"] = str(folder.parent / raw["prompts"]["train"])
    if algorithm["name"] == "opd":
        raw["algorithm"] = algorithm | {"teachers": {name: str(folder.parent / f"{name}.safetensors") for name in SOURCES}}
        raw["prompts"]["train"] = {name: {"file": str(folder.parent / f"{name}.txt")} for name in SOURCES}
    return raw


def _placed(training: Any, folder: Path) -> Any:
    """``training`` with START in ``folder``."""
    if training == "full" or "from" not in training["lora"]:
        return training
    return {"lora": training["lora"] | {"from": str(folder / training["lora"]["from"])}}


def movement(folder: Path, checkpoint: Path) -> Tensor:
    """How far the weights of a run have come from those of its checkpoint; of adapters, the part that begins at zero."""
    found = load_file(folder / "weights.safetensors")
    (file,) = (checkpoint / "transformer").glob("*.safetensors")
    start = {f"transformer.{key}": value.float() for key, value in load_file(file).items()}
    moved = [found[key] - start.get(key, 0) for key in sorted(found) if "lora_A" not in key]
    assert all(weight.dtype == torch.float32 for weight in moved)
    return torch.cat([weight.flatten() for weight in moved])


def seen(folder: Path) -> dict[str, list[tuple[float, Tensor]]]:
    """Every picture that the reward saw and its score, by its prompt."""
    found: dict[str, list[tuple[float, Tensor]]] = {}
    for file in sorted((folder / "seen").glob("*.pt")):
        for prompt, medium, score in zip(*torch.load(file), strict=True):
            found.setdefault(prompt, []).append((float(score), medium))
    return found


@every
def test_ranks_learn_what_one_does(name: str, count: int, runs: Runs) -> None:
    alone, several = runs[name, 1], runs[name, count]
    expected, got = (RunDirectory(folder).records() for folder in (alone, several))
    assert len(got) == len(expected) > 3
    for one, other in zip(expected, got, strict=True):
        told = {key for key in one if not key.startswith(NOT_TOLD)}
        assert told == {key for key in other if not key.startswith(NOT_TOLD)}
        for key in told:
            # a JPEG is of whole bytes, of which a last bit of a picture of 256 pixels may add or take one or two
            apart = 1 / 256 if "jpeg_bytes" in key else 2e-5
            assert other[key] == pytest.approx(one[key], rel=2e-3, abs=apart), (key, one["iteration"])
    weights, others = (load_file(folder / "weights.safetensors") for folder in (alone, several))
    assert weights.keys() == others.keys()
    apart = max(float((weights[key] - others[key]).abs().max()) for key in weights)
    assert apart < 2e-5, apart


@every
def test_ranks_draw_what_one_does_and_rewards_see_whole_groups(name: str, count: int, runs: Runs) -> None:
    alone, several = seen(runs[name, 1]), seen(runs[name, count])
    assert {prompt: len(found) for prompt, found in several.items()} == {prompt: len(found) for prompt, found in alone.items()}
    for prompt, found in alone.items():
        for score, medium in several[prompt]:
            apart, place = min((float((medium - other).abs().max()), i) for i, (_, other) in enumerate(found))
            assert apart < 1e-4
            # the place in the group, and ten times the brightness: of a part of the group it would be another
            assert score == pytest.approx(found[place][0], abs=1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize("name", BF16)
def test_in_bf16_two_ranks_go_where_one_does_but_for_rounding(name: str, runs: Runs) -> None:
    alone, several = (movement(runs[name, count], runs.checkpoints["flux1"]) for count in (1, 2))
    assert alone.norm() > 0
    assert float((several - alone).norm() / alone.norm()) < 0.05
    # preflight has let both pass; and of the first update, whose weights are those that drew
    for count in (1, 2):
        records = RunDirectory(runs[name, count]).records()
        assert all(record["ratio/max_deviation"] < 1e-3 for record in records[1:])
        assert [record["clip_fraction/first_update"] for record in records[1:]] == [0, 0]


@pytest.mark.parametrize("count", [1, 2])
def test_the_reference_of_a_kl_is_taken_anew_in_one_and_the_same_step(count: int, runs: Runs) -> None:
    records = RunDirectory(runs["gated", count]).records()[1:]
    assert [record["kl_reference/refreshed"] for record in records] == [1, 0, 1]  # too far, then three steps
    assert [record["kl_gate/share"] for record in records] == [0.25] * 3
    assert all(record["kl_gate/uncertainty"] > 0 for record in records)


@pytest.mark.parametrize("count", [1, 2])
def test_ratios_of_what_was_computed_again_are_one_to_the_bit_on_every_rank(count: int, runs: Runs) -> None:
    for record in RunDirectory(runs["recomputed", count]).records()[1:]:
        assert record["ratio/mean"] == 1
        assert record["ratio/max_deviation"] == 0
        assert record["ratio/sampling_deviation"] < 1e-5


def test_the_weights_of_a_run_move(runs: Runs) -> None:
    for name in EXACT:
        records = RunDirectory(runs[name, 1]).records()
        assert all(record["grad_norm"] > 0 for record in records[1:])
        assert records[0]["eval/place/mean"] != records[-1]["eval/place/mean"], name
