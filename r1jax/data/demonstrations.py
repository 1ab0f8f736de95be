"""Demonstrations: JSON objects with a "question" and a "response"; what else they hold says where they are from.

They are the cold start's, what rejection sampling kept (stages/rejection.py), and general data.
"""

from collections.abc import Sequence

import grain
import numpy as np
from etils import epath

from r1jax.config import SFTConfig
from r1jax.data.feeds import NO_THREADS, records, token_batch
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.types import TaughtBatch


def encode(record: dict, task: Task) -> dict[str, np.ndarray]:
    """The prompt, the response and the end token, and where the model is taught: on all but the prompt."""
    prompt = task.tokenizer.encode(task.prompt(record["question"]))
    response = [*task.tokenizer.encode(record["response"]), task.tokenizer.eos_id]
    is_taught = [0] * len(prompt) + [1] * len(response)
    return {"tokens": np.asarray(prompt + response, np.int32), "is_taught": np.asarray(is_taught, np.int32)}


def demonstration_batches(
    paths: Sequence[epath.Path], task: Task, config: SFTConfig, seed: int
) -> tuple[grain.DatasetIterator, dict[str, int]]:
    """Batches of packed rows, each demonstration once an epoch, every epoch in another order; and what is in them.

    Nothing is cut: what is longer than a row is left out, and counted. Of more than `config.examples` the first ones of
    the shuffled records are taken. Raises UsageError when none is left.
    """
    dataset = records(paths, seed)
    if config.examples is not None:
        dataset = dataset[: config.examples]
    fits = [i for i in range(len(dataset)) if len(encode(dataset[i], task)["tokens"]) <= config.sequence_length]
    if not fits:
        raise UsageError(
            f"none of the {len(dataset)} demonstrations in {', '.join(str(path) for path in paths)} fits into"
            f" SFTConfig.sequence_length ({config.sequence_length})"
        )
    rows = grain.MapDataset.source(fits).shuffle(seed=seed).repeat(config.epochs).map(lambda i: dataset[i])
    packed = grain.experimental.FirstFitPackIterDataset(
        rows.map(lambda record: encode(record, task)).to_iter_dataset(NO_THREADS),
        length_struct={"tokens": config.sequence_length, "is_taught": config.sequence_length},
        num_packing_bins=config.batch_size,
        shuffle_bins=False,
    )
    feed = iter(packed.batch(config.batch_size, drop_remainder=False))
    return feed, {"used": len(fits), "too_long": len(dataset) - len(fits)}


def count_batches(feed: grain.DatasetIterator) -> int:
    """How many there are in all epochs; the feed stands where it stood. It takes one pass over the tokens."""
    position = feed.get_state()
    batches = sum(1 for _ in feed)
    feed.set_state(position)
    return batches


def taught_batch(packed: dict[str, np.ndarray], config: SFTConfig) -> TaughtBatch:
    """Grain's packed rows, with empty ones behind the last."""
    missing = config.batch_size - len(packed["tokens"])
    whole = {name: np.pad(x, ((0, missing), (0, 0))) for name, x in packed.items()}
    return TaughtBatch(token_batch(whole), whole["is_taught"].astype(bool))
