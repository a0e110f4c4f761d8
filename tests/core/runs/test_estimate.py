"""What a run is foretold to take: by hand for the toy, and how it follows the config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from flowfactory.config.schema import RunConfig
from flowfactory.runs.estimate.estimate import estimate
from flowfactory.runs.estimate.reckoning import RESTING
from flowfactory.runs.estimate.result import GIB, RESERVE, Estimate, Part
from flowfactory.runs.estimate.storage_counter import StorageCounter
from flowfactory.runs.estimate.table import remedies, verdict

FLOAT = 4
NET = (18 * 8 + 8 + 8 * 16 + 16) * FLOAT
FULL = {"model": {"name": "net", "train": "full"}}
Load = Callable[..., RunConfig]
Invoke = Callable[..., tuple[int, str, str]]


def test_storages_count_until_they_are_gone_and_gradients_by_their_share() -> None:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        weight = nn.Parameter(torch.empty(100, 100))
    with StorageCounter(fake) as counter:
        counter.share = 0.25
        counter.watch([weight])
        x = torch.randn(10, 100)
        start = counter.begin()
        assert start == 10 * 100 * FLOAT
        y = (x @ weight).tanh()
        assert counter.lap() == 3 * 10 * 100 * FLOAT, "x, its product and the tangent of that"
        assert counter.live == 2 * 10 * 100 * FLOAT, "nothing needs the product any more"
        y.sum().backward()
        gradient = 100 * 100 * FLOAT * counter.share
        assert counter.live == 2 * 10 * 100 * FLOAT + gradient
        copy, view = weight.detach().clone(), weight.detach().view(-1)
        assert counter.live == 2 * 10 * 100 * FLOAT + 2 * gradient, "a copy of weights is divided too, a view is nothing"
        del x, y, copy, view
        weight.grad = None
        assert counter.live == 0


def test_numbers_asked_of_fake_tensors_are_one_and_real_ones_stay() -> None:
    with StorageCounter(FakeTensorMode(allow_non_fake_inputs=True)):
        fake, real = torch.randn(3), torch.tensor([False, True, True])
        assert float(fake.sum()) == 1.0
        assert bool(fake.isfinite().all())
        assert fake[real].shape == (2,), "what a known mask chooses is known"
        assert real.tolist() == [False, True, True]


def test_the_toy_takes_what_is_counted_by_hand(load: Load) -> None:
    found = estimate(load(FULL)).parts
    assert found["weights"] == Part(NET)
    assert found["gradients"] == Part(NET)
    assert found["optimizer"] == Part(2 * NET)
    assert found["references and averages"] == Part(NET), "the toy algorithm's slow weights"
    # 16 samples of 16 numbers: clean latents, and before and after each of two recorded steps
    assert found["samples"] == Part(16 * 16 * FLOAT * 5)
    assert found["conditions"] == Part(5 * FLOAT), "a number a prompt: 4 for an iteration and 4 for the next, of 5 in all"
    # a forward of 4 samples keeps at least its input [4, 18] and what its tangent [4, 8] gave
    assert found["activations"].device > 4 * (18 + 8) * FLOAT


def test_adapters_alone_have_gradients_and_moments(load: Load) -> None:
    found = estimate(load({"model": {"name": "net", "train": {"lora": {"rank": 2}}}})).parts
    adapters = 2 * (18 + 8 + 8 + 16) * FLOAT
    assert found["weights"] == Part(NET + adapters)
    assert found["gradients"] == Part(adapters)
    assert found["optimizer"] == Part(2 * adapters)


def test_shards_divide_what_follows_the_weights_and_copies_do_not(load: Load) -> None:
    config = load(FULL)
    alone, shared = estimate(config), estimate(config, 2)
    copied = estimate(load({**FULL, "distributed": {"shard": 1}}), 2)
    for name in ("weights", "gradients", "optimizer", "references and averages"):
        assert 2 * shared.parts[name].device == alone.parts[name].device == copied.parts[name].device
    assert shared.parts["samples"] == copied.parts["samples"]
    # a rank's 8 samples are drawn in one piece, whose steps share the latents between them
    assert 2 * shared.parts["samples"].device < alone.parts["samples"].device
    assert copied.parts["communication"].device == NET, "all gradients in one piece"
    assert shared.parts["communication"].device >= NET, "this net has no blocks and is gathered whole"
    assert "communication" not in alone.parts


def test_what_rests_in_host_memory_is_no_load_of_the_device(load: Load) -> None:
    device = estimate(load(FULL), cuda=True)
    assert all(part.host == 0 for name, part in device.parts.items() if name != "conditions")
    rests = {"training": {"kept_on": "host"}, "sampling": {"keep_on": "host"}}
    host = estimate(load({**FULL, **rests}), cuda=True)
    for name in ("references and averages", "samples"):
        assert host.parts[name] == Part(0, device.parts[name].device)
    moved = sum(device.parts[name].device for name in ("references and averages", "samples"))
    assert device.phases["learn"] - host.phases["learn"] == moved
    offloaded = estimate(load({**FULL, "distributed": {"offload": True}}), cuda=True)
    for name in ("weights", "gradients", "optimizer"):
        assert offloaded.parts[name] == Part(0, device.parts[name].device)
    assert offloaded.phases["learn"] < device.phases["learn"]


def test_gradients_are_there_while_an_update_is_computed_and_in_no_other_phase(load: Load) -> None:
    found = estimate(load(FULL), cuda=True)
    resting = sum(part.device for name, part in found.parts.items() if name in RESTING)
    assert found.parts["gradients"].device == NET
    assert found.phases["save"] == resting + 2 * NET, "moments as small as these are copied in one piece"
    assert found.phases["sample"] == resting + found.parts["samples"].device + found.parts["drawing"].device
    assert found.phases["learn"] >= resting + found.parts["samples"].device + NET


def test_gradients_of_copies_that_several_ranks_share_are_summed_in_one_piece(load: Load) -> None:
    one, two = (estimate(load({**FULL, "distributed": {"shard": 2}}), ranks) for ranks in (2, 4))
    more = two.parts["communication"].device - one.parts["communication"].device
    assert more == NET / 2


def test_encoders_that_come_again_are_beside_the_weights(load: Load) -> None:
    def estimated(ahead: Any, **training: Any) -> Estimate:
        return estimate(load({**FULL, "prompts": {"encode_ahead": ahead}, "training": training}), cuda=True)

    before, within = estimated("all"), estimated(1)
    resting = sum(part.device for name, part in before.parts.items() if name in RESTING)
    assert before.phases["encode"] < resting <= within.phases["encode"]
    assert within.phases["encode"] - resting <= before.phases["encode"]
    assert {name: size for name, size in within.phases.items() if name != "encode"} == {
        name: size for name, size in before.phases.items() if name != "encode"
    }
    assert estimated(1, iterations=1).phases["encode"] == before.phases["encode"], "there is one stretch"
    parts = {"encoders": Part(20 * GIB), "weights": Part(30 * GIB)}
    found = Estimate(parts, {"encode": 50 * GIB, "learn": 30 * GIB}, 0, cuda=True, ranks=1, encodes_again=True)
    assert "prompts.encode_ahead: all" in remedies(found, load(FULL))
    assert "prompts.encode_ahead: all" not in remedies(replace(found, encodes_again=False), load(FULL))
    assert (before.encodes_again, within.encodes_again) == (False, True)


def test_larger_batches_take_more_activations_and_no_more_samples(load: Load) -> None:
    small, large = (estimate(load({**FULL, "training": {"batch_size": size}})) for size in (2, 4))
    assert large.parts["activations"].device > 1.5 * small.parts["activations"].device
    assert large.parts["samples"] == small.parts["samples"]


def test_the_peak_is_the_largest_phase_and_a_card_needs_more(load: Load) -> None:
    found = estimate(load(FULL), cuda=True)
    assert found.peak == max(found.phases.values())
    assert found.needed == found.peak + RESERVE
    assert estimate(load(FULL)).needed == estimate(load(FULL)).peak


def test_a_verdict_names_the_phase_and_what_would_help(load: Load) -> None:
    parts = {"weights": Part(20 * GIB), "optimizer": Part(8 * GIB), "gradients": Part(4 * GIB), "activations": Part(30 * GIB)}
    found = Estimate(parts, {"sample": 40 * GIB, "learn": 62 * GIB}, 0, cuda=True, ranks=1)
    config = load({"model": {"name": "net"}})
    assert "it fits" in verdict(found, config, 64 * GIB)
    told = verdict(found, config, 62 * GIB)  # what CUDA itself takes does not fit
    assert "needed to learn" in told
    assert "63.0 GiB, more than a card's 62.0 GiB" in told
    helps = remedies(found, config)
    assert helps[0] == "training.activation_checkpointing: blocks"
    assert helps[-1] == "distributed.offload: true", "the slowest last"
    assert "model.quantize: nf4" in helps
    assert "training.kept_on: host" not in helps, "nothing is kept"
    drawing = replace(found, phases={"sample": 62 * GIB, "learn": 40 * GIB})
    assert "training.activation_checkpointing: blocks" not in remedies(drawing, config)
    assert remedies(replace(found, phases={"encode": 62 * GIB}), config) == [], "weights are not on the device yet"
    quantised = load({"model": {"name": "net", "quantize": "int8"}})
    assert "model.quantize: nf4" not in remedies(found, quantised)


def test_the_weights_of_rewards_are_counted_once_where_they_are_told(load: Load) -> None:
    weighing = {"name": "bright", "weighs": 5 * GIB}
    without = estimate(load({"model": {"name": "net"}}), cuda=True)
    assert (without.parts.get("rewards"), without.unknown) == (None, ("bright",))
    rewards = {"bright": weighing, "again": weighing, "silent": {"name": "bright"}}
    twice = estimate(
        load({"model": {"name": "net"}, "rewards": rewards, "evaluation": {"rewards": {"held": weighing}}}), cuda=True
    )
    assert (twice.parts["rewards"], twice.unknown) == (Part(5 * GIB), ("silent",))
    for phase in ("sample", "evaluate", "learn", "save"):
        assert twice.phases[phase] == pytest.approx(without.phases[phase] + 5 * GIB, abs=1024)
    assert twice.phases["encode"] == without.phases["encode"], "they are read once the encoders are gone"
    aside = estimate(load({"model": {"name": "net"}, "rewards": {"bright": {**weighing, "workers": 3}}}), cuda=True)
    assert aside.parts["rewards"] == Part(0, 15 * GIB)
    assert "beside what silent takes" in verdict(twice, load({"model": {"name": "net"}}), 64 * GIB)


def test_the_command_prints_a_table_and_a_verdict(config_file: Callable[..., Any], invoke: Invoke) -> None:
    path = config_file({**FULL, "device": "auto"})
    code, out, err = invoke("estimate", path, "--card", "24")
    assert (code, err) == (0, "")
    for row in ("weights", "optimizer", "activations", "rewards", "most at once: learn", "peak"):
        assert row in out
    assert "1.2 KiB" in out, "the weights, 1184 bytes"
    assert "it fits" in out
    assert "more than a card's" in invoke("estimate", path, "--card", "0.5")[1]
    code, out, _ = invoke("estimate", path, "--nproc", "2", "--set", "device=cpu")
    assert code == 0
    assert "2 ranks" in out
    assert "fits" not in out


def test_mistakes_are_told_in_one_line(config_file: Callable[..., Any], invoke: Invoke) -> None:
    path = config_file(FULL)
    code, _, err = invoke("estimate", path, "--card", "24")
    assert code == 2
    assert err == "error: --card is about a GPU, and device is cpu; leave one of them out\n"
    code, _, err = invoke("estimate", path, "--nproc", "3", "--set", "distributed.shard=2")
    assert code == 2
    assert err.count("\n") == 1
    assert "3 ranks" in err


@pytest.mark.parametrize(
    ("bits", "each"), [("adamw", 2 * FLOAT), ("adamw8bit", 2 * (1 + FLOAT / 256)), ("lion8bit", 1 + FLOAT / 256)]
)
def test_moments_in_eight_bits_take_a_byte_and_their_scale(bits: str, each: float, load: Load) -> None:
    pytest.importorskip("bitsandbytes")
    change = {"model": {"name": "net", "train": {"lora": {"rank": 512}}}, "training": {"optimizer": {"name": bits, "lr": 1e-3}}}
    sizes = [512 * width for width in (18, 8, 8, 16)]  # each of 4096 elements and more
    assert estimate(load(change)).parts["optimizer"].device == round(sum(size * each for size in sizes))
