from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import saved
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from flowfactory import flow
from flowfactory.config.component import LoraConfig, LoraTraining
from flowfactory.config.schema import RunConfig
from flowfactory.errors import RunError
from flowfactory.flow.dynamics import ODE
from flowfactory.policy import lora
from flowfactory.policy.policy import REFERENCE, At, Policy
from flowfactory.training.iteration import collect_rollouts
from flowfactory.training.metrics import Timer
from flowfactory.training.setup import Run, prepare_run
from flowfactory.types import Conditions, Evaluation, Step, Trainable

Prepared = Callable[..., Run]
CPU = torch.device("cpu")
MODELS = {"full": {"name": "net", "train": "full"}, "lora": {"name": "net", "train": {"lora": {"rank": 2, "alpha": 3}}}}


@pytest.fixture(params=list(MODELS))
def policy(request: pytest.FixtureRequest, prepared: Prepared) -> Policy:
    return prepared({"model": MODELS[request.param]}).policy


@pytest.fixture
def step() -> Step:
    latents = torch.randn(3, 1, 4, 4, generator=flow.generator("latents"))
    entry = {"length": torch.tensor(0.4)}
    return Step(latents, torch.tensor([0.9, 0.5, 0.2]), Conditions((entry,) * 3), 1.0, ODE())


def values(policy: Policy) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.parameters.items()}


@torch.no_grad()
def nudge(policy: Policy, seed: int = 0) -> None:
    for name, parameter in policy.parameters.items():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=flow.generator(seed, name)))
    policy.mark_changed()


def velocity(policy: Policy, step: Step) -> Tensor:
    return policy.evaluate(step).velocity.detach()


def reference_velocity(policy: Policy, step: Step) -> Tensor:
    policy.keep_reference() if policy.adapted else None
    return policy.compare(step, {"reference": At(REFERENCE)})[1]["reference"].velocity


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_kept_weights_are_used_and_the_present_ones_restored_bitwise(policy: Policy, step: Step) -> None:
    old = velocity(policy, step)
    policy.keep("old")
    nudge(policy)
    present, new = values(policy), velocity(policy, step)
    assert float((new - old).abs().max()) > 0.1
    with policy.using("old"):
        assert torch.equal(velocity(policy, step), old)
    assert same(values(policy), present)
    assert torch.equal(velocity(policy, step), new)


def test_present_weights_come_back_after_an_error_too(policy: Policy) -> None:
    policy.keep("old")
    nudge(policy)
    present = values(policy)
    with pytest.raises(ZeroDivisionError), policy.using("old"):
        raise ZeroDivisionError
    assert same(values(policy), present)


def test_two_kept_weights_may_be_used_one_within_the_other(policy: Policy, step: Step) -> None:
    drawn: list[Tensor] = []
    for name in ("a", "b"):
        nudge(policy, len(drawn))
        policy.keep(name)
        drawn.append(velocity(policy, step))
    nudge(policy, 2)
    present = values(policy)
    with policy.using("a"):
        with policy.using("b"):
            assert torch.equal(velocity(policy, step), drawn[1])
        assert torch.equal(velocity(policy, step), drawn[0])
    assert same(values(policy), present)


def test_the_parameters_stay_the_ones_the_optimizer_holds(policy: Policy) -> None:
    before = {name: id(parameter) for name, parameter in policy.parameters.items()}
    policy.keep("old")
    with policy.using("old"):
        assert {name: id(parameter) for name, parameter in policy.parameters.items()} == before
    policy.keep_reference()
    policy.mark_changed()
    with policy.using(REFERENCE):
        pass
    assert {name: id(parameter) for name, parameter in policy.parameters.items()} == before


def test_blending_moves_what_is_kept_towards_the_present(policy: Policy) -> None:
    policy.keep("slow")
    first = values(policy)
    nudge(policy)
    second = values(policy)
    policy.update_ema("slow", 0.75)
    with policy.using("slow"):
        for name, weight in values(policy).items():
            torch.testing.assert_close(weight, 0.75 * first[name] + 0.25 * second[name])
    assert same(values(policy), second)
    policy.update_ema("slow", 0.0)
    with policy.using("slow"):
        assert same(values(policy), second)


