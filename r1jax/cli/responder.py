"""Answers prompts in the terminal, for `generate` and `chat`: an answer is shown while it grows."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from r1jax.errors import UsageError
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.policy import Policy
from r1jax.sampling.draw import position_key
from r1jax.types import Problem, Sample

BEGIN, END = "<think>", "</think>"


class AnswerStream:
    """Call it with the whole text so far each time the answer has grown, then call `end` with the final text."""

    def __init__(self, console: Console, *, thinking: bool = False, hold: int = 0):
        """`thinking`: the prompt ends in `<think>`. `hold`: this many last characters may still be a stop string's."""
        self.console, self.thinking, self.hold = console, thinking, hold
        self.shown = 0

    def __call__(self, text: str) -> None:
        complete = text.rstrip("\ufffd")  # a character of several bytes, of which some are still missing
        final = complete[: max(len(complete) - self.hold, 0)]
        may_become_tag = BEGIN.startswith(final.lstrip()) and not self.thinking
        if not may_become_tag:
            self.show(final)

    def end(self, text: str) -> None:
        self.show(text)
        self.console.print()

    def show(self, text: str) -> None:
        """Prints the part of `text` that is not shown yet, dimmed up to the end of the reasoning."""
        is_reasoning = self.thinking or text.lstrip().startswith(BEGIN)
        end = text.find(END) + len(END) if END in text else len(text)
        dimmed = end if is_reasoning else 0
        for start, stop, style in ((self.shown, dimmed, "dim"), (max(self.shown, dimmed), len(text), "")):
            if start < stop:
                self.console.print(Text(text[start:stop], style=style), end="", soft_wrap=True)
        self.shown = max(self.shown, len(text))


@dataclass(frozen=True)
class Responder:
    """A policy, the engine that samples from it, and the console that shows its answers as they grow."""

    engine: RolloutEngine
    policy: Policy
    console: Console | None  # None: answers are returned only
    seed: int

    def answer(self, ids: list[int], *, number: int = 0, ignore_eos: bool = False) -> Sample:
        """The answer to a prompt of token ids. `number` and the seed determine the random draws."""
        console, tokenizer = self.console, self.policy.tokenizer
        stream = None
        if console and tokenizer:
            is_thinking = tokenizer.decode(ids).rstrip().endswith(BEGIN)
            hold = max((len(stop) - 1 for stop in self.engine.sampling.stop), default=0)
            stream = AnswerStream(console, thinking=is_thinking, hold=hold)
        [[sample]] = self.engine.generate(
            self.policy.weights,
            [(Problem(number, "", "", ""), ids)],
            position_key(self.seed),
            ignore_eos=ignore_eos,
            watch=(lambda sample: stream(sample.text)) if stream else None,
        )
        if stream:
            stream.end(sample.text)
        elif console:
            console.print(",".join(str(t) for t in sample.response_tokens), soft_wrap=True, highlight=False)
        return sample

    def chat(self, questions: Iterable[str]) -> None:
        """Answers the questions in turn. Where the tokenizer has a chat template, prompts contain the earlier turns."""
        assert self.console
        messages: list[dict[str, str]] = []
        for number, question in enumerate(questions):
            if question.strip() == "/clear":
                messages.clear()
                continue
            if not question.strip():
                continue
            turns = [*messages, {"role": "user", "content": question}]
            try:
                sample = self.answer(self.policy.converse(turns), number=number)
            except UsageError as error:
                hint = " (/clear starts over)" if messages else ""
                self.console.print(f"{error}{hint}", style="red", highlight=False, soft_wrap=True)
                continue
            except KeyboardInterrupt:
                self.console.print("\n(interrupted)", style="red")
                continue
            messages = [*turns, {"role": "assistant", "content": sample.text}]
