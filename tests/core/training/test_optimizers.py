from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optimizer_shards as shards
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn

from flowfactory.config import bitsandbytes
from flowfactory.config import yaml as configs
from flowfactory.config.optimizers import Optimizer, OptimizerConfig
from flowfactory.config.schema import RunConfig, TrainingConfig
from flowfactory.errors import UserError
from flowfactory.training import optimizers

Load = Callable[..., RunConfig]
CHOSEN: TypeAdapter[OptimizerConfig] = TypeAdapter(Optimizer)
ADAMW = ("adamw", "paged-adamw", "adamw8bit", "paged-adamw8bit")
LION = ("lion", "paged-lion", "lion8bit", "paged-lion8bit")
ALL = ADAMW + LION


@pytest.fixture(autouse=True)
def installed() -> None:
    pytest.importorskip("bitsandbytes")


def chosen(name: str, **options: Any) -> OptimizerConfig:
    return CHOSEN.validate_python({"name": name, **options})


def weights(*shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {f"w{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}


def gradients(parameters: dict[str, nn.Parameter], steps: int, first: int = 0) -> Iterator[None]:
    """Gives each parameter a gradient of its shape, another one each step; all are of both signs."""
    for step in range(first, first + steps):
        torch.manual_seed(1000 + step)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape) * torch.rand(parameter.shape).square()
        yield


def stepped(optimizer: optimizers.Optimizer, parameters: dict[str, nn.Parameter], steps: int, first: int = 0) -> None:
    for _ in gradients(parameters, steps, first):
        optimizer.step(1e-2)


def rates(steps: int) -> list[float]:
    return [0.01 * (1 + step) for step in range(steps)]


@pytest.mark.parametrize("name", ADAMW[:2])
def test_adamw_is_the_papers(name: str) -> None:
    config = chosen(name, betas=[0.8, 0.95], eps=1e-3, weight_decay=0.3)
    parameters = weights((5,), (80, 64))
    expected = {key: parameter.detach().double() for key, parameter in parameters.items()}
    m = {key: torch.zeros_like(value) for key, value in expected.items()}
    v = {key: torch.zeros_like(value) for key, value in expected.items()}
    optimizer = optimizers.build(config, parameters)
    for t, (lr, _) in enumerate(zip(rates(6), gradients(parameters, 6), strict=True), 1):
        optimizer.step(lr)
        for key, parameter in parameters.items():
            assert parameter.grad is not None
            gradient = parameter.grad.double()
            m[key] = 0.8 * m[key] + 0.2 * gradient
            v[key] = 0.95 * v[key] + 0.05 * gradient**2
            along = (m[key] / (1 - 0.8**t)) / ((v[key] / (1 - 0.95**t)).sqrt() + 1e-3)
            expected[key] = expected[key] * (1 - lr * 0.3) - lr * along
    for key, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach().double(), expected[key], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.state()[f"{key}/exp_avg"].double(), m[key], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.state()[f"{key}/exp_avg_sq"].double(), v[key], rtol=1e-5, atol=1e-6)
        assert float(optimizer.state()[f"{key}/step"]) == 6


@pytest.mark.parametrize("name", LION[:2])
def test_lion_is_the_papers(name: str) -> None:
    config = chosen(name, betas=[0.8, 0.95], weight_decay=0.3)
    parameters = weights((5,), (80, 64))
    expected = {key: parameter.detach().double() for key, parameter in parameters.items()}
    m = {key: torch.zeros_like(value) for key, value in expected.items()}
    sure = {key: torch.ones_like(value, dtype=torch.bool) for key, value in expected.items()}
    optimizer = optimizers.build(config, parameters)
    for lr, _ in zip(rates(6), gradients(parameters, 6), strict=True):
        optimizer.step(lr)
        for key, parameter in parameters.items():
            assert parameter.grad is not None
            gradient = parameter.grad.double()
            along = 0.8 * m[key] + 0.2 * gradient
            sure[key] &= along.abs() > 1e-6  # where rounding cannot turn the sign
            expected[key] = expected[key] * (1 - lr * 0.3) - lr * along.sign()
            m[key] = 0.95 * m[key] + 0.05 * gradient
    for key, parameter in parameters.items():
        assert sure[key].double().mean() > 0.99
        torch.testing.assert_close(parameter.detach().double()[sure[key]], expected[key][sure[key]], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.state()[f"{key}/momentum"].double(), m[key], rtol=1e-5, atol=1e-6)


