from __future__ import annotations

import random

from flowfactory.reward_trends import direction


def test_a_trend_is_beyond_noise() -> None:
    noise = random.Random(0)
    flat = [direction([noise.gauss(0.7, 0.05) for _ in range(20)]) for _ in range(2000)]
    # of differences of two means of 10, whose t has 18 degrees of freedom, 0.8 in a hundred are beyond 3
    assert sum(map(abs, flat)) < 0.015 * len(flat)
    rising = [direction([0.01 * i + noise.gauss(0.7, 0.05) for i in range(20)]) for _ in range(200)]
    assert sum(rising) > 0.7 * len(rising)


def test_few_iterations_tell_no_trend() -> None:
    assert [direction([0.0, 1.0, 2.0, 3.0, 4.0][:count]) for count in range(6)] == [0] * 6
    assert direction([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]) == 1
    assert direction([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]) == -1
