"""Every attention implementation equals the definition, forward and backward, on packed rows with padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.model import context_attention
from r1jax.model import softmax_attention as attention
from r1jax.model.quantize import dequantize, quantize
from r1jax.model.transformer import forward
from r1jax.objectives import logprobs
from r1jax.parallel.programs import on_platform
from r1jax.types import Segments, TokenBatch

# float32 sums of some hundred terms in another order.
ROUNDING = dict(rtol=1e-4, atol=1e-5)
SCALE = 0.2


def chunked(attend_chunk, size=attention.CHUNK):
    def attend(q, k, v, segments, scale, part=0):
        return attention.attend_chunked(q, k, v, segments, functools.partial(attend_chunk, scale=scale), size, part)

    return attend


# JAX's own kernel in place of cuDNN's, which needs a GPU.
fused = functools.partial(attention.fused_chunk, kernel="xla")
IMPLEMENTATIONS = {
    "chunks": chunked(attention.flash_chunk, 47),
    "many chunks": chunked(attention.flash_chunk, 11),
    "one chunk": chunked(attention.flash_chunk),
    "chunks of the definition": chunked(attention.einsum_chunk, 32),
    "fused": chunked(fused, 32),
    "fused, an odd length": chunked(fused, 999),
    "splash": functools.partial(attention.attend_splash, interpret=True),
}


def inputs(T=139, M=24, U=16, H=3, Y=3):
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(2, T, heads, M)), jnp.float32) for heads in (H, Y))
    v = jnp.asarray(rng.normal(size=(2, T, Y, U)), jnp.float32)
    first = np.concatenate([np.full(50, 1), np.full(61, 2), np.full(T - 119, 3), np.zeros(8)])
    segments = jnp.asarray(np.stack([first, np.concatenate([np.zeros(30), np.ones(T - 30)])]), jnp.int32)
    return (q, k, v), Segments(segments)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_every_implementation_equals_the_definition(name):
    assert_equal(*inputs(), IMPLEMENTATIONS[name], functools.partial(attention.attend, implementation="full"))


@pytest.mark.parametrize("name", ["chunks", "many chunks", "one chunk", "fused"])
def test_samples_behind_a_shared_prompt(name):
    """A prompt of 40 with samples of 30, 40 and 20 behind it, and padding."""
    arrays, segments = inputs()
    ends = np.repeat([130, 70, 110, 130, 139], [40, 30, 40, 20, 9])
    segments = segments._replace(ends_BT=jnp.asarray(np.stack([ends, ends]), jnp.int32))
    assert_equal(arrays, segments, IMPLEMENTATIONS[name], functools.partial(attention.attend, implementation="full"))


def test_bfloat16_is_rounded_no_worse_than_by_the_definition():
    arrays, segments = inputs(H=6)

    def gradients(attend, dtype):
        def loss(*inputs):
            return (attend(*inputs, segments, SCALE).astype(jnp.float32) ** 2).sum()

        return jax.grad(loss, (0, 1, 2))(*(x.astype(dtype) for x in arrays))

    full = functools.partial(attention.attend, implementation="full")
    exact = gradients(full, jnp.float32)

    def error(attend):
        found = gradients(attend, jnp.bfloat16)
        return np.array([float(jnp.linalg.norm(a - b)) for a, b in zip(found, exact, strict=True)])

    assert (error(IMPLEMENTATIONS["one chunk"]) <= 1.1 * error(full)).all()


def test_kept_attention_is_not_computed_again():
    """With remat = 'attention' the backward pass makes the scores again, and not their product with the values."""
    arrays, segments = inputs()

    def products(policy) -> int:
        attend = functools.partial(attention.attend, segments=segments, scale=SCALE, implementation="chunked")
        kept = jax.checkpoint(lambda *inputs: attend(*inputs).sum(), policy=policy)
        return str(jax.make_jaxpr(jax.grad(kept, (0, 1, 2)))(*arrays)).count("dot_general[")

    nothing, names = jax.checkpoint_policies.nothing_saveable, jax.checkpoint_policies.save_only_these_names
    assert products(names(attention.ATTENDED)) == products(nothing) - 1


def test_samples_in_rows_of_their_own_for_attention_alone(monkeypatch):
    """The same prompt and samples by a kernel that has no mask for them."""
    arrays, segments = inputs()
    ends = jnp.asarray(np.repeat([130, 70, 110, 130, 139], [40, 30, 40, 20, 9])[None], jnp.int32)
    masked = Segments(jnp.where(jnp.arange(139) < 130, 1, jnp.zeros((2, 1), jnp.int32)), jnp.tile(ends, (2, 1)))
    paths_sS, places_T = np.full((3, 80), 139), np.zeros(139, int)
    for s, (first, last) in enumerate([(40, 70), (70, 110), (110, 130)]):
        path = np.r_[0:40, first:last]
        paths_sS[s, : len(path)], places_T[path] = path, s * 80 + np.arange(len(path))
    apart = masked._replace(paths_BsS=jnp.asarray([paths_sS] * 2), places_BT=jnp.asarray([places_T] * 2))
    monkeypatch.setattr(attention, "attend_splash", functools.partial(attention.attend_splash, interpret=True))
    by_paths = functools.partial(attention.attend, implementation="splash")
    assert_equal(arrays, apart, by_paths, lambda q, k, v, _, scale: attention.attend(q, k, v, masked, scale, "full"))


@pytest.mark.parametrize("name", ["chunks", "one chunk", "fused", "splash"])
def test_parts_of_a_row_equal_the_whole(name):
    """Each half's 149 queries, which neither blocks nor chunks divide, over all keys."""
    arrays, segments = inputs(T=298)
    one = IMPLEMENTATIONS[name]

    def in_parts(q, k, v, segments, scale):
        parts = [one(q_half, k, v, segments, scale, part=i) for i, q_half in enumerate(jnp.split(q, 2, axis=1))]
        return jnp.concatenate(parts, axis=1)

    assert_equal(arrays, segments, in_parts, functools.partial(attention.attend, implementation="full"))


