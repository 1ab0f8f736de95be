"""The entry point of `r1jax run EXPERIMENT --dry_run`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1jax.dry_run import tables
from r1jax.dry_run.compilation import compile_stages, figures, verdict
from r1jax.dry_run.lowering import lower_stages
from r1jax.dry_run.topology import topology_devices
from r1jax.errors import RunError
from r1jax.parallel.layout import make_layout
from r1jax.parallel.memory import KNOBS
from r1jax.runs.checks import check_stages, stages
from r1jax.telemetry.progress import Progress
from r1jax.types import Environments


def dry_run(
    config: Any,
    topology: str | None,
    slices: int,
    names: Sequence[str],
    file: Path | None = None,
    environments: Environments | None = None,
) -> None:
    """Prints the parameters and memory of an experiment, and its programs, lowered for this machine's devices.

    For a TPU `topology` it compiles the programs `names`, () for all, and prints their memory, FLOPs, collectives and
    times, which it also writes to `file`, as JSON. `environments` are those of the experiment's task. Raises UsageError
    for a stage that does not fit the mesh or the model, a program that can't be lowered, or an unknown topology or
    program; RunError, after all tables, where a stage does not fit on this machine's devices, or a compiled program on
    the topology's.
    """
    devices = topology_devices(topology, slices) if topology else None
    tables.print_parameters(config.model)
    layout = make_layout(config.mesh, devices)
    check_stages(layout, config, memory=False)
    too_large = tables.print_memory(config, layout)
    if topology is None:
        tables.print_programs(lower_stages(config, layout, Progress(), environments))
        if too_large:
            listed = ", ".join(too_large)
            raise RunError(f"{len(too_large)} of {len(stages(config))} stages do not fit here: {listed}. {KNOBS}")
        return
    programs = compile_stages(config, layout, names, tables.make_console(), environments)
    tables.print_fit(programs, layout, f"{slices} x {topology}" if slices > 1 else topology)
    tables.print_costs(programs, config.model, layout)
    if file is not None:
        run = {"topology": topology, "slices": slices, "mesh": dict(layout.mesh.shape)}
        run |= {"programs": [figures(one, config.model, layout) for one in programs]}
        file.write_text(json.dumps(run, indent=2) + "\n")
    misfits = [one for one in programs if verdict(one, layout) != "fits"]
    for one in misfits:
        if one.shared_with is None or one.compilation.refusal is None:
            tables.print_buffers(one, layout)
    if misfits:
        listed = ", ".join(f"{one.stage}'s {one.program.name}" for one in misfits)
        raise RunError(f"{len(misfits)} of {len(programs)} programs do not fit or do not compile: {listed}")
