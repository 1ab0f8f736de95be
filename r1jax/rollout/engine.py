"""The rollout engine: prompts in, outputs out, by continuous batching over a fixed number of slots.

Prompts are run once, whatever the group size, and copied on the device into a slot for each output. A slot that is done
is refilled from the queue between rounds of decoding, so that the cost follows the tokens that are really generated.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import jax
import numpy as np

from r1jax.config import ModelConfig, RolloutConfig
from r1jax.errors import RunError, UsageError
from r1jax.parallel import programs
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
from r1jax.sampling.decode import Emitted, Prefilled, Slots, places
from r1jax.sampling.draw import DrawSettings
from r1jax.types import Params

T = TypeVar("T")
SMALLEST_BUCKET = 128  # prompts are padded to powers of two from here on, and so is what is looked at of the cache


class Decoder(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_id(self) -> int: ...
    def decode(self, ids: list[int]) -> str: ...


@dataclass
class Output:
    """One answer; it grows while it is in a slot."""

    prompt: int  # which of the prompts it answers
    sample: int  # which of the prompt's answers it is
    text: str = ""  # without the end token or what follows a stop string
    tokens: list[int] = field(default_factory=list)  # the end token, if it was drawn, is the last
    logprobs: list[float] = field(default_factory=list)  # under the policy at the sampling temperature
    drawn_logprobs: list[float] = field(default_factory=list)  # the same where top-k, top-p and min-p are off
    finished: bool = False  # ended by the end token or a stop string, not by the limit
    routes: list[np.ndarray] = field(default_factory=list)  # int16 [tokens, L, K], in pieces

    @property
    def finish_reason(self) -> str:
        return "stop" if self.finished else "length"


@dataclass
class Counts:
    """What the engine has done so far."""

    prompts: int = 0  # run, each once
    tokens: int = 0  # generated
    rounds: int = 0  # trips to the device and back
    steps: int = 0  # model steps of all slots at once
    drafted: int = 0  # tokens that the multi-token-prediction module proposed
    accepted: int = 0  # of them, those that the model drew as well


@dataclass
class RolloutEngine:
    """Every call uses the same few compiled programs: see `max_programs`."""

    layout: Layout  # the trainer's; RolloutConfig.mesh makes another one of it
    model: ModelConfig
    tokenizer: Decoder | None  # None: outputs are ids without text, and nothing ends them but the limit
    config: RolloutConfig
    group_size: int
    max_prompt_tokens: int
    max_new_tokens: int
    checks_memory: bool = True  # refuses what the devices have no room for; a dry run makes nothing on them
    counts: Counts = field(default_factory=Counts)
    device_seconds: float = 0.0  # so far, in calls to the devices and waiting for them

    def __post_init__(self) -> None:
        require_possible(self.model, self.config, self.max_prompt_tokens, self.max_new_tokens)
        weights = weights_memory(self.layout, self.model)
        self.layout = rollout_layout(self.layout, self.config)
        lengths = (self.max_prompt_tokens, self.max_new_tokens)
        self.memory = rollout_memory(self.layout, self.model, self.config, *lengths)
        if self.checks_memory:
            require_memory(self.layout, {"weights": weights} | self.memory)

    @property
    def slots(self) -> int:
        """As configured, rounded up so that devices share them evenly."""
        return self.layout.round_up(self.config.slots)

    @property
    def routes_shape(self) -> tuple[int, int] | None:
        """Layers with experts, and experts of a token, where outputs come with their routes."""
        layers = self.model.num_hidden_layers - self.model.first_k_dense_replace
        return (layers, self.model.num_experts_per_tok) if self.config.routing_replay else None

    @property
    def max_programs(self) -> int:
        """Programs that a run can compile: prefill and insertion for each prompt bucket, a round for each width.

        Two more make the slots, and the weights that rollouts read where these are not the trainer's.
        """
        return 2 + 2 * len(buckets(self.max_prompt_tokens)) + len(buckets(self.width))

    @property
    def width(self) -> int:
        """Places of a slot in the cache: the longest output, and one round more."""
        return self.max_prompt_tokens + self.max_new_tokens + self.config.steps_per_round * places(self.config)

    def generate(
        self,
        params: Params,
        router_bias: dict,
        prompts: Sequence[tuple[int, list[int]]],
        key: Any,
        temperature: float,
        *,
        ignore_eos: bool = False,
        watch: Callable[[Output], None] | None = None,
    ) -> list[list[Output]]:
        """`group_size` outputs for each (id, tokens); after each round `watch` sees every output that grew.

        The same key, id and sample index give the same tokens whatever is generated beside them. Raises UsageError for
        a prompt that is empty or too long, RunError when the policy's logits are not finite or memory runs out.
        """
        rounds = self.rounds(params, router_bias, prompts, key, temperature, ignore_eos=ignore_eos, watch=watch)
        return Pending(rounds).finish(stop_if_preempted)

    def rounds(
        self,
        params: Params,
        router_bias: dict,
        prompts: Sequence[tuple[int, list[int]]],
        key: Any,
        temperature: float,
        *,
        ignore_eos: bool = False,
        watch: Callable[[Output], None] | None = None,
        done: Callable[[int, list[Output]], None] | None = None,
    ) -> Generator[None, None, list[list[Output]]]:
        """`generate`, which stops after giving the devices a round's work: whoever goes on may have given them more.

        `done` gets each prompt's place and outputs as soon as all of these are complete.
        """
        self.check(prompts)
        settings = self.settings(temperature, ignore_eos)
        queue = deque(sorted(range(len(prompts)), key=lambda i: len(prompts[i][1])))  # neighbours share a bucket
        ready: deque[tuple[Prefilled, int, Output]] = deque()  # prompts that were run, a row for each output
        with self.naming("the copy of the weights that rollouts read", "copy of the weights"):
            params, router_bias = programs.sync(self.layout, self.model, self.config.weights)(params, router_bias)
        with self.naming(f"the cache of {self.slots} slots of {self.width:,} tokens", "cache"):
            slots = jax.block_until_ready(
                programs.make_slots(self.layout, self.model, self.config, self.slots, self.width)()
            )
        owners: list[Output | None] = [None] * self.slots
        groups: list[list[Output]] = [[] for _ in prompts]
        while queue or ready or any(owners):
            while (queue or ready) and not all(owners):
                if not ready:
                    ready += self.prefill(params, router_bias, prompts, queue)
                slots = self.insert(slots, owners, ready, key, settings)
            slots, emitted = self.decode(params, router_bias, slots, owners, prompts, settings)
            yield
            for output in self.collect(self.fetch(emitted), owners, prompts, settings.stop_ids, watch):
                group = groups[output.prompt]
                group.append(output)
                group.sort(key=lambda o: o.sample)
                if done and len(group) == self.group_size:
                    done(output.prompt, group)
        return groups

    def check(self, prompts: Sequence[tuple[int, list[int]]]) -> None:
        for _, ids in prompts:
            if not 0 < len(ids) <= self.max_prompt_tokens:
                raise UsageError(
                    f"a prompt has {len(ids)} tokens, expected 1 to {self.max_prompt_tokens}: set max_prompt_tokens"
                )

    def settings(self, temperature: float, ignore_eos: bool) -> DrawSettings:
        c = self.config
        eos_id = -1 if ignore_eos or self.tokenizer is None else self.tokenizer.eos_id
        return DrawSettings(
            temperature=np.float32(temperature),
            top_k=np.int32(c.top_k),
            top_p=np.float32(c.top_p),
            min_p=np.float32(c.min_p),
            min_tokens=np.int32(c.min_new_tokens),
            stop_ids=np.asarray([eos_id, *c.stop_ids], np.int32),
        )

    def empty_prompts(self, P: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [B, P], lengths [B] and ids [B] for the prompts of at most P tokens that are run at once."""
        rows = prefill_rows(self.layout, self.config, P)
        return np.zeros((rows, P), np.int32), np.ones(rows, np.int32), np.zeros(rows, np.int32)

    def prefill(self, params, router_bias, prompts, queue: deque[int]) -> list[tuple[Prefilled, int, Output]]:
        """Runs the next prompts of the queue that share a bucket, and says which outputs wait for them."""
        P = bucket(len(prompts[queue[0]][1]), self.max_prompt_tokens)
        tokens_BP, length_B, id_B = self.empty_prompts(P)
        rows, taken = len(id_B), list[int]()
        while queue and len(taken) < rows and len(prompts[queue[0]][1]) <= P:
            row, index = len(taken), queue.popleft()
            id_B[row], ids = prompts[index]
            tokens_BP[row, : len(ids)], length_B[row] = ids, len(ids)
            taken.append(index)
        run = programs.make_prefill(self.layout, self.model, self.config)
        arrays = self.layout.put_batch((tokens_BP, length_B, id_B))
        with self.naming(f"what running {rows} prompts of {P:,} tokens takes", "attention scores"):
            prefilled = jax.block_until_ready(run(params, router_bias, *arrays))
        self.counts.prompts += len(taken)
        outputs = [(prefilled, row, Output(i, g)) for row, i in enumerate(taken) for g in range(self.group_size)]
        if self.config.routing_replay:
            routes_BPLK = jax.device_get(prefilled.routes_BPLK)
            for _, row, output in outputs:
                output.routes.append(routes_BPLK[row, : length_B[row]])
        return outputs

    def insert(self, slots: Slots, owners, ready: deque, key, settings: DrawSettings) -> Slots:
        """Free slots take the outputs that wait for the first prefilled prompts."""
        row_S, sample_S = np.full(self.slots, -1, np.int32), np.zeros(self.slots, np.int32)
        prefilled = ready[0][0]
        for s, owner in enumerate(owners):
            if owner is None and ready and ready[0][0] is prefilled:
                _, row_S[s], owners[s] = ready.popleft()
                sample_S[s] = owners[s].sample
        run = programs.make_insert(self.layout, self.model, self.config)
        return run(slots, prefilled, row_S, sample_S, key, settings)

    def decode(self, params, router_bias, slots: Slots, owners, prompts, settings) -> tuple[Slots, Emitted]:
        """One round. Slots without an owner are done, also those whose output met a stop string."""
        filled = max(len(prompts[o.prompt][1]) + len(o.tokens) for o in owners if o is not None)
        run = programs.make_decode(self.layout, self.model, self.config, bucket(filled, self.width))
        is_free_S = np.asarray([owner is None for owner in owners])
        with self.naming(f"what a round of {self.slots} slots takes", "attention scores"):
            return run(params, router_bias, slots, is_free_S, np.int32(self.max_new_tokens), settings)

    def fetch(self, emitted: Emitted) -> Emitted:
        """What a round gave, once it is done."""
        with self.naming(f"what a round of {self.slots} slots takes", "attention scores"):
            return jax.device_get(emitted)

    @contextmanager
    def naming(self, buffer: str, estimate: str) -> Iterator[None]:
        """Around work of the devices: it is timed, and out of memory becomes an error that says what for."""
        start = time.perf_counter()
        try:
            yield
            self.device_seconds += time.perf_counter() - start
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise RunError(
                f"out of memory for {buffer} (estimated at {self.memory[estimate] / GIB:.2f} GiB on each device):"
                f" {error}. {KNOBS}"
            ) from error

    def collect(self, emitted: Emitted, owners, prompts, stop_ids, watch) -> list[Output]:
        """Appends what the round gave to its outputs; returns those that ended, and frees their slots."""
        ended = []
        for s, output in enumerate(owners):
            if output is None:
                continue
            new_N = emitted.is_token_SN[s]
            logprobs = emitted.logp_SN[s, new_N]
            if not np.isfinite(logprobs).all():
                raise RunError(
                    f"the policy's logits are not finite: prompt {prompts[output.prompt][0]}, sample {output.sample},"
                    f" token {len(output.tokens) + int(np.argmin(np.isfinite(logprobs)))}"
                )
            output.tokens += emitted.tokens_SN[s, new_N].tolist()
            output.logprobs += logprobs.tolist()
            output.drawn_logprobs += emitted.drawn_logp_SN[s, new_N].tolist()
            if emitted.routes_SNLK is not None:
                output.routes.append(emitted.routes_SNLK[s, new_N])
            if self.ends(output, bool(emitted.done_S[s]), len(logprobs), stop_ids):
                ended.append(output)
                owners[s] = None
            elif watch and self.tokenizer:
                output.text = self.tokenizer.decode(output.tokens)
            if watch:
                watch(output)
        self.count(emitted)
        return ended

    def count(self, emitted: Emitted) -> None:
        self.counts.rounds += 1
        self.counts.steps += int(emitted.steps)
        self.counts.tokens += int(emitted.is_token_SN.sum())
        if self.config.speculative:  # a step's second place is its draft; behind an output's last token it is none
            first_SN, second_SN = emitted.is_token_SN[:, ::2], emitted.is_token_SN[:, 1::2]
            ended_first_S = (
                emitted.done_S
                & (first_SN.sum(axis=1) > 0)
                & ~second_SN[np.arange(len(first_SN)), np.maximum(first_SN.sum(axis=1) - 1, 0)]
            )
            self.counts.drafted += int(first_SN.sum() - ended_first_S.sum())
            self.counts.accepted += int(second_SN.sum())

    def figures(self) -> dict[str, float]:
        """What a training log says of the rollouts since `counts` was made."""
        c = self.counts
        figures = {
            "prompts_run": float(c.prompts),
            "rollout_tokens": float(c.tokens),
            "slots_in_use": (c.tokens - c.accepted) / (c.steps * self.slots),
        }
        return figures | ({"draft_acceptance": c.accepted / c.drafted} if c.drafted else {})

    def ends(self, output: Output, done: bool, new: int, stop_ids) -> bool:
        """Whether the output is complete, with its text; a stop string among its `new` tokens cuts it there."""
        if done:
            output.finished = output.tokens[-1] in stop_ids
        if self.tokenizer is None:
            return done
        for n in range(len(output.tokens) - new + 1, len(output.tokens) + 1) if self.config.stop else ():
            text = self.tokenizer.decode(output.tokens[:n])
            at = min((text.find(stop) for stop in self.config.stop if stop in text), default=-1)
            if at >= 0:
                output.text, output.finished = text[:at], True
                output.tokens, output.logprobs = output.tokens[:n], output.logprobs[:n]
                output.drawn_logprobs = output.drawn_logprobs[:n]
                return True
        if done:
            output.text = self.tokenizer.decode(output.tokens[:-1] if output.finished else output.tokens)
        return done


