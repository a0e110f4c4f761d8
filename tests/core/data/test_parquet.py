"""A Parquet file is read as the JSON lines that hold the same, a few rows at a time."""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowfactory.data.prompts import read_prompts
from flowfactory.errors import UserError
from flowfactory.types import Prompt

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        read_prompts(path)
    sentence = str(refused.value)
    assert sentence.startswith(f"prompts {path}")
    assert "\n" not in sentence
    return sentence.removeprefix(f"prompts {path}").removeprefix(":").strip()


def test_columns_are_what_they_are_in_json(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    path = write(
        tmp_path / "p.PARQUET",
        {
            "Prompt": pyarrow.array([" a cat ", "a dog", "both"]).dictionary_encode(),
            "images": pyarrow.array([["a.png"], None, ["a.png", "b.png"]], pyarrow.list_(pyarrow.large_string())),
            "negative_prompt": [None, "blurry", None],
            "rewards": [["taste"], None, None],
            "Count": [3, None, 2],
            "share": [0.5, None, 0.25],
            "told": [{"by": "me", "sure": True, "how": [1, 2]}, None, {"by": None, "sure": False, "how": []}],
            "nothing": pyarrow.nulls(3),
        },
    )
    one = {"rewards": ["taste"], "Count": 3, "share": 0.5, "told": {"by": "me", "sure": True, "how": [1, 2]}}
    other = {"Count": 2, "share": 0.25, "told": {"by": None, "sure": False, "how": []}}
    assert read_prompts(path) == (
        Prompt("a cat", 0, one, None, (tmp_path / "a.png",)),
        Prompt("a dog", 1, {}, "blurry"),
        Prompt("both", 2, other, None, (tmp_path / "a.png", tmp_path / "b.png")),
    )


BYTES = "as datasets writes pictures; save each as a file, and write its path, a text, in their place"


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"caption": ["a"], "image": ["b"]}, "there is no column 'prompt', but caption, image; rename the one that is meant"),
        ({"prompt": ["a"], "Prompt": ["b"]}, "two columns are called 'prompt'; rename one"),
        ({"prompt": ["a"], "image": [{"bytes": b"\x89PNG", "path": "a.png"}]}, f"column 'image' holds bytes, {BYTES}"),
        ({"prompt": ["a"], "images": [[b"\x89PNG"]]}, f"column 'images' holds bytes, {BYTES}"),
        ({"prompt": [b"a"]}, f"column 'prompt' holds bytes, {BYTES}"),
        (
            {"prompt": ["a"], "taken": [datetime.date(2020, 1, 1)]},
            "column 'taken' holds date32[day], which JSON does not have; make text or a number of it, or leave the column out",
        ),
        ({"prompt": ["a", None]}, "row 2: 'prompt' is missing"),
        ({"prompt": ["a", " "]}, "row 2: 'prompt' is empty; write a text, or leave the prompt out"),
        ({"prompt": [1]}, "row 1: 'prompt' is no text: 1"),
        (
            {"prompt": ["a"], "Videos": ["b"]},
            "row 1: unknown key 'Videos'; did you mean 'video'? For metadata, take another name",
        ),
        (
            {"prompt": ["a"], "x": [float("nan")]},
            "row 1: a number in it is NaN, and each should be finite; write null, or leave it out",
        ),
        ({"prompt": ["a\0"]}, r"row 1: a text in it holds \u0000, which is no character; leave it out"),
        ({"prompt": ["a", "b" * 2**20]}, "row 2: it is longer than 1 Mi characters; no prompt needs that"),
        ({"prompt": pyarrow.array([], pyarrow.string())}, "there is no prompt in it; write one a line"),
    ],
)
def test_what_is_no_prompt_is_refused_by_column_or_row(columns: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "p.parquet", columns)) == told


@pytest.mark.parametrize("content", [b"", b"a cat\n", b"PAR1", b"PAR1" + b"\xff" * 64 + b"PAR1"])
def test_a_file_that_is_no_parquet_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_bytes(content)
    assert refusal(tmp_path / "p.parquet").startswith("cannot be read as Parquet: ")


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", {"prompt": [f"a cat {number}" for number in range(1000)]})
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert refusal(path).startswith("cannot be read as Parquet: ")
    path.unlink()
    assert refusal(path) == "cannot be read: No such file or directory"


def test_pyarrow_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "p.parquet", {"prompt": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"^prompts in \.parquet need pyarrow: pip install 'flowfactory\[parquet\]'$"):
        read_prompts(path)


CHILD = """
import sys
from pathlib import Path
from flowfactory.data.prompt_files import read_rows

def most():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024

next(read_rows(Path(sys.argv[1])))
before = most()
count = sum(1 for _ in read_rows(Path(sys.argv[2])))
print(count, most() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc")
def test_a_large_file_holds_little_memory(tmp_path: Path) -> None:
    few = write(tmp_path / "few.parquet", {"prompt": ["a"]})
    texts = [f"{number:06d} {'x' * 2000}" for number in range(60_000)]  # 120 MB in one group of rows
    many = write(tmp_path / "many.parquet", {"prompt": texts}, use_dictionary=False, compression="none")
    ran = subprocess.run([sys.executable, "-c", CHILD, few, many], check=True, capture_output=True, text=True)
    count, more = ran.stdout.split()
    assert int(count) == 60_000
    assert float(more) < 40
