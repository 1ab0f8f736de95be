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
from r1jax.parallel.memory import GIB, KNOBS, prefill_rows, require_memory, rollout_memory, weights_memory
from r1jax.rollout.async_rollout import AsyncRollout
from r1jax.rollout.environments import Answer, Episodes
from r1jax.sampling.append import Appended
from r1jax.sampling.decode import Emitted, Prefilled, Slots, tokens_per_step
from r1jax.sampling.draw import DrawSettings, Truncation
from r1jax.types import Environments, Problem, Sample, Turn, Weights

SMALLEST_BUCKET = 128  # prompts, and the part of the cache that is read, are padded to powers of two from here on
SPECIALS = 16  # tokens without text, that a stop string may be interrupted by

Prompt = tuple[Problem, list[int]]  # the problem and its prompt's token ids
Ready = tuple[Prefilled, int, Sample]  # a prompt that was run, as a row of its batch, and one of its samples
Groups = list[list[Sample]]  # the samples of each prompt


class Tokenizer(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    def decode(self, ids: list[int]) -> str: ...


@dataclass
class Counts:
    """What the engine has done so far."""

    prompts: int = 0  # prompts prefilled
    tokens: int = 0  # tokens drawn
    rounds: int = 0  # decoding rounds dispatched
    model_steps: int = 0  # decoding steps, each over all slots
    drafted: int = 0  # tokens that the multi-token-prediction module proposed
    accepted: int = 0  # of them, those that the model drew as well
    environment_seconds: float = 0.0  # seconds of environments at work, summed over threads
    environment_failures: int = 0  # turns that an environment failed to answer


@dataclass
class RolloutState:
    """A rollout that is under way."""

    weights: Weights  # as rollouts read them
    slots: Slots  # on the devices; each program that changes them replaces them
    settings: DrawSettings
    owners: list[Sample | None]  # the sample in each slot
    groups: Groups  # of complete samples
    watch: Callable[[Sample], None] | None  # called as `generate` says, like `done`
    done: Callable[[list[Sample]], None] | None
    episodes: Episodes | None = None  # None: samples have one turn

    def decoding(self) -> list[tuple[int, Sample]]:
        """The slots, with their samples, whose last turn is not complete; the others wait for their environments."""
        return [(s, owner) for s, owner in enumerate(self.owners) if owner and not owner.turns[-1].stop]


@dataclass
class RolloutEngine:
    """Draws `group_size` samples for each prompt. All calls use the same few compiled programs (`max_programs`).

    Attributes:
      layout: the trainer's; EngineConfig.mesh makes another one of it.
      model, config, sampling: the policy's architecture, how it draws, and what it draws.
      tokenizer: None: samples are ids without text, and nothing but the limit ends them.
      keeps_sampling_masks: samples come with the ids that each token was drawn from, where not all could be.
      checks_memory: refuse what the devices have no room for; a dry run allocates nothing on them.
      environments: answer the samples between their turns; None: a sample has one turn.
      counts: what the engine has done since the caller last replaced them.
      device_seconds: seconds of wall time so far in calls to the devices and in waiting for them.
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
    counts: Counts = field(default_factory=Counts, init=False)
    device_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        require_possible(self.model, self.config, self.sampling)
        weights = weights_memory(self.layout, self.model)
        mask_ids = self.sampling.sampling_mask_ids if self.keeps_sampling_masks and self.sampling.needs_mask else 0
        truncation = Truncation(self.sampling.truncates or mask_ids > 0, mask_ids)
        self.spec = programs.RolloutSpec(rollout_layout(self.layout, self.config), self.model, self.config, truncation)
        self.memory = rollout_memory(self.spec, self.sampling, appends=self.environments is not None)
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
        """Positions of a slot in the cache: those of the longest sample, and of one round more."""
        return self.sampling.max_tokens + self.config.steps_per_round * tokens_per_step(self.config)

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

        `done` gets each prompt's samples as soon as all are complete. The same key, problem id and sample index give
        the same tokens whatever is drawn beside them. Raises UsageError for a prompt that is empty or too long,
        RunError when the logits are not finite or memory runs out.
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
        """`generate` as a generator: it yields when it has dispatched a round of decoding, before it waits for it.

        While all samples wait for their environments it yields every now and then.
        """
        self.check(prompts)
        queue = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i][1])))  # neighbours share a bucket
        ready: deque[Ready] = deque()
        with self.device_call("the copy of the weights that rollouts read", "copy of the weights"):
            weights = programs.sync(self.spec, weights)
        with self.device_call(f"the cache of {self.slots} slots of {self.width:,} tokens", "cache"):
            slots = jax.block_until_ready(programs.make_slots(self.spec, self.slots, self.width)())
        groups: Groups = [[] for _ in prompts]
        state = RolloutState(weights, slots, self.draw_settings(ignore_eos), [None] * self.slots, groups, watch, done)
        if self.environments:
            seed = int(np.asarray(jax.random.key_data(key)).ravel()[-1])
            state.episodes = Episodes(self.environments, self.config, self.model.vocab_size, seed)
        try:
            while queue or ready or any(state.owners):
                while (queue or ready) and not all(state.owners):
                    if not ready:
                        ready += self.prefill(weights, prompts, queue)
                    self.insert(state, ready, key)
                if state.episodes:
                    self.resume_answered(state, state.episodes.answers(wait=not state.decoding()))
                emitted = self.decode(state) if state.decoding() else None
                yield
                if emitted is not None:
                    self.collect(state, emitted)
        finally:  # of a rollout that fails or is stopped, they are not waited for: a checkpoint comes first
            if episodes := state.episodes:
                for key in list(episodes.made):
                    episodes.end(key, seconds=0.0)
        return groups

    def resume_answered(self, state: RolloutState, answers: Sequence[tuple[Sample, Answer]]) -> None:
        """Delivers environment answers: completes the sample, or appends the observation to it."""
        observed = []
        for sample, answer in answers:
            self.counts.environment_seconds += answer.seconds
            self.counts.environment_failures += answer.reason in ("timeout", "environment_error")
            turn = sample.turns[-1]
            turn.observation, turn.reward = answer.text, answer.reward
            if answer.reason or len(sample.turns) == self.sampling.max_turns:
                self.complete(state, sample, answer.reason or "turns")
            else:
                observed.append((sample, answer.ids))
        for i in range(0, len(observed), self.append_rows):
            self.append(state, observed[i : i + self.append_rows])

    def append(self, state: RolloutState, observed: Sequence[tuple[Sample, Sequence[int]]]) -> None:
        """Feeds observations to their slots, `append_chunk` tokens per call, and opens each sample's next turn."""
        A, C = self.append_rows, self.config.append_chunk
        # The turn's last tokens are run again for the MTP module, which has not seen them.
        overlap = tokens_per_step(self.config) if self.config.speculative else 0
        for sample, ids in observed:
            sample.tokens += ids
            sample.loss_mask += [0] * len(ids)
            sample.logprobs += [0.0] * len(ids)
            sample.turns.append(Turn(len(sample.tokens)))
            if mask_ids := self.spec.truncation.mask_ids:
                sample.sampling_masks.append(np.full((len(ids), mask_ids), -1, np.int32))
        run = programs.make_append(self.spec, bucket(max(len(sample.tokens) for sample, _ in observed), self.width))
        for fed in range(0, max(len(ids) for _, ids in observed), C - overlap):
            tokens_AC = np.zeros((A, C), np.int32)
            length_A, slot_A, start_A, count_A = np.zeros((4, A), np.int32)  # rows of length 0 are ignored
            for row, (sample, ids) in enumerate(observed):
                if fed < len(ids):
                    start_A[row] = sample.turns[-2].stop + fed - overlap
                    chunk = sample.tokens[start_A[row] :][:C]
                    tokens_AC[row, : len(chunk)] = chunk
                    length_A[row] = len(chunk)
                    slot_A[row] = state.owners.index(sample)
                    count_A[row] = drawn_tokens(sample)
            new = Appended(tokens_AC=tokens_AC, length_A=length_A, slot_A=slot_A, start_A=start_A, count_A=count_A)
            with self.device_call(f"{C} tokens of {A} observations", "attention scores"):
                state.slots, routes = run(state.weights, state.slots, new, state.settings)
                routes_ACLK = jax.device_get(routes)
            for row, (sample, _) in enumerate(observed if self.config.routing_replay else ()):
                sample.routes.append(routes_ACLK[row, overlap : length_A[row]])

    def check(self, prompts: Sequence[Prompt]) -> None:
        most = self.sampling.max_prompt_tokens
        for problem, ids in prompts:
            if not 0 < len(ids) <= most:
                found = f"the prompt of problem {problem.id} has {len(ids)} tokens"
                raise UsageError(f"{found}, expected 1 to {most}: set SamplingConfig.max_prompt_tokens")

    def draw_settings(self, ignore_eos: bool = False) -> DrawSettings:
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
        """Tokens [B, P], lengths [B] and problem ids [B] for the prompts of at most P tokens that are run at once.

        Rows that no prompt fills have length 1, since the position of a row's last token is read.
        """
        rows = prefill_rows(self.spec.layout, self.config, P)
        return np.zeros((rows, P), np.int32), np.ones(rows, np.int32), np.zeros(rows, np.int32)

    def prefill(self, weights: Weights, prompts: Sequence[Prompt], queue: deque[int]) -> list[Ready]:
        """Runs the next prompts of the queue that share a bucket; their samples, to be inserted into slots."""
        P = bucket(len(prompts[queue[0]][1]), self.sampling.max_prompt_tokens)
        tokens_BP, length_B, problem_id_B = self.empty_prompts(P)
        rows, taken = len(problem_id_B), list[int]()
        while queue and len(taken) < rows and len(prompts[queue[0]][1]) <= P:
            row, i = len(taken), queue.popleft()
            problem, ids = prompts[i]
            tokens_BP[row, : len(ids)], length_B[row], problem_id_B[row] = ids, len(ids), problem.id
            taken.append(i)
        run = programs.make_prefill(self.spec)
        arrays = self.spec.layout.put_batch((tokens_BP, length_B, problem_id_B))
        with self.device_call(f"running {rows} prompts of {P:,} tokens", "attention scores"):
            prefilled = jax.block_until_ready(run(weights, *arrays))
        self.counts.prompts += len(taken)
        samples = [
            (prefilled, row, begin(i, g, *prompts[i])) for row, i in enumerate(taken) for g in range(self.group_size)
        ]
        routes_BPLK = jax.device_get(prefilled.routes_BPLK)
        for _, row, sample in samples:
            if routes_BPLK is not None:
                sample.routes = [routes_BPLK[row, : length_B[row]]]
            if mask_ids := self.spec.truncation.mask_ids:
                sample.sampling_masks = [np.full((length_B[row], mask_ids), -1, np.int32)]
        return samples

    def insert(self, state: RolloutState, ready: deque[Ready], key: Any) -> None:
        """Copies prefilled prompts into free slots, from the oldest prefill batch only: a call reads one batch."""
        row_S, sample_S = np.full(self.slots, -1, np.int32), np.zeros(self.slots, np.int32)
        prefilled = ready[0][0]
        for s, owner in enumerate(state.owners):
            if owner is None and ready and ready[0][0] is prefilled:
                _, row_S[s], sample = ready.popleft()
                state.owners[s] = sample
                sample_S[s] = sample.index
        state.slots = programs.make_insert(self.spec)(state.slots, prefilled, row_S, sample_S, key, state.settings)

    def decode(self, state: RolloutState) -> Emitted:
        """Dispatches a round, and returns before the devices have finished it.

        The mask overrides the devices' own `done_S`: only the host knows of stop strings and waiting environments.
        """
        filled = max(len(owner.tokens) for owner in state.owners if owner)
        run = programs.make_decode(self.spec, bucket(filled, self.width))
        is_idle_S, limit_S = np.ones(self.slots, bool), np.zeros(self.slots, np.int32)
        for s, sample in state.decoding():
            is_idle_S[s] = False
            limit_S[s] = self.limit(sample)
        with self.device_call(f"a round of {self.slots} slots", "attention scores"):
            state.slots, emitted = run(state.weights, state.slots, is_idle_S, limit_S, state.settings)
        return emitted

    def limit(self, sample: Sample) -> int:
        """The most tokens that the policy may have drawn, in all turns, at the end of this one; observations count."""
        room = self.max_length(sample) - sample.turns[-1].start
        return drawn_tokens(sample) + min(room, self.sampling.max_turn_tokens or room)

    def max_length(self, sample: Sample) -> int:
        """Tokens that the sample may have, with its prompt and observations."""
        return sample.turns[0].start + self.sampling.max_new_tokens

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

    def collect(self, state: RolloutState, emitted: Emitted) -> None:
        """Waits for a round and appends its tokens; a complete turn goes to an environment, or ends the sample."""
        with self.device_call(f"a round of {self.slots} slots", "attention scores"):
            emitted = jax.device_get(emitted)
        for s, sample in state.decoding():
            is_new_N = emitted.is_token_SN[s]
            logprobs, length = emitted.logp_SN[s, is_new_N], len(sample.tokens)
            if not np.isfinite(logprobs).all():
                bad = length - sample.prompt_length + int(np.argmin(np.isfinite(logprobs)))
                where = f"problem {sample.problem.id}, sample {sample.index}, token {bad}"
                raise RunError(f"the policy's logits are not finite: {where}")
            sample.tokens += emitted.tokens_SN[s, is_new_N].tolist()
            sample.loss_mask += [1] * len(logprobs)
            sample.logprobs += logprobs.tolist()
            if emitted.routes_SNLK is not None:
                sample.routes.append(emitted.routes_SNLK[s, is_new_N])
            if emitted.masks_SNI is not None:
                sample.sampling_masks.append(emitted.masks_SNI[s, is_new_N])
            if reason := self.finish_turn(sample, bool(emitted.done_S[s]), length, state.settings.stop_ids):
                if state.episodes and reason == "stop":  # the next turn needs room for one token at least
                    state.episodes.ask(sample, self.max_length(sample) - len(sample.tokens) - 1)
                else:
                    self.complete(state, sample, reason)
            elif state.watch and self.tokenizer:
                said = [turn.text for turn in sample.turns[:-1]]
                sample.text = "\n".join([*said, self.tokenizer.decode(sample.tokens[sample.turns[-1].start :])])
            if state.watch:
                state.watch(sample)
        self.count(emitted)

    def finish_turn(self, sample: Sample, done: bool, length: int, stop_ids: np.ndarray) -> str:
        """Why the sample's turn is complete, and "" if it is not; then it gets its text.

        `done`: the device met a stop token or a limit. `length`: len(sample.tokens) before this round.
        """
        text = self.find_stop(sample, length)
        if text is None and not done:
            return ""
        turn = sample.turns[-1]
        turn.stop = len(sample.tokens)
        has_end = sample.tokens[-1] in stop_ids
        reason = "length" if turn.stop == self.max_length(sample) else "turn_length"
        reason = "stop" if text is not None or has_end else reason
        if text is None and self.tokenizer is not None:
            text = self.tokenizer.decode(sample.tokens[turn.start : turn.stop - 1 if has_end else turn.stop])
        turn.text = text or ""
        sample.text = "\n".join(turn.text for turn in sample.turns)
        for arrays in filter(None, (sample.routes, sample.sampling_masks)):
            arrays[:] = [np.concatenate(arrays)[: turn.stop]]  # what follows a stop string is cut off
        return reason

    def complete(self, state: RolloutState, sample: Sample, reason: str) -> None:
        """Finishes the sample, adds it to its group, frees its slot, and closes its environment."""
        sample.finish_reason = reason
        sample.routes = None if sample.routes is None else sample.routes[0]
        sample.sampling_masks = None if sample.sampling_masks is None else sample.sampling_masks[0]
        state.owners[state.owners.index(sample)] = None
        if state.episodes:
            state.episodes.end((sample.group, sample.index))
        group = state.groups[sample.group]
        group.append(sample)
        group.sort(key=lambda s: s.index)
        if state.done and len(group) == self.group_size:
            state.done(group)

    def find_stop(self, sample: Sample, length: int) -> str | None:
        """The turn's text before the first stop string that ends among the tokens from `length` on, or None.

        Deletes the sample's tokens behind that string. Only a window of the last tokens is decoded, so that each token
        costs a constant. It holds any stop string, since every token that is not special decodes to one byte at least.
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
        if self.config.speculative:  # a step's second token is its draft; there is none behind a last token
            first_SN, second_SN = emitted.is_token_SN[:, ::2], emitted.is_token_SN[:, 1::2]
            last_S = emitted.is_token_SN.shape[1] - 1 - np.argmax(emitted.is_token_SN[:, ::-1], axis=1)
            ended_first_S = emitted.done_S & first_SN.any(axis=1) & (last_S % 2 == 0)
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
