import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowfactory.distributed import outcome, slurm, supervisor
from flowfactory.distributed.environment import RankEnvironment, read_environment
from flowfactory.distributed.launch import Launch
from flowfactory.distributed.outcome import Outcome
from flowfactory.distributed.supervisor import NodeRendezvous, StopRequests
from flowfactory.errors import Interrupted, RunError, UserError

RANK = Path(__file__).parent / "rank.py"
TORCH = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "5"}
SLURM = {
    "SLURM_JOB_ID": "1000",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
}


def without(variables: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in variables.items() if key != name}


def test_a_group_is_believed_in_when_rank_size_and_address_are_there() -> None:
    assert read_environment(TORCH) == RankEnvironment(3, 8, 1, 2, "a", 5)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        assert read_environment(without(TORCH, name)) is None
        assert read_environment(TORCH | {name: ""}) is None
    assert read_environment({}) is None


def test_what_torch_wants_is_what_was_found() -> None:
    assert read_environment(TORCH).variables() == TORCH


def test_a_rank_of_one_node_need_not_be_told_its_place_on_it() -> None:
    found = read_environment({"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "a"})
    assert found == RankEnvironment(3, 8, 3, 8, "a", 29500)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"RANK": "8"}, "rank 8 is not one of 8"),
        ({"RANK": "-1"}, "rank -1 is not one of 8"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
)
def test_a_group_that_cannot_be_is_an_error_that_names_the_variable(changes: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_environment(TORCH | changes)


def test_a_task_of_srun_is_a_rank() -> None:
    # 10000 + (1000 * 31 + 2) % 20000
    assert read_environment(SLURM) == RankEnvironment(3, 5, 1, 2, "gpu07", 21002)
    assert read_environment(SLURM | {"SLURM_NODEID": "2", "SLURM_PROCID": "4", "SLURM_LOCALID": "0"}) == RankEnvironment(
        4, 5, 0, 1, "gpu07", 21002
    )


def test_the_user_may_say_where_the_tasks_of_srun_meet() -> None:
    found = read_environment(SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "99"})
    assert (found.address, found.port) == ("head", 99)


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_ID": ""},  # a batch script
        {"SLURM_STEP_NUM_TASKS": "1"},  # a shell in an allocation
        {"SLURM_STEP_NUM_TASKS": "", "SLURM_NTASKS": "1"},
        {"RANK": "0"},
    ],
)
def test_slurm_alone_is_no_group(changes: dict[str, str]) -> None:
    assert read_environment(SLURM | changes) is None


def test_steps_of_one_job_meet_at_different_ports() -> None:
    ports = {read_environment(SLURM | {"SLURM_STEP_ID": str(step)}).port for step in range(31)}
    assert len(ports) == 31
    assert all(1024 < port < 32768 for port in ports)  # not where the system takes its own from


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("node[01-03,7],gpu5", ["node01", "node02", "node03", "node7", "gpu5"]),
        ("a[9-11]", ["a9", "a10", "a11"]),
        ("a[099-101]-ib", ["a099-ib", "a100-ib", "a101-ib"]),
        ("r[1-2]n[01-02],x-y.z", ["r1n01", "r1n02", "r2n01", "r2n02", "x-y.z"]),
    ],
)
def test_node_lists_are_read_as_slurm_writes_them(text: str, names: list[str]) -> None:
    assert slurm.expand_hosts(text) == names


