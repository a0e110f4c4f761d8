"""Ways to draw faster, and what they do not go with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from pydantic import TypeAdapter

from flowfactory.config.feature_caches import FeatureCache, FirstBlockConfig
from flowfactory.config.schema import RunConfig, SamplingConfig
from flowfactory.distributed.ranks import ALONE
from flowfactory.errors import UserError
from flowfactory.training.plans import sampling_plan
from flowfactory.training.setup import Run, prepare_run

FULL = {"model": {"name": "net", "train": "full"}}


def test_a_model_without_a_transformer_of_diffusers_has_no_blocks_to_leave_out(load: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match=r"sampling.feature_cache: this model has no transformer of diffusers.*leave it out"):
        load({"sampling": {"feature_cache": "first-block"}})


@pytest.mark.parametrize("given", ["first-block", {}, {"name": "first-block", "threshold": 0.08}])
def test_a_name_alone_is_a_cache_with_its_defaults(given: object) -> None:
    cache: FirstBlockConfig = TypeAdapter(FeatureCache).validate_python(given)
    assert (cache.name, cache.threshold) == ("first-block", 0.08)
    assert SamplingConfig.model_fields["feature_cache"].default is None


def test_an_algorithm_that_records_steps_and_does_not_say_so_is_refused_before_it_draws(
    prepared: Callable[..., Run],
) -> None:
    run = prepared(FULL)
    assert not run.config.algorithm.trust_region
    assert sampling_plan(run.assembly, run.config, 0, ()).recorded
    sampling = run.config.sampling.model_copy(update={"weights_as": "int8"})
    config = run.config.model_copy(update={"sampling": sampling})
    with pytest.raises(UserError, match=r"sampling.weights_as: algorithm score learns from the steps that drew.*leave it out"):
        sampling_plan(run.assembly, config, 0, ())


def test_weights_that_are_divided_have_no_copy_and_it_is_said_before_they_are_read(load: Callable[..., RunConfig]) -> None:
    divided = replace(ALONE, mesh=cast(Any, object()))
    with pytest.raises(UserError, match=r"sampling.weights_as: weights are divided over the ranks.*distributed.shard to 1"):
        prepare_run(load(FULL | {"sampling": {"weights_as": "int8"}}), ranks=divided)
