"""Small rollout engines, and what their samples are held against: the trainer's view of the same tokens."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from r1jax.config import ModelConfig
from r1jax.model.transformer import forward_cached
from r1jax.parallel.layout import Layout
from r1jax.parallel.transfers import snapshot
from r1jax.rollout.engine import RolloutEngine
from r1jax.types import Sample, Weights
from tests.shared import plain_rollouts
from tests.shared.plain_rollouts import Generation, Prompts, join, problem, score, trainer_arrays

P, N, EOS = 40, 20, 7  # most tokens of a prompt and of a response; the end token
# The bar of the field's most filed bug: absorbed attention over a cache against one expanded pass, float32.
SAMPLER_TOLERANCE = 1e-4


class EndsWith:
    """A tokenizer that knows an end token, and spells ids."""

    def __init__(self, eos_id: int):
        self.eos_ids = (eos_id,)

    def decode(self, ids: list[int]) -> str:
        return " ".join(str(i) for i in ids)


def make_engine(
    layout: Layout, model: ModelConfig, *, eos: int = EOS, group: int = 3, new: int = N, **numbers: Any
) -> RolloutEngine:
    """Of few slots and short rounds, so that slots are refilled, unless `numbers` of the configs say otherwise."""
    small = {"slots": 8, "steps_per_round": 6, "prefill_rows": 4, "max_prompt_tokens": P, "max_new_tokens": new}
    return plain_rollouts.make_engine(layout, model, tokenizer=EndsWith(eos), group=group, **small | numbers)


def generate(engine: RolloutEngine, policy, prompts: Sequence[tuple[int, list[int]]], seed: int = 0):
    """The samples of each (problem id, ids) prompt."""
    return engine.generate(Weights(*policy), [(problem(i), ids) for i, ids in prompts], jax.random.key(seed))


def tokens(groups: Sequence[Sequence[Sample]]) -> list[list[list[int]]]:
    """Ids of each group's responses."""
    return [[sample.response_tokens for sample in group] for group in groups]


def placed(layout: Layout, model: ModelConfig, policy) -> Weights:
    """A copy of the policy, sharded as the trainer has it."""
    shardings = Weights(layout.params(model), jax.tree.map(lambda _: layout.replicated(), policy[1]))
    return snapshot(jax.device_put(Weights(*policy), shardings))


def asked(prompts: Prompts) -> list[tuple[int, list[int]]]:
    """The prompts as (problem id, ids)."""
    rows = zip(prompts.id_B, prompts.tokens_BP, prompts.length_B, strict=True)
    return [(int(i), row[len(row) - n :].tolist()) for i, row, n in rows]


def sample(layout: Layout, model: ModelConfig, policy, prompts: Prompts, *, new: int = 12, **numbers) -> Generation:
    """4 responses to each prompt."""
    numbers = {"eos": 2, "group": 4, "slots": 16, "steps_per_round": 5, "max_prompt_tokens": 10} | numbers
    groups = generate(make_engine(layout, model, new=new, **numbers), policy, asked(prompts))
    return trainer_arrays(asked(prompts), groups, 10, new)[1]


def teacher_forced(model: ModelConfig, policy, prompts: Prompts, generation: Generation, temperature: float = 1.0):
    """Log-probabilities of the generation's tokens by one forward pass over each whole sequence."""
    masks = generation.masks_BGNK
    masks = None if masks is None else masks.reshape(-1, *masks.shape[2:])
    logp, _, _ = jax.jit(score, static_argnames=("new_tokens", "c"))(
        *policy, join(prompts, generation), generation.tokens_BGN.shape[-1], temperature, c=model, masks_BNK=masks
    )
    return np.asarray(logp).reshape(generation.logp_BGN.shape)


def forward_routes(model, policy, groups):
    """The experts that one pass over each sample chooses, by the model itself."""
    run = jax.jit(lambda t, p: forward_cached(Weights(*policy), t, p, [], model)[2])
    for group in groups:
        for sample in group:
            row = np.asarray([sample.tokens])
            yield sample, np.asarray(run(row, np.arange(row.shape[1])[None]))[0]
