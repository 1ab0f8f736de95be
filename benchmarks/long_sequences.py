"""Memory against the length of a row, by XLA's own analysis of the compiled gradient: nothing is run.

python benchmarks/long_sequences.py
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import ModelConfig
from r1jax.model.softmax_attention import attend
from r1jax.model.spec import init_params, init_router_bias
from r1jax.objectives import logprobs
from r1jax.objectives.language_model import LossTerms, language_model_loss
from r1jax.types import Segments, TokenBatch

DEFAULT = logprobs.MAX_LOGITS
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)


def gib(function, *shapes) -> float:
    """Temporaries of the compiled gradient with respect to the first argument."""
    compiled = jax.jit(jax.grad(function)).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**30


def attention(T: int, c: ModelConfig, implementation: str) -> float:
    """One layer's softmax attention: V2-Lite's 16 heads of 192 and 128."""
    H, M = c.num_attention_heads, c.qk_nope_head_dim + c.qk_rope_head_dim
    q = jax.ShapeDtypeStruct((1, T, H, M), jnp.bfloat16)
    v = jax.ShapeDtypeStruct((1, T, H, c.v_head_dim), jnp.bfloat16)
    segments = Segments(jax.ShapeDtypeStruct((1, T), jnp.int32))

    def loss(arrays, segments):
        return attend(*arrays, segments, 0.1, implementation).astype(jnp.float32).sum()

    return gib(loss, (q, q, v), segments)


def cross_entropy(T: int, c: ModelConfig, max_logits: int) -> float:
    """The vocabulary's loss on hidden states: V2-Lite's 102,400 words."""
    logprobs.MAX_LOGITS = max_logits
    hidden = jax.ShapeDtypeStruct((1, T, c.hidden_size), jnp.bfloat16)
    head = {"head_DV": jax.ShapeDtypeStruct((c.hidden_size, c.vocab_size), jnp.bfloat16)}
    head["embed_VD"] = jax.ShapeDtypeStruct((c.vocab_size, c.hidden_size), jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((1, T), jnp.int32)
    return gib(lambda h, head, t: logprobs.hidden_logprobs(head, h, t)[0].sum(), hidden, head, tokens)


def model(T: int, c: ModelConfig) -> float:
    """The whole language-model loss of two layers of V2-Lite's widths, with chunks.

    Dense layers: the memory of routed experts depends on how many are chosen.
    """
    logprobs.MAX_LOGITS = DEFAULT
    c = dataclasses.replace(c, num_hidden_layers=2, first_k_dense_replace=2, attention="chunked")
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), c))
    bias = jax.eval_shape(lambda: init_router_bias(c))
    batch = jax.eval_shape(lambda: TokenBatch(*[jnp.zeros((1, T), jnp.int32)] * 3))
    loss = functools.partial(language_model_loss, terms=LossTerms("train", 0.0, 0.0), model=c)
    return gib(lambda p, b, x: loss(p, b, x)[0], params, bias, batch)


def main() -> None:
    files = [gin_path(f) for f in ("model/deepseek_v2_lite.gin", "algorithm/grpo.gin", "scale/cpu.gin")]
    lite = read_config(load_experiment("r1_zero").Config, files, []).model
    print(f"GiB of temporaries on {jax.devices()[0].device_kind}, one row, DeepSeek-V2-Lite's widths\n")
    print("| tokens | attention, full | chunked | loss, all logits | chunked | two dense layers and loss, chunked |")
    print("| --- | --- | --- | --- | --- | --- |")
    for T in LENGTHS:
        figures = (
            attention(T, lite, "full"),
            attention(T, lite, "chunked"),
            cross_entropy(T, lite, T * lite.vocab_size),
            cross_entropy(T, lite, DEFAULT),
            model(T, lite),
        )
        print(f"| {T:,} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
