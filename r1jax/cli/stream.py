"""An answer on the terminal while it grows, its thinking dimmed."""

from rich.console import Console
from rich.text import Text

BEGIN, END = "<think>", "</think>"


class AnswerStream:
    """Give it the answer's whole text so far, as often as it grows, and `end` its final text."""

    def __init__(self, console: Console, *, thinking: bool = False, hold: int = 0):
        """`thinking`: the prompt has begun it. `hold`: last characters that may yet be cut off, by a stop string."""
        self.console, self.thinking, self.hold = console, thinking, hold
        self.shown = 0

    def __call__(self, text: str) -> None:
        whole = text.rstrip("\ufffd")  # a character whose last bytes are still to come
        sure = whole[: max(len(whole) - self.hold, 0)]
        if not BEGIN.startswith(sure.lstrip()) or self.thinking:  # else it may become the tag
            self.show(sure)

    def end(self, text: str) -> None:
        self.show(text)
        self.console.print()

    def show(self, text: str) -> None:
        """What is new of it, dimmed up to the end of the thinking."""
        thinks = self.thinking or text.lstrip().startswith(BEGIN)
        ends = text.find(END) + len(END) if END in text else len(text)
        dimmed = ends if thinks else 0
        for start, stop, style in ((self.shown, dimmed, "dim"), (max(self.shown, dimmed), len(text), "")):
            if start < stop:
                self.console.print(Text(text[start:stop], style=style), end="", soft_wrap=True)
        self.shown = max(self.shown, len(text))