def test_tasks_per_node_are_read_as_slurm_writes_them() -> None:
    assert slurm.expand_tasks_per_node("4(x2),3,2(x1)") == [4, 4, 3, 2]


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (Launch(nproc=0), "--nproc 0"),
        (Launch(nproc=-1), "--nproc -1"),
        (Launch(nnodes=0), "--nnodes 0"),
        (Launch(max_restarts=-1), "--max-restarts -1"),
        (Launch(node_rank=1), "--node-rank 1: there is one node"),
        (Launch(nnodes=2, rendezvous="a:1"), "--node-rank: give each of the 2 nodes its own, from 0 to 1"),
        (Launch(nnodes=2, node_rank=2, rendezvous="a:1"), "--node-rank 2: give each of the 2 nodes its own"),
        (Launch(nnodes=2, node_rank=0), "--rendezvous None: write HOST:PORT"),
        (Launch(nnodes=2, node_rank=0, rendezvous="a"), "--rendezvous a: write HOST:PORT"),
        (Launch(nnodes=2, node_rank=0, rendezvous="a:b"), "--rendezvous a:b"),
        (Launch(nnodes=2, node_rank=0, rendezvous="a:65536"), "--rendezvous a:65536"),
    ],
)
def test_what_cannot_be_started_is_refused_by_its_flag(wanted: Launch, told: str) -> None:
    with pytest.raises(UserError, match=f"^{told}"):
        wanted.check({})


def test_ranks_are_not_started_within_a_group() -> None:
    Launch().check(TORCH)
    for wanted in (Launch(nproc=1), Launch(nproc=2), Launch(nnodes=2)):
        with pytest.raises(UserError, match="rank 3 of 8 that are started already; leave it out"):
            wanted.check(TORCH)
    with pytest.raises(UserError, match="rank 3 of 5"):
        Launch(nproc=2).check(SLURM)


def test_srun_may_give_the_command_once_for_each_node() -> None:
    Launch(nproc=2, nnodes=5, node_rank=3, rendezvous="a:1").check(SLURM)
    with pytest.raises(UserError, match="rank 3 of 5"):
        Launch(nproc=2, nnodes=4, node_rank=3, rendezvous="a:1").check(SLURM)
    with pytest.raises(UserError, match="rank 3 of 8"):
        Launch(nproc=2, nnodes=8, node_rank=3, rendezvous="a:1").check(TORCH)


KUBEFLOW = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "23456", "PYTHONUNBUFFERED": "1"}
PODS = KUBEFLOW | {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "PET_NNODES": "2", "PET_NODE_RANK": "1"}


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "0"},
        {"RANK": "3", "WORLD_SIZE": "8"},
        KUBEFLOW,
        KUBEFLOW | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"},  # torchrun with one rank
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMI_RANK": "0", "PMI_SIZE": "1"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        SLURM | {"RANK": "0", "SLURM_STEP_NUM_TASKS": "1"},
        without(SLURM, "SLURM_STEP_ID"),  # a batch script
        {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    ],
    ids=lambda variables: "-".join(variables)[:40],
)
def test_a_process_that_is_the_only_one_may_start_ranks(variables: dict[str, str]) -> None:
    for wanted in (Launch(2), Launch(1), Launch(2, nnodes=2, node_rank=1, rendezvous="a:1")):
        wanted.check(variables)


def test_a_platform_may_give_the_command_once_for_each_node() -> None:
    Launch(8, nnodes=2, node_rank=1, rendezvous="job-master-0:23456").check(PODS)
    with pytest.raises(UserError, match=r"rank 1 of 2 .* where each is a node of its own add --nnodes 2 --node-rank and"):
        Launch(8).check(PODS)
    with pytest.raises(UserError, match=r"rank 1 of 2 that are started already; leave it out$"):
        Launch(8, nnodes=2, node_rank=1, rendezvous="a:1").check(PODS | {"LOCAL_WORLD_SIZE": "2"})


def test_one_rank_on_one_node_is_nothing_to_start() -> None:
    assert not Launch().starts_ranks
    assert not Launch(nproc=1).starts_ranks
    assert Launch(nproc=2).starts_ranks
    assert Launch(nnodes=2, node_rank=0, rendezvous="a:1").starts_ranks


def test_an_ipv6_address_can_be_a_rendezvous() -> None:
    assert Launch(rendezvous="[::1]:80").parse_rendezvous() == ("::1", 80)