def test_what_was_never_kept_is_refused_with_what_to_do(policy: Policy) -> None:
    sentence = r"^no weights are kept as 'best'; keep or average them when the run starts$"
    with pytest.raises(RunError, match=sentence), policy.using("best"):
        pass


def test_the_reference_is_what_training_started_from(policy: Policy, step: Step) -> None:
    policy.keep_reference()
    start = velocity(policy, step)
    nudge(policy)
    present, new = values(policy), velocity(policy, step)
    reference = reference_velocity(policy, step)
    assert not reference.requires_grad
    assert torch.equal(reference, start)
    assert float((new - start).abs().max()) > 0.1
    assert same(values(policy), present)
    assert torch.equal(velocity(policy, step), new)


def test_the_same_weights_train_after_the_reference_was_looked_at(policy: Policy, step: Step) -> None:
    policy.keep_reference()
    flags = {name: p.requires_grad for module in policy.modules.values() for name, p in module.named_parameters()}
    reference_velocity(policy, step)
    assert {name: p.requires_grad for module in policy.modules.values() for name, p in module.named_parameters()} == flags
    nudge(policy)
    gradients = torch.autograd.grad(policy.evaluate(step).velocity.square().sum(), list(policy.parameters.values()))
    assert all(bool(gradient.any()) for gradient in gradients)


def test_adapters_leave_the_base_as_it_was(prepared: Prepared, step: Step) -> None:
    full, adapted = prepared({"model": MODELS["full"]}).policy, prepared({"model": MODELS["lora"]}).policy
    # an adapter starts as nothing, but a frozen weight may meet other kernels than one that trains
    torch.testing.assert_close(velocity(adapted, step), velocity(full, step), rtol=1e-6, atol=1e-6)
    assert adapted.adapted == ["transformer.0", "transformer.2"]
    assert {name.split(".")[2] for name in adapted.parameters} == {"lora_A", "lora_B"}
    assert sum(p.numel() for p in adapted.parameters.values()) == 2 * (18 + 8) + 2 * (8 + 16)
    nudge(adapted)
    assert not torch.allclose(velocity(adapted, step), velocity(full, step), atol=1e-2)
    torch.testing.assert_close(reference_velocity(adapted, step), velocity(full, step), rtol=1e-6, atol=1e-6)


def test_an_adapter_adds_alpha_over_rank_of_its_product(prepared: Prepared, step: Step) -> None:
    policy = prepared({"model": MODELS["lora"]}).policy
    nudge(policy)
    layer: Any = policy.modules["transformer"][0]  # type: ignore[index]
    x = torch.randn(5, 18, generator=flow.generator("x"))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = x @ layer.base_layer.weight.T + layer.base_layer.bias + 3 / 2 * (x @ down.T @ up.T)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_adapters_that_match_nothing_are_refused_with_the_names_there_are(prepared: Prepared) -> None:
    with pytest.raises(RunError) as refused:
        prepared({"model": {"name": "net", "train": {"lora": {"targets": ["to_q", "to_k"]}}}})
    assert str(refused.value) == (
        "LoRA found no layer whose name ends in to_q, to_k, and nothing would train there; "
        "set model.train.lora.targets to some of 0, 2"
    )


def test_a_target_that_matches_nothing_is_refused_beside_others_that_do(prepared: Prepared) -> None:
    with pytest.raises(RunError, match=r"^LoRA found no layer whose name ends in to_q, .* some of 0, 2$"):
        prepared({"model": {"name": "net", "train": {"lora": {"targets": ["0", "to_q"]}}}})


@pytest.mark.parametrize("name", ["a/b", "", "../up"])
def test_an_average_has_a_name_that_files_can_have(prepared: Prepared, name: str) -> None:
    with pytest.raises(RunError, match=r"^an average of weights cannot be called '"):
        prepared().policy.track_ema(name, lambda iteration: 0.5)


