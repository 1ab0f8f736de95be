"""Model FLOPs: those of the model's definition, whatever is compiled."""

from dataclasses import dataclass

from r1jax.config import ModelConfig
from r1jax.model.spec import count_active_params


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
