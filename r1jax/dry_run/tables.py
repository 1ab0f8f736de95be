"""The tables that dry runs print."""

from collections.abc import Sequence
from dataclasses import astuple
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from r1jax.config import ModelConfig, RewardModelConfig
from r1jax.dry_run.compilation import CompiledProgram, chip_in, least_times, verdict
from r1jax.dry_run.hlo import Costs
from r1jax.dry_run.lowering import Lowering
from r1jax.model.spec import count_active_params, count_params
from r1jax.parallel.layout import Layout
from r1jax.parallel.memory import GIB, at_once, device_memory, stage_memory
from r1jax.runs.checks import stages
from r1jax.telemetry.flops import model_flops

# The settings that make a program smaller, besides a mesh that divides it further.
TRAINING = (
    "ModelConfig.remat = 'full'; OptimizerConfig.moment_dtype = 'bfloat16'; ModelConfig.param_dtype = 'bfloat16' halves"
    " weights and reference, but the optimizer then holds float32 masters"
)
OFFLOAD = "RLConfig.offload = ('reference', 'optimizer')"
DECODING = (
    "EngineConfig.slots, SamplingConfig.max_new_tokens, max_prompt_tokens, lower; EngineConfig.cache_dtype = 'int8'"
)
PREFILL = "EngineConfig.prefill_rows and prefill_chunk, lower; EngineConfig.weight_dtype = 'int8'"
SETTINGS = {
    "pretrain_step": f"PretrainConfig.batch_size and sequence_length, lower; {TRAINING}",
    "sft_step": f"SFTConfig.batch_size and sequence_length, lower; {TRAINING}",
    "reward_model_step": f"RewardModelConfig.batch_size and max_tokens, lower; {TRAINING}",
    "reward_model_metrics": "RewardModelConfig.batch_size and max_tokens, lower",
    "reward_scores": "RewardModelConfig.max_tokens, lower",
    "add_logprobs": f"RLConfig.microbatch_rows and row_tokens, lower; {OFFLOAD}; {TRAINING}",
    "rl_gradients": f"RLConfig.microbatch_rows and row_tokens, lower; {OFFLOAD}; {TRAINING}",
    "make_slots": DECODING,
    "insert": DECODING,
    "decode": f"{DECODING}; EngineConfig.weight_dtype = 'int8'",
    "append": f"EngineConfig.append_rows and append_chunk, lower; {DECODING}; EngineConfig.weight_dtype = 'int8'",
    "prefill": f"{PREFILL}; SamplingConfig.max_prompt_tokens, lower",
    "copy_weights": "EngineConfig.weight_dtype = 'int8'",
}


def print_parameters(model: ModelConfig) -> None:
    """The number of parameters of each part of the model."""
    counts = count_params(model)
    mtp = counts.pop("mtp", 0) + counts.pop("router_bias.mtp", 0)
    table = make_table("parameters", "number")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    table.add_row("all", f"{sum(counts.values()):,}", style="bold")
    table.add_row("active per token", f"{count_active_params(model):,}")
    table.add_row("multi-token prediction, in addition", f"{mtp:,}")
    print_lines(table)


def print_memory(config: Any, layout: Layout) -> list[str]:
    """What each stage holds on each device, and whether the device has it; `stage_memory` says what is not counted.

    Returns the stages that do not fit.
    """
    configs = stages(config)
    held = {name: stage_memory(layout, config.model, stage) for name, stage in configs.items()}
    parts = list(dict.fromkeys(part for sizes in held.values() for part in sizes))
    available = device_memory(layout)
    misfits = []
    table = make_table("GiB on each device", *parts, "peak", f"of {available / GIB:,.1f}")
    for name, sizes in held.items():
        numbers = (f"{sizes[part] / GIB:,.3f}" if part in sizes else "" for part in parts)
        peak = sum(at_once(sizes).values())
        misfits += [name] if peak > available else []
        table.add_row(name, *numbers, f"{peak / GIB:,.3f}", "fits" if peak <= available else "does not fit")
    rewards = {name: held[name]["weights"] for name, stage in configs.items() if isinstance(stage, RewardModelConfig)}
    notes = [f"RL stages with {name} as a reward also hold its weights: {x / GIB:,.3f}" for name, x in rewards.items()]
    print_lines(table, *notes, "activations of training steps are not included")
    return misfits


def print_programs(lowered: list[Lowering]) -> None:
    """The programs of each stage, the size of their arguments, and how long they took to lower."""
    table = make_table("stage", "program", "arguments on each device", "seconds to lower", text=(0, 1))
    for stage, one in by_stage(lowered):
        cost = f"{one.seconds:.2f}" if one.shared_with is None else f"as in {one.shared_with}"
        table.add_row(stage, one.program, format_bytes(one.argument_bytes), cost)
    own = [one.seconds for one in lowered if one.shared_with is None]
    print_lines(
        table,
        f"{len(own)} programs lowered in {sum(own):.0f} s; {len(lowered) - len(own)} more are the same as these",
        "of a program that is compiled for several sizes of prompts and caches, this is the largest",
    )


