"""How arrays are sharded: the mesh, and rules from logical axes to mesh axes. Both are arguments, never globals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from r1jax.config import EngineConfig, MeshConfig, ModelConfig
from r1jax.errors import UsageError
from r1jax.model.spec import ParamSpec, param_specs
from r1jax.types import Params


@dataclass(frozen=True)
class Rules:
    """The mesh axes over which each logical axis of `ParamSpec` is sharded; () means replicated.

    The defaults are for training. Rows of tokens are sharded over data, fsdp and expert, each row over context. Weights
    sharded over fsdp, expert and context are all-gathered one layer at a time; tokens are sent to their experts.
    """

    vocab: tuple[str, ...] = ("tensor",)
    embed: tuple[str, ...] = ("fsdp", "expert", "context")
    rank: tuple[str, ...] = ("fsdp", "expert", "context")
    heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)
    experts: tuple[str, ...] = ("expert",)
    expert_embed: tuple[str, ...] = ("fsdp", "context")
    expert_mlp: tuple[str, ...] = ("tensor",)
    lora: tuple[str, ...] = ()
    query: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    router: tuple[str, ...] = ()
    score: tuple[str, ...] = ()
    concat: tuple[str, ...] = ()
    norm: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    batch: tuple[str, ...] = ("data", "fsdp", "expert")
    tokens: tuple[str, ...] = ("context",)  # the tokens of a row


# For rollouts with their own mesh. Sequences, and with them the cache, are sharded over all axes. Weights stay where
# they are: those of attention and dense layers are sharded over tensor alone, the devices of which exchange activations
# of the sequences that they share; experts are sharded over all axes but data, and tokens are sent to them.
ROLLOUT_RULES = Rules(
    embed=(),
    rank=(),
    lora=("tensor",),
    query=("tensor",),
    experts=("expert", "tensor", "fsdp"),  # in this order each device has a subset of the experts that it trains
    expert_embed=(),
    expert_mlp=(),
    batch=("data", "fsdp", "expert", "tensor"),
    tokens=(),
)


@dataclass(frozen=True)
class Layout:
    mesh: Mesh
    rules: Rules = Rules()

    def axes(self, logical: str) -> tuple[str, ...]:
        """The mesh axes of a logical axis."""
        return getattr(self.rules, logical)

    def devices(self, axes: tuple[str, ...]) -> int:
        """The number of shards over these mesh axes."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self) -> NamedSharding:
        """The sharding of the leading dimension over the batch axes."""
        return NamedSharding(self.mesh, PartitionSpec(self.rules.batch))

    def param(self, name: str, spec: ParamSpec) -> NamedSharding:
        """Sharding of one tensor. Raises UsageError if a mesh axis is used twice or does not divide its dimension."""
        axes = [self.axes(axis) for axis in spec.axes]
        used = [axis for several in axes for axis in several if self.mesh.shape[axis] > 1]
        if len(used) != len(set(used)):
            raise UsageError(f"{name} {spec.axes}: the rules shard two dimensions over one mesh axis: {used}")
        for size, logical, several in zip(spec.shape, spec.axes, axes, strict=True):
            if size % self.devices(several):
                raise UsageError(
                    f"{name} {spec.shape}: its dimension '{logical}' of {size} can't be divided over"
                    f" {self.devices(several)} devices. Set {' x '.join(f'MeshConfig.{axis}' for axis in several)} to a"
                    f" divisor of {size}"
                )
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def params(self, model: ModelConfig) -> Params:
        """Shardings of all params."""
        return jax.tree.map_with_path(lambda path, spec: self.param(keystr(path), spec), param_specs(model))

    def put_batch(self, tree):
        """Puts host arrays onto the devices, sharded along the leading dimension. Every process passes all rows."""
        arrays = jax.tree.map(np.asarray, tree)
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, self.batch(), x.__getitem__), arrays)

    def abstract_batch(self, tree):
        """The `jax.ShapeDtypeStruct`s of `put_batch`."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.batch()), tree)

    def round_up(self, rows: int) -> int:
        """`rows`, rounded up to a multiple of the batch axes."""
        devices = self.devices(self.rules.batch)
        return -(-rows // devices) * devices

    def require_batch(self, name: str, size: int) -> None:
        """Raises UsageError if the batch axes don't divide `size` rows."""
        self._require(name, size, self.rules.batch)

    def require_row(self, name: str, size: int) -> None:
        """Raises UsageError if the context axis doesn't divide a row of `size` tokens."""
        self._require(name, size, self.rules.tokens)

    def _require(self, name: str, size: int, axes: tuple[str, ...]) -> None:
        if size % (devices := self.devices(axes)):
            over = f"{devices} devices (mesh axes {' x '.join(axes)})"
            raise UsageError(f"{name} is {size}, expected a multiple of {over}: set it, or set MeshConfig")


AXES = ("data", "fsdp", "expert", "context", "tensor")


def make_layout(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Layout:
    """The mesh over `devices`, by default all, data outermost. Raises UsageError if the sizes don't fit."""
    devices = jax.devices() if devices is None else devices
    return Layout(Mesh(arrange(devices, mesh_shape(config, len(devices))), AXES))


def rollout_layout(layout: Layout, config: EngineConfig) -> Layout:
    """The trainer's layout, with rows in place of their tokens sharded over context, or the one of `config.mesh`.

    That one has the same devices in the same order, so that one program can reshard the weights.
    """
    if config.mesh is None:
        rules = layout.rules
        return replace(layout, rules=replace(rules, batch=rules.batch + rules.tokens, tokens=()))
    devices = layout.mesh.devices
    shape = mesh_shape(config.mesh, devices.size)
    count_slices(list(devices.ravel()), shape[0], "EngineConfig.mesh's MeshConfig.data")
    return Layout(Mesh(devices.reshape(shape), AXES), ROLLOUT_RULES)


def mesh_shape(config: MeshConfig, devices: int) -> list[int]:
    """Sizes of `AXES`. Raises UsageError if they don't multiply to the number of devices."""
    numbers = (config.data, config.fsdp, config.expert, config.context, config.tensor)
    sizes = dict(zip(AXES, numbers, strict=True))
    fixed = math.prod(size for size in sizes.values() if size > 0)
    free = [axis for axis, size in sizes.items() if size == -1]
    bad = [axis for axis, size in sizes.items() if size == 0 or size < -1]
    if bad or len(free) > 1 or devices % fixed or (not free and fixed != devices):
        raise UsageError(
            f"MeshConfig {sizes} does not fit {devices} devices: the sizes must be positive and multiply to"
            f" {devices}; at most one may be -1, which is inferred"
        )
    return [devices // fixed if size == -1 else size for size in sizes.values()]


def arrange(devices: Sequence[jax.Device], shape: Sequence[int]) -> np.ndarray:
    """Devices as an array over `AXES`; on TPUs neighbours along an axis are neighbours on the torus.

    Several slices divide the data axis, so that only data parallelism uses the network between them.
    """
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    data, *others = shape
    slices = count_slices(devices, data, "MeshConfig.data")
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within, over = (data // slices, *others), (slices, *[1] * len(others))
    return mesh_utils.create_hybrid_device_mesh(within, over, devices, allow_split_physical_axes=True)


def count_slices(devices: Sequence[jax.Device], data: int, name: str) -> int:
    """The number of TPU slices. Raises UsageError if it does not divide the data axis, called `name`."""
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1
    if data % slices:
        raise UsageError(f"{name} is {data}, must be a multiple of the number of slices ({slices})")
    return slices
