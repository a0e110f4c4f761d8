"""From what a trace found to the bytes of one rank: division over ranks, phases, and what rests where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flowfactory.config.schema import RunConfig
from flowfactory.runs.estimate.result import Estimate, Part
from flowfactory.runs.estimate.weights import DrawingCopy, Weights, part_on, reward_weight_bytes

RESTING = ("weights", "optimizer", "references and averages", "conditions", "decoder", "rewards", "weights that draw")
"""What is held in every phase after the weights are in place."""


@dataclass(frozen=True)
class Traced:
    """Bytes of one rank as a trace found them, weights before they are divided over ranks.

    kept: weights beside the present ones. decoder, encoders: their weights; encoding: what encoding takes beside them.
    conditions: of one prompt, in the mean, of ``train`` training and ``heldout`` held-out prompts; ``guided`` adds one. Those
    of an iteration and of the next are held.
    drawn: the most while forwards run; decoded: the most while media are decoded and scored; samples: what rests of an
    iteration's; graphs: those that they are drawn with; copy: the weights that draw. evaluated: the most while held-out prompts
    are drawn. packed: the most that a checkpoint copies at once of small tensors. activations: the most while losses are
    back-propagated, gradients among it.
    """

    weights: Weights
    kept: int
    decoder: int
    encoders: int
    encoding: float
    conditions: float
    train: int
    heldout: int
    guided: bool
    drawn: float
    decoded: float
    samples: float
    graphs: float
    copy: DrawingCopy
    evaluated: float
    packed: int
    activations: float


class Reckoning:
    """The bytes of the rank with the most, of ``ranks`` that divide the weights by ``shard``."""

    def __init__(self, traced: Traced, config: RunConfig, ranks: int, shard: int, cuda: bool) -> None:
        self._traced, self._config, self._ranks, self._cuda = traced, config, ranks, cuda
        weights, chosen = traced.weights, config.distributed
        self._own = weights.stored / shard + weights.alone
        self._gradients = weights.trained / shard
        roles = len(config.algorithm.roles)  # each with an optimizer, and in place of the policy's, which is copied
        self._moments = (1 + roles) * weights.optimizer / shard
        self._kept = (traced.kept + (weights.trained if roles else 0)) / shard
        self._divided = shard > 1 or chosen.offload
        # fused AdamW and the kernels of bitsandbytes write in place; on a CPU bitsandbytes makes five tensors
        in_place = cuda or config.training.optimizer.name == "adamw"
        self._stepping = 0 if in_place else 5 * weights.largest / shard
        self._flat = self._gradients if ranks > shard else 0  # those of all copies are summed as one
        self._draws = config.algorithm.learns_from == "samples"
        self._texts, self._held_texts = (  # of an iteration, and with those of the next, of which some may be the same
            (min(traced.train, count * config.sampling.groups) + traced.guided) * traced.conditions for count in (1, 2)
        )
        together = (config.evaluation.batch_size or config.sampling.batch_size) * ranks  # which are drawn at once
        self._shown = min(traced.heldout, math.ceil(together / config.evaluation.members)) * traced.conditions
        self._encodes_here, self._decodes_here = (
            not cuda or getattr(config.model, key, "device") == "device" for key in ("encoders_on", "decoder_on")
        )

    @property
    def _encodes_again(self) -> bool:
        """Whether the encoders come again once the weights are in place."""
        at_once = self._config.prompts.iterations_at_once(self._traced.train, self._config.sampling.groups)
        return at_once is not None and at_once < self._config.training.iterations

    def estimate(self) -> Estimate:
        """The parts, the most at once in each phase, and the most in host memory."""
        resting, unknown = self._resting()
        parts = resting | self._passing(resting["gradients"].device)
        return Estimate(
            parts={name: part for name, part in parts.items() if part.device or part.host},
            phases={name: round(size) for name, size in self._phases(resting).items()},
            host=round(self._host(resting)),
            machine=round(self._machine(resting)),
            cuda=self._cuda,
            ranks=self._ranks,
            unknown=unknown,
            encodes_again=self._encodes_again,
        )

    def _resting(self) -> tuple[dict[str, Part], tuple[str, ...]]:
        """What is held from one phase to the next, and the labels of rewards whose weights are not known."""
        config, traced, cuda = self._config, self._traced, self._cuda
        offload = config.distributed.offload
        rests = {  # bytes, and whether they are in host memory
            "weights": (self._own, offload),
            "gradients": (self._gradients, offload),
            "optimizer": (self._moments, offload or config.training.optimizer.paged),
            "references and averages": (self._kept, config.training.kept_on == "host" or offload),
            "samples": (traced.samples, config.sampling.keep_on == "host"),
        }
        parts = {name: part_on(not (cuda and on_host), size) for name, (size, on_host) in rests.items()}
        held = round(self._held_texts)
        parts["conditions"] = Part(round(self._texts), held) if cuda else Part(held)
        parts["kept graphs"] = Part(round(traced.graphs))
        parts["weights that draw"] = Part(round(traced.copy.stored))
        parts["decoder"] = part_on(self._decodes_here, traced.decoder)
        parts["rewards"], unknown = reward_weight_bytes(config, cuda)
        return parts, unknown

    @property
    def _to_draw(self) -> float:
        """Weights that are gathered or unpacked while drawing."""
        weights = self._traced.weights
        whole = weights.whole if self._config.distributed.gather_to_sample else weights.gathered
        return (whole if self._divided else 0) + max(weights.unpacked, self._traced.copy.unpacked)

    @property
    def _to_learn(self) -> float:
        """Weights that are gathered or unpacked, and gradients that are reduced, while learning."""
        weights = self._traced.weights
        return (weights.gathered + weights.reduced if self._divided else 0) + weights.unpacked

    @property
    def _copy(self) -> float:
        """What a checkpoint copies of what trains."""
        return self._gradients + self._kept + self._moments

    def _phases(self, resting: Mapping[str, Part]) -> dict[str, float]:
        """The most that the device holds at once in each phase."""
        traced, cuda = self._traced, self._cuda
        held = {name: part.device for name, part in resting.items()}
        always = sum(held[name] for name in RESTING)
        samples = held["samples"] + held["kept graphs"]
        learned = max(traced.activations, held["gradients"] + self._flat, held["gradients"] + self._stepping)
        encoding = self._encodes_here * (traced.decoder + traced.encoders + traced.encoding)
        beside = max(0, encoding - held["decoder"])  # which rests there anyway
        return {
            "read": 0 if cuda else traced.weights.read + traced.decoder,
            "encode": max(encoding + (not cuda) * traced.weights.early, self._encodes_again * (always + beside)),
            "sample": (always + samples + self._to_draw + traced.drawn) * self._draws,
            "decode": (always + samples + self._decodes_here * traced.decoded) * self._draws,
            # before the first update, beside the samples that it learns from
            "evaluate": always + self._to_draw + traced.evaluated + self._shown + self._config.evaluation.at_start * samples
            if traced.heldout
            else 0,
            "learn": always + samples + self._to_learn + learned,
            "save": always + traced.packed + (0 if cuda else self._copy),
        }

    @property
    def _placing(self) -> float:
        """What a rank has in host memory, where the device is another, while weights are placed a block at a time."""
        weights = self._traced.weights
        whole = self._own if self._config.distributed.offload else 0
        return max(weights.read, weights.early + weights.block + whole)

    def _host(self, resting: Mapping[str, Part]) -> float:
        """The most of its own that a rank has in host memory, where the device is another."""
        traced = self._traced
        encoding = 0 if self._encodes_here else traced.encoders + traced.encoding
        learning = sum(part.host for part in resting.values()) + self._encodes_again * encoding
        saving = learning + self._copy  # which is written while training goes on
        return max(self._placing, traced.weights.early + encoding, saving) if self._cuda else 0

    def _machine(self, resting: Mapping[str, Part]) -> float:
        """The most in host memory of a machine with all ranks, which share the files that weights are placed from."""
        return max(self._ranks * self._host(resting), self._ranks * self._placing + self._traced.weights.files) * self._cuda

    def _passing(self, gradients: int) -> dict[str, Part]:
        """What is there in some phases only; ``gradients`` are the device's, which the activations were counted with."""
        traced, unpacked = self._traced, self._traced.weights.unpacked
        return {
            "encoders": part_on(self._encodes_here, traced.encoders),
            "encoding": part_on(self._encodes_here, traced.encoding),
            "drawing": part_on(True, traced.drawn),
            "decoding": part_on(self._decodes_here, traced.decoded),
            "activations": part_on(True, max(0.0, traced.activations - gradients)),
            "communication": part_on(True, max(self._to_draw, self._to_learn) + self._flat - unpacked),
            "quantised layers, unpacked": part_on(True, unpacked),
        }
