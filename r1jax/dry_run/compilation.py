"""What a run would ask of TPUs that are not there: `r1jax run EXPERIMENT --dry_run --topology v5p:4x4x8`.

Every program of every stage is compiled for the topology, and its memory, products, collectives and times are shown.
"""

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.progress
from rich.console import Console

from r1jax.config import ModelConfig, RLConfig
from r1jax.dry_run.compiled import Compilation, compile_and_keep, fingerprint, known
from r1jax.dry_run.hlo import Costs
from r1jax.dry_run.lowering import lower_one, make_console, make_table, print_memory, print_parameters, readable
from r1jax.dry_run.stage_programs import Program, stage_programs
from r1jax.dry_run.topology import topology_devices
from r1jax.errors import RunError, UsageError
from r1jax.model.flops import model_flops
from r1jax.parallel.chips import Chip, chip_of
from r1jax.parallel.layout import Layout, make_layout
from r1jax.parallel.memory import held_beside, stage_memory
from r1jax.runs.run import check_stages, stages

CACHE = Path(".cache", "r1jax", "topology")  # below the home directory
# What makes a program smaller, beside a mesh that divides it further.
TRAINED = (
    "ModelConfig.remat = 'full'; OptimizerConfig.moment_dtype = 'bfloat16'; ModelConfig.param_dtype = 'bfloat16' halves"
    " weights, moments and reference"
)
OFFLOAD = "RLConfig.offload = ('reference', 'optimizer')"
DRAWN = "RolloutConfig.slots, max_new_tokens and max_prompt_tokens, lower; RolloutConfig.cache = 'int8'"
READ = "RolloutConfig.prefill_rows and prefill_chunk, lower; RolloutConfig.weights = 'int8'"
KNOBS = {
    "pretrain_step": f"PretrainConfig.batch_size and sequence_length, lower; {TRAINED}",
    "sft_step": f"SFTConfig.batch_size and sequence_length, lower; {TRAINED}",
    "reward_model_step": f"RewardModelConfig.batch_size and max_tokens, lower; {TRAINED}",
    "reward_model_metrics": "RewardModelConfig.batch_size and max_tokens, lower",
    "reward_scores": "RewardModelConfig.max_tokens, lower",
    "prepare_batch": f"RLConfig.microbatch_rows and row_tokens, lower; {OFFLOAD}; {TRAINED}",
    "grpo_gradients": f"RLConfig.microbatch_rows and row_tokens, lower; {OFFLOAD}; {TRAINED}",
    "make_slots": DRAWN,
    "insert": DRAWN,
    "decode": f"{DRAWN}; RolloutConfig.weights = 'int8'",
    "prefill": f"{READ}; max_prompt_tokens, lower",
    "copy_weights": "RolloutConfig.weights = 'int8'",
}


@dataclass(frozen=True)
class Compiled:
    """A program of a stage."""

    stage: str
    program: Program
    made: Compilation
    beside: dict[str, int]  # bytes that the stage has on each device beside the program's own
    is_new: bool  # compiled now
    shared_with: str | None  # the stage that had it compiled before

    @property
    def needed(self) -> int | None:
        """Bytes on each device; None where the compiler gave up before it knew."""
        return None if self.made.memory is None else self.made.memory.all + sum(self.beside.values())


@dataclass(frozen=True)
class Times:
    """Seconds of one run of a program: the least that each part of a device takes, alone, at its full speed."""

    compute: float  # its products by the peak in bfloat16
    memory: float  # what is read from and written to HBM, by its bandwidth
    network: float  # what is received, by the bandwidth of all links; between slices by the data center's
    compiler: float  # the compiler's own estimate of operations one after another; without collectives and kernels

    @property
    def bound(self) -> str:
        """The longest of the three. They can overlap: no program is faster, and many are slower."""
        parts = {"compute": self.compute, "memory": self.memory, "network": self.network}
        return max(parts, key=lambda part: parts[part])


def times(costs: Costs, chip: Chip) -> Times:
    received = sum(c.bytes for c in costs.collectives.values())
    between = sum(c.bytes for c in costs.between_slices.values())
    network = received / chip.ici + between / chip.dcn
    return Times(costs.flops / chip.flops, costs.hbm_bytes / chip.hbm_bandwidth, network, costs.cycles / chip.clock)


