"""Tasks: the same seed gives the same sequences, and the answers are what another way finds."""

from __future__ import annotations

import re
from dataclasses import fields
from itertools import product

import pytest
import torch

from nlc.cli.subjects import TASK_NAMES
from nlc.lab.faults import LabError
from nlc.lab.tasks import NOTHING, TASKS, Examples, Task, find_task
from nlc.lab.tasks.stream import LABELS, MODULES, texts

ALL = TASK_NAMES.split()
LONG = 70


def pairs(task: Task, **how: object) -> list[tuple[list[int], list[int]]]:
    """Rows of inputs and targets."""
    found = task.examples(3, 5, 20, LONG, **how)  # type: ignore[arg-type]
    return list(zip(found.inputs.tolist(), found.targets.tolist(), strict=True))


def test_the_command_line_lists_what_is_registered() -> None:
    assert sorted(ALL) == sorted(TASKS)
    for kind in TASKS.values():
        assert kind.source and kind.__doc__ and kind.name


def same(a: Examples, b: Examples) -> bool:
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


@pytest.mark.parametrize("name", ALL)
def test_a_batch_depends_on_seed_and_step_alone(name: str) -> None:
    task = find_task(name)
    first = task.examples(1, 2, 8, LONG)
    assert same(first, find_task(name).examples(1, 2, 8, LONG))
    if name not in ("aa", "abab"):
        others = [task.examples(2, 2, 8, LONG), task.examples(1, 3, 8, LONG)]
        held_out = task.examples(1, 2, 8, LONG, mixed=False)
        assert not any(same(first, other) for other in (*others, held_out))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mixed", [True, False])
def test_tokens_are_in_the_vocab_and_every_sequence_asks(name: str, mixed: bool) -> None:
    task = find_task(name)
    for length in (task.least(), 37, task.length):
        if length < task.least():
            continue
        found = task.examples(0, 0, 6, length, mixed=mixed)
        assert found.inputs.shape == found.targets.shape == (6, length)
        assert found.inputs.dtype == found.targets.dtype == torch.int64
        assert int(found.inputs.min()) >= 0 and int(found.inputs.max()) < task.vocab <= 256
        assert int(found.targets.min()) >= NOTHING and int(found.targets.max()) < task.vocab
        # a fuzzy sequence may happen to name no pair twice
        assert name == "fuzzy_recall" or bool(found.asked.any(1).all())
    with pytest.raises(LabError, match="cannot be made"):
        task.examples(0, 0, 1, task.least() - 1)


# ---- languages: by membership alone -----------------------------------------------------------