def test_an_average_of_the_config_is_not_taken_by_an_algorithm(prepared: Prepared) -> None:
    policy = prepared({"sampling": {"ema": "constant"}}).policy
    with pytest.raises(RunError, match=r"^the average of weights called 'sampling' is that of sampling\.ema; give the"):
        policy.track_ema("sampling", lambda iteration: 0.5)
    policy.track_ema("evaluation", lambda iteration: 0.5)  # the config has none


def test_adapters_go_on_the_layers_that_are_asked_for(prepared: Prepared) -> None:
    assert prepared({"model": {"name": "net", "train": {"lora": {"targets": ["2"]}}}}).policy.adapted == ["transformer.2"]


def test_where_adapters_start_depends_on_the_seed_alone() -> None:
    def start(seed: int) -> dict[str, Tensor]:
        module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        before = torch.get_rng_state()
        lora.add_adapters(module, LoraConfig(rank=2), ("0", "1"), seed)
        assert torch.equal(torch.get_rng_state(), before)
        return {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.requires_grad}

    torch.manual_seed(0)
    one = start(1)
    torch.manual_seed(99)
    assert same(start(1), one)
    assert not same(start(2), one)


def test_saved_weights_and_kept_ones_are_loaded_back(policy: Policy, step: Step, tmp_path: Path) -> None:
    nudge(policy, 1)
    policy.keep("old")
    old = velocity(policy, step)
    nudge(policy, 2)
    before, new = values(policy), velocity(policy, step)
    saved.save(policy, tmp_path)
    nudge(policy, 3)
    policy.keep("old")
    policy.keep("later")
    saved.load(policy, tmp_path)
    assert same(values(policy), before)
    assert torch.equal(velocity(policy, step), new)
    with policy.using("old"):
        assert torch.equal(velocity(policy, step), old)
    with pytest.raises(RunError), policy.using("later"):
        pass


def test_a_fresh_policy_takes_up_what_another_saved(prepared: Prepared, step: Step, tmp_path: Path) -> None:
    for model in MODELS.values():
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        one = prepared({"model": model, "seed": 1}).policy
        nudge(one)
        saved.save(one, folder)
        other = prepared({"model": model, "seed": 2}).policy
        saved.load(other, folder)
        assert torch.equal(velocity(one, step), velocity(other, step))


