from pathlib import Path

from flowfactory.testing import check_tracker

from flowfactory_newname.tracker import NewNameConfig


def test_it_keeps_the_contract_and_writes_a_line_an_iteration(tmp_path: Path) -> None:
    # a run of two iterations, a third one after it was resumed, and a run that fails
    check_tracker(NewNameConfig(), tmp_path)
    lines = (tmp_path / "run" / "newname.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *("2 iterations", "0", "1", "2", "finished"),
        *("3 iterations", "3", "finished"),
    ]
    failing = (tmp_path / "failing" / "newname.txt").read_text().splitlines()
    assert failing[-1] == "stopped by RunError"


def test_fewer_lines_when_asked(tmp_path: Path) -> None:
    check_tracker(NewNameConfig(every=2), tmp_path)
    lines = (tmp_path / "run" / "newname.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["2 iterations", "0", "2", "finished", "3 iterations", "finished"]
