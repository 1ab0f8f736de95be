"""Mathematics: every kind of answer and of mistake is right as a whole."""

import time

import pytest

from r1jax.rewards.closed_forms import MAX_LENGTH
from r1jax.rewards.mathematics import MathVerifier, decide, read
from r1jax.types import Problem
from tests.shared.mathematical_answers import KINDS
from tests.shared.samples import make_sample


def rows_of(kind: str) -> list[tuple[str, str, bool]]:
    """(answer, gold, whether they are equal) of a kind's table."""
    rows = []
    for line in KINDS[kind].strip().splitlines():
        answer, verb, gold = line.partition("  is not  ") if "  is not  " in line else line.partition("  is  ")
        rows.append((answer, gold, verb == "  is  "))
    return rows


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(processes=1, seconds=20.0) as verifier:
        yield verifier
        assert verifier.failures.total() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_right_as_a_whole(verifier, kind):
    rows = rows_of(kind)
    assert len(rows) >= 10
    for form in ("<think> x </think> <answer> {} </answer>", "so <answer> $ {} $ </answer>", "hence \\boxed{{{}}}"):
        fits = [row for row in rows if "$" not in row[0] or "$" not in form]
        verdicts = verifier.verify([(form.format(answer), gold) for answer, gold, _ in fits])
        wrong = [row for row, verdict in zip(fits, verdicts, strict=True) if verdict != row[2]]
        assert not wrong, form


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_their_own_gold(verifier, kind):
    golds = [gold for _, gold, _ in rows_of(kind)]
    assert verifier.verify([(f"<answer> {gold} </answer>", gold) for gold in golds]) == [1.0] * len(golds)


@pytest.mark.parametrize("kind", list(KINDS)[:-1])
def test_equal_votes_get_equal_verdicts(verifier, kind):
    """Or else a majority's verdict would depend on who of it is asked."""
    rows = rows_of(kind)
    votes: dict[str | None, set[str]] = {}
    for text in {text for answer, gold, _ in rows for text in (answer, gold)}:
        response = f"<answer> {text} </answer>"
        vote = verifier.answer(make_sample(Problem(0, "q", "1", "en"), response))
        votes.setdefault(vote, set()).add(response)
    golds = sorted({gold for _, gold, _ in rows})[::3]  # all take half a minute
    for responses in [several for several in votes.values() if len(several) > 1]:
        verdicts = [verifier.verify([(response, gold) for gold in golds]) for response in sorted(responses)]
        assert all(verdict == verdicts[0] for verdict in verdicts), responses


PIECES = r"""5 x = , ; . + - ^ ^{ { } ( ) [ \ $
& \frac \sqrt{ \pi \text{a} \mathrm{m} \left \cup \pm or < 9^9 1, e i / \boxed{
\langle \rangle \dot1 ² \frac{\text{ sq.""".split()


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_takes_long(piece):
    golds = [read(gold) for gold in ("42", r"\sqrt{2}", "x + 1", "1, 2", r"(-\infty, 1) \cup (2, \infty)", "x + y = 0")]
    for other in ("", " ", *PIECES):
        text = ((piece + other) * MAX_LENGTH)[:MAX_LENGTH]
        start = time.process_time()
        answer = read(text)
        assert all(decide(answer, gold) is not True for gold in golds)
        assert time.process_time() - start < 1.0, text


def test_equal_numbers_are_one_vote(verifier):
    def vote(text: str) -> str | None:
        return verifier.answer(make_sample(Problem(0, "q", "1", "en"), f"<answer> {text} </answer>"))

    assert vote(r"\sqrt{12}") == vote(r"2\sqrt{3}") != vote(r"\sqrt{13}")
    assert vote("13-8i") == vote("-8i + 13") == vote(r"13 - 8\mathrm{i}") != vote("13+8i")
    assert vote(r"0.\overline{3}") == vote("1/3") == vote("1/3.") != vote("0.333333")
    assert vote(r"\sqrt{50} + \sqrt{18}") != vote(r"8\sqrt{2}")  # only one of them is right