@pytest.mark.parametrize("name", ["full", *IMPLEMENTATIONS])
def test_heads_that_share_keys_and_values_equal_repeated_ones(name):
    (q, k, v), segments = inputs(H=6, Y=2)
    implementation = IMPLEMENTATIONS.get(name) or functools.partial(attention.attend, implementation="full")

    def repeated(q, k, v, segments, scale):
        return attention.attend(q, jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2), segments, scale, "full")

    assert_equal((q, k, v), segments, implementation, repeated)


def assert_equal(arrays, segments, implementation, definition):
    """Outputs and gradients."""
    is_token = (segments.ids_BT > 0)[..., None, None]

    def run(attend):
        def loss(arrays):
            out = attend(*arrays, segments, SCALE) * is_token  # outputs of padding are undefined
            return (out**2).sum(), out

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)

    (_, out), gradients = run(implementation)
    (_, expected), expected_gradients = run(definition)
    np.testing.assert_allclose(out, expected, **ROUNDING)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()) + 1e-5)


def test_the_definition_by_hand():
    """Two tokens of one segment and one of another; with equal scores, outputs are means of the visible values."""
    q = jnp.zeros((1, 3, 1, 2))
    v = jnp.array([1.0, 2.0, 4.0])[None, :, None, None]
    for name in ("full", "chunked", "auto"):
        out = attention.attend(q, q, v, Segments(jnp.array([[1, 1, 2]])), 1.0, name)
        np.testing.assert_allclose(out[0, :, 0, 0], [1.0, 1.5, 4.0])


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (("cpu", "float32", 192, 0.0), "chunked"),
        (("gpu", "bfloat16", 192, 9.0), "cudnn"),
        (("gpu", "bfloat16", 192, 8.0), "chunked"),  # before Hopper: heads of 128
        (("gpu", "bfloat16", 128, 8.0), "cudnn"),
        (("gpu", "bfloat16", 100, 9.0), "chunked"),
        (("gpu", "float32", 128, 9.0), "chunked"),
        (("tpu", "bfloat16", 192, 0.0), "splash"),
    ],
)
def test_the_platform_chooses(where, expected):
    assert attention.choose_attention(*where) == expected


def test_auto_is_resolved_for_the_platform(model, one_device):
    assert on_platform(one_device, model).attention == "chunked"
    assert on_platform(one_device, dataclasses.replace(model, attention="full")).attention == "full"


