from collections import Counter

from flowfactory_tiny.prompts import DATA, HELDOUT, TRAIN, choose, write
from flowfactory_tiny.scenes import parse


def test_the_files_are_what_the_function_writes(tmp_path):
    write(tmp_path)
    for name in ("train.txt", "heldout.txt"):
        assert (DATA / name).read_bytes() == (tmp_path / name).read_bytes()


def test_prompts_are_disjoint_and_mixed():
    train, heldout = choose()
    assert len({*train, *heldout}) == len(train) + len(heldout) == 840
    assert Counter(parse(text).kind for text in train) == TRAIN
    assert Counter(parse(text).kind for text in heldout) == HELDOUT
    assert all(len({parse(text).kind for text in heldout[start : start + 60]}) == 3 for start in range(0, 240, 60))
