"""TPUs that are not there: the devices of a named topology, for which programs compile."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator

import jax

from r1jax.errors import UsageError
from r1jax.parallel.chips import CHIPS, Chip

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