def dequantised(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """The moment as float64, by the library's table of what codes mean."""
    from bitsandbytes.functional import create_dynamic_map

    meant = create_dynamic_map(signed=signed).double()[codes.flatten().long()]
    return (meant * scale.flatten().double().repeat_interleave(256)[: len(meant)]).view(codes.shape)


@pytest.mark.parametrize(("name", "twin"), [("adamw8bit", "adamw"), ("lion8bit", "lion")])
def test_eight_bits_follow_thirty_two(name: str, twin: str) -> None:
    found = {}
    for each in (name, twin):
        parameters = weights((96, 64))
        start = parameters["w0"].detach().clone()
        optimizer = optimizers.build(chosen(each), parameters)
        stepped(optimizer, parameters, 20)
        found[each] = (parameters["w0"].detach() - start, optimizer.state())
    (way, state), (exact, kept) = found[name], found[twin]
    assert (way - exact).norm() < 0.1 * exact.norm()
    assert not torch.equal(way, exact)
    for moment in ("exp_avg", "exp_avg_sq") if twin == "adamw" else ("momentum",):
        assert state[f"w0/{moment}"].dtype == torch.uint8
        assert kept[f"w0/{moment}"].dtype == torch.float32
        own = dequantised(state[f"w0/{moment}"], state[f"w0/{moment}_scale"], moment != "exp_avg_sq")
        # codes are a few percent apart where they are dense, and the rounding of twenty steps adds up
        assert (own - kept[f"w0/{moment}"]).norm() < 0.1 * kept[f"w0/{moment}"].norm()


@pytest.mark.parametrize("name", ["adamw8bit", "lion8bit"])
def test_eight_bits_find_the_bottom_of_a_bowl(name: str) -> None:
    parameters = weights((96, 64))
    torch.manual_seed(7)
    bottom, steep = torch.rand(96, 64), 0.5 + torch.rand(96, 64)
    before = (parameters["w0"].detach() - bottom).norm()
    optimizer = optimizers.build(chosen(name), parameters)
    for step in range(200):
        parameters["w0"].grad = steep * (parameters["w0"].detach() - bottom)
        optimizer.step(0.1 * (1 - step / 200))
    # the last step goes 0.0005 at most, and the way is 1 in the mean
    assert (parameters["w0"].detach() - bottom).norm() < 0.005 * before


@pytest.mark.parametrize("name", ["adamw8bit", "paged-adamw", "paged-adamw8bit", "lion8bit", "paged-lion", "paged-lion8bit"])
def test_on_the_cpu_paging_changes_nothing(name: str) -> None:
    found = []
    for each in (name, name.removeprefix("paged-")):
        parameters = weights((96, 64), (7,))
        optimizer = optimizers.build(chosen(each), parameters)
        stepped(optimizer, parameters, 4)
        found.append({key: parameter.detach() for key, parameter in parameters.items()})
    # PyTorch's AdamW and bitsandbytes' round differently
    exact = {} if name == "paged-adamw" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(*found, **exact)


@pytest.mark.parametrize("name", ALL)
def test_the_state_is_all_there_before_the_first_step_and_as_large_as_is_told(name: str) -> None:
    parameters = weights((64, 64), (63, 65), (5000,), (100, 70), ())
    config = chosen(name)
    optimizer = optimizers.build(config, parameters)
    before = {key: (value.shape, value.dtype) for key, value in optimizer.state().items()}
    assert all(not value.any() for key, value in optimizer.state().items() if value.dtype == torch.float32)
    stepped(optimizer, parameters, 1)
    after = optimizer.state()
    assert before == {key: (value.shape, value.dtype) for key, value in after.items()}
    moments = 1 if "lion" in name else 2
    bytes_ = {}
    for key in parameters:
        own = [value for place, value in after.items() if place.startswith(f"{key}/") and not place.endswith("/step")]
        bytes_[key] = sum(value.nbytes for value in own)
    small = {"w1": 4095, "w2": 5000, "w4": 1}
    assert {key: bytes_[key] for key in small} == {key: 4 * moments * size for key, size in small.items()}
    large = {"w0": 4096 + 4 * 16, "w3": 7000 + 4 * 28} if "8bit" in name else {"w0": 4 * 4096, "w3": 4 * 7000}
    told = {key: optimizers.state_bytes(config, parameter.shape) for key, parameter in parameters.items()}
    assert {key: told[key] for key in large} == {key: moments * size for key, size in large.items()}
    for key in parameters:  # scales have zeros behind the last, up to where rows and blocks end together
        assert told[key] <= bytes_[key] <= 1.02 * told[key]


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lion8bit"])
def test_a_parameter_without_a_gradient_is_not_stepped(name: str) -> None:
    parameters = weights((96, 64), (96, 64))
    still = parameters["w1"].detach().clone()
    optimizer = optimizers.build(chosen(name, weight_decay=0.5), parameters)
    for _ in gradients(parameters, 3):
        parameters["w1"].grad = None
        optimizer.step(0.1)
    assert torch.equal(parameters["w1"].detach(), still)
    assert [float(optimizer.state()[f"{key}/step"]) for key in parameters] == [3, 0]
    assert all(
        not value.any() for key, value in optimizer.state().items() if key.startswith("w1/") and value.is_floating_point()
    )
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in parameters.values())