MEMBER = {
    "parity": lambda w: w.count("1") % 2 == 0,
    "aa": lambda w: re.fullmatch("(aa)*", w) is not None,
    "abab": lambda w: re.fullmatch("(abab)*", w) is not None,
    "anbn": lambda w: bool(w) and w == "a" * (len(w) // 2) + "b" * (len(w) // 2),
    "anbncn": lambda w: bool(w) and w == "".join(s * (len(w) // 3) for s in "abc"),
    "shuffle2": lambda w: all(_balanced(w, kind) for kind in ("()", "[]")),
}


def _balanced(word: str, kind: str) -> bool:
    depth = 0
    for symbol in word:
        depth += (symbol == kind[0]) - (symbol == kind[1])
        if depth < 0:
            return False
    return depth == 0


def words_of(name: str, most: int) -> set[str]:
    """All words of a language up to a length."""
    symbols = find_task(name).symbols
    every = ("".join(w) for n in range(most + 1) for w in product(symbols, repeat=n))
    return {word for word in every if MEMBER[name](word)}


@pytest.mark.parametrize("name", ["parity", "aa", "abab", "shuffle2"])
def test_after_each_symbol_stands_what_some_word_goes_on_with(name: str) -> None:
    words = words_of(name, 8)
    # such a beginning and one symbol more can still be completed in eight
    beginnings = {w[:n] for w in words for n in (1, 2, 3)} - {""}
    assert len(beginnings) > 2
    for begin in beginnings:
        after = {(w + ".")[len(begin)] for w in words if w.startswith(begin)}
        assert set(find_task(name).following(begin)[-1]) == after, begin


@pytest.mark.parametrize("name", ["anbn", "anbncn"])
def test_in_a_word_that_counts_stands_what_some_word_goes_on_with(name: str) -> None:
    words = words_of(name, 9)
    for word in words:
        for i, found in enumerate(find_task(name).following(word)):
            after = {(w + ".")[i + 1] for w in words if w.startswith(word[: i + 1])}
            # the longest word has no longer one to show that another a may come
            assert set(found) == after | ({"a"} if set(word[: i + 1]) == {"a"} else set()), word


@pytest.mark.parametrize("name", MEMBER)
def test_words_are_in_the_language_or_begin_one(name: str) -> None:
    task = find_task(name)
    for read, asked in pairs(task):
        word = "".join(task.show(t) for t in read).rstrip()
        assert 0 < len(word) <= LONG
        assert [t == NOTHING for t in asked] == [i >= len(word) for i in range(LONG)]
        shown = [task.show(t).strip("{}") for t in asked[: len(word)]]
        assert [set(s) for s in shown] == [set(f) for f in task.following(word)]
        assert [("." in s) for s in shown] == [
            MEMBER[name](word[: i + 1]) for i in range(len(word))
        ]


def test_measured_words_are_as_long_as_fits() -> None:
    assert {sum(t > 0 for t in read) for read, _ in pairs(find_task("anbn"), mixed=False)} == {70}
    assert {sum(t > 0 for t in read) for read, _ in pairs(find_task("anbncn"), mixed=False)} == {69}
    assert len({sum(t > 0 for t in read) for read, _ in pairs(find_task("anbn"))}) > 5


# ---- states -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["s5", "s5:swaps=1", "s5:n=3"])
def test_products_of_permutations_move_things_about(name: str) -> None:
    task = find_task(name)
    moved = set()
    for read, asked in pairs(task):
        place = list(range(task.n))
        for token, answer in zip(read, asked, strict=True):
            step = [int(digit) for digit in task.show(token)]
            moved.add(sum(i != at for i, at in enumerate(step)))
            # each thing goes from where it is to where the permutation sends that place
            place = [step[at] for at in place]
            assert task.show(answer) == "".join(map(str, place))
    assert max(moved) == (2 if task.swaps else task.n)


def test_every_number_ends_an_expression_with_its_value() -> None:
    task = find_task("modular_arithmetic:modulus=7")
    for read, asked in pairs(task):
        words = [task.show(t) for t in read]
        for i, answer in enumerate(asked):
            assert answer == (NOTHING if i % 2 else eval(" ".join(words[: i + 1])) % 7)
    signs = {task.show(t) for read, _ in pairs(task) for t in read[1::2]}
    assert signs == {"+", "-", "*"}


# ---- remembering ------------------------------------------------------------------------------


def test_a_copy_says_what_was_read_and_reads_what_it_said() -> None:
    for read, asked in pairs(find_task("copy")):
        at = read.index(1)
        word = [t for t in asked if t != NOTHING]
        assert word == read[:at] and asked.index(word[0]) <= at and asked[at] == word[0]
        assert read[at + 1 : 2 * at] == word[:-1] and not any(read[2 * at :])


def test_a_selective_copy_leaves_blanks_out() -> None:
    for read, asked in pairs(find_task("selective_copy:items=5")):
        assert read[-5:] == [1] * 5 and asked[:-5] == [NOTHING] * (LONG - 5)
        assert [t for t in read[:-5] if t] == asked[-5:]


@pytest.mark.parametrize("name", ["mqar", "mqar:pairs=5"])
def test_each_key_of_recall_is_asked_for_once(name: str) -> None:
    for read, asked in pairs(find_task(name)):
        count = 5 if "5" in name else LONG // 8
        known = dict(zip(read[0 : 2 * count : 2], read[1 : 2 * count : 2], strict=True))
        assert len(known) == count and asked[: 2 * count] == [NOTHING] * 2 * count
        found = {k: a for k, a in zip(read, asked, strict=True) if a != NOTHING}
        assert found == known and sum(a != NOTHING for a in asked) == count
        assert sum(t != 0 for t in read) == 3 * count


def test_queries_of_recall_are_sooner_than_later() -> None:
    found = find_task("mqar:pairs=4").examples(0, 0, 400, 128, mixed=False)
    at = found.asked.float().sum(0)
    assert float(at[8:38].sum()) > 2 * float(at[98:].sum())


def test_fuzzy_recall_asks_for_values_of_keys_that_were_there() -> None:
    task, count = find_task("fuzzy_recall"), 0
    for read, asked in pairs(task):
        words = "".join(task.show(t) for t in read).rstrip("_")
        answers = {i + 1: task.show(a) for i, a in enumerate(asked) if a != NOTHING}
        known: dict[str, str] = {}
        for match in re.finditer("([a-h]{1,3})([A-H]{1,3})", words):
            key, value = match.groups()
            said = "".join(answers.pop(i, "") for i in range(*match.span(2)))
            assert said == (value if key in known else "")
            assert known.setdefault(key, value) == value
            count += bool(said)
        assert not answers and len(known) <= 4
    assert count > 50


@pytest.mark.parametrize("name", ["needle", "needle:needles=3,digits=2"])
def test_a_needle_is_found_in_the_noise(name: str) -> None:
    task, places = find_task(name), set()
    for read, asked in pairs(task):
        words = "".join(task.show(t) for t in read)
        *hidden, query = re.finditer(r"\|([A-Z])(\d+)", words)
        assert len(hidden) == task.needles and query.end() == LONG
        value = {m[1]: m[2] for m in hidden}[query[1]]
        assert [task.show(a) for a in asked if a != NOTHING] == list(value)
        assert query[2] == value[:-1] and len(value) == task.digits
        assert sum(c.islower() for c in words) == LONG - task.least()
        places.add(hidden[0].start())
    assert len(places) > 5


# ---- the stream -------------------------------------------------------------------------------


def test_a_part_of_the_stream_has_its_classes_only_and_nothing_that_is_held_out() -> None:
    task = find_task("modules:group=3,steps=7")
    assert task.parts == 4 and [task.part_of(s) for s in (0, 6, 7, 27, 99)] == [0, 0, 1, 3, 3]
    for part in range(4):
        for mixed in (True, False):
            labels = set()
            for read, asked in pairs(task, part=part, mixed=mixed):
                label = asked[-1] - LABELS
                labels.add(label)
                text = texts()[label]
                cut = len(text) - len(text) // 5
                passage = bytes(read[:-1])
                assert passage in (text[:cut] if mixed else text[cut:]), MODULES[label]
            assert labels == set(range(3 * part, min(3 * part + 3, 10)))
    assert len({asked[-1] for _, asked in pairs(task, part=None)}) > 5


# ---- names and options ------------------------------------------------------------------------


def test_a_task_is_spelled_with_the_options_that_differ() -> None:
    for words in ("parity", "mqar:pairs=16", "s5:n=3,swaps=1"):
        assert find_task(words).spelled == words
    assert find_task("selective-copy: items = 8").spelled == "selective_copy"
    assert find_task(find_task("s5:swaps=1").spelled) == find_task("s5:swaps=1")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("party", "no task named party"),
        ("mqar:pears=3", "no option pears"),
        ("mqar:pairs", "options are integers"),
        ("mqar:pairs=1.5", "options are integers"),
        ("mqar:keys=500", "keys=500 is out of range"),
        ("parity:n=1", "no option n"),
        ("", "no task named"),
    ],
)
def test_a_wrong_task_is_refused(words: str, said: str) -> None:
    with pytest.raises(LabError, match=re.escape(said)):
        find_task(words)
    if words == "party":
        with pytest.raises(LabError) as caught:
            find_task(words)
        assert caught.value.hint == "did you mean parity?"


def test_every_option_has_a_range() -> None:
    for kind in TASKS.values():
        for option in fields(kind):
            with pytest.raises(LabError, match="out of range"):
                find_task(f"{kind.name}:{option.name}=-1")


def test_more_pairs_than_keys_are_refused() -> None:
    with pytest.raises(LabError, match="64 keys"):
        find_task("mqar").examples(0, 0, 1, 1024)
