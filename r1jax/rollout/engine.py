"""The rollout engine: problems in, outputs out. Today one static batch for each call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from r1jax.config import ModelConfig
from r1jax.errors import UsageError
from r1jax.parallel import programs
from r1jax.parallel.layout import Layout
from r1jax.types import Generation, Params, Prompts


class Decoder(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_id(self) -> int: ...
    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Output:
    text: str  # without the end token
    tokens: list[int]  # the end token, if it was drawn, is the last
    logprobs: list[float]
    finished: bool  # ended by the end token, not by the limit


@dataclass(frozen=True)
class RolloutEngine:
    """Draws outputs with one compiled program: every call has the same shapes."""

    layout: Layout
    model: ModelConfig
    tokenizer: Decoder | None  # None: outputs are ids without text, and nothing ends them but the limit
    group_size: int
    max_prompt_tokens: int
    max_new_tokens: int

    def __post_init__(self) -> None:
        longest = self.max_prompt_tokens + self.max_new_tokens
        if longest > self.model.max_position_embeddings:
            raise UsageError(
                f"max_prompt_tokens + max_new_tokens is {longest}, more than the model's max_position_embeddings"
                f" ({self.model.max_position_embeddings}): set them lower, or stretch it by RopeScalingConfig"
            )

    def pad(self, prompts: Sequence[tuple[int, list[int]]]) -> Prompts:
        """(id, tokens) pairs as left-padded device arrays. Raises UsageError for a prompt that is empty or too long."""
        P = self.max_prompt_tokens
        tokens_BP = np.zeros((len(prompts), P), np.int32)
        for row, (_, ids) in zip(tokens_BP, prompts, strict=True):
            if not 0 < len(ids) <= P:
                raise UsageError(f"a prompt has {len(ids)} tokens, expected 1 to {P}: set max_prompt_tokens")
            row[P - len(ids) :] = ids
        lengths = np.asarray([len(ids) for _, ids in prompts], np.int32)
        return self.layout.put_batch(Prompts(tokens_BP, lengths, np.asarray([i for i, _ in prompts], np.int32)))

    def run(
        self,
        params: Params,
        router_bias: dict,
        prompts: Prompts,
        key: Any,
        temperature: float,
        *,
        ignore_eos: bool = False,
    ) -> Generation:
        """Outputs on the device. The same key, prompt id and sample index give the same tokens in any batch."""
        sample = programs.sampler(self.layout, self.model, self.group_size, self.max_new_tokens)
        eos_id = -1 if ignore_eos or self.tokenizer is None else self.tokenizer.eos_id
        return sample(params, router_bias, prompts, key, np.float32(temperature), np.int32(eos_id))

    def decode(self, generation: Generation) -> list[list[Output]]:
        """Outputs on the host, for each question a list of `group_size`."""
        host: Generation = jax.device_get(generation)
        B, G = host.length_BG.shape

        def output(b: int, g: int) -> Output:
            length = int(host.length_BG[b, g])
            tokens = host.tokens_BGN[b, g, :length].tolist()
            finished = bool(host.finished_BG[b, g])
            return Output(
                text=self.tokenizer.decode(tokens[:-1] if finished else tokens) if self.tokenizer else "",
                tokens=tokens,
                logprobs=host.logp_BGN[b, g, :length].tolist(),
                finished=finished,
            )

        return [[output(b, g) for g in range(G)] for b in range(B)]
