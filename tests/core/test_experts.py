"""Routed experts, grouped or sharded over a mesh, equal the dense oracle."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from r1jax.config import MeshConfig
from r1jax.model.experts import (
    LayerOf,
    layer_matmul,
    matmul_in_place,
    moe_dense,
    moe_grouped,
    multiply_tiles,
    weights_gradient,
)
from r1jax.model.moe import moe
from r1jax.model.ops import ShardedOps
from r1jax.parallel import expert_parallel
from r1jax.parallel.expert_parallel import exchange, moe_all_gather, moe_all_to_all, moe_expert_parallel
from r1jax.parallel.layout import make_layout

D, F, E, K = 16, 12, 8, 2
# float32 sums in another order than the oracle's.
ROUNDING = dict(rtol=1e-5, atol=1e-5)


def weights():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"gate_EDF": (E, D, F), "up_EDF": (E, D, F), "down_EFD": (E, F, D)}
    return {name: 0.5 * jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def routed(T: int, kind: str):
    """Rows, ids and gate values of T tokens, routed evenly, at random, or all to the same experts.

    "padded": of 16 tokens 15 are padding, as in a short batch.
    """
    rng = np.random.default_rng(T)
    if kind == "even":
        ids = np.arange(T * K).reshape(T, K) % E
    elif kind == "padded":
        ids = np.where(np.arange(T)[:, None] % 16 == 3, np.arange(T * K).reshape(T, K) % E, E)
    elif kind == "chance":
        ids = np.stack([rng.permutation(E)[:K] for _ in range(T)])
    else:
        ids = np.tile([5, 4], (T, 1))
    gates = rng.random((T, K)).astype(np.float32)
    return jnp.asarray(rng.normal(size=(T, D)), jnp.float32), jnp.asarray(ids, jnp.int32), jnp.asarray(gates)


def with_gradients(run, *inputs):
    """The output, and the gradients of a weighted sum of it with respect to weights, rows and gate values."""
    p, x, ids, gates = inputs
    scale = jnp.cos(jnp.arange(x.size)).reshape(x.shape)

    def loss(p, x, gates):
        out = run(p, x, ids, gates)
        return (out * scale).sum(), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(p, x, gates)
    return out, grads


def over_devices(n: int, function):
    layout = make_layout(MeshConfig(data=8 // n, expert=n))
    rows, by_expert = PartitionSpec(("data", "expert")), PartitionSpec("expert")
    specs = ({name: by_expert for name in weights()}, rows, rows, rows)
    return jax.shard_map(function, mesh=layout.mesh, in_specs=specs, out_specs=rows, check_vma=False)


ALL_TO_ALL = functools.partial(moe_all_to_all, axes=("expert",), sync_axes=("data", "expert"))
ALL_GATHER = functools.partial(moe_all_gather, axes=("expert",))


@pytest.mark.parametrize("kind", ["even", "chance", "padded", "one"])
@pytest.mark.parametrize(
    ("n", "function"), [(2, ALL_TO_ALL), (4, ALL_TO_ALL), (8, ALL_TO_ALL), (2, ALL_GATHER), (8, ALL_GATHER), (1, None)]
)
def test_sharded_experts_equal_the_dense_ones(monkeypatch, n, function, kind):
    """With "one", a device gets more rows than fit: further rounds process the rest, and no row is dropped."""
    if kind == "one":  # as for many rows
        monkeypatch.setattr(expert_parallel, "FEW_ROWS", 0)
    inputs = (weights(), *routed(128, kind))
    expected = with_gradients(moe_dense, *inputs)
    found = with_gradients(over_devices(n, function) if function else moe_grouped, *inputs)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **ROUNDING)


def test_padding_goes_to_no_expert(model, policy):
    """In training, prefill and decoding; its experts would be the same few, and their device's exchange would fill."""
    params, router_bias = policy
    seen = []

    def experts(p, x_BTD, ids_BTK, gates_BTK, c):
        seen.append(ids_BTK)
        return jnp.zeros_like(x_BTD)

    c, x_BTD = model, jax.random.normal(jax.random.key(0), (2, 6, model.hidden_size))
    segment_ids_BT = jnp.asarray([[1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0]])
    p = jax.tree.map(lambda w: w[0], params["moe"]["feed_forward"])
    _, statistics = moe(p, router_bias["moe"][0], x_BTD, segment_ids_BT, c, ops=ShardedOps(experts=experts))
    (ids_BTK,) = seen
    np.testing.assert_array_equal((ids_BTK < c.n_routed_experts).all(-1), segment_ids_BT > 0)
    np.testing.assert_array_equal((ids_BTK == c.n_routed_experts).all(-1), segment_ids_BT == 0)
    assert statistics["load_E"].sum() == 6 * c.num_experts_per_tok


