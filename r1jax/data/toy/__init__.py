"""The demo's data: a running sum, chat with a labeler, and tasks of several turns.

`data/sources.py` and `data/seqio_tasks.py` register it.
"""

from collections.abc import Callable, Iterator

from r1jax.data.tokenizer import WordTokenizer
from r1jax.data.toy import chat, episodes, running_sum

PAIR: dict[str, type] = {"question": str, "chosen": str, "rejected": str}

PROBLEMS = {  # by source: (split, seed) -> endless stream
    "running_sum": running_sum.problems,
    "chat": chat.problems,
    "tool_sums": episodes.sums,
    "higher_lower": episodes.games,
}
CORPORA: dict[str, tuple[Callable[[int], Iterator[str]], WordTokenizer]] = {  # by task: seed -> endless stream
    "running_sum_corpus": (running_sum.documents, running_sum.TOKENIZER),
    "r1_corpus": (chat.documents, running_sum.TOKENIZER),
    "tool_sums_corpus": (episodes.sum_documents, episodes.TOKENIZER),
    "higher_lower_corpus": (episodes.game_documents, episodes.TOKENIZER),
}
# By task: seed -> endless stream, and its columns.
RECORDS: dict[str, tuple[Callable[[int], Iterator[dict]], dict[str, type]]] = {
    "chat_demonstrations": (chat.demonstrations, {"question": str, "response": str, "source": str}),
    "chat_preferences": (chat.preferences, PAIR),
    "chat_helpful_pairs": (chat.helpful_pairs, PAIR),
    "chat_safety": (chat.safety_labels, {"question": str, "response": str, "safe": bool}),
}
