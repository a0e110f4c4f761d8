"""An estimate as people read it: the table, the verdict, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfactory.control_characters import one_line
from flowfactory.runs.estimate.result import GIB, Estimate

if TYPE_CHECKING:
    from rich.table import Table

    from flowfactory.config.schema import RunConfig


def remedies(found: Estimate, config: RunConfig) -> list[str]:
    """Keys that make the largest phase smaller, what helps most first; off-loading, which is slow, comes last."""
    training, sampling, model, shares = config.training, config.sampling, config.model, found.parts
    phase = max(found.phases, key=lambda name: found.phases[name])

    def size(*names: str) -> float:
        return sum(shares[name].device for name in names if name in shares)

    def is_set(key: str, value: object) -> bool:
        return getattr(model, key, value) == value  # not every model has these keys

    drawing, whole, adapters = size("drawing", "decoding"), size("weights", "gradients", "optimizer"), model.train != "full"
    by_phase: dict[str, list[tuple[bool, float, str]]] = {
        "encode": [
            (not is_set("encoders_on", "host"), size("encoders", "encoding"), "model.encoders_on: host"),
            (found.encodes_again, size("weights", "optimizer"), "prompts.encode_ahead: all"),
        ],
        "sample": [(sampling.batch_size > 1, drawing / 2, "a smaller sampling.batch_size")],
        "decode": [
            (sampling.batch_size > 1, drawing / 2, "a smaller sampling.batch_size"),
            (not is_set("decode_batch_size", 1), drawing / 2, "model.decode_batch_size: 1"),
            (not is_set("tiling", True), drawing / 2, "model.tiling: true"),
            (not is_set("decoder_on", "host"), size("decoder", "decoding"), "model.decoder_on: host"),
        ],
        "evaluate": [
            ((config.evaluation.batch_size or sampling.batch_size) > 1, drawing / 2, "a smaller evaluation.batch_size")
        ],
        "learn": [
            (training.activation_checkpointing == "none", size("activations"), "training.activation_checkpointing: blocks"),
            (training.batch_size > 1, size("activations") / 2, "a smaller training.batch_size"),
        ],
    }
    resting = [
        (adapters and model.quantize is None, size("weights") * 2 / 3, "model.quantize: nf4"),
        (not adapters, whole / 2, "model.train: {lora: {}}"),
        (True, whole * 3 / 4, "more ranks, which share the weights (--nproc)"),
        (training.optimizer.bits == 32, size("optimizer") * 3 / 4, "training.optimizer: adamw8bit"),
        (training.kept_on == "device", size("references and averages"), "training.kept_on: host"),
        (training.keep_graphs, size("kept graphs"), "training.keep_graphs: false"),
        (sampling.weights_as is not None, size("weights that draw"), "sampling.weights_as: null"),
        (sampling.keep_on == "device", size("samples"), "sampling.keep_on: host"),
        (training.precision == "float32", size("weights") / 2, "training.precision: bf16"),
    ]
    options = by_phase.get(phase, []) + (resting if phase != "encode" or found.encodes_again else [])
    helps = sorted((-saved, key) for open, saved, key in options if open and saved > found.needed / 50)
    last = ["distributed.offload: true"] if phase != "encode" and whole and not config.distributed.offload else []
    return [key for _, key in helps] + last


def format_bytes(size: float) -> str:
    """``size`` bytes, as people read them."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 2**10:.1f} KiB"


def table(found: Estimate) -> Table:
    """Bytes per rank: what holds them, then the most at once in each phase."""
    from rich.table import Table

    rows = Table(title=f"estimated bytes per rank, {found.ranks} rank{'s' if found.ranks > 1 else ''}")
    for name in ("", "device", *(("host",) if found.cuda else ())):
        rows.add_column(name, justify="right" if name else "left")
    for name, part in found.parts.items():
        rows.add_row(name, *(format_bytes(size) if size else "" for size in (part.device, part.host)[: 1 + found.cuda]))
    if found.unknown:
        rows.add_row(one_line(f"rewards {', '.join(found.unknown)}"), "not known")
    rows.add_section()
    for name, size in found.phases.items():
        if size:
            rows.add_row(f"most at once: {name}", format_bytes(size))
    rows.add_section()
    rows.add_row("peak", format_bytes(found.peak), *((format_bytes(found.host),) if found.cuda else ()))
    if found.cuda:
        rows.add_row("host memory of a machine with all ranks", "", format_bytes(found.machine))
    return rows


def verdict(found: Estimate, config: RunConfig, card: int) -> str:
    """Whether a card of ``card`` bytes holds the run, and what to change if it does not."""
    if found.needed <= card:
        return f"{format_bytes(found.needed)} of a card's {format_bytes(card)}, CUDA's own included: it fits" + (
            f", beside what {', '.join(found.unknown)} takes" if found.unknown else ""
        )
    phase = max(found.phases, key=lambda name: found.phases[name])
    changes = "; ".join(remedies(found, config)[:4]) or "a smaller model or size"
    return (
        f"{format_bytes(found.needed)}, more than a card's {format_bytes(card)}, needed to {phase}; what would help: {changes}"
    )
