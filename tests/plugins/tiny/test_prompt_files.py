from collections import Counter
from itertools import chain

from flowfactory_tiny.prompt_files import DATA, SPLITS, choose_captions, write_files
from flowfactory_tiny.scenes import parse_caption


def test_the_files_are_what_the_function_writes(tmp_path):
    write_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heldout.txt", "train.txt", "validation.txt"]
    for path in tmp_path.iterdir():
        assert (DATA / path.name).read_bytes() == path.read_bytes()


def test_prompts_are_disjoint_and_mixed():
    splits = choose_captions()
    captions = list(chain.from_iterable(splits.values()))
    assert len(set(captions)) == len(captions) == 990
    for name, counts in SPLITS.items():
        assert Counter(parse_caption(text).kind for text in splits[name]) == counts
        starts = range(0, len(splits[name]) - 50, 50)
        assert all(len({parse_caption(text).kind for text in splits[name][start : start + 50]}) == 3 for start in starts)