def test_adapters_are_saved_under_the_names_diffusers_reads(prepared: Prepared, tmp_path: Path) -> None:
    saved.save(prepared({"model": MODELS["lora"]}).policy, tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    assert {name: list(weight.shape) for name, weight in load_file(file).items()} == {
        "transformer.0.lora_A.weight": [2, 18],
        "transformer.0.lora_B.weight": [8, 2],
        "transformer.2.lora_A.weight": [2, 8],
        "transformer.2.lora_B.weight": [16, 2],
    }
    with safe_open(file, "pt") as opened:
        assert '"transformer.r": 2' in opened.metadata()["lora_adapter_metadata"]
        assert '"transformer.lora_alpha": 2' in opened.metadata()["lora_adapter_metadata"]


def test_alpha_over_rank_is_multiplied_into_what_is_saved_and_not_into_what_trains(
    prepared: Prepared, step: Step, tmp_path: Path
) -> None:
    policy = prepared({"model": MODELS["lora"]}).policy
    nudge(policy)
    before, drawn = values(policy), velocity(policy, step)
    saved.save(policy, tmp_path)
    assert same(values(policy), before)
    written = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    for name, weight in before.items():
        scale = 3 / 2 if "lora_B" in name else 1
        assert torch.equal(written[name.replace(".default", "")], scale * weight), name
    # the trained ones are what is read again, so that no ratio rounds them
    other = prepared({"model": MODELS["lora"], "seed": 9}).policy
    saved.load(other, tmp_path)
    assert same(values(other), before)
    assert torch.equal(velocity(other, step), drawn)


def test_full_weights_are_saved_where_diffusers_reads_them(prepared: Prepared, tmp_path: Path) -> None:
    policy = prepared({"model": MODELS["full"]}).policy
    saved.save_trained(policy, tmp_path)
    state = load_file(tmp_path / "transformer/diffusion_pytorch_model.safetensors")
    assert same(state, dict(policy.modules["transformer"].state_dict()))


def test_other_adapters_than_the_configs_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    saved.save(prepared({"model": {"name": "net", "train": {"lora": {"targets": ["2"]}}}}).policy, tmp_path)
    with pytest.raises(RunError, match="holds other weights than the config trains"):
        saved.load(prepared({"model": MODELS["lora"]}).policy, tmp_path)


def test_full_training_keeps_master_weights_in_float32_and_computes_in_the_precision() -> None:
    seen: list[torch.dtype] = []
    module = nn.Linear(2, 2).bfloat16()

    def evaluate(step: Step) -> Evaluation:
        seen.append(module(step.latents).dtype)
        return Evaluation(step.latents)

    trainable = Trainable({"transformer": module}, "full", (), (), "", guided=False)
    policy = Policy(trainable, evaluate, CPU, torch.bfloat16)
    policy.evaluate(Step(torch.ones(1, 2), torch.ones(1), Conditions(({},)), 1.0, ODE()))
    assert {parameter.dtype for parameter in policy.parameters.values()} == {torch.float32}
    assert seen == [torch.bfloat16]


def test_adapters_of_half_precision_layers_are_float32() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).bfloat16()
    training = LoraTraining(lora=LoraConfig(rank=2, alpha=2))
    trainable = Trainable({"transformer": module}, training, ("0",), (), "", guided=False)
    policy = Policy(trainable, lambda step: Evaluation(step.latents), CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in policy.parameters.values()} == {torch.float32}
    frozen = {p.dtype for p in module.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}


def test_dropout_is_off_in_sampling_and_in_training() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    module.train()
    trainable = Trainable({"transformer": module}, "full", (), (), "", guided=False)
    Policy(trainable, lambda step: Evaluation(step.latents), CPU)
    x = torch.ones(8, 4)
    assert torch.equal(module(x), module[0](x))


def test_kept_weights_cost_the_trained_ones_alone(prepared: Prepared) -> None:
    run = prepared({"model": MODELS["lora"]})
    run.policy.keep_reference()
    collect_rollouts(run, 0, Timer(CPU))
    kept = {name: set(kept.weights) for name, kept in run.policy._kept.items()}
    assert kept == {"slow": set(run.policy.parameters), "reference": set()}  # the algorithm's; the reference is the base


def test_an_average_moves_as_its_schedule_says(policy: Policy) -> None:
    decays = {0: 0.5, 1: 0.25, 2: 1.0, 3: 0.9, 4: 0.0, 5: 0.75}
    policy.track_ema("slow", decays.__getitem__)
    policy.track_ema("slower", lambda iteration: 0.9)
    slow = {name: value.double() for name, value in values(policy).items()}
    slower = dict(slow)
    for iteration, decay in decays.items():
        nudge(policy, iteration)
        present = values(policy)
        policy.iteration_finished(iteration)
        slow = {name: decay * value + (1 - decay) * present[name].double() for name, value in slow.items()}
        slower = {name: 0.9 * value + 0.1 * present[name].double() for name, value in slower.items()}
        assert same(values(policy), present)
        for name, expected in (("slow", slow), ("slower", slower)):
            with policy.using(name):
                for key, value in values(policy).items():
                    torch.testing.assert_close(value.double(), expected[key], rtol=0, atol=1e-6)


def test_a_decay_of_zero_copies_and_the_copy_is_known_as_present(policy: Policy, step: Step) -> None:
    policy.track_ema("old", lambda iteration: 0.0)
    nudge(policy)
    assert not policy.is_present(At("old"), step)
    policy.iteration_finished(0)
    assert policy.is_present(At("old"), step)
    new, kept = policy.compare(step, {"old": At("old")})
    assert torch.equal(new.velocity, kept["old"].velocity)
    present = values(policy)
    nudge(policy, 1)
    with policy.using("old"):  # by value: what comes after does not reach it
        assert same(values(policy), present)


