"""The products that a model's definition asks for, whatever a compiler makes of them."""

from dataclasses import dataclass

from r1jax.config import ModelConfig
from r1jax.model.spec import count_active_params


@dataclass(frozen=True)
class Work:
    """What a program computes of a model."""

    tokens: int  # that are run through it
    context: float  # tokens that each looks at, in the mean
    passes: int  # 1 forward; 3 with the backward pass, which takes twice the forward one's
    absorbed: bool = False  # attention over latents, as the sampler has it


def model_flops(c: ModelConfig, work: Work) -> float:
    """Two for each multiplication: 2 N for a token forward and 6 N in training, and attention's products.

    N are the active parameters without the table that embeddings are looked up in; multi-token-prediction modules, and
    what is computed twice to save memory, are not counted.
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