def dry_run_topology(config: Any, topology: str, slices: int, only: Sequence[str]) -> None:
    """Prints all of it. Raises UsageError for a stage or name that can't be, RunError where something does not fit."""
    devices = topology_devices(topology, slices)
    print_parameters(config.model)
    layout = make_layout(config.mesh, devices)
    check_stages(layout, config, memory=False)
    print_memory(config, layout)
    found = compile_stages(config, layout, only, make_console())
    print_fit(found, layout, topology, slices)
    print_work(found, config.model, layout)
    misfits = [one for one in found if verdict(one, layout) != "fits"]
    for one in misfits:
        if one.shared_with is None or one.made.refusal is None:
            print_buffers(one, layout)
    if misfits:
        names = ", ".join(f"{one.stage}'s {one.program.name}" for one in misfits)
        raise RunError(f"{len(misfits)} of {len(found)} programs do not fit, or compile: {names}")


def compile_stages(config: Any, layout: Layout, only: Sequence[str], console: Console) -> list[Compiled]:
    """Every program of every stage, or those of the names in `only`; what several stages share is compiled once."""
    programs = [
        (stage, program)
        for stage, stage_config in stages(config).items()
        for program in stage_programs(layout, config.model, stage_config)
    ]
    names = {program.name for _, program in programs}
    if unknown := set(only) - names:
        raise UsageError(f"--programs names '{min(unknown)}', expected one of {', '.join(sorted(names))}")
    wanted = [one for one in programs if not only or one[1].name in only]
    held = {stage: stage_memory(layout, config.model, one) for stage, one in stages(config).items()}
    adding = {stage for stage, one in stages(config).items() if isinstance(one, RLConfig) and one.accumulates}
    found: list[Compiled] = []
    first: dict[Any, Compiled] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("", total=len(wanted))
        for stage, program in wanted:
            progress.reset(task, total=len(wanted), completed=len(found), description=f"{stage}: {program.name}")
            before = first.get(program.key)
            beside = held_beside(held[stage], program.name, accumulates=stage in adding)
            if before:
                found.append(Compiled(stage, program, before.made, beside, before.is_new, before.stage))
                continue
            made, is_new = compile_one(stage, program, layout, console, f"{len(found) + 1}/{len(wanted)}")
            found.append(Compiled(stage, program, made, beside, is_new, None))
            first[program.key] = found[-1]
    new = [one.made.seconds for one in first.values() if one.is_new]
    console.print(
        f"{len(first)} programs: {len(new)} compiled in {sum(new):.0f} s, {len(first) - len(new)} known from"
        f" {Path.home() / CACHE}; {len(found) - len(first)} more are the same as these"
    )
    return found


def compile_one(stage: str, program: Program, layout: Layout, console: Console, place: str) -> tuple[Compilation, bool]:
    """And whether it is new. Raises UsageError for a program that can't be lowered."""
    try:
        lowered = lower_one(program)
    except UsageError as error:
        raise UsageError(f"{stage}: {error}") from error
    path = Path.home() / CACHE / f"{fingerprint(lowered, list(layout.mesh.devices.ravel()))}.json"
    if before := known(path):
        return before, False
    if not console.is_terminal:
        console.print(f"{place} {stage}: compiling {program.name}")
    return compile_and_keep(lowered, path), True


