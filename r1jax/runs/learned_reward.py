"""A trained reward model as a reward: its scores reach the rules as numbers in 0..1."""

import math
from collections.abc import Sequence

import jax
from etils import epath

from r1jax.checkpoint.store import find
from r1jax.data.preferences import pad_rows, response_tokens
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.parallel.layout import Layout
from r1jax.parallel.reward_programs import reward_scores
from r1jax.runs.policy import load_policy
from r1jax.types import Sample

ROWS = 64  # samples that are graded at once


class LearnedReward:
    """Grades with sigmoid(score): a pairwise model's odds against a response of score 0, a pointwise one's P(safe).

    One program of fixed shape, [rows, max_tokens], on the run's mesh, however many samples there are.
    """

    overlaps = False  # it needs the devices that the rollout has: it is asked after it, and not beside it

    def __init__(
        self, layout: Layout, checkpoint: epath.Path, task: Task, *, rows: int = ROWS, max_tokens: int | None = None
    ):
        """`max_tokens`, of question and response: as it was trained, if None.

        Raises UsageError when the checkpoint is no reward model for this task's tokens.
        """
        store, step = find(checkpoint)
        trained = store.about(step).get("reward_model")
        if trained is None:
            raise UsageError(f"{checkpoint} is a policy, expected the directory of a stage `reward_model`")
        policy = load_policy(checkpoint, layout)
        if policy.task is None or policy.task.name != task.name:
            raise UsageError(f"{checkpoint} is of another task than '{task.name}', with other tokens")
        self.layout, self.task, self.kind, self.checkpoint = layout, task, trained["kind"], checkpoint
        self.rows, self.max_tokens = layout.round_up(rows), max_tokens or trained["max_tokens"]
        if self.max_tokens > policy.model.max_position_embeddings:
            raise UsageError(
                f"max_tokens is {self.max_tokens}, but {checkpoint} has positions up to"
                f" {policy.model.max_position_embeddings}"
            )
        layout.require_row("max_tokens", self.max_tokens)
        self.params, self.router_bias = policy.params, policy.router_bias
        self.program = reward_scores(layout, policy.model)

    def grade(self, samples: Sequence[Sample]) -> list[float | None]:
        """None for what is longer than max_tokens, or has no finite score."""
        graded: list[float | None] = []
        for first in range(0, len(samples), self.rows):
            some = samples[first : first + self.rows]
            read = [response_tokens(self.task, self.kind, s.problem.question, s.text) for s in some]
            tokens_BT, length_B = pad_rows(read, self.rows, self.max_tokens)
            scores_B = self.program(self.params, self.router_bias, *self.layout.put_batch((tokens_BT, length_B)))
            for score, length in zip(jax.device_get(scores_B).tolist(), length_B[: len(some)], strict=False):
                graded.append(sigmoid(score) if length and math.isfinite(score) else None)
        return graded


def sigmoid(score: float) -> float:
    """1 / (1 + exp(-score)), in a form that overflows nowhere."""
    return (1 + math.tanh(score / 2)) / 2
