"""Where arrays live: the mesh, and the rules from logical axes to mesh axes. Both are arguments, never globals."""

import math
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax.config import MeshConfig, ModelConfig, RolloutConfig
from r1jax.errors import UsageError
from r1jax.model.spec import ParamSpec, is_spec, param_specs
from r1jax.types import Params


@dataclass(frozen=True)
class Rules:
    """The mesh axis of each logical axis that `ParamSpec` names; None keeps the dimension whole on every device."""

    vocab: str | None = "tensor"
    embed: str | None = "fsdp"
    heads: str | None = "tensor"
    mlp: str | None = "tensor"
    experts: str | None = "expert"
    lora: str | None = None
    head: str | None = None
    router: str | None = None
    score: str | None = None
    concat: str | None = None
    norm: str | None = None
    layers: str | None = None
    batch: tuple[str, ...] = ("data", "fsdp")


@dataclass(frozen=True)
class Layout:
    mesh: Mesh
    rules: Rules = Rules()

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self) -> NamedSharding:
        """Leading dimension over the batch axes."""
        return NamedSharding(self.mesh, PartitionSpec(self.rules.batch))

    def param(self, name: str, spec: ParamSpec) -> NamedSharding:
        """Raises UsageError when a mesh axis would be used twice or doesn't divide its dimension."""
        axes = [getattr(self.rules, axis) for axis in spec.axes]
        used = [a for a in axes if a is not None and self.mesh.shape[a] > 1]
        if len(used) != len(set(used)):
            raise UsageError(f"{name} {spec.axes}: the rules lay two of its dimensions on one mesh axis: {used}")
        for size, logical, axis in zip(spec.shape, spec.axes, axes, strict=True):
            if axis is not None and size % self.mesh.shape[axis]:
                raise UsageError(
                    f"{name} {spec.shape}: its dimension '{logical}' of {size} can't be divided over mesh axis"
                    f" '{axis}' of {self.mesh.shape[axis]} devices: set MeshConfig.{axis} to a divisor of {size}"
                )
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def params(self, model: ModelConfig) -> Params:
        """Shardings of the whole tree."""
        return jax.tree_util.tree_map_with_path(
            lambda path, spec: self.param(jax.tree_util.keystr(path), spec), param_specs(model), is_leaf=is_spec
        )

    def put_batch(self, tree):
        """Host arrays onto the devices, split along their leading dimension.

        Each process has all rows, and gives its devices theirs.
        """

        def put(x: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(x.shape, self.batch(), lambda index: x[index])

        return jax.tree.map(lambda x: put(np.asarray(x)), tree)

    def abstract_batch(self, tree):
        """What `put_batch` would give, as shapes."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.batch()), tree)

    def round_up(self, rows: int) -> int:
        """The next number of rows that the batch axes divide."""
        devices = math.prod(self.mesh.shape[axis] for axis in self.rules.batch)
        return -(-rows // devices) * devices

    def require_batch(self, name: str, size: int) -> None:
        """Raises UsageError when `size` rows can't be split evenly over the batch axes."""
        devices = math.prod(self.mesh.shape[axis] for axis in self.rules.batch)
        if size % devices:
            raise UsageError(
                f"{name} is {size}: {size} rows can't be divided over {devices} devices (mesh axes"
                f" {' x '.join(self.rules.batch)}): set it to a multiple of {devices}, or set MeshConfig"
            )


def rollout_layout(layout: Layout, config: RolloutConfig) -> Layout:
    """The trainer's, or one of the rollouts' own over the same devices."""
    return layout if config.mesh is None else make_layout(config.mesh, layout.mesh.devices.ravel())


def make_layout(config: MeshConfig, devices=None) -> Layout:
    """The mesh over all devices, data outermost. Raises UsageError when the sizes don't multiply to their number."""
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "expert": config.expert, "tensor": config.tensor}
    fixed = math.prod(size for size in sizes.values() if size > 0)
    free = [axis for axis, size in sizes.items() if size == -1]
    bad = [axis for axis, size in sizes.items() if size == 0 or size < -1]
    if bad or len(free) > 1 or len(devices) % fixed or (not free and fixed != len(devices)):
        raise UsageError(
            f"MeshConfig {sizes} does not fit {len(devices)} devices: the sizes must be positive and multiply to"
            f" {len(devices)}; at most one may be -1, which takes what is left"
        )
    shape = [len(devices) // fixed if size == -1 else size for size in sizes.values()]
    return Layout(Mesh(np.asarray(devices).reshape(shape), tuple(sizes)))
