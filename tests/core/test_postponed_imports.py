from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowfactory.postponed_imports import postponed_imports, settle_imports, without_collections

HEAVY = """
from heavy.inner import Thing
"""
INNER = """
NAME = "a name"
NUMBER = 3
PLACES = [1, 2, 3]
KNOWN = {"three": NUMBER}

class Thing:
    made = 0

    def __init__(self, size=1):
        self.size = size

class Other:
    pass

def double(number):
    return 2 * number
"""
USER = """
import heavy
import heavy.inner
from heavy import Thing
from heavy.inner import KNOWN, NAME, NUMBER, PLACES, Other, double

class Owner:
    def __init__(self, thing: Thing, count: int, either: Thing | Other) -> None:
        self.thing = thing

def is_thing(value):
    return isinstance(value, Thing), isinstance(value, (int, heavy.Thing)), isinstance(value, type) and issubclass(value, Thing)
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module ``user``, which imported the package ``heavy`` while that was postponed."""
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "__init__.py").write_text(HEAVY)
    (tmp_path / "heavy" / "inner.py").write_text(INNER)
    (tmp_path / "user.py").write_text(USER)
    monkeypatch.syspath_prepend(tmp_path)
    with postponed_imports("heavy"):
        found = import_module("user")
    assert "heavy" not in sys.modules
    yield found
    for name in [name for name in sys.modules if name.split(".")[0] in ("heavy", "user")]:
        del sys.modules[name]


def test_it_is_imported_when_something_of_it_is_used(user: Any) -> None:
    assert user.double(21) == 42
    assert sys.modules["heavy"].Thing is import_module("heavy.inner").Thing


@pytest.mark.parametrize("use", [lambda user: user.heavy.inner.double(2), lambda user: user.double.__call__(2)])
def test_a_module_and_what_is_in_it_are_used_alike(user: Any, use: Any) -> None:
    assert use(user) == 4


def test_a_method_of_a_value_is_the_values_own(user: Any) -> None:
    assert user.NAME.upper() == "A NAME"
    assert user.NAME == "a name"


def test_nothing_is_an_instance_before_anybody_imported_it_and_asking_imports_nothing(user: Any) -> None:
    assert user.is_thing(3) == (False, True, False)
    assert user.is_thing(str) == (False, False, False)
    assert "heavy" not in sys.modules
    heavy: Any = import_module("heavy")
    assert user.is_thing(heavy.Thing()) == (True, True, False)
    assert user.is_thing(heavy.Thing) == (False, False, True)
    assert user.is_thing("no thing") == (False, False, False)


def test_a_class_can_be_made_extended_and_joined_with_others(user: Any) -> None:
    assert user.Thing(size=5).size == 5

    class Larger(user.Thing):  # type: ignore[misc]
        pass

    heavy: Any = import_module("heavy")
    assert Larger.__mro__[1] is heavy.Thing
    assert isinstance(heavy.Thing(), user.Thing | None)


def test_classes_that_are_joined_with_each_other_are_imported_when_that_is_used(user: Any) -> None:
    joined = user.Thing | user.Other
    assert "heavy" not in sys.modules
    heavy: Any = import_module("heavy.inner")
    assert isinstance(heavy.Thing(), joined)
    assert isinstance(heavy.Other(), joined)
    assert joined == heavy.Thing | heavy.Other
    assert joined | None == heavy.Thing | heavy.Other | None
    assert joined.__args__ == (heavy.Thing, heavy.Other)