@pytest.mark.parametrize("name", ALL)
def test_a_weight_whose_memory_is_in_another_order_is_stepped_too(name: str) -> None:
    plain, turned = weights((96, 64)), weights((96, 64))
    turned["w0"] = nn.Parameter(turned["w0"].detach().t().contiguous().t())
    assert not turned["w0"].is_contiguous()
    for parameters in (plain, turned):
        stepped(optimizers.build(chosen(name), parameters), parameters, 3)
    assert torch.equal(plain["w0"], turned["w0"])


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "lion8bit"])
def test_weights_that_were_replaced_between_steps_are_the_ones_that_move(name: str) -> None:
    parameters = weights((96, 64))
    optimizer = optimizers.build(chosen(name), parameters)
    stepped(optimizer, parameters, 1)
    with torch.no_grad():
        parameters["w0"].fill_(3.0)  # by value, as kept weights are swapped in
    stepped(optimizer, parameters, 1, first=1)
    assert 0 < (parameters["w0"].detach() - 3).abs().max() < 0.02
    parameters["w0"].data = torch.full((96, 64), 5.0)  # in other memory, as fully_shard may
    stepped(optimizer, parameters, 1, first=2)
    assert 0 < (parameters["w0"].detach() - 5).abs().max() < 0.03


@pytest.mark.parametrize("name", ALL)
def test_training_goes_on_from_its_state_bit_for_bit(name: str) -> None:
    parameters = weights((96, 64), (100, 70), (9,))
    optimizer = optimizers.build(chosen(name, weight_decay=0.1), parameters)
    stepped(optimizer, parameters, 7)
    saved = {key: value.clone() for key, value in optimizer.state().items()}
    copies = {key: nn.Parameter(parameter.detach().clone()) for key, parameter in parameters.items()}
    again = optimizers.build(chosen(name, weight_decay=0.1), copies)
    again.load_state(saved)
    assert all(torch.equal(value, saved[key]) for key, value in again.state().items())
    for each, own in ((optimizer, parameters), (again, copies)):
        stepped(each, own, 5, first=7)
    assert all(torch.equal(copies[key], parameters[key]) for key in parameters)
    assert all(torch.equal(value, again.state()[key]) for key, value in optimizer.state().items())


def test_the_state_of_another_optimizer_is_refused() -> None:
    made = {name: optimizers.build(chosen(name), weights((96, 64))) for name in ("adamw", "adamw8bit", "lion")}
    with pytest.raises(ValueError, match=r"w0/exp_avg is torch\.uint8"):
        made["adamw"].load_state(made["adamw8bit"].state())
    with pytest.raises(KeyError, match="w0/momentum"):
        made["lion"].load_state(made["adamw"].state())
    with pytest.raises(ValueError, match=r"w0/exp_avg is torch\.float32 \[64, 96\]"):
        made["adamw"].load_state(optimizers.build(chosen("adamw"), weights((64, 96))).state())