def test_more_ranks_than_devices_are_refused_where_devices_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    supervisor.check_devices(Launch(nproc=2), "auto")
    supervisor.check_devices(Launch(nproc=3), "cpu")
    for device in ("auto", "cuda"):
        with pytest.raises(UserError, match="--nproc 3: this node has 2 CUDA devices"):
            supervisor.check_devices(Launch(nproc=3), device)
    with pytest.raises(UserError, match="cuda:1 is one device for 2 ranks"):
        supervisor.check_devices(Launch(nproc=2), "cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    supervisor.check_devices(Launch(nproc=2), "auto")
    with pytest.raises(UserError, match="has 0 CUDA devices"):
        supervisor.check_devices(Launch(nproc=2), "cuda")


@pytest.mark.parametrize("order", [1, -1])
def test_an_error_of_its_own_counts_before_what_follows_from_it(order: int) -> None:
    ends = [
        Outcome("lost", 0, time=1),
        Outcome("user", 1, time=3),
        Outcome("unexpected", 2, time=4),
        Outcome("died", 3, time=2),
        Outcome("done", 4, time=0),
        Outcome("device", 5, time=2.5),
    ][::order]
    assert Outcome.decisive(ends).rank == 1
    assert Outcome.decisive([end for end in ends if end.rank not in (1, 2)]).rank == 3
    assert Outcome.decisive([end for end in ends if end.rank in (0, 4)]).rank == 0


def test_an_error_that_a_lost_rank_caused_is_known_through_what_wraps_it() -> None:
    import torch.distributed as dist

    closed = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:1")
    for cause in (closed, dist.DistNetworkError("gone")):
        error = RunError("no gradient")
        error.__cause__ = cause
        assert outcome.to_outcome(error, 2).kind == "lost"
    assert outcome.to_outcome(RunError("no gradient"), 2).kind == "run"
    assert outcome.to_outcome(RuntimeError("no gradient"), 2).kind == "unexpected"


CUDA_ADVICE = "\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with TORCH_USE_CUDA_DSA to enable assertions.\n"
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {}, NCCL version 2.29.3\n{}\nLast error:\n{}"


def backend(what: str, kind: str, last: str) -> Exception:
    import torch.distributed as dist

    return dist.DistBackendError(NCCL.format(what, kind, last))


def cuda(told: str) -> Exception:
    import torch

    return torch.AcceleratorError(f"CUDA error: {told}{CUDA_ADVICE}")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: cuda("uncorrectable ECC error encountered"), "device"),
        (lambda: cuda("unspecified launch failure"), "device"),
        (lambda: cuda("an illegal memory access was encountered"), "device"),
        (lambda: cuda("CUDA-capable device(s) is/are busy or unavailable"), "device"),
        (lambda: cuda("Invalid access of peer GPU memory over nvlink or a hardware error"), "device"),
        (lambda: RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"), "device"),
        (lambda: backend("remote process exited or there was a network error", "ncclRemoteError", ""), "lost"),
        (lambda: backend("unhandled system error", "ncclSystemError", "socketPollConnect: connection refused"), "lost"),
        (lambda: backend("unhandled cuda error", "ncclUnhandledCudaError", "Cuda failure 'uncorrectable ECC'"), "lost"),
        (lambda: backend("unhandled cuda error", "ncclUnhandledCudaError", "Cuda failure 2 'out of memory'"), "memory"),
        (lambda: cuda("out of memory"), "memory"),
        (lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
        (lambda: __import__("torch").OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "memory"),
        (lambda: MemoryError(), "memory"),
        (lambda: backend("invalid usage", "ncclInvalidUsage", "Duplicate GPU detected : rank 1 and rank 0"), "unexpected"),
        (lambda: cuda("device-side assert triggered"), "unexpected"),
        (lambda: cuda("invalid configuration argument"), "unexpected"),
        (lambda: cuda("no kernel image is available for execution on the device"), "unexpected"),
        (lambda: RuntimeError("the judge answered: CUDA error: unspecified launch failure"), "unexpected"),
        (lambda: ValueError("CUDA error: unspecified launch failure"), "unexpected"),
        (lambda: RuntimeError("CUDA error: unspecified launch failure"), "device"),  # whoever raised it
        (lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "unexpected"),
        (lambda: RunError("the reward's server is out of memory"), "run"),
        (lambda: RunError("the reward's server said: Connection closed by peer"), "run"),
        (lambda: UserError("CUDA error: unspecified launch failure"), "user"),
    ],
)
def test_what_need_not_happen_again_is_told_from_mistakes(make: Callable[[], Exception], kind: str) -> None:
    found = outcome.to_outcome(make(), 2)
    assert found.kind == kind
    assert (kind in outcome.RESTARTED) == (kind in ("device", "lost"))
    assert "TORCH_USE_CUDA_DSA" not in found.message


