from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfactory_rewards.quotations import PAIRS, find_quotations

EVERY_PAIR = [(opener, closer) for opener, closers in PAIRS.items() for closer in sorted(closers)]
NO_QUOTATION = [
    'a 5" screen',
    "a 5” screen beside a 7” one",
    'a 24" x 36" poster, 5"x7" prints and a 10"-wide frame',
    "a man who is 5'10\" tall, a 6' fence and a 10'' pan",
    "rock 'n' roll",
    "rock ‘n’ roll, Guns 'N' Roses and rock'n'roll",
    "salt 'n pepper",
    "the '90s",
    "the ’90s and the ‘80s, '70s too",
    "the dogs' bowl",
    "the dogs’ bowl and the cats’ toys",
    "the '90s and the dogs' bowl",
    "give 'em the boss' hat",
    "'twas rockin' and rollin'",
    "it's the girl's dog, isn’t it, O'Brien? O‘Brien!",
    "l'été d'Anne aujourd’hui",
    "п'ять",
    'a stray " in the middle',
    "a stray “ without its other",
    "a stray „ or « or 『 or ‹",
    'twelve inches (12") and 5′10″',
    "",
]


@pytest.mark.parametrize("prompt", NO_QUOTATION)
def test_apostrophes_and_inches_and_single_marks_open_nothing(prompt: str) -> None:
    assert find_quotations(prompt) == []


@pytest.mark.parametrize("prompt", NO_QUOTATION)
def test_a_quotation_beside_them_is_read_all_the_same(prompt: str) -> None:
    assert find_quotations(f"a sign 「Open」; {prompt}") == ["Open"]
    assert find_quotations(f'a sign "Cafe"; {prompt}') == ["Cafe"]
    if " stray " not in f" {prompt}":
        assert find_quotations(f'{prompt}, "Open"') == ["Open"]
        assert find_quotations(f"{prompt}, 'Open'") == ["Open"]
        assert find_quotations(f"{prompt}, ‘Open’") == ["Open"]


