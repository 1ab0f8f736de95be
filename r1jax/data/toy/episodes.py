"""The demo's tasks of several turns: sums for a calculator, and a game of higher or lower. One vocabulary has both.

    user : 3 4 7 + 5 1 2 ? assistant : <think> <tool> 3 4 7 + 5 1 2 </tool>      the policy's turn
    <result> 8 5 9 </result>                                                     the calculator's answer
    </think> <answer> 8 5 9 </answer> <eos>                                      the policy's last turn

    user : higher or lower ? assistant : 32 <eos>                                the policy's turn
    user : lower ? assistant :                                                   the game's answer

The base can call the calculator, and can keep to the bounds that it has been told, but seldom does either: most of its
corpus guesses. RL amplifies what pays.
"""

import itertools
import random
import zlib
from collections.abc import Iterator

from r1jax.data.tokenizer import WordTokenizer
from r1jax.types import Problem, Step

WORDS = (
    "<pad> <bos> <eos> <think> </think> <answer> </answer> <tool> </tool> <result> </result> user assistant : ? + error"
    " higher or lower right"
).split()
TOKENIZER = WordTokenizer([*WORDS, *(str(n) for n in range(100))], eos="<eos>")
RESULT, ERROR = "<result> {} </result>", "error"
LARGEST = 63  # six guesses find any number up to it


def prompt(question: str) -> str:
    return f"<bos> user : {question} ? assistant :"


def is_held_out(text: str) -> bool:
    return zlib.crc32(text.encode()) % 16 == 0


def spell(number: int | str) -> str:
    """A number's digits, each a word."""
    return " ".join(str(number))


def draw_sum(rng: random.Random, *, held_out: bool) -> tuple[str, str]:
    """Two numbers of three digits as text, and their sum, which has three digits too."""
    while True:
        a, b = rng.randint(100, 499), rng.randint(100, 499)
        if is_held_out(f"{a} + {b}") == held_out:
            return f"{spell(a)} + {spell(b)}", spell(a + b)


def sums(split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of sums. Split 'test' has all the held-out sums and no others."""
    rng = random.Random(f"sums-{split}-{seed}")
    for index in itertools.count():
        question, answer = draw_sum(rng, held_out=split == "test")
        yield Problem(index, question, answer, "en", "tool_sums")


def sum_documents(seed: int) -> Iterator[str]:
    """The corpus of a base that can use the calculator, and seldom does.

    A third are pages without a user, which use it. Of the dialogues one answer in eight does, and the others repeat a
    number of the question.
    """
    rng = random.Random(f"sum-corpus-{seed}")
    while True:
        question, answer = draw_sum(rng, held_out=False)
        thought, said, asked = "", rng.choice(question.split(" + ")), prompt(question)
        is_page = rng.random() < 1 / 3
        if is_page or rng.random() < 1 / 8:
            thought, said = f"<tool> {question} </tool> {RESULT.format(answer)} ", answer
        if is_page:
            asked = f"<bos> right : {question} ? right :"
        yield f"{asked} <think> {thought}</think> <answer> {said} </answer>"


def games(split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of games; the answer is the number to be guessed."""
    rng = random.Random(f"games-{split}-{seed}")
    for index in itertools.count():
        yield Problem(index, "higher or lower", str(rng.randint(1, LARGEST)), "en", "higher_lower")


class HigherLower:
    """Answers a guess with "higher" or "lower"; the right one ends the game with reward 1."""

    def reset(self, problem: Problem, seed: int) -> None:
        self.number = int(problem.answer)

    def step(self, turn: str) -> Step:
        if not turn.isdigit():
            return Step(done=True, reward=0.0)
        if int(turn) == self.number:
            return Step(done=True, reward=1.0)
        return Step(f"user : {'higher' if int(turn) < self.number else 'lower'} ? assistant :", reward=0.0)


def game_documents(seed: int) -> Iterator[str]:
    """Games of players who mostly forget what they were told; a guess within the bounds may be anywhere there."""
    rng = random.Random(f"game-corpus-{seed}")
    while True:
        number, low, high, words = rng.randint(1, LARGEST), 1, LARGEST, prompt("higher or lower")
        remembers = rng.random() < 0.6
        for _ in range(8):
            guess = rng.randint(low, high) if remembers else rng.randint(1, LARGEST)
            words += f" {guess}"
            if guess == number:
                break
            words += f" <eos> user : {'higher' if guess < number else 'lower'} ? assistant :"
            low, high = (max(low, guess + 1), high) if guess < number else (low, min(high, guess - 1))
        yield words.removesuffix(" ? assistant :")
