"""Episodes of several turns: what the policy is trained on is what was drawn and appended, id by id."""

import dataclasses
import itertools
import json
import threading
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from etils import epath

from r1jax.config import EngineConfig, MeshConfig
from r1jax.data.demonstrations import encode
from r1jax.data.published_tokenizer import PublishedTokenizer, load_tokenizer
from r1jax.data.tasks import TASKS
from r1jax.data.toy.episodes import HigherLower, games
from r1jax.environments.processes import InProcesses
from r1jax.errors import UsageError
from r1jax.model.spec import init_params
from r1jax.model.transformer import forward
from r1jax.objectives.logprobs import hidden_logprobs
from r1jax.parallel import rollout_programs
from r1jax.parallel.layout import make_layout
from r1jax.rollout.advantages import turn_advantages
from r1jax.rollout.async_rollout import AsyncRollout
from r1jax.rollout.engine import bucket
from r1jax.stages.rejection import record
from r1jax.types import Environments, Problem, Sample, Step, TokenBatch, Turn, Weights
from tests.conftest import ROOT
from tests.shared import plain_rollouts
from tests.shared.configs import rl_config
from tests.shared.engines import SAMPLER_TOLERANCE, forward_routes, make_engine, placed
from tests.shared.killed_environment import EndsItsProcess, MakesThem
from tests.shared.plain_rollouts import fresh_state, gradients, prepared, problem

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


def forced_gaps(model, policy, groups) -> np.ndarray:
    """Each drawn token's difference from its log-probability in one pass over the whole episode."""
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
    return np.asarray(gaps)


OPTIONS = {
    "plain": {},
    "speculation": {"speculative": True},
    "replay": {"routing_replay": True},
    "truncated": {"top_p": 0.9, "keeps_sampling_masks": True},
    "small chunks": {"append_chunk": 5, "speculative": True, "steps_per_round": 3},
}


SLOW_OPTIONS = [pytest.param(option, marks=pytest.mark.slow) for option in ("replay", "small chunks")]


@pytest.mark.parametrize("option", ["plain", "speculation", *SLOW_OPTIONS])
def test_log_probabilities_are_those_of_the_whole_episode(one_device, model, policy, prompts, option):
    groups = draw(one_device, model, policy, prompts, **OPTIONS[option])
    assert {len(s.turns) for group in groups for s in group} >= {2, 3}
    assert forced_gaps(model, policy, groups).max() < SAMPLER_TOLERANCE


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


def test_eight_devices_draw_the_same_tokens(model, policy, prompts, one_device):
    layout = make_layout(MeshConfig(data=2, fsdp=2, tensor=2))
    wanted = episodes(draw(one_device, model, policy, prompts))
    found = draw(layout, model, placed(layout, model, policy), prompts, make=lambda: Scripted(0.002))
    assert episodes(found) == wanted


def test_an_8_bit_cache_is_within_its_gap(one_device, model, policy, prompts):
    """The same bar as of one turn (test_rollout_options.py)."""
    policy = (init_params(jax.random.key(0), dataclasses.replace(model, initializer_range=None)), policy[1])
    groups = draw(one_device, model, policy, prompts, cache_dtype="int8")
    assert 1e-4 < forced_gaps(model, policy, groups).mean() < 0.1


def test_replayed_routes_are_those_of_the_whole_episode(one_device, model, policy, prompts):
    groups = draw(one_device, model, policy, prompts, routing_replay=True, append_chunk=7)
    assert any(len(sample.turns) > 2 for sample in groups[0])
    for sample, expected in forward_routes(model, policy, groups[:2]):
        np.testing.assert_array_equal(np.sort(sample.routes), np.sort(expected))


def test_programs_are_as_many_as_stated(one_device, model, policy, prompts):
    draw(one_device, model, policy, prompts)
    spec = draw.engine.spec
    makers = (rollout_programs.make_prefill, rollout_programs.make_insert)
    compiled = sum(make(spec)._cache_size() for make in makers)
    for width in {bucket(n, draw.engine.width) for n in range(1, draw.engine.width)}:
        compiled += rollout_programs.make_decode(spec, width)._cache_size()
        compiled += rollout_programs.make_append(spec, width)._cache_size()
    assert 0 < compiled <= draw.engine.max_programs


