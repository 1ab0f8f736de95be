"""The rollout engine: prompts in, samples out, by continuous batching over a fixed number of slots.

Each prompt is run once, whatever the group size, and copied on the device into a slot for each sample. Between rounds
of decoding, slots whose sample is done are refilled from the queue: the cost follows the tokens that are drawn.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from r1jax.config import EngineConfig, ModelConfig, SamplingConfig
from r1jax.errors import RunError, UsageError
from r1jax.parallel import rollout_programs as programs
from r1jax.parallel.hosts import stop_if_preempted
from r1jax.parallel.layout import Layout, rollout_layout
from r1jax.parallel.memory import (
    GIB,
    KNOBS,
    prefill_rows,
    require_memory,
    rollout_memory,
    weights_memory,
)
from r1jax.rollout.async_rollout import AsyncRollout
from r1jax.rollout.environments import Answer, Episodes
from r1jax.sampling.append import Appended
from r1jax.sampling.decode import Emitted, Prefilled, Slots, places
from r1jax.sampling.draw import DrawSettings, Truncation
from r1jax.types import Environments, Problem, Sample, Turn, Weights

SMALLEST_BUCKET = 128  # prompts, and the part of the cache that is read, are padded to powers of two from here on
SPECIALS = 16  # tokens without text, that a stop string may be interrupted by

Prompt = tuple[Problem, list[int]]  # and its ids
Groups = list[list[Sample]]  # the samples of each prompt


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    def decode(self, ids: list[int]) -> str: ...


@dataclass
class Counts:
    """What the engine has done so far."""

    prompts: int = 0  # run, each once
    tokens: int = 0  # drawn
    rounds: int = 0  # trips to the device and back
    model_steps: int = 0  # of all slots at once
    drafted: int = 0  # tokens that the multi-token-prediction module proposed
    accepted: int = 0  # of them, those that the model drew as well
    environment_seconds: float = 0.0  # of environments at work, added up
    environment_failures: int = 0


@dataclass
class RolloutEngine:
    """Draws `group_size` samples for each prompt. All calls use the same few compiled programs (`max_programs`).

    Attributes:
      layout: the trainer's; EngineConfig.mesh makes another one of it.
      tokenizer: None: samples are ids without text, and nothing but the limit ends them.
      keeps_sampling_masks: samples come with the ids that each token was drawn from, where not all could be.
      checks_memory: refuse what the devices have no room for; a dry run allocates nothing on them.
      environments: answer the samples between their turns; None: a sample has one turn.
      episodes: the environments of the rollout that is under way.
      device_seconds: so far, in calls to the devices and waiting for them.
    """

    layout: Layout
    model: ModelConfig
    tokenizer: Tokenizer | None
    config: EngineConfig
    sampling: SamplingConfig
    group_size: int
    keeps_sampling_masks: bool = False
    checks_memory: bool = True
    environments: Environments | None = None
    counts: Counts = field(default_factory=Counts)
    device_seconds: float = 0.0
    episodes: Episodes | None = None

    def __post_init__(self) -> None:
        require_possible(self.model, self.config, self.sampling)
        weights = weights_memory(self.layout, self.model)
        mask_ids = self.sampling.sampling_mask_ids if self.keeps_sampling_masks and self.sampling.needs_mask else 0
        truncation = Truncation(self.sampling.truncates or mask_ids > 0, mask_ids)
        self.spec = programs.RolloutSpec(rollout_layout(self.layout, self.config), self.model, self.config, truncation)
        self.memory = rollout_memory(self.spec, self.sampling)
        if self.checks_memory:
            require_memory(self.spec.layout, {"weights": weights} | self.memory)

    @property
    def slots(self) -> int:
        """As configured, rounded up so that devices share them evenly."""
        return self.spec.layout.round_up(self.config.slots)

    @property
    def append_rows(self) -> int:
        """As configured, rounded up so that devices share them evenly."""
        return self.spec.layout.round_up(self.config.append_rows)

    @property
    def max_programs(self) -> int:
        """Programs that a run can compile: prefill and insertion for each prompt bucket, a round for each width.

        With environments, appending for each width. Two more make the slots, and the weights that rollouts read where
        these are not the trainer's.
        """
        widths = len(buckets(self.width)) * (1 if self.environments is None else 2)
        return 2 + 2 * len(buckets(self.sampling.max_prompt_tokens)) + widths

    @property
    def width(self) -> int:
        """Places of a slot in the cache: the longest sample, and one round more."""
        return self.sampling.max_tokens + self.config.steps_per_round * places(self.config)

    def generate(
        self,
        weights: Weights,
        prompts: Sequence[Prompt],
        key: Any,
        *,
        ignore_eos: bool = False,
        watch: Callable[[Sample], None] | None = None,
        done: Callable[[list[Sample]], None] | None = None,
    ) -> Groups:
        """`group_size` samples for each prompt; after each round `watch` gets every sample that grew.

        `done` gets each prompt's samples as soon as all of them are complete.

        The same key, problem id and sample index give the same tokens whatever is drawn beside them. Raises UsageError
        for a prompt that is empty or too long, RunError when the logits are not finite or memory runs out.
        """
        rounds = self.rounds(weights, prompts, key, ignore_eos=ignore_eos, watch=watch, done=done)
        return AsyncRollout(rounds).finish(stop_if_preempted)

    def rounds(
        self,
        weights: Weights,
        prompts: Sequence[Prompt],
        key: Any,
        *,
        ignore_eos: bool = False,
        watch: Callable[[Sample], None] | None = None,
        done: Callable[[list[Sample]], None] | None = None,
    ) -> Generator[None, None, Groups]:
        """`generate` as a generator: it yields when it has dispatched a round of decoding, before it waits for it."""
        self.check(prompts)
        settings = self.settings(ignore_eos)
        queue = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i][1])))  # neighbours share a bucket
        ready: deque[tuple[Prefilled, int, Sample]] = deque()  # prompts that were run, a row for each sample
        with self.device_call("the copy of the weights that rollouts read", "copy of the weights"):
            weights = programs.sync(self.spec, weights)
        with self.device_call(f"the cache of {self.slots} slots of {self.width:,} tokens", "cache"):
            slots = jax.block_until_ready(programs.make_slots(self.spec, self.slots, self.width)())
        owners: list[Sample | None] = [None] * self.slots
        groups: Groups = [[] for _ in prompts]

        def complete(samples: Sequence[Sample]) -> None:
            for sample in samples:
                group = groups[sample.group]
                group.append(sample)
                group.sort(key=lambda s: s.index)
                if done and len(group) == self.group_size:
                    done(group)

        self.episodes = episodes = self.begin_episodes(key)
        while queue or ready or any(owners):
            while (queue or ready) and not all(owners):
                if not ready:
                    ready += self.prefill(weights, prompts, queue)
                slots = self.insert(slots, owners, ready, key, settings)
            if episodes and episodes.waiting:
                decoding = len(episodes.waiting) < sum(owner is not None for owner in owners)
                slots, ended = self.go_on(weights, slots, owners, episodes.answers(wait=not decoding), settings)
                complete(ended)
            if any(is_decoding_S := self.decoding(owners)):
                slots, emitted = self.decode(weights, slots, owners, is_decoding_S, settings)
                yield
                complete(self.collect(self.fetch(emitted), owners, is_decoding_S, settings.stop_ids, watch))
        if episodes:
            self.counts.environment_seconds += episodes.seconds
            self.counts.environment_failures += episodes.failures
        return groups

    def begin_episodes(self, key: Any) -> Episodes | None:
        if self.environments is None:
            return None
        seed = int(np.asarray(jax.random.key_data(key)).ravel()[-1])
        return Episodes(self.environments, self.config, self.model.vocab_size, seed)

    def decoding(self, owners: Sequence[Sample | None]) -> np.ndarray:
        """Which slots have an owner that does not wait for its environment, bool [S]."""
        waiting = self.episodes.waiting if self.episodes else {}
        return np.asarray([owner is not None and (owner.group, owner.index) not in waiting for owner in owners])

    def go_on(
        self, weights: Weights, slots: Slots, owners, answers: Sequence[tuple[Sample, Answer]], settings: DrawSettings
    ) -> tuple[Slots, list[Sample]]:
        """Gives samples what was answered; returns the slots, and the samples that end. Their slots are free."""
        ended, appended = [], []
        for sample, answer in answers:
            turn = sample.turns[-1]
            turn.observation, turn.reward = answer.text, answer.reward
            reason = answer.reason or ("turns" if len(sample.turns) == self.sampling.max_turns else "")
            if reason:
                owners[slot_of(sample, owners)] = None
                ended.append(self.close(sample, reason))
            else:
                appended.append((sample, list(answer.ids)))
        rows = self.append_rows
        for i in range(0, len(appended), rows):
            slots = self.append(weights, slots, owners, appended[i : i + rows], settings)
        return slots, ended

    def append(self, weights: Weights, slots: Slots, owners, answers, settings: DrawSettings) -> Slots:
        """Runs the ids of some (sample, ids), a chunk of each at a time; the samples' next turns begin."""
        A, C = self.append_rows, self.config.append_chunk
        again = places(self.config) if self.config.speculative else 0  # tokens that the MTP module has to see again
        at = [len(sample.tokens) for sample, _ in answers]
        for sample, ids in answers:
            sample.tokens += ids
            sample.loss_mask += [0] * len(ids)
            sample.logprobs += [0.0] * len(ids)
            sample.turns.append(Turn(len(sample.tokens)))
            if mask_ids := self.spec.truncation.mask_ids:
                sample.sampling_masks.append(np.full((len(ids), mask_ids), -1, np.int32))
        run = programs.make_append(self.spec, bucket(max(len(sample.tokens) for sample, _ in answers), self.width))
        while any(at[i] < len(sample.tokens) for i, (sample, _) in enumerate(answers)):
            new = Appended(np.zeros((A, C), np.int32), *(np.zeros(A, np.int32) for _ in range(4)))
            for i, (sample, _) in enumerate(answers):
                chunk = sample.tokens[at[i] - again : at[i] - again + C] if at[i] < len(sample.tokens) else []
                new.tokens_AC[i, : len(chunk)], new.length_A[i] = chunk, len(chunk)
                new.slot_A[i], new.start_A[i] = slot_of(sample, owners), at[i] - again
                new.count_A[i] = drawn_tokens(sample)
            with self.device_call(f"{C} tokens of {A} observations", "attention scores"):
                slots, routes_ACLK = run(weights, slots, new, settings)
            for i, (sample, _) in enumerate(answers):
                n = max(int(new.length_A[i]) - again, 0)
                at[i] += n
                if routes_ACLK is not None:
                    sample.routes.append(np.asarray(routes_ACLK[i, again : again + n]))
        return slots

    def check(self, prompts: Sequence[Prompt]) -> None:
        most = self.sampling.max_prompt_tokens
        for problem, ids in prompts:
            if not 0 < len(ids) <= most:
                raise UsageError(
                    f"the prompt of problem {problem.id} has {len(ids)} tokens, expected 1 to {most}:"
                    " set SamplingConfig.max_prompt_tokens"
                )

    def settings(self, ignore_eos: bool = False) -> DrawSettings:
        c = self.sampling
        eos_ids = (-1,) if self.tokenizer is None else self.tokenizer.eos_ids
        eos_ids = (-1,) * len(eos_ids) if ignore_eos else eos_ids  # of the same shape: compiles nothing
        return DrawSettings(
            temperature=np.float32(c.temperature),
            top_k=np.int32(c.top_k),
            top_p=np.float32(c.top_p),
            min_p=np.float32(c.min_p),
            min_tokens=np.int32(c.min_new_tokens),
            stop_ids=np.asarray([*eos_ids, *c.stop_ids], np.int32),
        )

    def empty_prompts(self, P: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [B, P], lengths [B] and ids [B] for the prompts of at most P tokens that are run at once."""
        rows = prefill_rows(self.spec.layout, self.config, P)
        return np.zeros((rows, P), np.int32), np.ones(rows, np.int32), np.zeros(rows, np.int32)

    def prefill(
        self, weights: Weights, prompts: Sequence[Prompt], queue: deque[int]
    ) -> list[tuple[Prefilled, int, Sample]]:
        """Runs the next prompts of the queue that share a bucket; their samples, to be inserted into slots."""
        P = bucket(len(prompts[queue[0]][1]), self.sampling.max_prompt_tokens)
        tokens_BP, length_B, id_B = self.empty_prompts(P)
        rows, taken = len(id_B), list[int]()
        while queue and len(taken) < rows and len(prompts[queue[0]][1]) <= P:
            row, i = len(taken), queue.popleft()
            problem, ids = prompts[i]
            tokens_BP[row, : len(ids)], length_B[row], id_B[row] = ids, len(ids), problem.id
            taken.append(i)
        run = programs.make_prefill(self.spec)
        arrays = self.spec.layout.put_batch((tokens_BP, length_B, id_B))
        with self.device_call(f"running {rows} prompts of {P:,} tokens", "attention scores"):
            prefilled = jax.block_until_ready(run(weights, *arrays))
        self.counts.prompts += len(taken)
        samples = [
            (prefilled, row, begin(i, g, *prompts[i])) for row, i in enumerate(taken) for g in range(self.group_size)
        ]
        if self.config.routing_replay:
            routes_BPLK = jax.device_get(prefilled.routes_BPLK)
            for _, row, sample in samples:
                sample.routes = [routes_BPLK[row, : length_B[row]]]
        if mask_ids := self.spec.truncation.mask_ids:
            for _, row, sample in samples:
                sample.sampling_masks = [np.full((length_B[row], mask_ids), -1, np.int32)]
        return samples

    def insert(self, slots: Slots, owners, ready: deque, key, settings: DrawSettings) -> Slots:
        """Free slots take the samples that wait for the first prefilled prompts."""
        row_S, sample_S = np.full(self.slots, -1, np.int32), np.zeros(self.slots, np.int32)
        prefilled = ready[0][0]
        for s, owner in enumerate(owners):
            if owner is None and ready and ready[0][0] is prefilled:
                _, row_S[s], owners[s] = ready.popleft()
                sample_S[s] = owners[s].index
        return programs.make_insert(self.spec)(slots, prefilled, row_S, sample_S, key, settings)

    def decode(self, weights: Weights, slots: Slots, owners, is_decoding_S, settings) -> tuple[Slots, Emitted]:
        """Dispatches one round. Other slots are done: free ones, and those whose samples met a stop string or wait."""
        filled = max(len(owner.tokens) for owner in owners if owner is not None)
        run = programs.make_decode(self.spec, bucket(filled, self.width))
        limit_S = np.asarray([0 if owner is None else self.limit(owner) for owner in owners], np.int32)
        with self.device_call(f"a round of {self.slots} slots", "attention scores"):
            return run(weights, slots, ~is_decoding_S, limit_S, settings)

    def limit(self, sample: Sample) -> int:
        """Tokens that the policy may have drawn at the end of this turn."""
        c, before, start = self.sampling, drawn_tokens(sample), sample.turns[-1].start
        room = c.max_new_tokens - (start - sample.turns[0].start)
        return before + (room if c.max_turn_tokens is None else min(room, c.max_turn_tokens))

    def fetch(self, emitted: Emitted) -> Emitted:
        """What a round emitted, once it is done."""
        with self.device_call(f"a round of {self.slots} slots", "attention scores"):
            return jax.device_get(emitted)

    @contextmanager
    def device_call(self, what: str, estimate: str) -> Iterator[None]:
        """Times work of the devices, and turns running out of memory into an error that says what for."""
        start = time.perf_counter()
        try:
            yield
            self.device_seconds += time.perf_counter() - start
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise RunError(
                f"out of memory for {what} (estimated at {self.memory[estimate] / GIB:.2f} GiB on each device):"
                f" {error}. {KNOBS}"
            ) from error

    def collect(self, emitted: Emitted, owners, is_decoding_S, stop_ids, watch) -> list[Sample]:
        """Appends what the round emitted to its samples; returns those that ended, and frees their slots."""
        ended = []
        for s in np.flatnonzero(is_decoding_S):
            sample = owners[s]
            new_N = emitted.is_token_SN[s]
            logprobs, length = emitted.logp_SN[s, new_N], len(sample.tokens)
            if not np.isfinite(logprobs).all():
                bad = length - sample.prompt_length + int(np.argmin(np.isfinite(logprobs)))
                raise RunError(
                    f"the policy's logits are not finite: problem {sample.problem.id}, sample {sample.index},"
                    f" token {bad}"
                )
            sample.tokens += emitted.tokens_SN[s, new_N].tolist()
            sample.loss_mask += [1] * len(logprobs)
            sample.logprobs += logprobs.tolist()
            if emitted.routes_SNLK is not None:
                sample.routes.append(emitted.routes_SNLK[s, new_N])
            if emitted.masks_SNI is not None:
                sample.sampling_masks.append(emitted.masks_SNI[s, new_N])
            if reason := self.finish_turn(sample, bool(emitted.done_S[s]), length, stop_ids):
                if self.episodes and reason == "stop":
                    self.episodes.ask(sample, self.room(sample))
                else:
                    ended.append(self.close(sample, reason))
                    owners[s] = None
            elif watch and self.tokenizer:
                said = [turn.text for turn in sample.turns[:-1]]
                sample.text = "\n".join([*said, self.tokenizer.decode(sample.tokens[sample.turns[-1].start :])])
            if watch:
                watch(sample)
        self.count(emitted)
        return ended

    def room(self, sample: Sample) -> int:
        """Tokens of an observation for which there is room before another turn of one token."""
        return sample.turns[0].start + self.sampling.max_new_tokens - len(sample.tokens) - 1

    def finish_turn(self, sample: Sample, done: bool, length: int, stop_ids) -> str:
        """Why the turn is complete, and "" if it is not. Its tokens from `length` on are new."""
        turn, text = sample.turns[-1], self.find_stop(sample, length)
        if text is None and not done:
            return ""
        has_end, limit = sample.tokens[-1] in stop_ids, sample.turns[0].start + self.sampling.max_new_tokens
        reason = "length" if len(sample.tokens) == limit else "turn_length"
        reason = "stop" if text is not None or has_end else reason
        if text is None and self.tokenizer is not None:
            text = self.tokenizer.decode(sample.tokens[turn.start : len(sample.tokens) - has_end])
        turn.text, turn.stop = text or "", len(sample.tokens)
        sample.text = "\n".join(turn.text for turn in sample.turns)
        for arrays in filter(None, (sample.routes, sample.sampling_masks)):
            arrays[:] = [np.concatenate(arrays)[: turn.stop]]  # what follows a stop string is cut off
        return reason

    def close(self, sample: Sample, reason: str) -> Sample:
        """Completes the sample."""
        sample.finish_reason = reason
        sample.routes = None if sample.routes is None else sample.routes[0]
        sample.sampling_masks = None if sample.sampling_masks is None else sample.sampling_masks[0]
        if self.episodes:
            self.episodes.end(sample)
        return sample

    def find_stop(self, sample: Sample, length: int) -> str | None:
        """Cuts the sample behind the first stop string among its tokens from `length` on; the text before the string.

        Only the last tokens are decoded, so that each token costs a constant: a token that is not special has a byte of
        text at least. The whole response is decoded when they have a stop string.
        """
        stops = self.sampling.stop
        if self.tokenizer is None or not stops:
            return None
        window, first = max(len(stop.encode()) for stop in stops) + SPECIALS, sample.turns[-1].start
        for n in range(length + 1, len(sample.tokens) + 1):
            recent = self.tokenizer.decode(sample.tokens[max(first, n - window) : n])
            if not any(stop in recent for stop in stops):
                continue
            text = self.tokenizer.decode(sample.tokens[first:n])
            at = min((text.find(stop) for stop in stops if stop in text), default=-1)
            if at >= 0:
                del sample.tokens[n:], sample.loss_mask[n:], sample.logprobs[n:]
                return text[:at]
        return None

    def count(self, emitted: Emitted) -> None:
        self.counts.rounds += 1
        self.counts.model_steps += int(emitted.steps)
        self.counts.tokens += int(emitted.is_token_SN.sum())
        if self.config.speculative:  # a step's second place is its draft; there is none behind a last token
            first_SN, second_SN = emitted.is_token_SN[:, ::2], emitted.is_token_SN[:, 1::2]
            ended_first_S = (
                emitted.done_S
                & (first_SN.sum(axis=1) > 0)
                & ~second_SN[np.arange(len(first_SN)), np.maximum(first_SN.sum(axis=1) - 1, 0)]
            )
            self.counts.drafted += int(first_SN.sum() - ended_first_S.sum())
            self.counts.accepted += int(second_SN.sum())

    def metrics(self) -> dict[str, float]:
        """For the training log: rollouts since `counts` was made."""
        c = self.counts
        metrics = {
            "prompts_run": float(c.prompts),
            "rollout_tokens": float(c.tokens),
            "slots_in_use": (c.tokens - c.accepted) / (c.model_steps * self.slots),
        }
        if self.environments:
            metrics["environment_seconds"] = c.environment_seconds
            metrics["environment_failures"] = float(c.environment_failures)
        return metrics | ({"draft_acceptance": c.accepted / c.drafted} if c.drafted else {})


def begin(group: int, index: int, problem: Problem, ids: list[int]) -> Sample:
    """A sample with its prompt alone."""
    n = len(ids)
    return Sample(problem, group, index, tokens=list(ids), loss_mask=[0] * n, logprobs=[0.0] * n, turns=[Turn(n)])


def slot_of(sample: Sample, owners: Sequence[Sample | None]) -> int:
    return next(s for s, owner in enumerate(owners) if owner is sample)


def drawn_tokens(sample: Sample) -> int:
    """Tokens of the turns that are complete."""
    return sum(turn.stop - turn.start for turn in sample.turns if turn.stop)


def require_possible(model: ModelConfig, config: EngineConfig, sampling: SamplingConfig) -> None:
    """Raises UsageError for lengths or options that the model can't have."""
    if model.max_position_embeddings < sampling.max_tokens:
        raise UsageError(
            f"SamplingConfig.max_prompt_tokens + max_new_tokens is {sampling.max_tokens}, more than the model's"
            f" max_position_embeddings ({model.max_position_embeddings}): set them lower, or extend the model's context"
            " by RopeScalingConfig"
        )
    if config.speculative and not model.num_nextn_predict_layers:
        raise UsageError(
            "EngineConfig.speculative needs a model with a multi-token-prediction module:"
            " ModelConfig.num_nextn_predict_layers is 0"
        )
    if config.routing_replay and model.first_k_dense_replace == model.num_hidden_layers:
        raise UsageError("EngineConfig.routing_replay needs a model with experts: all its layers are dense")


def buckets(longest: int) -> list[int]:
    """Powers of two from the smallest bucket on, and `longest` itself as the last."""
    found = [SMALLEST_BUCKET]
    while found[-1] < longest:
        found.append(found[-1] * 2)
    return [*found[:-1], longest]


def bucket(size: int, longest: int) -> int:
    return next(b for b in buckets(longest) if b >= size)
