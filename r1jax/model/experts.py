"""Routed experts on their tokens: on one device, or divided over the devices of a mesh axis. No token is ever dropped.

`p` has the three matrices of each expert; ids [T, K] and gate values [T, K] are the router's (model/moe.py).
"""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp

from r1jax.types import Array, Params

ROWS_APART = 8  # (token, expert) pairs for each device, from which on tokens are sent to their experts' devices alone


def experts_dense(p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array) -> Array:
    """Every expert on every token, weighted: the oracle, and the fastest form for few and small experts on a CPU."""
    E = p["gate_EDF"].shape[0]
    weights_TE = (jax.nn.one_hot(ids_TK, E, dtype=x_TD.dtype) * gates_TK.astype(x_TD.dtype)[..., None]).sum(axis=1)
    hidden_ETF = jax.nn.silu(jnp.einsum("TD,EDF->ETF", x_TD, p["gate_EDF"]))
    hidden_ETF = hidden_ETF * jnp.einsum("TD,EDF->ETF", x_TD, p["up_EDF"]) * weights_TE.T[..., None]
    return jnp.einsum("ETF,EFD->TD", hidden_ETF, p["down_EFD"])


def count(ids: Array, n: int) -> Array:
    """How often each of the ids 0 to n - 1 is there, int32 [n]; others are not counted."""
    return (ids.reshape(-1, 1) == jnp.arange(n)).sum(axis=0, dtype=jnp.int32)


def sorted_rows(p: Params, rows_SD: Array, gates_S1: Array, group_sizes_E: Array) -> Array:
    """Rows that stand expert by expert, each through its own: three ragged matmuls. Behind the last group: rubbish.

    They are scaled before the last product: gradients of gate values behind it would compute it again.
    """
    hidden_SF = jax.nn.silu(grouped_matmul(rows_SD, p["gate_EDF"], group_sizes_E))
    hidden_SF = hidden_SF * grouped_matmul(rows_SD, p["up_EDF"], group_sizes_E) * gates_S1.astype(rows_SD.dtype)
    return grouped_matmul(hidden_SF, p["down_EFD"], group_sizes_E)


@jax.custom_vjp
def grouped_matmul(rows_SI: Array, weights_EIO: Array, group_sizes_E: Array) -> Array:
    """`jax.lax.ragged_dot` with another gradient for the weights.

    XLA has a kernel for a product of each row with its group's matrix. The transpose for the weights, which sums over
    a group's rows, it makes on TPU from all rows for each group: E times the products.
    """
    return jax.lax.ragged_dot(rows_SI, weights_EIO, group_sizes_E)