def test_a_long_row_never_holds_all_scores_nor_all_logits(model, policy, monkeypatch):
    """The lowered gradient of a row of 2,048 tokens has no [T, T] and no [T, V] array."""
    T = 2048
    c = dataclasses.replace(model, attention="chunked", num_nextn_predict_layers=0, max_position_embeddings=T)
    batch = jax.eval_shape(lambda: TokenBatch(*[jnp.zeros((1, T), jnp.int32)] * 3))

    def loss(params, batch):
        hidden = forward(params, policy[1], batch, c).hidden_BTD
        return logprobs.hidden_logprobs(params, hidden, batch.tokens_BT)[0].sum()

    def text(c):
        return jax.jit(jax.grad(loss)).lower(policy[0], batch).as_text()

    monkeypatch.setattr(logprobs, "MAX_LOGITS", 128 * c.vocab_size)
    program = text(c)
    assert f"{T}x{T}x" not in program
    assert f"{T}x{c.vocab_size}x" not in program
    assert f"{attention.CHUNK}x{T}x" in program  # the search finds existing shapes


def test_chunked_log_probabilities_are_exact(model, policy, monkeypatch):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 23, model.hidden_size)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, model.vocab_size, (2, 23)))
    head = {name: policy[0][name] for name in ("head_DV", "embed_VD")}

    def run(chunk):
        monkeypatch.setattr(logprobs, "MAX_LOGITS", 2 * model.vocab_size * chunk)

        def loss(head, hidden):
            logp, entropy = logprobs.hidden_logprobs(head, hidden, tokens, 0.7)
            return (logp * jnp.arange(23) + entropy).sum(), (logp, entropy)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(head, hidden)

    whole, chunked = run(23), run(5)
    for a, b in zip(jax.tree.leaves(chunked), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("chunk", [64, 24])
def test_log_probabilities_have_the_same_bits_in_a_program_with_gradients(
    model, policy, monkeypatch, chunk, temperature
):
    monkeypatch.setattr(logprobs, "MAX_LOGITS", 16 * model.vocab_size * chunk)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(16, 64, model.hidden_size)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, model.vocab_size, (16, 64)))
    head = {name: policy[0][name] for name in ("head_DV", "embed_VD")}

    def score(head, hidden, temperature):
        return logprobs.hidden_logprobs(head, hidden, tokens, temperature)[0]

    def loss(head, hidden, temperature):
        logp = score(head, hidden, temperature)
        return (logp**2).sum(), logp

    where = head, hidden, np.float32(temperature)
    _, with_gradients = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*where)
    np.testing.assert_array_equal(with_gradients, jax.jit(score)(*where))


def in_kernel(*arguments):
    return context_attention.attend_chunks(*arguments[:-1], interpret=True)


@pytest.mark.parametrize("kind", ["latents", "keys and values", "int8 latents", "int8 keys and values"])
@pytest.mark.parametrize(("chunk", "kernel"), [(1024, False), (8, False), (8, True)])
def test_a_context_equals_the_definition(monkeypatch, kind, chunk, kernel):
    """Of the second of three layers. What is masked, or beyond the mask, is not seen."""
    monkeypatch.setattr(context_attention, "CHUNK", chunk)
    monkeypatch.setattr(context_attention, "KERNEL_QUERIES", 8)  # of 12
    of_heads = kind.endswith("keys and values")
    rng, X = np.random.default_rng(0), 128 if of_heads else 48
    q, cache = rng.normal(size=(2, 3, 4, X)) / X**0.5, rng.normal(size=(2, 3, 2, 23, X))  # keys, values
    q, cache, mask = jnp.float32(q), jnp.float32(cache), jnp.arange(21) < jnp.array([[[5]], [[20]]])
    given = {"keys": cache[0], "values": cache[1]} if of_heads else cache[0]
    if kind.startswith("int8"):
        given = jax.tree.map(lambda x: quantize(x, (-1,), "int8"), given)
    run = jax.jit(in_kernel if kernel else context_attention.attend_context, static_argnums=(4, 5))
    found = run(q, given, mask, 1, 0.5, "")

    k, v = (dequantize(x, jnp.float32)[1, :, :21] for x in context_attention.keys_and_values(given))
    scores = jnp.where(mask[:, :, None], jnp.einsum("BTHX,BSX->BTHS", q, k) * 0.5, -jnp.inf)
    expected = jnp.einsum("BTHS,BSX->BTHX", jax.nn.softmax(scores), v)
    np.testing.assert_allclose(found.out_BTHX / found.sum_BTH1, expected, **ROUNDING)
    np.testing.assert_allclose(found.max_BTH1[..., 0], scores.max(axis=-1), **ROUNDING)
