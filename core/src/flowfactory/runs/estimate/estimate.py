"""What a run takes of each rank's memory, from a trace of its own code on tensors that have shapes and no bytes.

Modules are built from the configs of the checkpoint. The run's own sampler, policy and algorithm then work on fake tensors,
and every storage that comes to be is counted until it is gone: samples, activations, copies of weights. What one process cannot
see is reckoned: division over ranks, the optimizer's state, quantised weights.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from torch._subclasses.fake_tensor import FakeTensorMode

from flowfactory.config.precision import with_precision
from flowfactory.distributed.context import check_count
from flowfactory.distributed.mesh import mesh_sizes
from flowfactory.runs.estimate.reckoning import Reckoning
from flowfactory.runs.estimate.result import Estimate
from flowfactory.runs.estimate.stand_ins import Weightless, cuda_autocast
from flowfactory.runs.estimate.storage_counter import StorageCounter
from flowfactory.runs.estimate.trace import Trace

if TYPE_CHECKING:
    from flowfactory.config.schema import RunConfig


def estimate(config: RunConfig, ranks: int = 1, cuda: bool = False) -> Estimate:
    """What a run of ``config`` on ``ranks`` ranks takes of each, on CUDA or on a CPU. Reads no weights.

    UserError: the config of a part is not to be had, or the ranks cannot be divided as the config says.
    """
    config = with_precision(config, cuda)
    _, shard = mesh_sizes(config.distributed, ranks)
    check_count(config.distributed, ranks)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    counter, opened = StorageCounter(fake), Weightless()
    with opened(), counter, cuda_autocast() if cuda else nullcontext():
        traced = Trace(config, ranks, shard, cuda, counter, fake, opened).measure()
    return Reckoning(traced, config, ranks, shard, cuda).estimate()