def starts(shape: tuple[int, int], count: int) -> set[int]:
    """Where blocks begin among the elements of a weight whose rows are dealt to ``count`` shards, by going through them."""
    found, element = set(), 0
    for shard in torch.arange(shape[0]).chunk(count):
        size = len(shard) * shape[1]
        found |= {element + block for block in range(0, size, 256)}
        element += size
    return found


@given(
    shape=st.tuples(st.integers(1, 40), st.sampled_from([64, 96, 100, 128, 192, 256, 384, 4096])),
    before=st.integers(1, 9),
    now=st.integers(1, 9),
)
def test_a_state_is_resumed_where_blocks_stay_whole(shape: tuple[int, int], before: int, now: int) -> None:
    parameters = {"w": torch.empty(shape, device="meta")}
    whole = starts(shape, 1)
    exact = before == now or math.prod(shape) < 4096 or starts(shape, before) == starts(shape, now) == whole
    reason = optimizers.resumable(chosen("adamw8bit"), before, now, parameters)
    assert (reason is None) == exact
    assert optimizers.resumable(chosen("adamw"), before, now, parameters) is None
    if reason is not None:
        offered = reason.partition("distributed.shard: ")[2].partition(",")[0].split(" or ")
        assert str(before) in offered
        for count in map(int, offered):
            assert optimizers.resumable(chosen("adamw8bit"), before, count, parameters) is None


def test_what_cannot_be_resumed_exactly_is_told_with_what_can() -> None:
    # 64 rows of 100: blocks and rows end together after 64 rows, which half of them are not
    parameters = {"w": torch.empty(64, 100, device="meta"), "b": torch.empty(10**6, device="meta")}
    assert optimizers.resumable(chosen("lion8bit"), 1, 2, parameters) == (
        "training.optimizer: the 8-bit state was saved with distributed.shard: 1, and 2 would divide other blocks of 256 "
        "elements; resume with distributed.shard: 1, or begin a new run with a 32-bit optimizer"
    )
    wide = {"w": torch.empty(3072, 3072, device="meta"), "b": torch.empty(10**6, device="meta")}
    assert not any(optimizers.resumable(chosen("lion8bit"), 8, now, wide) for now in range(1, 65))


