"""Arrays between memories, and what they hold."""

import functools

import jax
import jax.numpy as jnp

from r1jax.parallel.layout import Layout


def on_host(tree):
    """The same arrays, sharded as they are, in the hosts' memory; `on_device` brings them back."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("pinned_host")), tree)


def on_device(tree):
    """Arrays in the devices' own memory; those that are in it already are not copied."""

    def one(x):
        on_host = x.sharding.memory_kind == "pinned_host"
        return jax.device_put(x, x.sharding.with_memory_kind("device")) if on_host else x

    return jax.tree.map(one, tree)


@jax.jit
def snapshot(tree):
    """A copy with buffers of its own: the original may be donated afterwards."""
    return jax.tree.map(jnp.copy, tree)


@functools.cache
def make_checksums(layout: Layout):
    """A tree of arrays -> the same tree of uint32, which depends on the values alone and on no sharding.

    The sum, modulo 2^32, of each value's bits mixed with its position: two different tensors have the same checksum
    with a chance of 2^-32.
    """

    def mix(x):  # the finalizer of MurmurHash3
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    def one(x):
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        position = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return mix(bits ^ mix(position)).sum(dtype=jnp.uint32)

    return jax.jit(lambda tree: jax.tree.map(one, tree), out_shardings=layout.replicated())
