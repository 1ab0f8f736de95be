"""The demo's data: a running sum, and chat with a labeler. `data/sources.py` and `data/seqio_tasks.py` register it."""

from collections.abc import Callable, Iterator

from r1jax.data.toy import chat, running_sum

PAIR: dict[str, type] = {"question": str, "chosen": str, "rejected": str}

PROBLEMS = {"running_sum": running_sum.problems, "chat": chat.problems}  # by source: (split, seed) -> endless stream
CORPORA = {"running_sum_corpus": running_sum.documents, "r1_corpus": chat.documents}  # by task: seed -> endless stream
# By task: seed -> endless stream, and its columns.
RECORDS: dict[str, tuple[Callable[[int], Iterator[dict]], dict[str, type]]] = {
    "chat_demonstrations": (chat.demonstrations, {"question": str, "response": str, "source": str}),
    "chat_preferences": (chat.preferences, PAIR),
    "chat_helpful_pairs": (chat.helpful_pairs, PAIR),
    "chat_safety": (chat.safety_labels, {"question": str, "response": str, "safe": bool}),
}
