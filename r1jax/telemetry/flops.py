"""Model FLOPs: those of the model's definition, whatever is compiled; and what share of the devices' peak they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from r1jax.config import ModelConfig, RLConfig
from r1jax.model.spec import count_active_params
from r1jax.parallel.chips import peak_flops
from r1jax.parallel.layout import Layout
from r1jax.types import Sample


@dataclass(frozen=True)
class Work:
    """The work of a program that runs a model."""

    tokens: int  # run through the model
    context: float  # mean number of tokens that each token attends to
    passes: int  # 1 forward; 3 with the backward pass, which counts as two
    absorbed: bool = False  # MLA over latents, as in decoding


def model_flops(c: ModelConfig, work: Work) -> float:
    """FLOPs, two per multiply-add: 2 N for a token forward, 6 N in training, plus attention.

    N are the active parameters without the input embedding. MTP modules and recomputation (remat) are not counted.
    """
    weights = count_active_params(c) - (0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size)
    if c.kv_lora_rank is None:
        numbers = 2 * c.head_dim
    elif work.absorbed:
        numbers = 2 * c.kv_lora_rank + c.qk_rope_head_dim
    else:
        numbers = c.qk_head_dim + c.v_head_dim
    attention = c.num_hidden_layers * c.num_attention_heads * numbers * work.context
    return 2 * work.passes * work.tokens * (weights + attention)


def sequence_flops(c: ModelConfig, lengths: Iterable[int], passes: int) -> float:
    """Model FLOPs of whole sequences, each token of which attends to those before it and to itself."""
    return sum(model_flops(c, Work(n, (n + 1) / 2, passes)) for n in lengths)


def rl_step_flops(
    c: ModelConfig, config: RLConfig, drawn: Sequence[Sequence[Sample]], trained: Sequence[Sequence[Sample]]
) -> float:
    """Those of a step: each prompt and each response drawn, log-probabilities by policy and reference, and updates."""
    prompts = sequence_flops(c, (group[0].prompt_length for group in drawn), 1)
    samples = list(chain(*drawn))
    responses = sequence_flops(c, (len(s.tokens) for s in samples), 1)
    responses -= sequence_flops(c, (s.prompt_length for s in samples), 1)
    passes = config.needs_old_logprobs + config.has_reference + 3 * config.epochs_per_rollout
    return prompts + responses + sequence_flops(c, (len(s.tokens) for s in chain(*trained) if s.valid), passes)


def throughput(layout: Layout, tokens: float, flops: float, seconds: float) -> dict[str, float]:
    """Tokens a second, in all and per device, and MFU where the devices' peak is known (PaLM, arXiv 2204.02311)."""
    devices, rate = layout.mesh.devices.ravel(), tokens / seconds
    values = {"tokens_per_second": rate, "tokens_per_second_per_device": rate / len(devices)}
    peak = peak_flops(devices[0])
    return values | ({"mfu": flops / (seconds * len(devices) * peak)} if peak else {})
