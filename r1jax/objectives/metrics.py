"""Typed metrics: parts of a batch add up to exactly the metric of the whole."""

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
class Max:
    """Stays the largest value seen; one that is not a number stays that."""

    largest: Array

    def merge(self, other: "Max") -> "Max":
        return Max(jnp.maximum(self.largest, other.largest))

    def value(self) -> float:
        return float(self.largest)


@struct.dataclass
class Min:
    """Stays the smallest value seen; one that is not a number stays that."""

    smallest: Array

    def merge(self, other: "Min") -> "Min":
        return Min(jnp.minimum(self.smallest, other.smallest))

    def value(self) -> float:
        return float(self.smallest)


Metrics = dict[str, Mean | Max | Min]


def merge_metrics(a: Metrics, b: Metrics) -> Metrics:
    """The metrics of two parts as those of the whole; what only one part has stays as it is."""
    return a | b | {name: a[name].merge(b[name]) for name in a.keys() & b.keys()}  # type: ignore[arg-type]
