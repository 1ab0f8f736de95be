"""Where arrays live: the mesh, and the rules from logical axes to mesh axes. Both are arguments, never globals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r1jax.config import MeshConfig, ModelConfig, RolloutConfig
from r1jax.errors import UsageError
from r1jax.model.spec import ParamSpec, is_spec, param_specs
from r1jax.types import Params


@dataclass(frozen=True)
class Rules:
    """The mesh axes of each logical axis that `ParamSpec` names; () keeps the dimension whole on every device.

    These are training's: every device has tokens of its own but those along "tensor": rows, or along "context" a part
    of each row. What fsdp divides, and context with it, is gathered a layer at a time; tokens travel to their experts.
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
    tokens: tuple[str, ...] = ("context",)  # of a row


# Rollouts with a mesh of their own: a step multiplies few rows, so that weights stay where they are, divided over all
# but "data", and rows travel; the cache, which is larger than anything else, is divided by rows over all devices.
ROLLOUT_RULES = Rules(
    vocab=("fsdp", "expert", "tensor"),
    embed=(),
    rank=(),
    query=("fsdp", "expert", "tensor"),
    heads=("fsdp", "expert", "tensor"),
    mlp=("fsdp", "expert", "tensor"),
    experts=("expert", "fsdp", "tensor"),  # in this order a device's experts are a part of those that it trains
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
        """The mesh axes that divide a logical axis."""
        return getattr(self.rules, logical)

    def devices(self, axes: tuple[str, ...]) -> int:
        """How many parts these mesh axes make."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self) -> NamedSharding:
        """Leading dimension over the batch axes."""
        return NamedSharding(self.mesh, PartitionSpec(self.rules.batch))

    def param(self, name: str, spec: ParamSpec) -> NamedSharding:
        """Raises UsageError when a mesh axis would be used twice or doesn't divide its dimension."""
        axes = [self.axes(axis) for axis in spec.axes]
        used = [axis for several in axes for axis in several if self.mesh.shape[axis] > 1]
        if len(used) != len(set(used)):
            raise UsageError(f"{name} {spec.axes}: the rules lay two of its dimensions on one mesh axis: {used}")
        for size, logical, several in zip(spec.shape, spec.axes, axes, strict=True):
            if size % self.devices(several):
                named = " x ".join(f"'{axis}'" for axis in several)
                fields = ", ".join(f"MeshConfig.{axis}" for axis in several)
                raise UsageError(
                    f"{name} {spec.shape}: its dimension '{logical}' of {size} can't be divided over mesh axis"
                    f" {named} of {self.devices(several)} devices: set {fields} to a divisor of {size}"
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
        devices = self.devices(self.rules.batch)
        return -(-rows // devices) * devices

    def require_batch(self, name: str, size: int) -> None:
        """Raises UsageError when `size` rows can't be split evenly over the batch axes."""
        devices = self.devices(self.rules.batch)
        if size % devices:
            raise UsageError(
                f"{name} is {size}: {size} rows can't be divided over {devices} devices (mesh axes"
                f" {' x '.join(self.rules.batch)}): set it to a multiple of {devices}, or set MeshConfig"
            )

    def require_row(self, name: str, size: int) -> None:
        """Raises UsageError when a row of `size` tokens can't be split evenly over the context axis."""
        devices = self.devices(self.rules.tokens)
        if size % devices:
            raise UsageError(
                f"{name} is {size}: a row of {size} tokens can't be divided over {devices} devices"
                f" (MeshConfig.context): set it to a multiple of {devices}, or MeshConfig.context to a divisor of it"
            )


AXES = ("data", "fsdp", "expert", "context", "tensor")


def make_layout(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Layout:
    """The mesh over all devices, data outermost. Raises UsageError when the sizes don't multiply to their number."""
    devices = jax.devices() if devices is None else devices
    return Layout(Mesh(arrange(devices, mesh_shape(config, len(devices))), AXES))


def rollout_layout(layout: Layout, config: RolloutConfig) -> Layout:
    """The trainer's, or one of the rollouts' own over the same devices.

    In the trainer's order: one program can move the weights. What divides a row's tokens in training divides rows here.
    """
    if config.mesh is None:
        rules = layout.rules
        return replace(layout, rules=replace(rules, batch=rules.batch + rules.tokens, tokens=()))
    devices = layout.mesh.devices
    shape = mesh_shape(config.mesh, devices.size)
    divide_slices(list(devices.ravel()), shape[0], "RolloutConfig.mesh's MeshConfig.data")
    return Layout(Mesh(devices.reshape(shape), AXES), ROLLOUT_RULES)


def mesh_shape(config: MeshConfig, devices: int) -> list[int]:
    """Sizes of `AXES`. Raises UsageError when they don't multiply to the number of devices."""
    numbers = (config.data, config.fsdp, config.expert, config.context, config.tensor)
    sizes = dict(zip(AXES, numbers, strict=True))
    fixed = math.prod(size for size in sizes.values() if size > 0)
    free = [axis for axis, size in sizes.items() if size == -1]
    bad = [axis for axis, size in sizes.items() if size == 0 or size < -1]
    if bad or len(free) > 1 or devices % fixed or (not free and fixed != devices):
        raise UsageError(
            f"MeshConfig {sizes} does not fit {devices} devices: the sizes must be positive and multiply to"
            f" {devices}; at most one may be -1, which takes what is left"
        )
    return [devices // fixed if size == -1 else size for size in sizes.values()]


def arrange(devices: Sequence[jax.Device], shape: Sequence[int]) -> np.ndarray:
    """Devices as a mesh of `AXES`; on TPUs neighbours of an axis are neighbours on the torus.

    Of several slices each has its part of the data axis, so that no other axis crosses the network between them.
    """
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    data, *others = shape
    slices = divide_slices(devices, data, "MeshConfig.data")
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within, over = (data // slices, *others), (slices, *[1] * len(others))
    return mesh_utils.create_hybrid_device_mesh(within, over, devices, allow_split_physical_axes=True)


def divide_slices(devices: Sequence[jax.Device], data: int, name: str) -> int:
    """How many slices of TPUs the devices are of. Raises UsageError when the data axis can't be divided over them."""
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1
    if data % slices:
        raise UsageError(f"{name} is {data}, expected a multiple of the {slices} slices, which it divides")
    return slices