class Pending(Generic[T]):
    """Work that is done round by round, when somebody asks for a round or for the end."""

    def __init__(self, work: Generator[None, None, T]):
        self.work: Generator[None, None, T] | None = work

    def advance(self) -> None:
        """One round; what it raises is raised by `finish`."""
        if self.work is None:
            return
        try:
            next(self.work)
        except StopIteration as end:
            self.work, self.result = None, end.value
        except RunError as error:
            self.work, self.result = None, error

    def finish(self, before_each: Callable[[], None] = lambda: None) -> T:
        """What comes out at the end; `before_each` round may raise what ends the work."""
        while self.work is not None:
            before_each()
            self.advance()
        if isinstance(self.result, RunError):
            raise self.result
        return self.result


def require_possible(model: ModelConfig, config: RolloutConfig, P: int, N: int) -> None:
    """Raises UsageError for prompts of P and outputs of N tokens, or options, that the model can't have."""
    if model.max_position_embeddings < P + N:
        raise UsageError(
            f"max_prompt_tokens + max_new_tokens is {P + N}, more than the model's max_position_embeddings"
            f" ({model.max_position_embeddings}): set them lower, or stretch it by RopeScalingConfig"
        )
    if config.speculative and not model.num_nextn_predict_layers:
        raise UsageError(
            "RolloutConfig.speculative needs a model with a multi-token-prediction module:"
            " ModelConfig.num_nextn_predict_layers is 0"
        )
    if config.routing_replay and model.first_k_dense_replace == model.num_hidden_layers:
        raise UsageError("RolloutConfig.routing_replay needs a model with experts: all its layers are dense")


def buckets(longest: int) -> list[int]:
    """Powers of two from the smallest bucket on, and `longest` itself as the last."""
    found = [SMALLEST_BUCKET]
    while found[-1] < longest:
        found.append(found[-1] * 2)
    return [*found[:-1], longest]


def bucket(size: int, longest: int) -> int:
    return next(b for b in buckets(longest) if b >= size)
