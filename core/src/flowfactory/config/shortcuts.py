"""What is said of ways to draw faster that do not go with the rest of a config."""

from __future__ import annotations

from collections.abc import Iterator

from flowfactory.config import bitsandbytes
from flowfactory.config.schema import RunConfig


def shortcut_errors(config: RunConfig) -> Iterator[str]:
    """One sentence for each that does not."""
    sampling = config.sampling
    if config.algorithm.trust_region and (told := records_steps(config)):
        yield told
    if sampling.feature_cache is not None and not config.model.caches_features:
        yield "sampling.feature_cache: this model has no transformer of diffusers, whose blocks could be left out; leave it out"
    if sampling.feature_cache is not None and config.distributed.context > 1:
        yield "sampling.feature_cache: ranks of a distributed.context see a part of the tokens each; leave one of them out"
    if sampling.weights_as is None:
        return
    if config.model.quantize:
        yield "sampling.weights_as: model.quantize stores the weights in few bits already; leave one of them out"
    if config.training.compile is True:
        yield "sampling.weights_as: training.compile is for blocks that keep their weights; leave one of them out"
    if lacking := bitsandbytes.quantization_unavailable(sampling.weights_as, "sampling.weights_as"):
        yield lacking


def records_steps(config: RunConfig) -> str | None:
    """Why shortcuts are not for an algorithm that records steps; None where none are asked for."""
    sampling = config.sampling
    asked = {"feature_cache": sampling.feature_cache, "weights_as": sampling.weights_as}
    keys = [f"sampling.{key}" for key, value in asked.items() if value is not None]
    if not keys:
        return None
    told = "learns from the steps that drew, which training has to compute as sampling did"
    name = getattr(config.algorithm, "name", "")
    return (
        f"{' and '.join(keys)}: algorithm {name} {told}; leave it out, or choose one that adds noise again, such as nft or awm"
    )


def kept_graph_errors(config: RunConfig) -> Iterator[str]:
    """Why the graphs of drawn steps cannot be learned from."""
    if not config.training.keep_graphs:
        return
    training, sampling, algorithm = config.training, config.sampling, config.algorithm
    if not algorithm.trust_region:
        name = getattr(algorithm, "name", "")
        yield f"training.keep_graphs: algorithm {name} learns not through the forwards that drew; leave it out"
        return
    if algorithm.groupwise:
        yield "training.keep_graphs: this algorithm compares the members of a group, in forwards of its own; leave it out"
        return
    wanted = {
        "training.updates to 1": training.updates > 1,
        "training.epochs to 1": training.epochs > 1,
        "training.timesteps_per_forward to 1": training.timesteps_per_forward > 1,
        "training.batch_size and sampling.batch_size to one number": training.batch_size != sampling.batch_size,
        "training.recompute_log_prob to false": training.recompute_log_prob,
        "sampling.ema to null": sampling.ema is not None,
        "distributed.gather_to_sample to false": config.distributed.gather_to_sample,
        "distributed.context to 1": config.distributed.context > 1,
    }
    if ways := [way for way, wrong in wanted.items() if wrong]:
        yield f"training.keep_graphs learns once, through the very forwards that drew: set {', '.join(ways)}, or leave it out"
