"""MaxText's training step of DeepSeek-V3 for 128 chips, compiled ahead of time and read as our dry runs are.

In an environment of its own (MaxText pins other versions), from the project's root. docs/benchmarks.md has the
commands, also ours of the same model, topology, batch (a row of 4,096 tokens a chip) and dtypes.
"""

import math
import os
import re
import sys

import jax
from maxtext.trainers.pre_train import train_compile

from r1jax.dry_run import hlo
from r1jax.dry_run.aot import compile_ahead
from r1jax.dry_run.compilation import least_times
from r1jax.dry_run.tables import collectives, format_bytes
from r1jax.dry_run.topology import ENVIRONMENT
from r1jax.parallel.chips import CHIPS

SETTINGS = (
    "model_name=deepseek3-671b", "compile_topology=v5p-256", "compile_topology_num_slices=1", "dataset_type=synthetic",
    "enable_checkpointing=False", "per_device_batch_size=1", "max_target_length=4096", "dtype=bfloat16",
    "weight_dtype=bfloat16", "remat_policy=full", "n_routing_groups=8", "topk_routing_group=4", "sparse_matmul=True",
    "megablox=True", "ici_fsdp_parallelism=128",
)  # fmt: skip


def with_megablox(module, computation, operation, times, found, counted=hlo.count_arithmetic):
    """In the place of `hlo.count_arithmetic`: megablox's kernels, which say nothing of their products, by shapes.

    `gmm` multiplies rows [M, K] into [M, N], and `tgmm` adds up over rows [M, K] into [groups, K, N].
    """
    kernels = found.kernels
    counted(module, computation, operation, times, found)
    if found.kernels > kernels and re.match(r"t?gmm\b", operation.name):
        inputs = [shape for name in operation.operands for shape in computation.operations[name].shapes]
        rows = next(shape for shape in inputs if "f" in shape.dtype)
        found.flops += times * 2 * math.prod(rows.dims) * operation.shapes[0].dims[-1]
        found.kernels = kernels


def read_instead(func, args, kwargs, mesh, in_shardings, out_shardings, static, donated, config, rules):
    """In the place of `train_compile.jit_and_compile`: the same program, compiled by us."""
    with jax.set_mesh(mesh), rules:
        jitted = jax.jit(
            func,
            in_shardings=in_shardings,
            out_shardings=out_shardings,
            static_argnums=static,
            donate_argnums=donated,
        )
        made = compile_ahead(jitted.lower(*args, **kwargs))
    print(made.refusal or f"compiled in {made.seconds:.0f} s")
    if made.memory:
        for name in ("arguments", "results", "temporaries", "code", "all"):
            print(f"{name:12} {format_bytes(getattr(made.memory, name))}")
    if made.costs:
        print(f"{made.costs.flops / 1e12:,.0f} TFLOP, and {made.costs.kernels} kernels that don't say theirs")
        print(collectives(made.costs), least_times(made.costs, CHIPS["v5p"]))
    for buffer in made.buffers[:6]:
        print(format_bytes(buffer.size), buffer.shape, buffer.kind, buffer.origin)
    raise SystemExit


if __name__ == "__main__":
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    train_compile.jit_and_compile, hlo.count_arithmetic = read_instead, with_megablox
    chosen = dict(setting.split("=", 1) for setting in (*SETTINGS, *sys.argv[1:]))
    train_compile.main([train_compile.__file__, *(f"{name}={value}" for name, value in chosen.items())])
