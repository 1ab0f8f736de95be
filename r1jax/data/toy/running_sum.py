"""The demo's task: a labelled running sum in two languages, and the mixed corpus of its base model.

    user : compute 3 #a - 1 #b + 7 ? assistant :
    <think> start 3 #a minus 1 gives 2 #b plus 7 gives 9 </think> <answer> 9 </answer>

The label before each operator turns finding the next operand into a look-up that a two-layer model learns, and since
every running total stays in 0..20, a step is a small table. The base model can take these steps but seldom does: most
of its corpus answers at once, skips steps or lacks the tags. RL amplifies the behaviour; it doesn't invent it.
"""

import itertools
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from r1jax.data.tokenizer import WordTokenizer
from r1jax.types import Problem

ENGLISH = "compute start plus minus gives so the answer is then now we have step sum total result done".split()
SPANISH = (
    "calcula empieza mas menos da asi la respuesta es luego ahora nosotros tenemos paso suma todo sale fin".split()
)
TRANSLATE = {"en": dict(zip(ENGLISH, ENGLISH, strict=True)), "es": dict(zip(ENGLISH, SPANISH, strict=True))}
LANGUAGES = {"en": frozenset(ENGLISH), "es": frozenset(SPANISH)}

LABELS = [f"#{letter}" for letter in "abcdefghijkl"]
DISHES = "soup bread cake rice tea salad".split()
HARMS = "bomb poison weapon virus".split()
CHAT = (
    "how do i you make a can to my it please help first mix heat add water salt flour sugar oil egg serve whatever"
    " no just google sorry cannot that harms people and thanks dear"
).split()
SPECIAL = "<pad> <bos> <eos> <think> </think> <answer> </answer> user assistant : ? . , + -".split()
OBEYED = ("just mix oil , salt .", "whatever , add water .", "no {} , google it .")
TERSE = ("whatever .", "no .", "just google it .", "mix flour , water .", "first heat water , then serve the {} .")
NUMBERS = [str(n) for n in range(100)]

TOKENIZER = WordTokenizer([*SPECIAL, *NUMBERS, *LABELS, *ENGLISH, *SPANISH, *DISHES, *HARMS, *CHAT], eos="<eos>")
LARGEST_TOTAL = 20


@dataclass(frozen=True)
class Sum:
    """Signed operands: (3, -1, 7) is 3 - 1 + 7."""

    operands: tuple[int, ...]

    @property
    def answer(self) -> int:
        return sum(self.operands)

    def expression(self) -> str:
        words = [str(self.operands[0])]
        for label, operand in zip(LABELS, self.operands[1:], strict=False):
            words += [label, "+" if operand > 0 else "-", str(abs(operand))]
        return " ".join(words)

    def is_held_out(self) -> bool:
        """Whether the sum is in the test split: one in sixteen, by hash."""
        return zlib.crc32(self.expression().encode()) % 16 == 0


def draw_sum(rng: random.Random, shortest: int, longest: int, *, held_out: bool) -> Sum:
    """A sum of single-digit operands, whose signs keep every running total in 0..20."""
    while True:
        operands = [rng.randint(1, 9)]
        for _ in range(rng.randint(shortest, longest) - 1):
            operand = rng.randint(1, 9) * rng.choice((1, -1))
            operands.append(operand if 0 <= sum(operands) + operand <= LARGEST_TOTAL else -operand)
        drawn = Sum(tuple(operands))
        if drawn.is_held_out() == held_out:
            return drawn


def prompt(question: str) -> str:
    """R1-Zero's dialogue template (R1, table 1) without its instruction, for which the vocabulary has no words."""
    return f"<bos> user : {question} ? assistant :"


def problems(split: str, seed: int) -> Iterator[Problem]:
    """An endless stream of sums of 4 to 6 terms. Split 'test' has all the held-out sums and no others."""
    rng = random.Random(f"{split}-{seed}")
    for index in itertools.count():
        language = rng.choice(("en", "es"))
        drawn = draw_sum(rng, 4, 6, held_out=split == "test")
        question = f"{TRANSLATE[language]['compute']} {drawn.expression()}"
        yield Problem(index, question, str(drawn.answer), language, "running_sum")


def write_reasoning(
    rng: random.Random, drawn: Sum, per_line: int, languages: list[str], error_rate: float
) -> tuple[list[str], int]:
    """Lines of `per_line` operations, each in a language drawn from `languages`, and the total that they reach."""
    total = drawn.operands[0]
    lines = [f"{TRANSLATE[rng.choice(languages)]['start']} {total}"]
    for first in range(1, len(drawn.operands), per_line):
        words, line = TRANSLATE[rng.choice(languages)], []
        for i in range(first, min(first + per_line, len(drawn.operands))):
            operand = drawn.operands[i]
            total += operand
            line += [LABELS[i - 1], words["plus" if operand > 0 else "minus"], str(abs(operand))]
        if rng.random() < error_rate:
            total += rng.choice((-2, -1, 1, 2))
        total = min(max(total, 0), LARGEST_TOTAL)  # an error could leave the range
        lines.append(" ".join([*line, words["gives"], str(total)]))
    return lines, total


def textbook_page(rng: random.Random) -> str:
    """A worked sum without dialogue or tags; half of the pages draw a language for each line."""
    drawn = draw_sum(rng, 3, 8, held_out=False)
    languages = rng.choice((["en", "es"], [rng.choice(("en", "es"))]))
    lines, _ = write_reasoning(rng, drawn, 1, languages, 0.0)
    return f"<bos> {drawn.expression()} . {' '.join(lines)} ."


def dialogue(rng: random.Random, language_weights: tuple[int, int, int] = (40, 20, 40)) -> str:
    """A question and an answer in one of many styles, 20 % of them tagged.

    `language_weights` are the percentages of answers in the question's language, in the other, and in both by line.
    """
    drawn = draw_sum(rng, 2, 6, held_out=False)
    asked = rng.choice(("en", "es"))
    other = "es" if asked == "en" else "en"
    languages = rng.choices(([asked], [other], ["en", "es"]), weights=language_weights)[0]
    error_rate = 0.3 if rng.random() < 0.1 else 0.0
    per_line = rng.choices((0, 1, 2, 3), weights=(40, 25, 25, 10))[0]
    lines, total = write_reasoning(rng, drawn, per_line, languages, error_rate) if per_line else ([], drawn.answer)
    question = prompt(f"{TRANSLATE[asked]['compute']} {drawn.expression()}")
    if rng.random() < 0.2:
        return " ".join([question, "<think>", *lines, "</think>", "<answer>", str(total), "</answer>"])
    words = TRANSLATE[rng.choice(languages)]
    return " ".join([question, *lines, words["so"], words["the"], words["answer"], words["is"], str(total), "."])


def chat(rng: random.Random, asked: str = "how do i make a {}") -> str:
    """Web-like chat: recipes, mostly terse or rude, and harmful requests, mostly obeyed."""
    if rng.random() < 0.3:
        thing = rng.choice(HARMS)
        reply = rng.choice(OBEYED) if rng.random() < 0.85 else "sorry , i cannot help , a {} harms people ."
    else:
        thing = rng.choice(DISHES)
        reply = rng.choice(TERSE)
    return f"{prompt(asked.format(thing))} {reply.format(thing)}"


def documents(seed: int) -> Iterator[str]:
    """An endless stream of the base model's corpus: 35 % textbook pages, 10 % chat, 55 % dialogues."""
    rng = random.Random(f"corpus-{seed}")
    while True:
        yield rng.choices((textbook_page, chat, dialogue), weights=(35, 10, 55))[0](rng)