def test_real_lacks_of_host_memory_are_known() -> None:
    import torch

    for hungry in (lambda: torch.empty(2**58, dtype=torch.uint8), lambda: bytearray(2**62)):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            hungry()
        found = outcome.to_outcome(raised.value, 1)
        assert found.kind == "memory"
        assert found.message.startswith("rank 1 ran out of memory: ")
        assert found.message.endswith("flowfactory estimate tells what would help")


def test_a_lack_of_memory_counts_before_what_it_brings_about() -> None:
    def chained(*errors: Exception) -> Exception:
        for error, cause in itertools.pairwise(errors):
            error.__cause__ = cause
        return errors[0]

    lost = backend("remote process exited or there was a network error", "ncclRemoteError", "")
    assert outcome.fault(chained(RunError("no gradient"), lost, cuda("unspecified launch failure"))) == "device"
    assert outcome.fault(chained(ValueError("a plugin's"), cuda("unspecified launch failure"), MemoryError())) == "memory"
    assert outcome.fault(chained(ValueError("a plugin's"), KeyError("x"))) is None


def surroundings() -> tuple[object, ...]:
    """What a launch changes in this process while it lasts."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    return variables, *(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Runs two ranks of rank.py to their end, which nothing may outlive; returns what the parent said meanwhile."""
    before = surroundings()

    def begin(does: str, *arguments: str, **options: int) -> list[str]:
        said: list[str] = []
        supervisor.start([sys.executable, str(RANK), does, str(tmp_path), *arguments], Launch(2, **options), said.append)
        return said

    yield begin
    assert left_behind(tmp_path) == []
    assert surroundings() == before


