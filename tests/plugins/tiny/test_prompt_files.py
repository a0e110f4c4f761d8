from collections import Counter

from flowfactory_tiny.prompt_files import DATA, HELDOUT, TRAIN, choose_captions, write_files
from flowfactory_tiny.scenes import parse_caption


def test_the_files_are_what_the_function_writes(tmp_path):
    write_files(tmp_path)
    for name in ("train.txt", "heldout.txt"):
        assert (DATA / name).read_bytes() == (tmp_path / name).read_bytes()


def test_prompts_are_disjoint_and_mixed():
    train, heldout = choose_captions()
    assert len({*train, *heldout}) == len(train) + len(heldout) == 840
    assert Counter(parse_caption(text).kind for text in train) == TRAIN
    assert Counter(parse_caption(text).kind for text in heldout) == HELDOUT
    assert all(len({parse_caption(text).kind for text in heldout[start : start + 60]}) == 3 for start in range(0, 240, 60))
