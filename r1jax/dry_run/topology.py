"""The devices of a named TPU topology, which this machine does not have, but for which programs compile."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator

import jax

from r1jax.errors import UsageError
from r1jax.parallel.chips import CHIPS, Chip

# libtpu reads these variables when it is loaded: it then asks no metadata server, several processes may load it, and a
# program that is too large is refused only after buffers are assigned, so that the largest ones can be shown.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "LIBTPU_INIT_ARGS": "--xla_tpu_impure_oom_fast_exit_threshold=-1",
}


def topology_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """The devices of `slices` slices of a topology such as "v5p:4x4x8". Programs can be compiled for them, not run.

    Raises UsageError for an unknown topology, and where libtpu is not installed.
    """
    chip = parse_topology(name)
    jax.config.update("jax_platforms", "cpu")  # this machine's accelerator is not needed
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    several = {"num_slices": slices} if slices > 1 else {}
    alone = {"chips_per_host_bounds": [1, 1, 1]} if name.endswith(":1x1") else {}  # libtpu assumes 2 x 2 chips per host
    try:
        with without_stderr():
            topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **several, **alone)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise UsageError(
                "--topology needs the TPU compiler libtpu, which is not installed: set it up with pip install"
                f" 'jax[tpu]=={jax.__version__}'"
            ) from error
        raise UsageError(f"{expectation(name, chip)}: {str(error).splitlines()[0]}") from error
    return list(topology.devices)


def parse_topology(name: str) -> Chip:
    """The chip of a topology's name. Raises UsageError for an unknown topology."""
    generation, _, shape = name.partition(":")
    chip = CHIPS.get(generation)
    sizes = shape.split("x")
    if chip is None or len(sizes) != chip.dimensions or not all(re.fullmatch("[1-9][0-9]*", size) for size in sizes):
        raise UsageError(expectation(name, chip))
    if any(int(size) % 2 for size in sizes[:2]) and sizes != ["1", "1"]:  # a host has 2 x 2 chips, or one chip
        raise UsageError(f"{expectation(name, chip)}, of which the first two are even")
    return chip


def expectation(name: str, chip: Chip | None) -> str:
    wanted = f"{chip.dimensions} sizes" if chip else "a generation and its sizes"
    examples = ", ".join(chip.example for chip in CHIPS.values())
    return f"--topology is '{name}', expected {wanted}, such as {chip.example if chip else examples}"


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Discards what C++ libraries print to stderr."""
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