def test_an_average_of_weights_that_did_not_change_stays_the_present_ones(policy: Policy, step: Step) -> None:
    policy.track_ema("slow", lambda iteration: 0.3)
    before = values(policy)
    policy.iteration_finished(0)
    assert policy.is_present(At("slow"), step)
    nudge(policy)
    policy.iteration_finished(1)
    assert not policy.is_present(At("slow"), step)
    with policy.using("slow"):
        assert not same(values(policy), before)


def test_a_decay_of_one_stands_still(policy: Policy, step: Step) -> None:
    policy.track_ema("fixed", lambda iteration: 1.0)
    start = values(policy)
    for iteration in range(3):
        nudge(policy, iteration)
        policy.iteration_finished(iteration)
    assert not policy.is_present(At("fixed"), step)
    with policy.using("fixed"):
        assert same(values(policy), start)


def test_what_is_kept_lies_where_the_config_says(load: Callable[..., RunConfig]) -> None:
    # the meta device is another than the host's, on every machine
    for where, device in (("host", "cpu"), ("device", "meta")):
        run = prepare_run(load({"model": MODELS["full"], "training": {"kept_on": where}}).model_copy(update={"device": "meta"}))
        assert run.policy._kept_on.type == device


@pytest.mark.parametrize(("host", "device"), [(True, "cpu"), (False, "meta")])
def test_weights_are_kept_on_the_host_or_on_the_device(host: bool, device: str) -> None:
    trainable = Trainable({"transformer": nn.Linear(2, 2)}, "full", (), (), "", guided=False)
    policy = Policy(trainable, lambda step: Evaluation(step.latents), torch.device("meta"), host=host)
    policy.track_ema("slow", lambda iteration: 0.5)
    policy.keep_reference()
    for name in ("slow", REFERENCE):
        assert {value.device.type for value in policy._kept[name].weights.values()} == {device}


def test_weights_kept_on_the_host_are_used_averaged_and_loaded_as_others_are(step: Step, tmp_path: Path) -> None:
    drawn: list[list[Tensor]] = []
    for host in (False, True):
        module = nn.Linear(16, 16)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=flow.generator("start", name)))
        trainable = Trainable({"transformer": module}, "full", (), (), "", guided=False)
        policy = Policy(trainable, lambda s, m=module: Evaluation(m(s.latents.flatten(1))), CPU, host=host)  # type: ignore[misc]
        policy.track_ema("slow", lambda iteration: 0.5)
        policy.keep_reference()
        nudge(policy)
        policy.iteration_finished(0)
        (tmp_path / str(host)).mkdir()
        saved.save(policy, tmp_path / str(host))
        nudge(policy, 1)
        saved.load(policy, tmp_path / str(host))
        new, kept = policy.compare(step, {"slow": At("slow"), "reference": At(REFERENCE)})
        drawn.append([new.velocity, kept["slow"].velocity, kept["reference"].velocity])
    assert all(map(torch.equal, *drawn))


def test_a_resumed_policy_knows_again_which_kept_weights_are_the_present_ones(
    policy: Policy, step: Step, tmp_path: Path
) -> None:
    policy.track_ema("old", lambda iteration: 0.0)
    policy.track_ema("slow", lambda iteration: 0.5)
    nudge(policy)
    policy.iteration_finished(0)
    saved.save(policy, tmp_path)
    nudge(policy, 1)
    policy.iteration_finished(1)
    saved.load(policy, tmp_path)
    assert policy.is_present(At("old"), step)
    assert not policy.is_present(At("slow"), step)
    before = values(policy)
    nudge(policy, 2)
    assert not policy.is_present(At("old"), step)
    policy.iteration_finished(2)  # the schedules go on where they were
    assert policy.is_present(At("old"), step)
    with policy.using("old"):
        assert not same(values(policy), before)