def test_exchange_equals_ragged_all_to_all_by_hand():
    """Two devices, with a row that is not sent, an empty slice, and a row of the output that nothing is written to."""
    layout = make_layout(MeshConfig(data=1, expert=2), jax.devices()[:2])
    rows = jnp.asarray([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])  # three on each
    begin, sizes = jnp.asarray([0, 1, 0, 0]), jnp.asarray([1, 2, 2, 0])  # 1 stays; 2, 3, 4 and 5 are sent
    to, come = jnp.asarray([0, 1, 2, 0]), jnp.asarray([1, 2, 2, 0])
    of_others = jnp.asarray([0, 2, 1, 3])
    there, back = (begin, sizes, to, come), (to[of_others], come, begin[of_others], sizes)
    move = functools.partial(exchange, lengths=(4, 3), axes=("expert",))
    spec = PartitionSpec("expert")
    moved = jax.shard_map(move, mesh=layout.mesh, in_specs=spec, out_specs=spec, check_vma=False)

    out, pull = jax.vjp(lambda rows: moved(rows, there, back), rows)
    assert str(out.ravel().tolist()) == "[1.0, nan, 4.0, 5.0, nan, 2.0, 3.0, nan]"
    assert str(pull(jnp.arange(10.0, 18.0)[:, None])[0].ravel().tolist()) == "[10.0, 15.0, 16.0, 12.0, 13.0, nan]"


@pytest.mark.parametrize("sizes", [[300, 0, 129, 200, 0], [0, 0, 0, 0, 700], [128, 256, 128, 0, 188], [0] * 5])
def test_gradient_of_weights_by_tiles(sizes):
    """Groups that are empty, full tiles, or end within a tile; rows after the last group are NaN."""
    rng = np.random.default_rng(0)
    rows, g = rng.normal(size=(700, D)), rng.normal(size=(700, F))  # a tile has 128
    starts = np.cumsum([0, *sizes])
    rows[starts[-1] :] = g[starts[-1] :] = np.nan
    expected = [rows[a:b].T @ g[a:b] for a, b in itertools.pairwise(starts)]
    found = jax.jit(weights_gradient)(rows.astype(np.float32), g.astype(np.float32), jnp.asarray(sizes, jnp.int32))
    np.testing.assert_allclose(found, expected, **ROUNDING)


@pytest.mark.parametrize("sizes", [[30, 0, 33, 1, 0], [0, 0, 0, 0, 64], [7, 0, 0, 0, 0], [0] * 5])
def test_products_by_tiles(sizes):
    """As XLA's own, whose rows after the last group are undefined; here they are NaN before, and 0 after."""
    rng, n = np.random.default_rng(0), sum(sizes)
    rows = jnp.asarray(np.where(np.arange(70)[:, None] < n, rng.normal(size=(70, D)), np.nan), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(5, D, F)), jnp.float32)
    found = jax.jit(multiply_tiles)(rows, weights, jnp.asarray(sizes))
    expected = jax.lax.ragged_dot(jnp.nan_to_num(rows), weights, jnp.asarray(sizes, jnp.int32))
    np.testing.assert_allclose(found[:n], expected[:n], **ROUNDING)
    np.testing.assert_array_equal(found[n:], 0)


def test_one_layer_of_stacked_experts():
    """The second of three: in place, as on a TPU, and as a slice. Rows after the last group are undefined."""
    rng = np.random.default_rng(0)
    stack = LayerOf(jnp.asarray(rng.normal(size=(3, E, D, F)), jnp.float32), jnp.int32(1))
    rows, sizes = jnp.asarray(rng.normal(size=(40, D)), jnp.float32), jnp.asarray([3, 0, 9, 1, 0, 0, 20, 4], jnp.int32)
    experts = np.repeat(np.arange(E), sizes)
    expected = np.stack([row @ stack.stack_LEIO[1, e] for row, e in zip(rows, experts, strict=False)])
    assert stack.shape == (E, D, F)
    for matmul in (matmul_in_place, layer_matmul):
        found = jax.jit(matmul)(rows, stack, sizes)
        np.testing.assert_allclose(found[: sum(sizes)], expected, **ROUNDING)


def test_tokens_go_to_their_experts_unless_these_are_on_all_devices():
    """Read off the collectives of the lowered program: all-to-all, or all-gather and reduce-scatter."""
    for n, kind, other in ((8, "all_to_all", "reduce_scatter"), (2, "reduce_scatter", "all_to_all")):
        sharded = functools.partial(moe_expert_parallel, axes=("expert",), sync_axes=("data", "expert"))
        text = jax.jit(over_devices(n, sharded)).lower(weights(), *routed(64, "chance")).as_text()
        assert kind in text and other not in text
