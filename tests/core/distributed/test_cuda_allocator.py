"""What torch's allocator of CUDA memory is told, before torch is there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flowfactory.distributed.cuda_allocator import SETTINGS, let_segments_grow


def test_segments_grow_unless_the_user_set_anything() -> None:
    variables: dict[str, str] = {}
    let_segments_grow(variables, "linux")
    assert variables == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    let_segments_grow(variables, "linux")
    assert variables == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_user_set_stays_under_whatever_name(name: str) -> None:
    variables = {name: "max_split_size_mb:128"}
    let_segments_grow(variables, "linux")
    assert variables == {name: "max_split_size_mb:128"}


def test_nothing_is_asked_where_it_is_not_to_be_had() -> None:
    variables: dict[str, str] = {}
    let_segments_grow(variables, "win32")
    assert variables == {}


PROGRAM = """
import os, sys
from flowfactory.cli import main
seen = []
main._call = lambda commands: seen.append(("torch" in sys.modules, os.environ.get("PYTORCH_ALLOC_CONF"))) or 0
try:
    main.main()
except SystemExit as end:
    assert not end.code
import torch
torch.empty(3)
print(seen)
"""


def test_a_command_has_it_before_torch_is_imported() -> None:
    own = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], env=own, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[(False, 'expandable_segments:True')]\n", "")
