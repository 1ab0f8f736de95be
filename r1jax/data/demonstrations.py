"""Demonstrations for supervised fine-tuning: JSON objects with a "question" and a "response".

One of several turns has "ids" and a "loss_mask" of all that followed the prompt, in the place of the response.

They come from the cold start's data, from rejection sampling (stages/rejection.py) and from general data; further
fields, such as the source, are ignored.
"""

from collections.abc import Sequence

import grain
import numpy as np
from etils import epath

from r1jax.config import SFTConfig
from r1jax.data.feeds import pack, records, token_batch
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.types import SFTBatch


def encode(record: dict, task: Task) -> dict[str, np.ndarray]:
    """The tokens of prompt, response and end token, int32 [T]; the loss covers what the policy says."""
    prompt = task.tokenizer.encode(task.prompt(record["question"]))
    if "ids" in record:
        response, said = record["ids"], record["loss_mask"]
    else:
        response = [*task.tokenizer.encode(record["response"]), task.tokenizer.eos_id]
        said = [1] * len(response)
    loss_mask = [0] * len(prompt) + said
    return {"tokens": np.asarray(prompt + response, np.int32), "loss_mask": np.asarray(loss_mask, np.int32)}


def demonstration_batches(
    paths: Sequence[epath.Path], task: Task, config: SFTConfig, seed: int
) -> tuple[grain.DatasetIterator, dict[str, int]]:
    """Returns batches of packed rows, each demonstration once an epoch in a new order, and {"used", "too_long"}.

    `config.examples` limits the records, after shuffling. Demonstrations longer than a row are dropped and counted, not
    cut. Raises UsageError when none is left.
    """
    dataset = records(paths, seed)[: config.examples]
    fits = [i for i in range(len(dataset)) if len(encode(dataset[i], task)["tokens"]) <= config.sequence_length]
    if not fits:
        raise UsageError(
            f"none of the {len(dataset)} demonstrations in {', '.join(str(path) for path in paths)} fits into a row:"
            f" set SFTConfig.sequence_length above {config.sequence_length}"
        )
    rows = grain.MapDataset.source(fits).shuffle(seed=seed).repeat(config.epochs).map(lambda i: dataset[i])
    lengths = dict.fromkeys(("tokens", "loss_mask"), config.sequence_length)
    feed = pack(rows.map(lambda record: encode(record, task)), config.batch_size, lengths)
    return feed, {"used": len(fits), "too_long": len(dataset) - len(fits)}


def count_batches(feed: grain.DatasetIterator) -> int:
    """The number of batches in all epochs, by one pass over the tokens; the feed's position is restored."""
    position = feed.get_state()
    batches = sum(1 for _ in feed)
    feed.set_state(position)
    return batches


def sft_batch(packed: dict[str, np.ndarray], config: SFTConfig) -> SFTBatch:
    """Converts Grain's packed rows to [batch_size, T], with rows of padding appended to a short batch."""
    missing = config.batch_size - len(packed["tokens"])
    whole = {name: np.pad(x, ((0, missing), (0, 0))) for name, x in packed.items()}
    return SFTBatch(**vars(token_batch(whole)), loss_mask_BT=whole["loss_mask"].astype(bool))
