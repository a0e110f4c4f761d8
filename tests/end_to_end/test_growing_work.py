"""Nothing grows faster than what there is to do."""

from __future__ import annotations

from pathlib import Path

import growing_work
import pytest


@pytest.mark.parametrize("what", growing_work.CASES)
def test_twice_as_much_takes_twice_the_work(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFACTORY_CACHE", str(tmp_path / "cache"))
    case, smallest = growing_work.CASES[what]
    sizes = [smallest, 2 * smallest, 4 * smallest]
    case(tmp_path / "warm", smallest, growing_work.count_work)  # what is imported and made once
    found = [case(tmp_path / str(size), size, growing_work.count_work) for size in sizes]
    for kind in ("calls", "elements"):
        power = growing_work.slope(sizes, [getattr(work, kind) for work in found])
        assert power < 1.1, (kind, power, found)


def test_work_that_grows_with_the_square_is_told_from_work_that_does_not() -> None:
    sizes = [16, 32, 64]
    assert growing_work.slope(sizes, [100 + 7 * size for size in sizes]) == pytest.approx(1)
    assert growing_work.slope(sizes, [100 + size**2 for size in sizes]) == pytest.approx(2)
    listed = [growing_work.count_work(lambda n=n: [len([j]) for i in range(n) for j in range(n)]) for n in sizes]
    assert growing_work.slope(sizes, [work.calls for work in listed]) > 1.9
