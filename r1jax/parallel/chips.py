"""Capabilities of TPU chips, by generation, and of GPUs, by name."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Chip:
    """One JAX device. Memory in bytes, bandwidths in bytes per second, compute in bfloat16."""

    generation: str
    kind: str  # `jax.Device.device_kind`
    hbm: int  # usable by programs, as the compiler reports when it refuses one
    flops: float  # per second
    flops_per_cycle: int  # of all matrix units; gives the clock, by which the compiler's cycles become seconds
    hbm_bandwidth: float
    ici: float  # received over all links to other chips of the slice
    dcn: float  # received from other slices over the data center network
    dimensions: int  # of the torus
    example: str  # a topology

    @property
    def clock(self) -> float:
        """Cycles per second.

        The compiler estimates a matmul of 4096 x 4096 matrices at 127k (v5e), 252k (v5p) and 456k (v6e) FLOPs per
        cycle, just below the peaks of 4 units of 128 x 128, 8 of them, and 4 of 256 x 256.
        """
        return self.flops / self.flops_per_cycle


# Peak compute, HBM bandwidth and interconnect: docs.cloud.google.com/tpu/docs/v5e, v5p and v6e, "System architecture".
# `ici` is one direction; the source has 1600 Gbit/s for v5e, and for both directions 1200 (v5p) and 800 GB/s (v6e).
# Data center network: 50 Gbit/s per chip (v5p), 6.4 (v5e) and 25.6 Tbit/s (v6e) per pod of 256 chips.
CHIPS = {
    chip.generation: chip
    for chip in (
        Chip("v5e", "TPU v5 lite", int(15.75 * 2**30), 197e12, 131_072, 819e9, 200e9, 3.1e9, 2, "v5e:4x4"),
        Chip("v5p", "TPU v5", int(95.74 * 2**30), 459e12, 262_144, 2765e9, 600e9, 6.2e9, 3, "v5p:4x4x8"),
        Chip("v6e", "TPU v6 lite", int(31.25 * 2**30), 918e12, 524_288, 1640e9, 400e9, 12.5e9, 2, "v6e:16x16"),
    )
}


# Dense FLOP/s in bfloat16 and bytes/s of memory, from NVIDIA's data sheets; of the SXM forms but for PCIe.
GPUS = {
    "H200": (989e12, 4.8e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.04e12),
}


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device in bfloat16, or None where that is not known."""
    if chip := chip_of(device):
        return chip.flops
    return next((flops for name, (flops, _) in GPUS.items() if name in device.device_kind), None)


def chip_of(device: jax.Device) -> Chip | None:
    """The chip of a real or described device, or None if it is not in `CHIPS`."""
    return next((chip for chip in CHIPS.values() if chip.kind == device.device_kind), None)