@pytest.mark.parametrize(("opener", "closer"), EVERY_PAIR)
@pytest.mark.parametrize(
    "frame", ["{}", "a sign {} on a door", "({}), red", "写着{}的牌子", "says:{}.", "a {}-sign", "it's {}!"]
)
def test_every_pair_is_read_wherever_it_stands(opener: str, closer: str, frame: str) -> None:
    for text in ("Open", "it's", "don’t stop", "24", "No. 7, Main St", "営業中", "¡Hola!", "(x)"):
        assert find_quotations(frame.format(opener + text + closer)) == [text]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("„Geöffnet“ und „Zu”", ["Geöffnet", "Zu"]),
        ('„Offen" steht da', ["Offen"]),
        ("‚Offen‘ et ‹Ouvert›", ["Offen", "Ouvert"]),
        ("»Offen« und »Zu«, ›Auf‹", ["Offen", "Zu", "Auf"]),
        ("»Auki» ja ”Kiinni” ja ’Auki’", ["Auki", "Kiinni", "Auki"]),
        ("« Ouvert » et « Fermé »", [" Ouvert ", " Fermé "]),
        ("『開店』「閉店」｢半角｣〝準備中〟", ["開店", "閉店", "半角", "準備中"]),
        ("＂Ｏｐｅｎ＂ and ＇Shut＇", ["Ｏｐｅｎ", "Shut"]),
        ("'안녕'이라고 쓰인 \"문\"과 ‘창’이", ["안녕", "문", "창"]),
        ('"A", "B" and "C"', ["A", "B", "C"]),
        ('"A""B"', ["A", "B"]),
        ("''Open'' in typewriter's marks", ["Open"]),
        ('says"Open" and "Shut"on a door', ["Open", "Shut"]),
        ('" Open " and "  "', [" Open ", "  "]),
        # the outermost
        ("""a wall with 'he said "no"' on it""", ['he said "no"']),
        ("“he said ‘no’ to “her”” loudly", ["he said ‘no’ to “her”"]),
        ('"he said "no" loudly"', ['he said "no" loudly']),
        ("「彼は『はい』と言った」", ["彼は『はい』と言った"]),
        ("„er sagt “nein” laut“", ["er sagt “nein” laut"]),
        # apostrophes within and about
        ("it says 'it's five o'clock' and ‘it’s late’", ["it's five o'clock", "it’s late"]),
        ("it says 'the dogs' bowl'", ["the dogs' bowl"]),
        ("'Open Doors' and 'Closed'", ["Open Doors", "Closed"]),
        ("'Open Doors' at the dogs' bowl", ["Open Doors"]),
        ("a 'rock 'n' roll' poster", ["rock 'n' roll"]),
        ("a poster of '90s Night' and 'the '80s hits'", ["90s Night", "the '80s hits"]),
        ("the '90s in a 'retro' style", ["retro"]),
        ("the letter 'n'", ["n"]),
        ("\"the dogs' bowl\" of the '90s", ["the dogs' bowl"]),
        ("a banner 'Class of '24'", ["Class of '24"]),
        ("a banner ‘Class of ’24’ beside a sign ‘Open’", ["Class of ’24", "Open"]),
        ("a neon sign 'Summer of '69' in 'Oslo'", ["Summer of '69", "Oslo"]),
        ("a neon sign 'Summer of '69 Tour'", ["Summer of '69 Tour"]),
        ("'HAPPY NEW YEAR '25'", ["HAPPY NEW YEAR '25"]),
        ("a card from '24 that says 'Class of '69'", ["Class of '69"]),
        ("a sign '24 hours' and another '24'", ["24 hours", "24"]),
        ("from the class of '24 with a sign '24 hours'", ["24 hours"]),
        ("'Bus 24' and '24 Road'", ["Bus 24", "24 Road"]),
        ("a '90s sign with '24 Road'", ["24 Road"]),
        ("'Stay 'Til Dawn' at 'Exit 5' and 'Til Noon'", ["Stay 'Til Dawn", "Exit 5", "Til Noon"]),
        # what may be two apostrophes
        ("a board 'Round 1' and a shop 'Round Glasses' here", ["Round 1", "Round Glasses"]),
        ("a shirt '80s' beside '90s Kids' in red", ["80s", "90s Kids"]),
        ("a ‘Cause & Effects’ chart, 'Em Dashes' and 'Bout 2'", ["Cause & Effects", "Em Dashes", "Bout 2"]),
        ("a poster 'Til Tomorrows', 'Til the end of days'", ["Til Tomorrows", "Til the end of days"]),
        ("the '80s Synths' Revenge' album", ["80s Synths' Revenge"]),
        ("press the 'n' key or the letter 'N' there", ["n", "N"]),
        # marks written twice
        ('a sign ""Double"" here', ["Double"]),
        ('""Double"" and "single"', ["Double", "single"]),
        # inches within and about
        ('a 5" screen that shows "Hello"', ["Hello"]),
        ('it says "a 5" screen" here', ['a 5" screen']),
        ("“a 5” screen” and “Exit 6”", ["a 5” screen", "Exit 6"]),
        ('"Route 66" and "Exit 5"', ["Route 66", "Exit 5"]),
        ('"Route 66" by a 5" screen with "Hi"', ["Route 66", "Hi"]),
        ('a big "5"', ["5"]),
        # one mark that has no other
        ('a "stray and "Open"', ["Open"]),
        ("a „stray and 'Open'", ["Open"]),
        ('"Open" and a stray "', ["Open"]),
    ],
)
def test_quotations_are_those_that_people_mean(prompt: str, texts: list[str]) -> None:
    assert find_quotations(prompt) == texts


WORDS = st.lists(st.sampled_from(["a", "sign", "it's", "5", "Zürich", "看板", "o'clock", "isn’t", "(new)", "50%"]), max_size=6)


@given(WORDS, st.sampled_from(EVERY_PAIR), WORDS.filter(bool), WORDS)
def test_one_quotation_among_words_is_found(
    before: list[str], pair: tuple[str, str], within: list[str], after: list[str]
) -> None:
    text = " ".join(within)
    prompt = " ".join([*before, pair[0] + text + pair[1], *after])
    assert find_quotations(prompt) == [text]


@given(st.lists(st.tuples(WORDS, st.sampled_from(EVERY_PAIR), WORDS.filter(bool)), max_size=4))
def test_several_are_found_in_order(pieces: list[tuple[list[str], tuple[str, str], list[str]]]) -> None:
    prompt = " ".join(f"{' '.join(before)} {opener}{' '.join(text)}{closer}," for before, (opener, closer), text in pieces)
    assert find_quotations(prompt) == [" ".join(text) for _, _, text in pieces]


@given(st.text(alphabet=[*sorted(PAIRS.keys() - {"''"}), *"”»」", *"a5sS .n看\n"], max_size=30))
def test_whatever_is_written_quotations_are_parts_of_it_in_order(text: str) -> None:
    place = 0
    for found in find_quotations(text):
        place = text.index(found, place) + len(found)