def test_the_reference_is_the_present_weights_at_the_start_alone(policy: Policy, step: Step) -> None:
    policy.keep_reference()
    assert policy.is_present(At(REFERENCE), step)
    nudge(policy)
    assert not policy.is_present(At(REFERENCE), step)


def test_with_adapters_the_reference_costs_no_copy_and_outlives_a_resume(
    prepared: Prepared, step: Step, tmp_path: Path
) -> None:
    policy = prepared({"model": MODELS["lora"]}).policy
    policy.keep_reference()
    assert policy._kept[REFERENCE].weights == {}
    start = velocity(policy, step)
    nudge(policy)
    saved.save(policy, tmp_path)
    saved.load(policy, tmp_path)
    assert not policy.is_present(At(REFERENCE), step)
    assert torch.equal(policy.compare(step, {"reference": At(REFERENCE)})[1]["reference"].velocity, start)
    with policy.using(REFERENCE):
        assert torch.equal(velocity(policy, step), start)
        assert policy.is_present(At(REFERENCE), step)
    assert not policy.is_present(At(REFERENCE), step)


def test_adapters_come_back_after_an_error_under_the_reference(prepared: Prepared, step: Step) -> None:
    policy = prepared({"model": MODELS["lora"]}).policy
    policy.keep_reference()
    nudge(policy)
    present, new = values(policy), velocity(policy, step)
    with pytest.raises(ZeroDivisionError), policy.using(REFERENCE):
        raise ZeroDivisionError
    assert same(values(policy), present)
    assert torch.equal(velocity(policy, step), new)
    assert not policy.is_present(At(REFERENCE), step)
    gradients = torch.autograd.grad(policy.evaluate(step).velocity.sum(), list(policy.parameters.values()))
    assert all(bool(gradient.any()) for gradient in gradients)


def test_after_an_error_the_present_weights_are_known_as_present(policy: Policy, step: Step) -> None:
    policy.keep("old")
    nudge(policy)
    policy.keep("new")
    with pytest.raises(ZeroDivisionError), policy.using("old"):
        raise ZeroDivisionError
    assert policy.is_present(At("new"), step)
    assert not policy.is_present(At("old"), step)


def test_an_average_that_the_saved_run_had_not_begins_with_its_weights(policy: Policy, step: Step, tmp_path: Path) -> None:
    nudge(policy)
    before = values(policy)
    saved.save(policy, tmp_path)
    policy.track_ema("new", lambda iteration: 0.5)
    nudge(policy, 1)
    policy.iteration_finished(0)
    saved.load(policy, tmp_path)
    assert policy.is_present(At("new"), step)
    nudge(policy, 2)
    present = values(policy)
    policy.iteration_finished(1)
    with policy.using("new"):
        for name, value in values(policy).items():
            torch.testing.assert_close(value, 0.5 * before[name] + 0.5 * present[name])


def test_an_average_that_moved_is_told_from_what_was_kept_with_it(policy: Policy, step: Step) -> None:
    policy.keep("start")
    policy.track_ema("slow", lambda iteration: 0.5)
    start = velocity(policy, step)
    nudge(policy)
    policy.iteration_finished(0)
    with policy.using("slow"):
        slow = velocity(policy, step)
    _, kept = policy.compare(step, {"start": At("start"), "slow": At("slow")})
    assert torch.equal(kept["start"].velocity, start)
    assert torch.equal(kept["slow"].velocity, slow)
    assert float((start - slow).abs().max()) > 0.01


@pytest.mark.parametrize("train", ["full", LoraTraining.model_validate({"lora": {"rank": 2}})], ids=["full", "lora"])
def test_weights_that_nothing_reads_do_not_train(train: Any, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    trainable = Trainable({"transformer": net}, train, ("0", "1"), (), "", guided=False, unread=("transformer.1",))
    policy = Policy(trainable, lambda step: Evaluation(step.latents), torch.device("cpu"))
    assert policy.parameters
    assert all(name.startswith("transformer.0.") for name in policy.parameters)
    if train != "full":
        assert policy.adapted == ["transformer.0"]
    saved.save(policy, tmp_path)
    saved.load(policy, tmp_path)