def progress_bar(console: Console) -> rich.progress.Progress:
    """On a terminal: which program it is, and since when."""
    return rich.progress.Progress(
        rich.progress.SpinnerColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def verdict(one: Compiled, layout: Layout) -> str:
    """Of a program, with all that its stage holds beside it."""
    refusal = one.made.refusal
    if refusal and not refusal.startswith("RESOURCE_EXHAUSTED"):
        return "does not compile"
    return "fits" if not refusal and one.needed and one.needed <= chip(layout).hbm else "does not fit"


def chip(layout: Layout) -> Chip:
    found = chip_of(layout.mesh.devices.ravel()[0])
    assert found  # a topology's name is one of a known chip
    return found


def print_fit(found: list[Compiled], layout: Layout, topology: str, slices: int) -> None:
    """Memory of each program: what the stage has beside it, and what it takes itself, as the compiler says."""
    columns = ("beside it", "arguments", "results", "temporaries", "code", "all", f"of {readable(chip(layout).hbm)}")
    table = make_table("stage", "program", *columns)
    table.columns[1].justify = "left"
    for number, one in enumerate(found):
        memory = one.made.memory
        sizes = (memory.arguments, memory.results, memory.temporaries, memory.code) if memory else ()
        cells = [readable(sum(one.beside.values())), *(readable(size) for size in sizes)] + [""] * (4 - len(sizes))
        all_of_it = readable(one.needed) if one.needed is not None else ""
        stage = one.stage if number == 0 or found[number - 1].stage != one.stage else ""
        table.add_row(stage, one.program.name, *cells, all_of_it, verdict(one, layout))
    over = f"{slices} x {topology}" if slices > 1 else topology
    mesh = " x ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items() if size > 1) or "one device"
    console = make_console()
    console.print(f"memory on each of {layout.mesh.devices.size} devices of {over}, mesh {mesh}")
    console.print(table)
    console.print("beside it: what the stage has on each device while the program runs, and the program does not take")


def print_work(found: list[Compiled], model: ModelConfig, layout: Layout) -> None:
    """What one run of each program does, on each device, and how long its parts take at the least."""
    columns = ("TFLOP", "of the model's", "compute", "memory", "network", "compiler", "bound by", "collectives")
    table = make_table("stage", "program", *columns)
    table.columns[1].justify = table.columns[-1].justify = "left"
    once = [one for one in found if one.shared_with is None and one.made.costs]
    for number, one in enumerate(once):
        costs, at = one.made.costs, chip(layout)
        assert costs
        spent = times(costs, at)
        own = model_flops(model, one.program.work) / layout.mesh.devices.size if one.program.work else 0
        least = "≥ " if costs.kernels else ""  # those that say nothing of their products
        ratio = f"{least}{costs.flops / own:.2f}" if own else ""
        seconds = (milliseconds(s) for s in (spent.compute, spent.memory, spent.network, spent.compiler))
        stage = one.stage if number == 0 or once[number - 1].stage != one.stage else ""
        table.add_row(
            stage,
            one.program.name,
            f"{least}{costs.flops / 1e12:,.3f}",
            ratio,
            *seconds,
            spent.bound,
            collectives(costs),
        )
    console = make_console()
    console.print("one run of each program on each device, milliseconds")
    console.print(table)
    console.print(
        "TFLOP: products that were compiled, of as many rows as come to a device on average, and how many times the"
        " model's own: 2 x active parameters x tokens forward, 6 in training, and attention's over full rows. compute,"
        " memory, network: the least at full speed; compiler: its estimate, without collectives and kernels. Bytes are"
        " what each device receives"
    )
    if silent := sum(one.made.costs.kernels for one in once if one.made.costs):
        console.print(f"{silent} kernels don't say their products, which are missing where it says ≥")
    if open_ended := sum(one.made.costs.unknown_loops for one in once if one.made.costs):
        console.print(f"{open_ended} loops run as often as the data says, and are counted once")


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.3f}" if seconds < 0.1 else f"{1000 * seconds:,.0f}"


def collectives(costs: Costs) -> str:
    """Each kind, the most bytes first: how often, and how much each device receives."""
    kinds = costs.collectives | {f"{kind} between slices": one for kind, one in costs.between_slices.items()}
    ordered = sorted(kinds.items(), key=lambda item: -item[1].bytes)
    return ", ".join(f"{one.count:,.0f} {kind} {readable(one.bytes)}" for kind, one in ordered)


def print_buffers(one: Compiled, layout: Layout) -> None:
    """The largest of a program that does not fit, and what to set."""
    table = make_table("largest buffers", "number", "shape", "what", "the first is")
    for column in table.columns[2:]:
        column.justify = "left"
    alike = collections.Counter((b.size, b.shape, b.kind) for b in one.made.buffers)
    first = {(b.size, b.shape, b.kind): b.origin for b in reversed(one.made.buffers)}
    for (size, shape, kind), number in alike.items():
        table.add_row(readable(size), str(number), shape, kind, first[size, shape, kind])
    console = make_console()
    beside = ", ".join(f"{part} {readable(size)}" for part, size in one.beside.items())
    reason = one.made.refusal or f"it needs {readable(one.needed or 0)} with what the stage has beside it: {beside}"
    console.print(f"{one.stage}'s {one.program.name} {verdict(one, layout)}: {reason}", markup=False)
    if verdict(one, layout) == "does not compile":
        return
    console.print(table)
    knobs = KNOBS.get(one.program.name, TRAINED)
    axes = "MeshConfig.fsdp, expert, context, tensor"
    console.print(f"set: {axes} or another topology, to divide it further; {knobs}", markup=False)
