"""Which packages are found, and what licence their metadata states."""

from __future__ import annotations

from email.message import Message
from pathlib import Path

import pytest

from flowfactory.discovery.package_licences import find_packages, licence_of


def stated(**written: str | list[str]) -> Message:
    message = Message()
    for key, values in written.items():
        for value in [values] if isinstance(values, str) else values:
            message[key.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("written", "licence"),
    [
        ({"License_Expression": "MIT", "License": "the MIT licence"}, "MIT"),
        ({"License": "Apache 2.0", "Classifier": "License :: OSI Approved :: Apache Software License"}, "Apache 2.0"),
        ({"License": "MIT License\n\nPermission is …", "Classifier": "License :: OSI Approved :: MIT License"}, "MIT License"),
        ({"License": "x" * 101, "Classifier": "License :: OSI Approved :: BSD License"}, "BSD License"),
        ({"License": "UNKNOWN", "Classifier": ["License :: OSI Approved", "License :: Public Domain"]}, "Public Domain"),
        ({"Classifier": ["License :: OSI Approved :: A", "License :: OSI Approved :: B"]}, "A and B"),
        ({"Classifier": "Topic :: Software Development"}, "not stated"),
        ({}, "not stated"),
    ],
)
def test_a_licence_is_what_the_metadata_says(written: dict[str, str | list[str]], licence: str) -> None:
    assert licence_of(stated(**written)) == licence  # type: ignore[arg-type]


def install(
    site: Path, name: str, *requires: str, licence: str = "MIT", plugin: bool = False, extras: tuple[str, ...] = ()
) -> None:
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", f"License-Expression: {licence}"]
    lines += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {line}" for line in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    if plugin:
        (info / "entry_points.txt").write_text(f"[flowfactory]\n{name} = nowhere\n")


def test_what_is_installed_and_required_is_found_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    requirements = ["a-part>=1", "an-extra[fast]; extra == 'more'", "a-stranger; python_version < '3'", "an-absence"]
    install(tmp_path, "a-plugin", *requirements, plugin=True, extras=("more",))
    install(tmp_path, "a-part", "a_circle", "unasked; extra == 'never'", licence="BSD-3-Clause", extras=("never",))
    install(tmp_path, "a-circle", "a-part")
    install(tmp_path, "an-extra", "asked; extra == 'fast'", "unasked; extra == 'slow'", extras=("fast", "slow"))
    for name in ("asked", "unasked", "a-stranger", "unrelated"):
        install(tmp_path, name)
    found = {package.name: package for package in find_packages()}
    ours = {"a-plugin", "a-part", "a-circle", "an-extra", "asked", "unasked", "a-stranger", "unrelated"}
    assert found.keys() & ours == {"a-plugin", "a-part", "a-circle", "an-extra", "asked"}
    assert (found["a-part"].version, found["a-part"].licence) == ("1.0", "BSD-3-Clause")
    assert {"flowfactory", "pydantic", "pydantic_core", "torch"} <= found.keys()
    assert [*found] == sorted(found, key=lambda name: name.lower().replace("_", "-"))
