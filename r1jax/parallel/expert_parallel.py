"""Expert parallelism: routed experts over the n devices of mesh `axes`, each with E / n of them. No token is dropped.

These functions run inside `shard_map`. E counts a device's own experts, `p` holds their matrices, and the ids [T, K] of
the device's tokens are global.
"""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp

from r1jax.model.experts import combine, count, dispatch, grouped_swiglu, moe_grouped
from r1jax.types import Array, Params

FEW_ROWS = 512  # of a device's experts


def expected_rows_scope(n: int, capacity: int) -> contextlib.AbstractContextManager:
    """Tells dry_run/hlo.py that n of `capacity` rows are used on average; kernels skip tiles of unused rows."""
    return jax.named_scope(f"{n}_of_{capacity}_rows")


def moe_expert_parallel(
    p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array, axes: tuple[str, ...], sync_axes: tuple[str, ...]
) -> Array:
    """This device's tokens on the experts of all devices of `axes`; `p` are this device's experts.

    A token is sent to the devices of its K experts, or to all where there are no more than K.
    """
    n = jax.lax.axis_size(axes)
    if n == 1:
        return moe_grouped(p, x_TD, ids_TK, gates_TK)
    if n <= ids_TK.shape[1]:
        return moe_all_gather(p, x_TD, ids_TK, gates_TK, axes)
    return moe_all_to_all(p, x_TD, ids_TK, gates_TK, axes, sync_axes)