def weights_gradient(rows_SI: Array, g_SO: Array, group_sizes_E: Array) -> Array:
    """rows^T g of each group's rows, [E, I, O] in float32 (or wider, as the rows are): a loop over tiles of one group.

    Groups end within a tile, so S / tile + E tiles are always enough. Those that are left over do nothing.
    """
    S, E = rows_SI.shape[0], group_sizes_E.size
    tile = min(S, 1024, max(128, S // (4 * E) // 128 * 128))  # about a quarter of an even group
    row_ends_E = jnp.cumsum(group_sizes_E)
    tiles_E = -(-group_sizes_E // tile)
    tile_ends_E = jnp.cumsum(tiles_E)
    dtype = jnp.promote_types(rows_SI.dtype, jnp.float32)

    def add(i, sums_EIO):
        e = jnp.searchsorted(tile_ends_E, i, side="right")
        begin = row_ends_E[e] - group_sizes_E[e] + (i - tile_ends_E[e] + tiles_E[e]) * tile
        first = jnp.minimum(begin, S - tile)  # a slice never leaves the rows
        row_R = first + jnp.arange(tile)
        is_row_R = (row_R >= begin) & (row_R < row_ends_E[e])
        slices = (jax.lax.dynamic_slice_in_dim(x, first, tile) for x in (rows_SI, g_SO))
        rows_RI, g_RO = (jnp.where(is_row_R[:, None], x, 0) for x in slices)  # behind all groups may be NaN
        return sums_EIO.at[e].add(jnp.einsum("RI,RO->IO", rows_RI, g_RO, preferred_element_type=dtype))

    def add_or_leave(i, sums_EIO):
        return jax.lax.cond(i < tile_ends_E[-1], functools.partial(add, i), lambda sums_EIO: sums_EIO, sums_EIO)

    zeros_EIO = jnp.zeros((E, rows_SI.shape[1], g_SO.shape[1]), dtype)
    return jax.lax.fori_loop(0, S // tile + E, add_or_leave, zeros_EIO)


def _grouped_matmul_backward(kept, g_SO):
    rows_SI, weights_EIO, group_sizes_E = kept
    g_rows_SI = jax.lax.ragged_dot(g_SO, weights_EIO.swapaxes(1, 2), group_sizes_E)
    g_weights_EIO = weights_gradient(rows_SI, g_SO, group_sizes_E)
    return g_rows_SI.astype(rows_SI.dtype), g_weights_EIO.astype(weights_EIO.dtype), None


grouped_matmul.defvjp(lambda *inputs: (grouped_matmul(*inputs), inputs), _grouped_matmul_backward)


def experts_grouped(p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array) -> Array:
    """Each token only on its chosen experts: sort by expert, three ragged matmuls, unsort."""
    T, K = ids_TK.shape
    order_S = jnp.argsort(ids_TK.reshape(-1), stable=True)  # of T * K pairs, by expert
    place_TK = jnp.argsort(order_S).reshape(T, K)
    rows_SD = take(x_TD, order_S // K, place_TK)
    gates_S1 = gates_TK.reshape(-1, 1)[order_S]
    out_SD = sorted_rows(p, rows_SD, gates_S1, count(ids_TK, p["gate_EDF"].shape[0]))
    return combine(out_SD, order_S // K, place_TK)


# Tokens to rows and back. One is the other's transpose, and both read: a transpose by JAX would scatter, row by row.


@jax.custom_vjp
def take(x_TD: Array, token_S: Array, place_TK: Array) -> Array:
    """Rows [S, D]: row s is token token_S[s], or 0 where that is -1. place_TK says where each token's K rows are.

    A place of -1 is none: the token has fewer. D may be several dimensions.
    """
    rows_SD = x_TD[jnp.maximum(token_S, 0)]
    return jnp.where(jnp.expand_dims(token_S, range(1, rows_SD.ndim)) >= 0, rows_SD, 0)


@jax.custom_vjp
def combine(rows_SD: Array, token_S: Array, place_TK: Array) -> Array:
    """[T, D]: the sum of each token's rows."""
    rows_TKD = rows_SD[jnp.maximum(place_TK, 0)]
    return jnp.where(jnp.expand_dims(place_TK, range(2, rows_TKD.ndim)) >= 0, rows_TKD, 0).sum(axis=1)


def _keep(function):
    return lambda x, token_S, place_TK: (function(x, token_S, place_TK), (token_S, place_TK))


take.defvjp(_keep(take), lambda kept, g_SD: (combine(g_SD, *kept), None, None))
combine.defvjp(_keep(combine), lambda kept, g_TD: (take(g_TD, *kept), None, None))


# Over the devices of a mesh axis, each of which has E / n experts. These run inside `shard_map`.


def rows_there(n: int, room: int) -> contextlib.AbstractContextManager:
    """Tells who reads the compiled program (dry_run/hlo.py) that of `room` rows n are there on average.

    What works on them passes over tiles that no row is in.
    """
    return jax.named_scope(f"{n}_of_{room}_rows")


def experts_divided(
    p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array, axes: tuple[str, ...], agree: tuple[str, ...]
) -> Array:
    """This device's tokens on experts of all devices of `axes`; `p` are this device's own.

    Many tokens go to their experts' devices; few, as when decoding, are shown to all devices.
    """
    n = jax.lax.axis_size(axes)
    if n == 1:
        return experts_grouped(p, x_TD, ids_TK, gates_TK)
    if ids_TK.size < ROWS_APART * n:
        return moe_all_gather(p, x_TD, ids_TK, gates_TK, axes)
    return moe_all_to_all(p, x_TD, ids_TK, gates_TK, axes, agree)


def moe_all_gather(p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array, axes: tuple[str, ...]) -> Array:
    """All devices see all tokens; each works on those of its own experts, and the results are added up."""
    E, first = p["gate_EDF"].shape[0], jax.lax.axis_index(axes) * p["gate_EDF"].shape[0]
    x_TD, ids_TK, gates_TK = (jax.lax.all_gather(a, axes, tiled=True) for a in (x_TD, ids_TK, gates_TK))
    T, K = ids_TK.shape
    here_P = jnp.where((ids_TK >= first) & (ids_TK < first + E), ids_TK - first, E).reshape(-1)
    order_P = jnp.argsort(here_P, stable=True)
    S = T * min(K, E)  # a token's experts are different ones
    order_S = order_P[:S]
    is_row_S = here_P[order_S] < E
    token_S = jnp.where(is_row_S, order_S // K, -1)
    place_TK = jnp.where(here_P < E, jnp.argsort(order_P), -1).reshape(T, K)
    place_TE = jax.lax.top_k(place_TK, min(K, E))[0]  # the others are -1
    gates_S1 = jnp.where(is_row_S, gates_TK.reshape(-1)[order_S], 0)[:, None]
    rows_SD = take(x_TD, token_S, place_TE)
    with rows_there(T * K // jax.lax.axis_size(axes), S):
        out_SD = sorted_rows(p, rows_SD, gates_S1, count(here_P, E))
    return jax.lax.psum_scatter(combine(out_SD, token_S, place_TE), axes, tiled=True)


def moe_all_to_all(
    p: Params, x_TD: Array, ids_TK: Array, gates_TK: Array, axes: tuple[str, ...], agree: tuple[str, ...]
) -> Array:
    """Each token's row goes to the devices of its experts, and what comes out comes back.

    A device has room for half as many rows again as come to it where all get as many. What is more comes in further
    rounds, as many as the fullest device needs: memory is bounded, shapes are static, and nothing is dropped. All
    devices of `agree` make as many rounds.
    """
    T, K = ids_TK.shape
    n, E = jax.lax.axis_size(axes), p["gate_EDF"].shape[0]
    room = min(-(-3 * T * K // 16) * 8, n * T * min(K, E))
    order_P = jnp.argsort(ids_TK.reshape(-1), stable=True)  # pairs by expert, so by device too
    place_TK = jnp.argsort(order_P).reshape(T, K)
    counts_nnE = jax.lax.all_gather(count(ids_TK, n * E), axes).reshape(n, n, E)  # from each device, to each expert
    rounds = jax.lax.pmax(-(-counts_nnE.sum(axis=(0, 2)).max() // room), agree)
    return _rounds(p, x_TD, gates_TK, (order_P, place_TK, counts_nnE, rounds), axes, room)


def _one_round(p: Params, x_TD: Array, gates_TK: Array, plan, number: Array, axes: tuple[str, ...], room: int):
    """What the rows give, [T, D], that are the number * room'th to (number + 1) * room'th that come to a device."""
    order_P, place_TK, counts_nnE, _ = plan
    (T, K), E = place_TK.shape, p["gate_EDF"].shape[0]
    there, back = ways(counts_nnE.sum(axis=2), number * room, room, axes)
    lengths = room, order_P.size
    moves_P = lies_in(there[0], there[1], order_P.size).any(axis=0)
    place_TK = jnp.where(moves_P[place_TK], place_TK, -1)
    # On TPU a row is sent in one piece, and lies in one as [D / 128, 128]; as [D] it lies in one with 7 others.
    x_TCL = x_TD.reshape(x_TD.shape[0], -1, math.gcd(x_TD.shape[1], 128))
    rows_RCL = exchange(take(x_TCL, order_P // K, place_TK), there, back, lengths, axes)
    # Gate values go along: scaled where the experts are, a row needs not be known again for its gate's gradient.
    gates_P1 = take(gates_TK.reshape(-1, 1), order_P, place_TK.reshape(-1, 1))
    gates_R1 = exchange(gates_P1, there, back, lengths, axes)

    # Rows come device by device, and of each expert by expert.
    ends_nE = jnp.cumsum(counts_nnE[:, jax.lax.axis_index(axes)])
    number_R = number * room + jnp.arange(room)
    expert_R = (ends_nE <= number_R[:, None]).sum(axis=1, dtype=jnp.int32)
    expert_R = jnp.where(expert_R < ends_nE.size, expert_R % E, E)
    order_R = jnp.argsort(expert_R, stable=True)
    place_R1 = jnp.where(expert_R < E, jnp.argsort(order_R), -1)[:, None]
    order_R = jnp.where(expert_R[order_R] < E, order_R, -1)
    rows_RD = take(rows_RCL, order_R, place_R1).reshape(room, -1)
    gates_R1 = take(gates_R1, order_R, place_R1)
    with rows_there(T * K, room):
        out_RD = sorted_rows(p, rows_RD, gates_R1, count(expert_R, E))
    out_RCL = combine(out_RD.reshape(rows_RCL.shape), order_R, place_R1)
    out_PCL = exchange(out_RCL, back, there, lengths[::-1], axes)
    return combine(out_PCL, order_P // K, place_TK).reshape(x_TD.shape)


def ways(counts_nn: Array, begin: Array, room: int, axes: tuple[str, ...]):
    """(there, back): what `exchange` is told of this device in a round that takes rows from `begin` on, `room` of them.

    counts_nn[s, t] rows go from s to t. s has them in the order of t, and t numbers what comes to it in the order of s.
    """
    to_nn = jnp.cumsum(counts_nn, axis=0) - counts_nn - begin
    first_nn, last_nn = (jnp.clip(x, 0, room) for x in (to_nn, to_nn + counts_nn))
    from_nn = jnp.cumsum(counts_nn, axis=1) - counts_nn + jnp.clip(-to_nn, 0, counts_nn)
    sizes_nn = last_nn - first_nn
    first_nn, from_nn = (jnp.where(sizes_nn > 0, x, 0) for x in (first_nn, from_nn))
    me = jax.lax.axis_index(axes)
    there = (from_nn[me], sizes_nn[me], first_nn[me], sizes_nn[:, me])
    back = (first_nn[:, me], sizes_nn[:, me], from_nn[:, me], sizes_nn[me])
    return there, back


def lies_in(begin_n: Array, sizes_n: Array, length: int) -> Array:
    """Whether each of `length` places lies in each slice, bool [n, length]."""
    place_R = jnp.arange(length)
    return (place_R >= begin_n[:, None]) & (place_R < (begin_n + sizes_n)[:, None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def exchange(rows_SD: Array, there, back, lengths: tuple[int, int], axes: tuple[str, ...]) -> Array:
    """Rows from all devices of `axes` to all, [lengths[0], D], and rubbish where none comes. S is lengths[1].

    `there` is (where each device's rows begin here, how many, where they begin there, how many come from each), [n]
    each; `back` is the same of the way back, which gradients take.
    """
    arguments = rows_SD, jax.lax.empty((lengths[0], *rows_SD.shape[1:]), rows_SD.dtype), *there
    ragged = functools.partial(jax.lax.ragged_all_to_all, axis_name=axes)
    return jax.lax.platform_dependent(*arguments, tpu=ragged, default=functools.partial(_gathered, axes=axes))


exchange.defvjp(
    lambda rows_SD, there, back, lengths, axes: (exchange(rows_SD, there, back, lengths, axes), (back, there)),
    lambda lengths, axes, ways, g_RD: (exchange(g_RD, *ways, lengths[::-1], axes), None, None),
)


def _gathered(rows_SD, empty_RD, begin_n, _sent_n, to_n, sizes_n, axes: tuple[str, ...]) -> Array:
    """`jax.lax.ragged_all_to_all`, which XLA does not have for CPUs: all devices see all rows. NaN is the rubbish.

    GPUs, on which the real one was not tried, pay for this, too.
    """
    all_nSD = jax.lax.all_gather(rows_SD, axes)
    begin_n, to_n = (jax.lax.all_to_all(x, axes, 0, 0, tiled=True) for x in (begin_n, to_n))
    is_from_nR = lies_in(to_n, sizes_n, empty_RD.shape[0])
    from_R = is_from_nR.argmax(axis=0)
    rows_RD = all_nSD[from_R, begin_n[from_R] + jnp.arange(from_R.size) - to_n[from_R]]
    return jnp.where(jnp.expand_dims(is_from_nR.any(axis=0), range(1, rows_RD.ndim)), rows_RD, jnp.nan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _rounds(p: Params, x_TD: Array, gates_TK: Array, plan, axes: tuple[str, ...], room: int) -> Array:
    """The sum of all rounds. Its gradient makes the rounds again: what they compute in between is not kept."""

    def more(state):
        number, out_TD = state
        return number + 1, out_TD + _one_round(p, x_TD, gates_TK, plan, number, axes, room)

    return jax.lax.while_loop(lambda state: state[0] < plan[-1], more, (jnp.int32(0), jnp.zeros_like(x_TD)))[1]


def _rounds_forward(p, x_TD, gates_TK, plan, axes, room):
    return _rounds(p, x_TD, gates_TK, plan, axes, room), (p, x_TD, gates_TK, plan)


def _rounds_backward(axes, room, kept, g_TD):
    p, x_TD, gates_TK, plan = kept

    def more(state):
        number, sums = state
        one_round = functools.partial(_one_round, plan=plan, number=number, axes=axes, room=room)
        _, pull = jax.vjp(one_round, p, x_TD, gates_TK)
        return number + 1, jax.tree.map(jnp.add, sums, pull(g_TD))

    zeros = jax.tree.map(jnp.zeros_like, (p, x_TD, gates_TK))
    sums = jax.lax.while_loop(lambda state: state[0] < plan[-1], more, (jnp.int32(0), zeros))[1]
    return *sums, None


_rounds.defvjp(_rounds_forward, _rounds_backward)
