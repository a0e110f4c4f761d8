"""The page in a browser; skipped where there is no Chromium."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_runs import make_run

from flowfactory.runs.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
ATTACK = "<script>document.title='theirs'</script><img src=x onerror=\"document.title='theirs'\">"


def shown(page: Path, profile: Path) -> str:
    """The page as it is once its scripts have run."""
    options = ["--headless=new", "--disable-gpu", "--virtual-time-budget=2000", f"--user-data-dir={profile}", "--dump-dom"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run([str(CHROMIUM), *options, page.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


def test_the_script_of_the_page_runs_and_text_of_strangers_does_not_become_script(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {0: {ATTACK: 0.0}, 10: {ATTACK: 0.5}, 20: {ATTACK: 1.0}}, config={"note": ATTACK})
    text = shown(write_report(run), tmp_path / "profile")
    assert "<title>Run run · flowfactory report</title>" in text
    assert re.search('<div class="toolbar zoom" role="group" aria-label="[^"]*">', text), "which is hidden without the script"
    assert 'aria-valuetext="after iteration 20"' in text


def test_a_script_that_somebody_put_into_the_page_does_not_run(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run", {}))
    page.write_text(page.read_text().replace("</body>", f"{ATTACK}</body>"))
    text = shown(page, tmp_path / "profile")
    assert "<title>Run run · flowfactory report</title>" in text