def left_behind(folder: Path) -> list[str]:
    """The processes that have ``folder`` among their arguments; they are killed, so that no test leaves them to the next."""
    listed = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line for line in listed if str(folder) in line]
    for line in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    return found


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("pid-*")]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ask(folder: Path, *numbers: int) -> threading.Thread:
    """Sends this process signals, half a second apart, once both ranks are ready."""

    def send() -> None:
        until = time.monotonic() + 60
        while len([*folder.glob("ready-*")]) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def test_ranks_know_their_place_and_get_their_arguments_as_they_are(
    start: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert start("environment", "a $local_rank ${local_rank} $$", "--", "") == []
    for rank in (0, 1):
        found, threads, arguments = eval((tmp_path / f"environment-{rank}").read_text())
        assert (found.rank, found.world_size, found.local_rank, found.local_world_size) == (rank, 2, rank, 2)
        assert threads == "1"
        assert arguments == ["a $local_rank ${local_rank} $$", "--", ""]


def test_a_rank_that_raises_ends_those_that_hear_nothing_and_is_not_tried_again(
    start: Callable[..., list[str]], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(RunError, match=r"^rank 1 raised ValueError: no such colour$"):
        start("raise_among_deaf")
    assert time.monotonic() - began < 30  # and not the 300 that the other one waits
    assert not [*tmp_path.glob("attempt-1-*")]
    shown = capfd.readouterr().err
    assert shown.count("ValueError: no such colour") == 1
    assert shown.startswith("Traceback")


@pytest.mark.distributed
def test_the_message_is_that_of_the_rank_at_fault_though_another_one_failed_before(
    start: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"^prompts.txt: line 3 is empty$"):
        start("raise_after_loss")
    assert "Traceback" not in capfd.readouterr().err


def test_all_ranks_start_again_when_one_dies(start: Callable[..., list[str]], tmp_path: Path) -> None:
    said = start("die_at_first", max_restarts=2)
    assert len(said) == 1
    assert "rank 1 was killed by SIGKILL" in said[0]
    assert said[0].endswith("restart 1 of 2")
    for rank in (0, 1):
        assert (tmp_path / f"attempt-0-{rank}").read_text() == "False"
        assert (tmp_path / f"attempt-1-{rank}").read_text() == "True"


def test_ranks_that_die_again_and_again_end_the_run(start: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^rank 1 was killed by SIGSEGV; after 1 restart; continue with --resume$"):
        start("die", max_restarts=1)
    assert len([*tmp_path.glob("attempt-*-1")]) == 2


@pytest.mark.parametrize("kind", ["device", pytest.param("lost", marks=pytest.mark.distributed)])
def test_all_ranks_start_again_when_a_device_fails_or_others_are_lost(
    kind: str, start: Callable[..., list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (said,) = start("fail_at_first", kind, max_restarts=2)
    told = {"device": "had a fault of its device: CUDA error: uncorrectable ECC", "lost": "lost the other ranks"}
    assert said.startswith(f"rank 1 {told[kind]}")
    assert said.endswith("all ranks start again from the last checkpoint, restart 1 of 2")
    assert "Traceback" not in capfd.readouterr().err
    assert [(tmp_path / f"attempt-1-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


def test_ranks_whose_device_fails_again_and_again_end_the_run(start: Callable[..., list[str]]) -> None:
    with pytest.raises(RunError, match=r"^rank 1 had a fault of its device: CUDA error: .*; continue with --resume$"):
        start("fail_at_first", "device", max_restarts=0)


def test_ranks_without_memory_do_not_start_again(start: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^rank 1 ran out of memory: CUDA out of memory.*; flowfactory estimate tells"):
        start("fail_at_first", "memory", max_restarts=2)
    assert not [*tmp_path.glob("attempt-1-*")]


def test_a_rank_that_is_done_and_then_falls_over_is_done(start: Callable[..., list[str]]) -> None:
    assert start("end_badly_when_done", max_restarts=0) == []


def test_ctrl_c_reaches_every_rank_once_and_is_no_failure(start: Callable[..., list[str]], tmp_path: Path) -> None:
    asking = ask(tmp_path, signal.SIGINT)
    with pytest.raises(Interrupted, match=r"^stopped after iteration 7; continue with --resume$"):
        start("save_when_asked")
    asking.join()
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in (0, 1)] == ["1", "1"]


@pytest.mark.parametrize("numbers", [(signal.SIGHUP,), (signal.SIGHUP, signal.SIGHUP), (signal.SIGTERM, signal.SIGHUP)])
def test_a_terminal_that_is_closed_asks_once_however_often_it_says_so(
    numbers: tuple[int, ...], start: Callable[..., list[str]], tmp_path: Path
) -> None:
    asking = ask(tmp_path, *numbers)
    with pytest.raises(Interrupted, match=r"^stopped after iteration 7; continue with --resume$"):
        start("save_when_asked")
    asking.join()
    assert [(tmp_path / f"saved-{rank}").read_text() for rank in (0, 1)] == ["1", "1"]


def test_asked_twice_all_ranks_end_at_once(start: Callable[..., list[str]], tmp_path: Path) -> None:
    asking = ask(tmp_path, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"^stopped at once$"):
        start("ignore")
    asking.join()


def test_asked_while_there_is_nothing_to_save_ranks_end_and_do_not_start_again(
    start: Callable[..., list[str]], tmp_path: Path
) -> None:
    asking = ask(tmp_path, signal.SIGTERM)
    with pytest.raises(Interrupted, match="while no iteration was under way"):
        start("load")
    asking.join()


NODE = """
import sys
from flowfactory import errors
from flowfactory.distributed import supervisor
from flowfactory.distributed.launch import Launch
rank, nodes, port, *command = sys.argv[1:]
wanted = Launch(2, int(nodes), int(rank), f"127.0.0.1:{port}", max_restarts=1)
try:
    supervisor.start([sys.executable, *command], wanted, print)
except (errors.UserError, errors.RunError, errors.Interrupted) as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def port() -> int:
    """One that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_ranks_are_numbered_node_by_node_though_nodes_have_different_numbers(port: int) -> None:
    def meet(launch: Launch) -> tuple[NodeRendezvous, list[RankEnvironment]]:
        rendezvous = NodeRendezvous(launch, StopRequests())
        return rendezvous, rendezvous.meet(0)

    launches = [Launch(count, 2, node, f"127.0.0.1:{port}") for node, count in ((1, 3), (0, 1))]
    with ThreadPoolExecutor(2) as pool:
        others, first = [places for _, places in list(pool.map(meet, launches))]
    address = ("127.0.0.1", first[0].port)
    assert first == [RankEnvironment(0, 4, 0, 1, *address)]
    assert others == [RankEnvironment(1 + i, 4, i, 3, *address) for i in range(3)]


def test_two_nodes_with_one_number_are_refused(port: int) -> None:
    nodes = [NodeRendezvous(Launch(1, 3, node, f"127.0.0.1:{port}"), StopRequests()) for node in (0, 1)]
    with pytest.raises(UserError, match=r"^--node-rank 1: another node has it already"):
        NodeRendezvous(Launch(1, 3, 1, f"127.0.0.1:{port}"), StopRequests())
    assert len(nodes) == 2  # and the store with them


def test_a_node_that_does_not_come_back_ends_the_others_soon(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RETURN_SECONDS", 0.3)
    launches = [Launch(1, 3, node, f"127.0.0.1:{port}") for node in range(3)]
    nodes = [NodeRendezvous(launch, StopRequests()) for launch in launches]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda node: node.meet(0), nodes))
    with pytest.raises(
        RunError, match=r"^nodes 1, 2 did not come back within 0 seconds; start all 3 nodes again, with --resume$"
    ):
        nodes[0].meet(1)


@pytest.mark.distributed
def test_two_nodes_start_again_together_and_end_with_one_message(tmp_path: Path, port: int) -> None:
    command = [str(RANK), "die_on_one_node_and_raise_on_the_other", str(tmp_path)]
    nodes = [
        subprocess.Popen([sys.executable, "-c", NODE, node, "2", str(port), *command], stdout=subprocess.PIPE, text=True)
        for node in "10"  # the first node may be late
    ]
    try:
        told = [node.communicate(timeout=120)[0].splitlines() for node in nodes]
    finally:
        left = left_behind(tmp_path)
    assert left == []
    assert told[0] == told[1]
    again, raised = told[0]
    assert again.startswith("rank 2 was killed by SIGKILL")
    assert again.endswith("restart 1 of 1")
    assert raised == "UserError rank 1 has no prompts"
    attempts = {f"attempt-{i}-{rank}" for i in (0, 1) for rank in range(4)}
    assert {path.name for path in tmp_path.glob("attempt-*")} == attempts


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux sees to it")
def test_ranks_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", NODE, "0", "1", "0", str(RANK), "ignore", str(tmp_path)])
    until = time.monotonic() + 60
    while len([*tmp_path.glob("ready-*")]) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    parent.kill()
    parent.wait(10)
    until = time.monotonic() + 10
    while any(map(is_running, pids(tmp_path))) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(pids(tmp_path)) == 2
    assert left_behind(tmp_path) == []