USES: list[Callable[[Any, Any], Any]] = [
    lambda three, _: (three + 1, 1 + three, three - 1, 1 - three, three * 2, 2 * three, three / 2, 2 / three, three @ _matrix),
    lambda three, _: (three // 2, 10 // three, three % 2, 10 % three, three**2, 2**three, divmod(three, 2), divmod(10, three)),
    lambda three, _: (three << 1, 1 << three, three >> 1, 9 >> three, three & 1, 1 & three, three | 4, 4 | three, three ^ 1),
    lambda three, _: (three < 4, three <= 3, three > 4, three >= 3, three == 3, three != 3, three == 3.0, three + three),
    lambda three, _: (-three, +three, abs(three), ~three, bool(three), int(three), float(three), complex(three), round(three)),
    lambda three, _: (
        str(three),
        repr(three),
        f"{three:>4}",
        hex(three),
        range(9)[three],
        bytes(three),
    ),
    lambda _, places: (len(places), list(places), places[1], places[1:], 2 in places, list(reversed(places)), dir(places)),
]
_matrix = type("Matrix", (), {"__rmatmul__": lambda self, other: other + 1})()


@pytest.mark.parametrize("use", USES)
def test_what_is_done_with_it_is_done_with_the_real_thing(user: Any, use: Callable[[Any, Any], Any]) -> None:
    heavy = user.heavy.inner
    assert type(user.NUMBER) is not int
    found = use(user.NUMBER, user.PLACES)
    assert found == use(3, [1, 2, 3])
    assert heavy.real() is sys.modules["heavy.inner"]


def test_what_is_put_into_it_is_put_into_the_real_thing(user: Any) -> None:
    user.KNOWN["four"] = 4
    del user.KNOWN["three"]
    user.heavy.inner.NUMBER = 5
    user.Thing.made = 6
    heavy: Any = import_module("heavy.inner")
    assert heavy.KNOWN == {"four": 4}
    assert (heavy.NUMBER, heavy.Thing.made) == (5, 6)
    assert "NUMBER" in dir(user.heavy.inner)


def test_what_is_not_used_can_be_used_within_too(user: Any) -> None:
    with postponed_imports("heavy"):
        assert user.double(3) == 6
        assert import_module("heavy").Thing is user.heavy.real().Thing


def test_whoever_imports_it_afterwards_gets_it_as_ever(user: Any) -> None:
    from heavy.inner import Thing  # type: ignore[import-not-found]

    assert Thing.__module__ == "heavy.inner"
    assert isinstance(Thing, type)


def test_one_that_is_imported_already_is_left_as_it_is(user: Any) -> None:
    before = import_module("heavy")
    with postponed_imports("heavy"):
        import heavy  # type: ignore[import-not-found]

        assert heavy is before
        assert import_module("heavy.inner").double(2) == 4


def test_one_that_is_not_installed_is_not_found() -> None:
    with postponed_imports("no_such_package"):
        assert util.find_spec("no_such_package") is None
        with pytest.raises(ModuleNotFoundError):
            import_module("no_such_package.inner")


def test_a_submodule_that_there_is_not_is_not_found(user: Any) -> None:
    with postponed_imports("heavy"):
        assert util.find_spec("heavy.inner") is not None
        with pytest.raises(ModuleNotFoundError):
            import_module("heavy.other")


def test_what_is_not_there_is_told_when_it_is_used(user: Any) -> None:
    (Path(user.__file__).parent / "heavy" / "inner.py").write_text("raise ImportError('needs a newer kernel')")
    with pytest.raises(ImportError, match=r"heavy\.inner, which is needed now, cannot be imported: needs a newer kernel"):
        user.double(2)


def test_settled_are_names_and_annotations_of_that_library_alone(user: Any) -> None:
    settle_imports("user", "other")
    assert "heavy" not in sys.modules
    settle_imports("user", "heavy")
    heavy: Any = import_module("heavy")
    assert user.Thing is heavy.Thing
    assert user.heavy is heavy
    either = heavy.inner.Thing | heavy.inner.Other
    assert user.Owner.__init__.__annotations__ == {"thing": heavy.Thing, "count": int, "either": either, "return": None}


def test_after_an_error_imports_are_as_before(user: Any) -> None:
    finders = list(sys.meta_path)
    with pytest.raises(ZeroDivisionError), postponed_imports("heavy"):
        _ = 1 / bool(import_module("heavy").__name__ == "other")
    assert sys.meta_path == finders
    assert "heavy" not in sys.modules
    assert gc.isenabled()


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_afterwards_what_it_was(on: bool) -> None:
    try:
        if not on:
            gc.disable()
        with without_collections():
            with without_collections():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled() == on
    finally:
        gc.enable()