def test_two_ranks_step_as_one_does_and_resume_each_others_state(tmp_path: Path) -> None:
    alone, untrained = {}, shards.weights(shards.even())

    def as_alone(found: dict[str, Tensor], name: str) -> bool:
        # kernels may round otherwise where a shard lies and ends elsewhere, and a code of 8 bits may turn with it
        bound = 1e-3 if "8bit" in name else 1e-5
        ways = {key: (value - untrained[key]).norm() for key, value in alone[name].items()}
        return all((found[key] - value).norm() < bound * ways[key] for key, value in alone[name].items())

    for name in shards.NAMES:
        net = shards.even()
        optimizer = shards.built(name, net)
        shards.train(net, optimizer, 0, shards.HALF)
        shards.save(net, optimizer, tmp_path / "one" / name)
        shards.train(net, optimizer, shards.HALF, shards.STEPS)
        alone[name] = shards.weights(net)
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    command = [sys.executable, *launch, shards.__file__, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr

    for name in shards.NAMES:
        found = torch.load(tmp_path / f"{name}.pt")
        assert found["empty shards"] == [0, 2]  # what has one row
        assert found["steps"] == [{float(shards.HALF)}] * 2
        for way in ("shared", "replicated", "resumed"):  # resumed: 1 -> 2
            assert as_alone(found[way], name), (name, way)
        net = shards.even()
        optimizer = shards.built(name, net)
        parameters = dict(net.named_parameters())
        assert optimizers.resumable(shards.chosen(name), 2, 1, parameters) is None
        shards.load(net, optimizer, tmp_path / "ranks" / name)
        shards.train(net, optimizer, shards.HALF, shards.STEPS)
        assert as_alone(shards.weights(net), name)  # 2 -> 1

        if "8bit" not in name:
            continue
        net = shards.cut()
        start = shards.weights(net)
        optimizer = shards.built(name, net)
        shards.train(net, optimizer, 0, shards.STEPS)
        for key, value in shards.weights(net).items():
            assert torch.equal(found["cut"][key], found["cut, resumed"][key])
            assert (found["cut"][key] - value).norm() < 0.1 * (value - start[key]).norm()
        assert optimizers.resumable(shards.chosen(name), 2, 1, dict(net.named_parameters())) is not None
        with pytest.raises(BaseException, match=r"(?i)size mismatch"):  # nor does who did not ask get what would be wrong
            shards.load(net, optimizer, tmp_path / "cut" / name)


def test_a_name_alone_is_an_optimizer_with_its_defaults(load: Load) -> None:
    assert load({"training": {"optimizer": "paged-adamw8bit"}}).training.optimizer == chosen("paged-adamw8bit")
    assert load({"training": {"optimizer": {"lr": 0.5}}}).training.optimizer == chosen("adamw", lr=0.5)
    on_top = load({"training": {"optimizer": "lion8bit"}}, sets=["training.optimizer.lr=1e-5"]).training.optimizer
    assert on_top == chosen("lion8bit", lr=1e-5)
    made = load({"training": {"optimizer": {"name": "lion", "betas": [0.8, 0.9]}}})
    assert configs.parse_yaml(configs.dump(made), "dump")["training"]["optimizer"] == {
        "name": "lion",
        "lr": 1e-4,
        "weight_decay": 0.0,
        "betas": [0.8, 0.9],
    }


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("adamw8bits", "training.optimizer: there is no 'adamw8bits'; did you mean 'adamw8bit'?"),
        ({"name": "adamw8bit", "bets": [0, 0]}, "training.optimizer.bets: unknown key; did you mean 'betas'?"),
        ({"name": "lion", "eps": 1}, "training.optimizer.eps: unknown key; there is "),
        (
            {"name": "paged-lion8bit", "betas": [0.9, 1]},
            "training.optimizer.betas: got [0.9, 1]; give a list of 2 numbers of at least 0 and below 1",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(load: Load, written: Any, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        load({"training": {"optimizer": written}})
    assert str(refused.value).startswith(f"config.yaml: {sentence}")


@pytest.mark.parametrize("name", ALL)
def test_what_cannot_be_had_here_is_refused_when_the_config_is_read(
    load: Load, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert load({"training": {"optimizer": name}}).training.optimizer.name == name
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    if name == "adamw":
        assert load().training.optimizer.name == name
        return
    with pytest.raises(UserError) as refused:
        load({"training": {"optimizer": name}})
    told = str(refused.value)
    assert told.startswith(f"config.yaml: training.optimizer: {name} needs bitsandbytes")
    assert told.endswith("pip install 'flowfactory[bitsandbytes]', or choose adamw")


@pytest.mark.parametrize(
    ("device", "offload", "refused"),
    [("cpu", False, True), ("auto", False, True), ("cuda", False, False), ("cuda", True, True)],
)
def test_a_kernel_that_the_cpu_lacks_is_missed_when_the_config_is_read(
    monkeypatch: pytest.MonkeyPatch, device: str, offload: bool, refused: bool
) -> None:
    from bitsandbytes import functional

    if device == "auto" and torch.cuda.is_available():
        pytest.skip("auto is no CPU here")

    def missing(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError("Could not run 'bitsandbytes::optimizer_update_8bit_blockwise'\nwith arguments from 'CPU'")

    bitsandbytes._fails_on_cpu.cache_clear()
    monkeypatch.setattr(functional, "optimizer_update_8bit_blockwise", missing)
    try:
        reason = bitsandbytes.optimizer_unavailable(chosen("lion8bit"), device, offload)
        assert bitsandbytes.optimizer_unavailable(chosen("lion"), device, offload) is None
    finally:
        bitsandbytes._fails_on_cpu.cache_clear()
    assert (reason is not None) == refused
    if reason is not None:
        assert reason == (
            "this bitsandbytes cannot run lion8bit on the CPU (Could not run 'bitsandbytes::optimizer_update_8bit_blockwise' "
            "with arguments from 'CPU'); pip install 'flowfactory[bitsandbytes]' -U, or choose adamw"
        )


def test_reading_an_optimizer_imports_neither_torch_nor_bitsandbytes() -> None:
    program = (
        "import sys; from flowfactory.config.schema import TrainingConfig; "
        "print(TrainingConfig.model_validate({'optimizer': 'adamw8bit'}).optimizer.bits, "
        "sorted({'torch', 'bitsandbytes'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "8 []\n"
    assert TrainingConfig.model_validate({}).optimizer == chosen("adamw")
