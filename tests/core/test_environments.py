"""Episodes of several turns: what the policy is trained on is what was drawn and appended, id by id."""

import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model.transformer import forward
from r1jax.objectives.logprobs import hidden_logprobs
from r1jax.types import Environments, Problem, Sample, Step, TokenBatch, Weights
from tests.shared.engines import SAMPLER_TOLERANCE, make_engine
from tests.shared.plain_rollouts import problem

P, N = 40, 200
ENDS = tuple(range(8, 200, 6))  # tokens that end a turn: one in six
LENGTHS = (1, 2, 31, 32, 33, 64, 70)  # of observations; a chunk has 32 tokens


def crc(*values) -> int:
    return zlib.crc32(repr(values).encode())


class Scripted:
    """Answers with ids that are a function of the problem, the seed and the turns so far."""

    turns = 4
    log: dict = {}  # what was asked and answered, by sample

    def __init__(self, delay: float = 0.0):
        self.delay, self.said = delay, []

    def reset(self, problem: Problem, seed: int) -> None:
        self.seed = (problem.id, seed)
        self.log[self.seed] = []

    def step(self, turn: str) -> Step:
        self.said.append(turn)
        chance = crc(self.seed, self.said)
        time.sleep(self.delay * (chance % 5))
        n = LENGTHS[chance % len(LENGTHS)]
        ids = np.random.default_rng(chance).integers(8, 200, n).tolist()
        self.log[self.seed].append((turn, ids))
        return Step(ids, done=len(self.said) == self.turns, reward=len(self.said) / 4)


def draw(layout, model, policy, prompts, *, make=Scripted, **numbers) -> list[list[Sample]]:
    numbers = {"max_turn_tokens": 16, "max_turns": 3, "append_rows": 3, "new": N, "stop_ids": ENDS} | numbers
    engine = make_engine(layout, model, eos=2, environments=Environments(make, no_text), **numbers)
    groups = engine.generate(Weights(*policy), [(problem(i), ids) for i, ids in prompts], jax.random.key(0))
    draw.engine = engine
    return groups


def no_text(text: str) -> list[int]:
    assert text == "", "these environments answer with ids"
    return []


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(0)
    return [(100 + i, rng.integers(8, 200, n).tolist()) for i, n in enumerate([3, 40, 7, 17])]


def forced_gap(model, policy, groups) -> float:
    """The largest difference from the log-probabilities of one pass over each whole episode."""
    samples = [sample for group in groups for sample in group]
    T = max(len(s.tokens) for s in samples)
    tokens = np.asarray([s.tokens + [0] * (T - len(s.tokens)) for s in samples], np.int32)
    segments = np.asarray([[1] * len(s.tokens) + [0] * (T - len(s.tokens)) for s in samples], np.int32)
    batch = TokenBatch(jnp.asarray(tokens), jnp.arange(T) * segments, jnp.asarray(segments))
    hidden = jax.jit(forward, static_argnames="config")(*policy, batch, config=model).hidden_BTD
    logp, _ = hidden_logprobs(policy[0], hidden[:, :-1], tokens[:, 1:], 1.0, None)
    gaps = [
        abs(float(logp[b, t - 1]) - s.logprobs[t]) for b, s in enumerate(samples) for t in np.flatnonzero(s.loss_mask)
    ]
    assert len(gaps) > 200
    return max(gaps)


OPTIONS = {
    "plain": {},
    "speculation": {"speculative": True},
    "replay": {"routing_replay": True},
    "truncated": {"top_p": 0.9, "keeps_sampling_masks": True},
    "small chunks": {"append_chunk": 5, "speculative": True, "steps_per_round": 3},
}


@pytest.mark.parametrize("option", ["plain", "speculation", "replay", "small chunks"])
def test_log_probabilities_are_those_of_the_whole_episode(one_device, model, policy, prompts, option):
    groups = draw(one_device, model, policy, prompts, **OPTIONS[option])
    assert {len(s.turns) for group in groups for s in group} >= {2, 3}
    assert forced_gap(model, policy, groups) < SAMPLER_TOLERANCE


def episodes(groups) -> list[tuple]:
    return [(s.tokens, s.loss_mask, s.finish_reason, s.text) for group in groups for s in group]


@pytest.mark.parametrize(
    "numbers",
    [
        {"slots": 3, "steps_per_round": 4},
        {"append_rows": 1, "append_chunk": 7},
        {"speculative": True},
        {"make": lambda: Scripted(0.01)},
        {"environment_threads": 1, "make": lambda: Scripted(0.003)},
    ],
)
def test_tokens_depend_on_nothing_but_their_position(one_device, model, policy, prompts, numbers):
    wanted = episodes(draw(one_device, model, policy, prompts))
    assert episodes(draw(one_device, model, policy, prompts, **numbers)) == wanted


def test_what_is_trained_on_is_what_was_drawn_and_appended(one_device, model, policy, prompts):
    Scripted.log.clear()
    groups = draw(one_device, model, policy, prompts)
    logs = sorted(Scripted.log.items())
    reasons = set()
    for i, ids in prompts:
        for sample in groups[i - 100]:
            assert sample.tokens[: len(ids)] == ids and sample.turns[0].start == len(ids)
            reasons.add(sample.finish_reason)
            said = [(turn.text, sample.tokens[turn.stop : after.start]) for turn, after in pairs(sample.turns)]
            assert any(said == log[: len(said)] for (of, _), log in logs if of == i)
            mask = np.zeros(len(sample.tokens), int)
            for turn in sample.turns:
                mask[turn.start : turn.stop] = 1
            assert sample.loss_mask == mask.tolist() and sample.turns[-1].stop == len(sample.tokens)
            assert [turn.reward for turn in sample.turns[:-1]] == [(k + 1) / 4 for k in range(len(said))]
    assert reasons >= {"turns", "turn_length"}


def pairs(turns):
    return zip(turns[:-1], turns[1:], strict=True)