def print_fit(programs: list[CompiledProgram], layout: Layout, topology: str) -> None:
    """The memory of each program by the compiler, and what its stage holds on the device meanwhile."""
    columns = ("resident", "arguments", "results", "temporaries", "code", "all")
    table = make_table("stage", "program", *columns, f"of {format_bytes(chip_in(layout).hbm)}", text=(0, 1))
    for stage, one in by_stage(programs):
        sizes = astuple(one.compilation.memory) if one.compilation.memory else ()
        cells = [format_bytes(size) for size in (sum(one.resident.values()), *sizes)] + [""] * (4 - len(sizes))
        needed = "" if one.needed is None else format_bytes(one.needed)
        table.add_row(stage, one.program.name, *cells, needed, verdict(one, layout))
    mesh = " x ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items() if size > 1) or "one device"
    print_lines(
        f"memory on each of {layout.mesh.devices.size} devices of {topology}, mesh {mesh}",
        table,
        "resident: what the stage holds on each device, besides the program's buffers, while the program runs",
    )


def print_costs(programs: list[CompiledProgram], model: ModelConfig, layout: Layout) -> None:
    """What one run of each program does on each device, and lower bounds of its time."""
    columns = ("TFLOP", "model FLOPs x", "compute", "memory", "network", "compiler", "bound by", "collective bytes in")
    table = make_table("stage", "program", *columns, text=(0, 1, 9))
    all_costs = []
    for stage, one in by_stage([p for p in programs if p.shared_with is None and p.compilation.costs]):
        costs = one.compilation.costs
        all_costs.append(costs)
        times = least_times(costs, chip_in(layout))
        flops = model_flops(model, one.program.work) / layout.mesh.devices.size if one.program.work else 0
        at_least = "≥ " if costs.kernels else ""  # kernels that report no FLOPs
        cells = [f"{at_least}{costs.flops / 1e12:,.3f}", f"{at_least}{costs.flops / flops:.2f}" if flops else ""]
        cells += [f"{1000 * s:,.3f}" if s < 0.1 else f"{1000 * s:,.0f}" for s in astuple(times)]
        table.add_row(stage, one.program.name, *cells, times.bound, collectives(costs))
    notes = [
        "TFLOP: compiled matrix products, over as many rows as a device has on average. model FLOPs: 2 x active"
        " parameters x tokens forward, 6 x in training, and attention over full rows. compute, memory, network: lower"
        " bounds at full speed. compiler: its estimate, without collectives and kernels"
    ]
    if silent := sum(costs.kernels for costs in all_costs):
        notes.append(f"≥: {silent} kernels report no FLOPs, and are not counted")
    if loops := sum(costs.unknown_loops for costs in all_costs):
        notes.append(f"{loops} loops run as often as their data requires, and are counted once")
    print_lines("one run of each program on each device, milliseconds", table, *notes)


def print_buffers(one: CompiledProgram, layout: Layout) -> None:
    """The largest buffers of a program that does not fit, and what to set."""
    table = make_table("largest buffers", "number", "shape", "kind", "origin of the first", text=(0, 2, 3, 4))
    for (size, shape, kind), group in groupby(one.compilation.buffers, key=lambda b: (b.size, b.shape, b.kind)):
        origins = [buffer.origin for buffer in group]
        table.add_row(format_bytes(size), str(len(origins)), shape, kind, origins[0])
    console = make_console()
    resident = ", ".join(f"{part} {format_bytes(size)}" for part, size in one.resident.items())
    reason = one.compilation.refusal or f"it needs {format_bytes(one.needed or 0)}, with what is resident: {resident}"
    console.print(f"{one.stage}'s {one.program.name} {verdict(one, layout)}: {reason}", markup=False)
    if verdict(one, layout) == "does not compile":
        return
    console.print(table)
    settings = SETTINGS.get(one.program.name, TRAINING)
    axes = "MeshConfig.fsdp, expert, context, tensor"
    console.print(f"set: {axes} or another topology, to divide it further; {settings}", markup=False)


def by_stage(programs: list) -> list[tuple[str, Any]]:
    """(cell of the column "stage", program): the name of a stage stands in its first row only."""
    stages_before = [None, *(one.stage for one in programs)]
    return [("" if one.stage == last else one.stage, one) for last, one in zip(stages_before, programs, strict=False)]


def collectives(costs: Costs) -> str:
    """Each kind of collective, the most bytes first: how often it runs, and how many bytes each device receives."""
    kinds = costs.collectives | {f"{kind} between slices": one for kind, one in costs.between_slices.items()}
    ordered = sorted(kinds.items(), key=lambda item: -item[1].bytes_in)
    return ", ".join(f"{one.count:,.0f} {kind} {format_bytes(one.bytes_in)}" for kind, one in ordered)


def format_bytes(size: float) -> str:
    """Bytes in a unit that leaves few digits."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def make_table(*columns: str, text: Sequence[int] = (0,)) -> Table:
    """A table with text in the columns `text` and numbers in the others. A narrow terminal folds cells."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in text else "right", overflow="fold")
    return table


def print_lines(*lines: str | Table) -> None:
    make_console().print(*lines, sep="\n")


def make_console() -> Console:
    """A console that is at least 200 columns wide where the output is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 200)
    return console