def moe_all_gather(p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array, axes: tuple[str, ...]) -> Array:
    """All-gathers the tokens, runs each device's experts on those that chose them, and reduce-scatters the results."""
    E, first = p["gate_EDF"].shape[0], jax.lax.axis_index(axes) * p["gate_EDF"].shape[0]
    x_TD, ids_TK, gates_TK = (jax.lax.all_gather(a, axes, tiled=True) for a in (x_TD, ids_TK, gates_TK))
    T, K = ids_TK.shape
    local_P = jnp.where((ids_TK >= first) & (ids_TK < first + E), ids_TK - first, E).reshape(-1)
    order_P = jnp.argsort(local_P, stable=True)
    capacity = T * min(K, E)  # a token's experts are distinct
    order_G = order_P[:capacity]
    is_used_G = local_P[order_G] < E
    token_G = jnp.where(is_used_G, order_G // K, -1)
    row_TK = jnp.where(local_P < E, jnp.argsort(order_P), -1).reshape(T, K)
    row_TE = jax.lax.top_k(row_TK, min(K, E))[0]  # drops -1 only
    gates_G1 = jnp.where(is_used_G, gates_TK.reshape(-1)[order_G], 0)[:, None]
    rows_GD = dispatch(x_TD, token_G, row_TE)
    with expected_rows_scope(T * K // jax.lax.axis_size(axes), capacity):
        out_GD = grouped_swiglu(p, rows_GD, gates_G1, count(local_P, E))
    return jax.lax.psum_scatter(combine(out_GD, token_G, row_TE), axes, tiled=True)


def moe_all_to_all(
    p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array, axes: tuple[str, ...], sync_axes: tuple[str, ...]
) -> Array:
    """Sends each token's row to the devices of its experts, and their outputs back.

    A device has capacity for 1.5 times the rows of an even load; with few rows, of which chance sends more to some
    devices, up to 4 times. The rest follows in further rounds, as many as the fullest device of `sync_axes` needs:
    memory is bounded, shapes are static, and nothing is dropped.
    """
    T, K = ids_TK.shape
    n, E = jax.lax.axis_size(axes), p["gate_EDF"].shape[0]
    capacity = min(max(-(-3 * T * K // 16) * 8, min(4 * T * K, FEW_ROWS)), n * T * min(K, E))
    order_P = jnp.argsort(ids_TK.reshape(-1), stable=True)  # pairs by expert, and so by device
    row_TK = jnp.argsort(order_P).reshape(T, K)
    counts_nnE = jax.lax.all_gather(count(ids_TK, n * E), axes).reshape(n, n, E)  # [from device, to device, expert]
    rounds = jax.lax.pmax(-(-counts_nnE.sum(axis=(0, 2)).max() // capacity), sync_axes)
    return _rounds(p, x_TD, gates_TK, (order_P, row_TK, counts_nnE, rounds), axes, capacity)


def _one_round(p: Params, x_TD: Array, gates_TK: Array, plan, number: Array, axes: tuple[str, ...], capacity: int):
    """[T, D]: outputs of the rows [number, number + 1) * capacity, counted as they arrive at each device."""
    order_P, row_TK, counts_nnE, _ = plan
    (T, K), E = row_TK.shape, p["gate_EDF"].shape[0]
    to_experts, to_tokens = ragged_offsets(counts_nnE.sum(axis=2), number * capacity, capacity, axes)
    lengths = capacity, order_P.size
    is_sent_P = in_slices(to_experts[0], to_experts[1], order_P.size).any(axis=0)
    row_TK = jnp.where(is_sent_P[row_TK], row_TK, -1)
    # TPU sends each row as one piece. As [D / 128, 128] a row is contiguous in memory; as [D] it shares tiles with 7.
    x_Tdl = x_TD.reshape(x_TD.shape[0], -1, math.gcd(x_TD.shape[1], 128))
    rows_Adl = exchange(dispatch(x_Tdl, order_P // K, row_TK), to_experts, to_tokens, lengths, axes)
    # Gate values travel too: rows scaled at the experts need not be kept here for the gradient of the gate values.
    gates_P1 = dispatch(gates_TK.reshape(-1, 1), order_P, row_TK.reshape(-1, 1))
    gates_A1 = exchange(gates_P1, to_experts, to_tokens, lengths, axes)

    # Rows arrive sorted by sending device, and from each by expert; the kernel needs them by expert.
    ends_nE = jnp.cumsum(counts_nnE[:, jax.lax.axis_index(axes)])
    arrival_A = number * capacity + jnp.arange(capacity)
    expert_A = (ends_nE <= arrival_A[:, None]).sum(axis=1, dtype=jnp.int32)
    expert_A = jnp.where(expert_A < ends_nE.size, expert_A % E, E)
    order_G = jnp.argsort(expert_A, stable=True)
    row_A1 = jnp.where(expert_A < E, jnp.argsort(order_G), -1)[:, None]
    order_G = jnp.where(expert_A[order_G] < E, order_G, -1)
    rows_GD = dispatch(rows_Adl, order_G, row_A1).reshape(capacity, -1)
    gates_G1 = dispatch(gates_A1, order_G, row_A1)
    with expected_rows_scope(T * K, capacity):
        out_GD = grouped_swiglu(p, rows_GD, gates_G1, count(expert_A, E))
    out_Adl = combine(out_GD.reshape(rows_Adl.shape), order_G, row_A1)
    out_Pdl = exchange(out_Adl, to_tokens, to_experts, lengths[::-1], axes)
    return combine(out_Pdl, order_P // K, row_TK).reshape(x_TD.shape)


def ragged_offsets(counts_nn: Array, begin: Array, capacity: int, axes: tuple[str, ...]):
    """Offsets of `exchange` on this device, to the experts and back, for the `capacity` rows from `begin` on.

    counts_nn[s, t] rows go from s to t. They are sorted by t on s, and by s on t, where `begin` counts them.
    """
    to_nn = jnp.cumsum(counts_nn, axis=0) - counts_nn - begin
    first_nn, last_nn = (jnp.clip(x, 0, capacity) for x in (to_nn, to_nn + counts_nn))
    from_nn = jnp.cumsum(counts_nn, axis=1) - counts_nn + jnp.clip(-to_nn, 0, counts_nn)
    sizes_nn = last_nn - first_nn
    first_nn, from_nn = (jnp.where(sizes_nn > 0, x, 0) for x in (first_nn, from_nn))
    me = jax.lax.axis_index(axes)
    to_experts = (from_nn[me], sizes_nn[me], first_nn[me], sizes_nn[:, me])
    to_tokens = (first_nn[:, me], sizes_nn[:, me], from_nn[:, me], sizes_nn[me])
    return to_experts, to_tokens


def in_slices(begin_n: Array, sizes_n: Array, length: int) -> Array:
    """Whether each index below `length` is in each slice, bool [n, length]."""
    index_A = jnp.arange(length)
    return (index_A >= begin_n[:, None]) & (index_A < (begin_n + sizes_n)[:, None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def exchange(rows_PD: Array, offsets, reverse, lengths: tuple[int, int], axes: tuple[str, ...]) -> Array:
    """Ragged all-to-all over `axes` of lengths[1] rows per device, [lengths[0], D]; rows not written are undefined.

    `offsets` are those of `jax.lax.ragged_all_to_all`, [n] each: input offsets, send sizes, output offsets on the
    receivers, receive sizes. `reverse` are those of the way back, for the gradient.
    """
    arguments = rows_PD, jax.lax.empty((lengths[0], *rows_PD.shape[1:]), rows_PD.dtype), *offsets
    ragged = functools.partial(jax.lax.ragged_all_to_all, axis_name=axes)
    fallback = functools.partial(_exchange_by_all_gather, axes=axes)
    return jax.lax.platform_dependent(*arguments, tpu=ragged, default=fallback)


exchange.defvjp(
    lambda rows_PD, there, back, lengths, axes: (exchange(rows_PD, there, back, lengths, axes), (back, there)),
    lambda lengths, axes, offsets, g_AD: (exchange(g_AD, *offsets, lengths[::-1], axes), None, None),
)


def _exchange_by_all_gather(rows_PD, empty_AD, begin_n, _sent_n, to_n, sizes_n, axes: tuple[str, ...]) -> Array:
    """`jax.lax.ragged_all_to_all` by an all-gather, for CPUs, where XLA lacks it, and GPUs, where it is untested.

    Unused rows are NaN, so that tests catch reads of them.
    """
    all_nPD = jax.lax.all_gather(rows_PD, axes)
    begin_n, to_n = (jax.lax.all_to_all(x, axes, 0, 0, tiled=True) for x in (begin_n, to_n))
    is_from_nA = in_slices(to_n, sizes_n, empty_AD.shape[0])
    from_A = is_from_nA.argmax(axis=0)
    rows_AD = all_nPD[from_A, begin_n[from_A] + jnp.arange(from_A.size) - to_n[from_A]]
    return jnp.where(jnp.expand_dims(is_from_nA.any(axis=0), range(1, rows_AD.ndim)), rows_AD, jnp.nan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _rounds(p: Params, x_TD: Array, gates_TK: Array, plan, axes: tuple[str, ...], capacity: int) -> Array:
    """The sum of all rounds. The gradient recomputes each round, so that none of their intermediates is stored."""

    def step(state):
        number, out_TD = state
        return number + 1, out_TD + _one_round(p, x_TD, gates_TK, plan, number, axes, capacity)

    return jax.lax.while_loop(lambda state: state[0] < plan[-1], step, (jnp.int32(0), jnp.zeros_like(x_TD)))[1]


def _rounds_backward(axes, capacity, residuals, g_TD):
    *inputs, plan = residuals

    def step(state):
        number, sums = state
        _, pull = jax.vjp(lambda p, x, gates: _one_round(p, x, gates, plan, number, axes, capacity), *inputs)
        return number + 1, jax.tree.map(jnp.add, sums, pull(g_TD))

    zeros = jax.tree.map(jnp.zeros_like, tuple(inputs))
    sums = jax.lax.while_loop(lambda state: state[0] < plan[-1], step, (jnp.int32(0), zeros))[1]
    return *sums, None


_rounds.defvjp(lambda *args: (_rounds(*args), args[:4]), _rounds_backward)
