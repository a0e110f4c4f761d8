"""Which line of a traceback a message names."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowfactory.discovery.source_places import raising_line


def raised(call: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def test_what_a_library_raises_is_named_by_the_line_that_called_it() -> None:
    line = sys._getframe().f_lineno + 3

    def author() -> object:
        return json.loads("{")

    assert raising_line(raised(author)) == f"test_source_places.py line {line}"


@pytest.mark.parametrize(("entry", "named"), [("", "test_source_places.py"), ("agleam", "agleam.py")])
def test_an_installed_module_is_a_plugins_where_it_has_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, named: str
) -> None:
    site = tmp_path / "site-packages"
    (site / "agleam-1.0.dist-info").mkdir(parents=True)
    (site / "agleam.py").write_text("def fail():\n    raise KeyError(1)\n")
    (site / "agleam-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: agleam\nVersion: 1.0\n")
    lines = f"[flowfactory]\nagleam = {entry}\n" if entry else ""
    (site / "agleam-1.0.dist-info/entry_points.txt").write_text(lines)
    monkeypatch.syspath_prepend(str(site))
    module = importlib.import_module("agleam")
    monkeypatch.delitem(sys.modules, "agleam")

    def author() -> object:
        return module.fail()

    assert raising_line(raised(author)).startswith(f"{named} line ")