class Hostile:
    """Misbehaves in the way that the problem's id says."""

    KINDS = ("exception", "exit", "loop", "huge", "number", "nothing", "ids", "bytes", "floats", "surrogate", "reset")

    def reset(self, problem: Problem, seed: int) -> None:
        self.kind = self.KINDS[problem.id % len(self.KINDS)]
        if self.kind == "reset":
            raise OSError("no such server")

    def step(self, turn: str) -> Any:
        match self.kind:
            case "exception":
                raise ValueError("broken\nin two lines")
            case "exit":
                raise SystemExit(3)
            case "loop":
                while True:
                    pass
            case "huge":
                return Step("a" * 100_000_000)
            case "number":
                return Step(5)  # type: ignore[arg-type]
            case "nothing":
                return None
            case "ids":
                return Step([10**6])
            case "bytes":
                return Step(b"abc")
            case "floats":
                return Step([5.7])  # type: ignore[list-item]
            case "surrogate":
                return Step("\ud800")

    def close(self) -> None:
        raise RuntimeError(f"{self.kind} can't be closed")


REASONS = dict.fromkeys(Hostile.KINDS, "environment_error") | {"loop": "timeout", "huge": "length"}


def test_a_hostile_environment_ends_its_sample_alone(one_device, model, policy, capfd):
    prompts = [(i, [20 + i, 30]) for i in range(len(Hostile.KINDS))]
    before = threading.active_count()
    engine = make_engine(
        one_device, model, eos=2, new=N, stop_ids=ENDS, max_turn_tokens=16, environment_timeout=2.0, group=2,
        environments=Environments(Hostile, lambda text: [len(text.encode())]),
    )  # fmt: skip
    groups = engine.generate(Weights(*policy), [(problem(i), ids) for i, ids in prompts], jax.random.key(0))
    for kind, group in zip(Hostile.KINDS, groups, strict=True):
        for sample in group:
            assert sample.finish_reason in (REASONS[kind], "turn_length"), kind
            assert sample.loss_mask[sample.turns[0].start :] == [1] * (len(sample.tokens) - sample.turns[0].start)
            if sample.finish_reason == "environment_error":
                assert sample.turns[-1].observation and "\n" not in sample.turns[-1].observation
    assert {s.finish_reason for group in groups for s in group} >= {"environment_error", "timeout", "length"}
    assert engine.metrics()["environment_failures"] > 0
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before  # the loop was interrupted
    assert "Traceback" not in capfd.readouterr().err


