"""Rewards on several ranks."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import torch
from torchrun import torchrun

from flowfactory.distributed.ranks import ALONE

SCRIPT = Path(__file__).parent / "judging_rank.py"


def test_three_ranks_give_the_scores_of_one_to_the_bit_and_share_the_work(environment: dict[str, str], tmp_path: Path) -> None:
    expected, alone = runpy.run_path(str(SCRIPT))["judge"](ALONE, 1)
    assert alone == {"place": 36, "light": 40, "aside": 36, "bright": 36}, "a reward judged what is not its own, or twice"
    assert list(expected) == ["place", "light", "aside", "bright"]
    done = subprocess.run(
        torchrun(3, SCRIPT, tmp_path), env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told = [torch.load(tmp_path / f"3-{rank}.pt") for rank in range(3)]
    for judges in (1, 3):
        for found in told:
            scores, _ = found[judges]
            assert list(scores) == list(expected)
            for label, score in scores.items():
                assert score.dtype == expected[label].dtype
                assert torch.equal(score.nan_to_num(-1), expected[label].nan_to_num(-1)), label
        shares = [found[judges][1] for found in told]
        if judges == 1:
            assert shares == [alone, *[dict.fromkeys(alone, 0)] * 2]
            continue
        assert [share["place"] for share in shares] == [share["aside"] for share in shares] == [12, 12, 12]
        for label in ("light", "bright"):
            assert sum(share[label] for share in shares) == alone[label]
            assert max(share[label] for share in shares) <= 16
