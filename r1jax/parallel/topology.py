"""TPUs that are not there: the devices of a named topology, for which programs compile, and what their chips can do."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import jax

from r1jax.errors import UsageError


@dataclass(frozen=True)
class Chip:
    """One device. Bytes and bytes a second; products in bfloat16."""

    generation: str
    kind: str  # `device_kind` of JAX's device
    hbm: int  # what the compiler lets programs have, as it says when it refuses one
    flops: float  # a second
    flops_per_cycle: int  # of all matrix units: the clock follows, and with it the compiler's cycles in seconds
    hbm_bandwidth: float
    ici: float  # received a second, over all links to other chips of the slice
    dcn: float  # received a second from other slices, over the data center's network
    dimensions: int  # of the torus
    example: str

    @property
    def clock(self) -> float:
        """Cycles a second.

        A product of two 4096 x 4096 matrices is estimated at 127k (v5e), 252k (v5p) and 456k (v6e) FLOPs a cycle: just
        under 4 units of 128 x 128, twice as many, and 4 of 256 x 256.
        """
        return self.flops / self.flops_per_cycle


# Peak compute, HBM bandwidth and interconnect of a chip are of docs.cloud.google.com/tpu/docs/v5e, v5p and v6e, "System
# architecture". The interconnect's figure here is what a chip receives: there v5e has 1600 Gbit/s, and v5p 1200 and v6e
# 800 GB/s both ways. Data center's network: v5p 50 Gbit/s a chip, v5e 6.4 and v6e 25.6 Tbit/s a pod of 256 chips.
CHIPS = {
    chip.generation: chip
    for chip in (
        Chip("v5e", "TPU v5 lite", int(15.75 * 2**30), 197e12, 131_072, 819e9, 200e9, 3.1e9, 2, "v5e:4x4"),
        Chip("v5p", "TPU v5", int(95.74 * 2**30), 459e12, 262_144, 2765e9, 600e9, 6.2e9, 3, "v5p:4x4x8"),
        Chip("v6e", "TPU v6 lite", int(31.25 * 2**30), 918e12, 524_288, 1640e9, 400e9, 12.5e9, 2, "v6e:16x16"),
    )
}

# Read by libtpu when it is loaded. It asks no metadata server, several processes may load it, and it gives up on no
# program before it has assigned buffers, which say what is too large.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "LIBTPU_INIT_ARGS": "--xla_tpu_impure_oom_fast_exit_threshold=-1",
}


def chip_of(device: jax.Device) -> Chip | None:
    """Of a device that is there or not; None: none of these."""
    return next((chip for chip in CHIPS.values() if chip.kind == device.device_kind), None)


def topology_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """The devices of `slices` times a topology such as "v5p:4x4x8". Programs compile for them, and can't run.

    Raises UsageError for a name that is none, and where libtpu is missing.
    """
    chip = parse_topology(name)
    jax.config.update("jax_platforms", "cpu")  # a TPU or GPU of this machine is left alone
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    several = {"num_slices": slices} if slices > 1 else {}
    alone = {"chips_per_host_bounds": [1, 1, 1]} if name.endswith(":1x1") else {}  # by itself libtpu takes 2 x 2
    try:
        with without_stderr():
            topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **several, **alone)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise UsageError(
                "--topology needs libtpu, the TPU compiler, which is not installed: pip install"
                f" 'jax[tpu]=={jax.__version__}'"
            ) from error
        raise UsageError(f"{explain(name, chip)}: {str(error).splitlines()[0]}") from error
    return list(topology.devices)


def parse_topology(name: str) -> Chip:
    """The chip of a topology's name. Raises UsageError where it is none."""
    generation, _, shape = name.partition(":")
    chip = CHIPS.get(generation)
    sizes = shape.split("x")
    if chip is None or len(sizes) != chip.dimensions or not all(re.fullmatch("[1-9][0-9]*", size) for size in sizes):
        raise UsageError(explain(name, chip))
    if any(int(size) % 2 for size in sizes[:2]) and sizes != ["1", "1"]:  # a host has 2 x 2 chips, or one
        raise UsageError(f"{explain(name, chip)}; the first two are even")
    return chip


def explain(name: str, chip: Chip | None) -> str:
    wanted = f"{chip.dimensions} sizes" if chip else "a generation and its sizes"
    examples = ", ".join(chip.example for chip in CHIPS.values())
    return f"--topology is '{name}', expected {wanted}, such as {chip.example if chip else examples}"


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Keeps away what libraries in C++ print there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
