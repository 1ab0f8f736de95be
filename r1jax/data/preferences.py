"""Preferences, the training data of reward models: the text that a model scores, the held-out split, the batches.

A preference is a JSON object: a pair {"question", "chosen", "rejected"} of kind "pairwise", or a labelled response
{"question", "response", "safe"} of kind "pointwise". Further fields are ignored.
"""

import zlib
from collections.abc import Callable, Sequence

import grain
import numpy as np
from etils import epath

from r1jax.data.feeds import NO_THREADS, records
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.types import PreferenceBatch

FIELDS: dict[str, dict[str, type]] = {
    "pairwise": {"question": str, "chosen": str, "rejected": str},
    "pointwise": {"question": str, "response": str, "safe": bool},
}


def summary(response: str) -> str:
    """The part of a response that a user sees: the text after the last </think>, or all of an untagged response.

    It is empty when the thinking doesn't end or starts again. The <answer> tags are dropped, so that they earn no
    score; the text around them is kept, so that nothing escapes the score outside them.
    """
    visible = response.rpartition("</think>")[2]
    if "<think>" in visible:
        return ""
    return visible.replace("<answer>", "").replace("</answer>", "").strip()


# R1, section 3.4: helpfulness is that of the summary, harmlessness that of the whole response.
SCORED_TEXT: dict[str, Callable[[str], str]] = {"pairwise": summary, "pointwise": str}


def response_tokens(task: Task, kind: str, question: str, response: str) -> list[int]:
    """The tokens of the prompt, the scored text and the end token."""
    encode = task.tokenizer.encode
    return [*encode(task.prompt(question)), *encode(SCORED_TEXT[kind](response)), task.tokenizer.eos_id]


def pad_rows(rows: Sequence[list[int]], size: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens, int32 [size, T], padded on the right, and lengths, int32 [size].

    The length is 0 for padding rows and for rows longer than T, which are dropped: cutting would change their meaning.
    """
    tokens_BT, length_B = np.zeros((size, T), np.int32), np.zeros(size, np.int32)
    for i, row in enumerate(rows):
        if len(row) <= T:
            tokens_BT[i, : len(row)], length_B[i] = row, len(row)
    return tokens_BT, length_B


RESPONSES = {"pairwise": 2, "pointwise": 1}  # in one preference


def responses(kind: str, record: dict) -> list[tuple[str, bool]]:
    """A record's responses, each with whether it is good: chosen or safe."""
    if kind == "pairwise":
        return [(record["chosen"], True), (record["rejected"], False)]
    return [(record["response"], record["safe"])]


def preference_batch(task: Task, kind: str, preferences: Sequence[dict], size: int, T: int) -> PreferenceBatch:
    """A batch of `size` preferences, [B, T]. Both responses of a pair are masked out when one is longer than T."""
    each = RESPONSES[kind]
    labeled = [(record["question"], *response) for record in preferences for response in responses(kind, record)]
    rows = [response_tokens(task, kind, question, text) for question, text, _ in labeled]
    tokens_BT, length_B = pad_rows(rows, size * each, T)
    is_valid_J = (length_B.reshape(size, each) > 0).all(axis=1)
    length_B *= is_valid_J.repeat(each)
    is_good_B = np.zeros(size * each, np.float32)
    is_good_B[: len(labeled)] = [is_good for *_, is_good in labeled]
    return PreferenceBatch(tokens_BT, length_B, is_good_B)


def count_preferences(batch: PreferenceBatch, kind: str) -> int:
    """The number of preferences in a batch that are neither padding nor too long."""
    return int(np.count_nonzero(batch.length_B)) // RESPONSES[kind]


def split_questions(
    paths: Sequence[epath.Path], kind: str, held_out: float
) -> tuple[grain.MapDataset, grain.MapDataset]:
    """Splits records by their question's hash; returns the training records and the share `held_out` of questions.

    The split depends on no seed, and adding records moves no question. Raises UsageError for a record that isn't of
    `kind`, and when either split is empty.
    """
    dataset, source = records(paths, None), ", ".join(str(path) for path in paths)
    splits: dict[bool, list[int]] = {False: [], True: []}
    for i in range(len(dataset)):
        record = dataset[i]  # to iterate over a dataset starts threads, which cost ten times as much
        wrong = [name for name, of in FIELDS[kind].items() if not isinstance(record.get(name), of)]
        if wrong:
            expected = ", ".join(f"{name} ({of.__name__})" for name, of in FIELDS[kind].items())
            raise UsageError(f"{source}, record {i}: '{wrong[0]}' is {record.get(wrong[0])!r}; {kind} needs {expected}")
        splits[zlib.crc32(record["question"].encode()) < held_out * 2**32].append(i)
    for is_held_out, indices in splits.items():
        if not indices:
            split = "held-out" if is_held_out else "training"
            raise UsageError(f"{source}: no {split} questions with RewardModelConfig.held_out {held_out}: set another")
    training, held = (grain.MapDataset.source(indices).map(lambda i: dataset[i]) for indices in splits.values())
    return training, held


def preference_records(training: grain.MapDataset, batch_size: int, epochs: int, seed: int) -> grain.DatasetIterator:
    """Lists of at most `batch_size` records, each record once an epoch in a new order."""
    batches = training.shuffle(seed=seed).batch(batch_size, batch_fn=list).repeat(epochs)
    return iter(batches.to_iter_dataset(NO_THREADS))
