"""Judged responses: what a reward model reads of them, which are held out, and the batches that it learns from.

Records are JSON objects: {"question", "chosen", "rejected"} for pairs, {"question", "response", "safe"} for single
responses; anything else in them is left alone.
"""

import zlib
from collections.abc import Sequence

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
    """What a user reads of a response: what follows the last </think>; all of it, where nothing was thought.

    Thinking that never ended, or began again, leaves nothing. The answer's tags are dropped and the words on both sides
    of them kept: tags alone should not please, and outside of them nothing should hide.
    """
    shown = response.rpartition("</think>")[2]
    if "<think>" in shown:
        return ""
    return shown.replace("<answer>", "").replace("</answer>", "").strip()


def whole(response: str) -> str:
    """All of a response, the thinking included: harm may stand anywhere."""
    return response


READS = {"pairwise": summary, "pointwise": whole}  # R1, section 3.4: helpfulness, harmlessness


def response_tokens(task: Task, kind: str, question: str, response: str) -> list[int]:
    """The prompt, what is read of the response, and the end token."""
    encode = task.tokenizer.encode
    return [*encode(task.prompt(question)), *encode(READS[kind](response)), task.tokenizer.eos_id]


def pad_rows(rows: Sequence[list[int]], size: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [size, T], padded on the right, and lengths [size]; 0 beyond the last row, and where a row is too long.

    Nothing is cut: a response of which the end or the question is missing is another one.
    """
    tokens_BT, length_B = np.zeros((size, T), np.int32), np.zeros(size, np.int32)
    for i, row in enumerate(rows):
        if len(row) <= T:
            tokens_BT[i, : len(row)], length_B[i] = row, len(row)
    return tokens_BT, length_B


RESPONSES = {"pairwise": 2, "pointwise": 1}  # in one judgement


def responses(kind: str, record: dict) -> list[tuple[str, bool]]:
    """A record's responses, and whether each is good: chosen or safe."""
    if kind == "pairwise":
        return [(record["chosen"], True), (record["rejected"], False)]
    return [(record["response"], record["safe"])]


def judged_batch(task: Task, kind: str, judged: Sequence[dict], size: int, T: int) -> PreferenceBatch:
    """Records as a batch of `size` judgements. A pair of which one response is too long is left out whole."""
    each = RESPONSES[kind]
    read = [(record["question"], *response) for record in judged for response in responses(kind, record)]
    rows = [response_tokens(task, kind, question, text) for question, text, _ in read]
    tokens_BT, length_B = pad_rows(rows, size * each, T)
    is_whole_J = (length_B.reshape(size, each) > 0).all(axis=1)
    length_B *= is_whole_J.repeat(each)
    is_good_B = np.zeros(size * each, np.float32)
    is_good_B[: len(read)] = [is_good for *_, is_good in read]
    return PreferenceBatch(tokens_BT, length_B, is_good_B)


def count_judgements(batch: PreferenceBatch, kind: str) -> int:
    """How many of the batch's judgements count: are no padding, and were not too long."""
    return int(np.count_nonzero(batch.length_B)) // RESPONSES[kind]


def split_questions(
    paths: Sequence[epath.Path], kind: str, held_out: float
) -> tuple[grain.MapDataset, grain.MapDataset]:
    """Records to learn from, and those held out: all that are on the same questions, by each question's hash.

    The share is one of questions; it depends on no seed, and a question stays where it is when records are added.
    Raises UsageError for a record that is not one of `kind`, and when one of the two is empty.
    """
    every, where = records(paths, None), ", ".join(str(path) for path in paths)
    places: dict[bool, list[int]] = {False: [], True: []}
    for i, record in enumerate(every):
        wrong = [name for name, of in FIELDS[kind].items() if not isinstance(record.get(name), of)]
        if wrong:
            expected = ", ".join(f"{name} ({of.__name__})" for name, of in FIELDS[kind].items())
            raise UsageError(f"{where}, record {i}: '{wrong[0]}' is {record.get(wrong[0])!r}; {kind} needs {expected}")
        places[zlib.crc32(record["question"].encode()) < held_out * 2**32].append(i)
    for is_held_out, found in places.items():
        if not found:
            there = "held out" if is_held_out else "left to learn from"
            raise UsageError(f"{where}: no question is {there} with RewardModelConfig.held_out {held_out}: set another")
    learnt, held = (grain.MapDataset.source(found).map(lambda i: every[i]) for found in places.values())
    return learnt, held


def judged_records(learnt: grain.MapDataset, batch_size: int, epochs: int, seed: int) -> grain.DatasetIterator:
    """Lists of at most `batch_size` records, each record once an epoch, every epoch in another order."""
    batches = learnt.shuffle(seed=seed).batch(batch_size, batch_fn=list).repeat(epochs)
    return iter(batches.to_iter_dataset(NO_THREADS))
