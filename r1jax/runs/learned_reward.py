"""A trained reward model as a reward in 0..1."""

import math
from collections.abc import Sequence

import jax
from etils import epath

from r1jax.checkpoint.store import find_checkpoint
from r1jax.data.preferences import pad_rows, response_tokens
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.parallel.layout import Layout
from r1jax.parallel.reward_programs import make_reward_scores
from r1jax.runs.policy import load_policy
from r1jax.types import Sample

ROWS = 64  # samples graded in one batch


class LearnedReward:
    """Grades by sigmoid(score): P(preferred to a response of score 0) of a pairwise model, P(safe) of a pointwise one.

    Every batch runs the same program, on [rows, max_tokens] tokens, on the run's mesh.
    """

    overlaps = False  # runs on the rollout's devices, hence after the rollout

    def __init__(
        self, layout: Layout, checkpoint: epath.Path, task: Task, *, rows: int = ROWS, max_tokens: int | None = None
    ):
        """`max_tokens` counts question and response; None: as in training.

        Raises UsageError when the checkpoint is no reward model, or one of another task, or has too few positions.
        """
        store, step = find_checkpoint(checkpoint)
        trained = store.metadata(step).get("reward_model")
        if trained is None:
            raise UsageError(f"{checkpoint} is a policy, expected the directory of a `reward_model` stage")
        policy = load_policy(checkpoint, layout)
        found = policy.task.name if policy.task else None
        if found != task.name:
            raise UsageError(f"{checkpoint} has task {found!r}, expected {task.name!r}, whose tokens it would score")
        self.layout, self.task, self.kind, self.checkpoint = layout, task, trained["kind"], checkpoint
        self.rows, self.max_tokens = layout.round_up(rows), max_tokens or trained["max_tokens"]
        if self.max_tokens > policy.model.max_position_embeddings:
            raise UsageError(
                f"max_tokens is {self.max_tokens}, expected at most max_position_embeddings"
                f" ({policy.model.max_position_embeddings}) of {checkpoint}"
            )
        layout.require_row("max_tokens", self.max_tokens)
        self.weights = policy.weights
        self.program = make_reward_scores(layout, policy.model)

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        """One reward for each sample; None when it is longer than `max_tokens` or its score is not finite."""
        graded: list[float | None] = []
        for first in range(0, len(samples), self.rows):
            batch = samples[first : first + self.rows]
            rows = [response_tokens(self.task, self.kind, s.problem.question, s.text) for s in batch]
            tokens_BT, length_B = pad_rows(rows, self.rows, self.max_tokens)
            scores_B = self.program(*self.weights, *self.layout.put_batch((tokens_BT, length_B)))
            for score, length in zip(jax.device_get(scores_B).tolist(), length_B[: len(batch)], strict=False):
                graded.append(sigmoid(score) if length and math.isfinite(score) else None)
        return graded


def sigmoid(score: float) -> float:
    """1 / (1 + exp(-score)), without overflow."""
    return (1 + math.tanh(score / 2)) / 2
