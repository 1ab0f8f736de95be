"""Typed metrics: parts of a batch add up to exactly the metric of the whole."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import struct

from r1jax.types import Array


@struct.dataclass
class Mean:
    """Sums and weights are merged; the division comes last."""

    total: Array
    weight: Array

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.weight + other.weight)

    def mean(self) -> Array:
        """On the device; 0 where there is no weight."""
        return self.total / jnp.maximum(self.weight, 1e-12)

    def value(self) -> float:
        return float(self.total) / max(float(self.weight), 1e-12)


@struct.dataclass
class Extreme:
    """Stays the largest or smallest value seen; NaN stays NaN."""

    extreme: Array
    choose: Callable[[Array, Array], Array] = struct.field(pytree_node=False)

    def merge(self, other: "Extreme") -> "Extreme":
        return Extreme(self.choose(self.extreme, other.extreme), self.choose)

    def value(self) -> float:
        return float(self.extreme)


Max = functools.partial(Extreme, choose=jnp.maximum)
Min = functools.partial(Extreme, choose=jnp.minimum)
Metrics = dict[str, Mean | Extreme]


def merge_metrics(a: Metrics, b: Metrics) -> Metrics:
    """The metrics of two parts as those of the whole; what only one part has stays as it is."""
    return a | b | {name: a[name].merge(b[name]) for name in a.keys() & b.keys()}  # type: ignore[arg-type]