class Wraps:
    """Has the attributes of what it wraps, if `reset` gets that far."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def reset(self, problem: Problem, seed: int) -> None:
        raise OSError("no such server")


def test_an_environment_whose_attributes_raise_ends_its_sample_alone(one_device, model, policy, prompts):
    groups = draw(one_device, model, policy, prompts, make=Wraps)
    samples = [sample for group in groups for sample in group]
    assert {s.finish_reason for s in samples} == {"environment_error", "turn_length"}
    said = {s.turns[-1].observation for s in samples if s.finish_reason == "environment_error"}
    assert said == {"OSError: no such server"}


class Counted:
    """Counts those that were made and closed."""

    made, closed = 0, 0

    def __init__(self) -> None:
        type(self).made += 1

    def reset(self, problem: Problem, seed: int) -> None:
        pass

    def step(self, turn: str) -> Step:
        return Step([5])

    def close(self) -> None:
        type(self).closed += 1


def test_environments_of_a_rollout_that_is_stopped_are_closed(one_device, model, policy):
    engine = make_engine(
        one_device, model, eos=2, new=N, stop_ids=ENDS, max_turn_tokens=16, group=2,
        environments=Environments(Counted, lambda text: [5]),
    )  # fmt: skip
    rounds = engine.rounds(Weights(*policy), [(problem(i), [20 + i, 30]) for i in range(3)], jax.random.key(0))
    while Counted.made == Counted.closed:
        next(rounds)
    rounds.close()
    deadline = time.monotonic() + 30
    while Counted.closed < Counted.made and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 0 < Counted.made == Counted.closed


class Waits(Counted):
    """Answers when it may."""

    may = threading.Event()

    def step(self, turn: str) -> Step:
        self.may.wait()
        return Step(done=True)


def test_a_rollout_whose_samples_all_wait_holds_up_nobody(one_device, model, policy):
    """An update that runs between its rounds goes on."""
    engine = make_engine(
        one_device, model, eos=2, new=N, stop_ids=ENDS, group=2, environments=Environments(Waits, lambda text: [5])
    )
    rollout = AsyncRollout(engine.rounds(Weights(*policy), [(problem(7), [20, 30])], jax.random.key(0)))
    for _ in range(N // 4):  # more than the rounds of a turn
        rollout.advance()
    assert engine.counts.tokens and rollout.rounds is not None
    Waits.may.set()
    [group] = rollout.finish()
    assert all(sample.finish_reason in ("stop", "length") for sample in group)
    assert "stop" in [sample.finish_reason for sample in group]


class Talks:
    """Answers in text that a tokenizer would split otherwise beside other text, with names of control tokens in it."""

    WORDS = ("1 2", "<eos>", " 12<user>", "\n\n", "ab", "<eos", "é", "  a ")

    def reset(self, problem: Problem, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def step(self, turn: str) -> Step:
        return Step("".join(self.rng.choice(self.WORDS, self.rng.integers(1, 5))), done=self.rng.random() < 0.1)


def byte_level_tokenizer(home: Path, size: int) -> PublishedTokenizer:
    """A byte-level BPE of the project's own source, with two control tokens."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    files = [str(path) for path in sorted((ROOT / "r1jax").glob("*.py"))]
    tokenizer.train(files, vocab_size=size, min_frequency=1, special_tokens=["<eos>", "<user>"])
    tokenizer.save(str(home / "tokenizer.json"))
    (home / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    found = load_tokenizer(epath.Path(home))
    assert found is not None and found.size == size
    return found


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_episodes_in_byte_level_bpe_are_never_tokenized_again(one_device, model, policy, tmp_path, count):
    wide = dataclasses.replace(model, vocab_size=400, tokenizer_size=None)
    params = init_params(jax.random.key(3), wide)
    tokenizer = byte_level_tokenizer(tmp_path, 400)
    engine = plain_rollouts.make_engine(
        one_device, wide, tokenizer=tokenizer, group=10, slots=64, steps_per_round=6, max_prompt_tokens=P,
        max_new_tokens=60, max_turn_tokens=12, max_turns=4, stop_ids=tuple(range(2, 400, 7)), append_chunk=8,
        environments=Environments(Talks, tokenizer.encode_plain),
    )  # fmt: skip
    emitted: dict[tuple[int, int], list[int]] = defaultdict(list)
    collect = engine.collect

    def watched(state, round_):
        round_ = jax.device_get(round_)
        for s, sample in state.decoding():
            emitted[sample.group, sample.index] += round_.tokens_SN[s, round_.is_token_SN[s]].tolist()
        collect(state, round_)

    engine.collect = watched  # type: ignore[method-assign]
    prompts = [(problem(i), tokenizer.encode(f"def f{i}(x):")) for i in range(count // 10)]
    groups = engine.generate(Weights(params, policy[1]), prompts, jax.random.key(0))
    samples = [sample for group in groups for sample in group]
    retokenized = 0
    for sample in samples:
        drawn = [t for t, mask in zip(sample.tokens, sample.loss_mask, strict=True) if mask]
        assert drawn == emitted[sample.group, sample.index]
        for turn, after in pairs(sample.turns):
            ids = sample.tokens[turn.stop : after.start]
            assert ids == tokenizer.encode_plain(turn.observation) and min(ids) > 1  # no control tokens
            assert tokenizer.decode(ids) == turn.observation
        history = tokenizer.decode(sample.tokens)
        retokenized += tokenizer.encode(history) != sample.tokens
    assert len(samples) == count and sum(len(s.turns) > 1 for s in samples) > count / 2
    assert retokenized > count / 2  # or the comparison above would show nothing


def test_what_the_environment_wrote_is_not_trained_on(one_device, model, policy, prompts):
    groups = draw(one_device, model, policy, prompts, new=60)
    config = rl_config(
        prompts_per_step=len(prompts), group_size=3, max_prompt_tokens=P, max_new_tokens=60, share_prompts=True
    )
    samples = [sample for group in groups for sample in group]
    for i, sample in enumerate(samples):
        sample.advantages = np.full(len(sample.tokens), i / 7 - 0.6, np.float32)
    state = fresh_state(one_device, model, policy, config)

    def loss_and_gradients():
        batches, _ = prepared(one_device, model, config, state, samples)
        found = gradients(one_device, model, config, state.train, batches)
        return jax.device_get((found.sums, found.metrics["loss"]))

    wanted = loss_and_gradients()
    for sample in samples:
        others = np.asarray(sample.loss_mask) == 0
        sample.advantages[others] = 1e3
        sample.logprobs = np.where(others, -77.0, sample.logprobs).tolist()
    jax.tree.map(np.testing.assert_array_equal, loss_and_gradients(), wanted)


def test_a_demonstration_of_several_turns_keeps_its_ids(one_device, model, policy, prompts):
    groups = draw(one_device, model, policy, prompts)
    task = TASKS["running_sum"]
    sample = next(s for group in groups for s in group if len(s.turns) == 3)
    row = json.loads(json.dumps(record(sample, 0, {})))
    encoded = encode(row, task)
    prompt = len(task.tokenizer.encode(task.prompt("")))
    assert encoded["tokens"][prompt:].tolist() == sample.response_tokens
    assert encoded["loss_mask"].tolist() == [0] * prompt + sample.loss_mask[sample.prompt_length :]


def test_the_turn_advantage_is_that_of_each_turns_own_return():
    def played(rewards: list[float]) -> Sample:
        turns = [Turn(2 + 3 * i, 4 + 3 * i, reward=reward) for i, reward in enumerate(rewards)]
        return Sample(problem(0), tokens=[9] * turns[-1].stop, turns=turns, reward=sum(rewards))

    samples = [played([0.0, 0.0, 1.0]), played([0.0, 1.0]), played([0.0, 0.0, 0.0])]
    loss = dataclasses.replace(rl_config().loss, advantage="centred")
    rewards = np.asarray([s.reward for s in samples], np.float32)
    found = turn_advantages(0.5)(samples, rewards, np.ones(3, np.float32), loss)
    for turn, returns in enumerate([[0.25, 0.5, 0.0], [0.5, 1.0, 0.0], [1.0, None, 0.0]]):
        mean = np.mean([r for r in returns if r is not None])
        for sample, advantage, value in zip(samples, found, returns, strict=True):
            if value is not None:
                at = sample.turns[turn]
                np.testing.assert_allclose(advantage[at.start : at.stop], value - mean, rtol=1e-6)
    assert all((a[:2] == 0).all() for a in found)  # the prompt


def test_environments_in_processes_answer_as_in_threads(tmp_path):
    """Turns are played again wherever they are asked; a process that dies is replaced, and one that is stuck."""
    drawn = list(itertools.islice(games("train", 0), 3))
    make = InProcesses(HigherLower, 2)
    here, there = ([environment() for _ in drawn] for environment in (HigherLower, make))
    for game, *both in zip(drawn, here, there, strict=True):
        for environment in both:
            environment.reset(game, 1)
    for turn in ("32", "16", "nonsense"):
        assert [one.step(turn) for one in there] == [one.step(turn) for one in here]
    make.threads.shutdown()

    make = InProcesses(EndsItsProcess, 1, seconds=1)
    hurt = make()
    hurt.reset(Problem(0, "", str(tmp_path / "died"), ""), 0)
    assert hurt.step("on") == Step("on") and (tmp_path / "died").exists()
    for turn, raised in {"loop": "took", "sleep": "took", "slow": "slow", "exit": "SystemExit: 3"}.items():
        stuck = make()
        stuck.reset(Problem(0, "", str(tmp_path / "died"), ""), 0)
        with pytest.raises(RuntimeError if turn == "exit" else TimeoutError, match=raised):
            stuck.step(turn)
    with pytest.raises(UsageError, match="importable"):
        InProcesses(lambda: EndsItsProcess(), 1)
    make.threads.shutdown()


def test_objects_that_make_environments_work_in_processes(tmp_path):
    make = InProcesses(MakesThem(), 1)
    environment = make()
    (tmp_path / "died").touch()
    environment.reset(Problem(0, "", str(tmp_path / "died"), ""), 0)
    assert environment.step("on") == Step("on")
    make.threads.shutdown()


def test_a_chunk_without_room_for_new_tokens_is_refused():
    with pytest.raises(ValueError, match="append_chunk"):
        EngineConfig(speculative=True, append_chunk=2)
    EngineConfig(append_chunk=1)
