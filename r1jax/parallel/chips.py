"""What one TPU chip can do, by generation."""

from dataclasses import dataclass

import jax


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


def chip_of(device: jax.Device) -> Chip | None:
    """Of a device that is there or not; None: none of these."""
    return next((chip for chip in CHIPS.values() if chip.kind == device.device_kind), None)
