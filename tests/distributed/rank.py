"""What the ranks of test_launch.py do, by its name; beside it the folder in which they leave traces."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from flowfactory.distributed import environment as ranks_environment
from flowfactory.distributed import rank_process
from flowfactory.errors import Interrupted, UserError

DOES, FOLDER = sys.argv[1], Path(sys.argv[2])
RANK, ATTEMPT = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
FOREVER = 300


def deaf(seconds: float = FOREVER) -> None:
    """As a rank is in a collective that does not return."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)


def trace(name: str, text: str = "") -> None:
    (FOLDER / f"{name}-{RANK}").write_text(text)


def wait_for(name: str) -> None:
    until = time.monotonic() + FOREVER
    while not (FOLDER / name).exists() and time.monotonic() < until:
        time.sleep(0.01)


def environment() -> None:
    trace("environment", repr((ranks_environment.read_environment(os.environ), os.environ["OMP_NUM_THREADS"], sys.argv[3:])))


def raise_among_deaf() -> None:
    trace(f"attempt-{ATTEMPT}")
    if RANK == 1:
        subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER})", str(FOLDER)])
        raise ValueError("no such colour\nand more")
    deaf()


def raise_after_loss() -> None:
    """The rank at fault speaks after the one that suffers from it."""
    import torch.distributed as dist

    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    dist.init_process_group("gloo", store=store, rank=RANK, world_size=2)
    dist.barrier()
    if RANK == 1:
        dist.destroy_process_group()  # the other one sees a closed connection
        time.sleep(0.2)
        raise UserError("prompts.txt: line 3 is empty")
    dist.barrier()


def die_at_first() -> None:
    trace(f"attempt-{ATTEMPT}", str(ranks_environment.is_restart()))
    if ATTEMPT == 0:
        if RANK == 1:
            wait_for("attempt-0-0")
            os.kill(os.getpid(), signal.SIGKILL)
        deaf()


def fail_at_first() -> None:
    """As FAULTS says; the other rank hears nothing."""
    import torch
    import torch.distributed as dist

    faults = {
        "device": lambda: torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might"),
        "lost": lambda: dist.DistBackendError("NCCL error: remote process exited or there was a network error"),
        "memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    }
    trace(f"attempt-{ATTEMPT}", str(ranks_environment.is_restart()))
    if ATTEMPT == 0:
        if RANK == 1:
            wait_for("attempt-0-0")
            raise faults[sys.argv[3]]()
        deaf()


def die() -> None:
    trace(f"attempt-{ATTEMPT}")
    if RANK == 1:
        wait_for(f"attempt-{ATTEMPT}-0")
        os.kill(os.getpid(), signal.SIGSEGV)
    deaf()


def die_on_one_node_and_raise_on_the_other() -> None:
    trace(f"attempt-{ATTEMPT}")
    for rank in range(4):
        wait_for(f"attempt-{ATTEMPT}-{rank}")
    if ATTEMPT == 0 and RANK == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if ATTEMPT == 1 and RANK == 1:
        raise UserError("rank 1 has no prompts")
    deaf()


def end_badly_when_done() -> None:
    rank_process.report_outcome(None)
    os.kill(os.getpid(), signal.SIGABRT)


def save_when_asked() -> None:
    asked = 0

    def ask(*_: object) -> None:
        nonlocal asked
        asked += 1

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    trace("ready")
    while not asked:
        time.sleep(0.01)
    time.sleep(0.5)  # of the iteration
    trace("saved", str(asked))
    raise Interrupted("stopped after iteration 7; continue with --resume")


def ignore() -> None:
    trace("pid", str(os.getpid()))
    trace("ready")
    deaf()


def load() -> None:
    trace("ready")
    time.sleep(FOREVER)


if __name__ == "__main__":
    rank_process.die_with_parent()
    try:
        globals()[DOES]()
    except Exception as error:
        rank_process.report_outcome(error)
        sys.exit(1)
    rank_process.report_outcome(None)
