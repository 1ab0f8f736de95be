"""Compiles every program of every stage for a TPU topology, and holds its memory against the chip's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from r1jax.config import ModelConfig, RLConfig
from r1jax.dry_run.aot import Compilation, compile_and_cache, fingerprint, read_cached
from r1jax.dry_run.hlo import Costs
from r1jax.dry_run.lowering import lower_program
from r1jax.dry_run.stage_programs import Program, stage_programs
from r1jax.errors import UsageError
from r1jax.parallel.chips import Chip, chip_of
from r1jax.parallel.layout import Layout
from r1jax.parallel.memory import resident_memory, stage_memory
from r1jax.runs.checks import stages
from r1jax.telemetry.flops import model_flops
from r1jax.types import Environments

CACHE = Path(".cache", "r1jax", "topology")  # below the home directory


@dataclass(frozen=True)
class CompiledProgram:
    """A program of a stage, and the result of its compilation."""

    stage: str
    program: Program
    compilation: Compilation
    resident: dict[str, int]  # bytes on each device that the stage holds besides the program's own buffers
    is_new: bool  # False: the result was cached
    shared_with: str | None  # the earlier stage with the same program

    @property
    def needed(self) -> int | None:
        """Bytes on each device; None where the compiler refused before it assigned buffers."""
        memory = self.compilation.memory
        return None if memory is None else memory.all + sum(self.resident.values())


@dataclass(frozen=True)
class Times:
    """Lower bounds in seconds of one run of a program: what each part of a device takes, alone, at full speed."""

    compute: float  # FLOPs by the peak in bfloat16
    memory: float  # HBM traffic by the bandwidth of HBM
    network: float  # collective bytes in, by the bandwidth of all links; between slices by the data center's network
    compiler: float  # the compiler's estimate of the operations in sequence, without collectives and kernels

    @property
    def bound(self) -> str:
        """The longest of compute, memory and network. They can overlap, so that their sum is no lower bound."""
        return max(("compute", "memory", "network"), key=lambda part: getattr(self, part))


def least_times(costs: Costs, chip: Chip) -> Times:
    bytes_in = sum(c.bytes_in for c in costs.collectives.values())
    between = sum(c.bytes_in for c in costs.between_slices.values())
    network = bytes_in / chip.ici + between / chip.dcn
    return Times(costs.flops / chip.flops, costs.hbm_bytes / chip.hbm_bandwidth, network, costs.cycles / chip.clock)


def compile_stages(
    config: Any, layout: Layout, names: Sequence[str], console: Console, environments: Environments | None = None
) -> list[CompiledProgram]:
    """Compiles every program of every stage, or those named; a program that several stages share only once."""
    configs = stages(config)
    made = {stage: stage_programs(layout, config.model, one, environments) for stage, one in configs.items()}
    programs = [(stage, program) for stage in made for program in made[stage]]
    known = {program.name for _, program in programs}
    if unknown := set(names) - known:
        raise UsageError(f"--programs names '{min(unknown)}', expected one of {', '.join(sorted(known))}")
    wanted = [(stage, program) for stage, program in programs if not names or program.name in names]
    held = {stage: stage_memory(layout, config.model, one) for stage, one in configs.items()}
    found: list[CompiledProgram] = []
    first: dict[Any, CompiledProgram] = {}
    columns = (SpinnerColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=len(wanted))
        for stage, program in wanted:
            progress.reset(task, total=len(wanted), completed=len(found), description=f"{stage}: {program.name}")
            one = configs[stage]
            accumulates = isinstance(one, RLConfig) and one.accumulates
            resident = resident_memory(held[stage], program.name, accumulates=accumulates)
            if same := first.get(program.key):
                found.append(CompiledProgram(stage, program, same.compilation, resident, same.is_new, same.stage))
            else:
                result, is_new = compile_one(stage, program, layout, console, f"{len(found) + 1}/{len(wanted)}")
                found.append(CompiledProgram(stage, program, result, resident, is_new, None))
                first[program.key] = found[-1]
    new = [one.compilation.seconds for one in first.values() if one.is_new]
    console.print(
        f"{len(first)} programs: {len(new)} compiled in {sum(new):.0f} s, {len(first) - len(new)} cached in"
        f" {Path.home() / CACHE}; {len(found) - len(first)} more are the same as these"
    )
    return found


def compile_one(stage: str, program: Program, layout: Layout, console: Console, nth: str) -> tuple[Compilation, bool]:
    """(result, whether it was compiled now, not cached). Raises UsageError for a program that can't be lowered."""
    try:
        lowered = lower_program(program)
    except UsageError as error:
        raise UsageError(f"{stage}: {error}") from error
    path = Path.home() / CACHE / f"{fingerprint(lowered, list(layout.mesh.devices.ravel()))}.json"
    if cached := read_cached(path):
        return cached, False
    if not console.is_terminal:
        console.print(f"{nth} {stage}: compiling {program.name}")
    return compile_and_cache(lowered, path), True


def verdict(one: CompiledProgram, layout: Layout) -> str:
    """ "fits", "does not fit" or "does not compile", by the program's memory and what its stage holds besides."""
    refusal = one.compilation.refusal
    if refusal and not refusal.startswith("RESOURCE_EXHAUSTED"):
        return "does not compile"
    return "fits" if not refusal and one.needed and one.needed <= chip_in(layout).hbm else "does not fit"


def figures(one: CompiledProgram, model: ModelConfig, layout: Layout) -> dict[str, Any]:
    """What the tables print of a program, for JSON: bytes, FLOPs and seconds of one run on each device."""
    memory, costs = one.compilation.memory, one.compilation.costs
    found: dict[str, Any] = {"stage": one.stage, "program": one.program.name, "shared_with": one.shared_with}
    found |= {"verdict": verdict(one, layout), "hbm": chip_in(layout).hbm, "all": one.needed}
    found |= {"memory": asdict(memory) if memory else None, "resident": one.resident}
    if costs:
        found |= {"least_times": asdict(least_times(costs, chip_in(layout))), **asdict(costs)}
    if one.program.work:
        found["model_flops"] = model_flops(model, one.program.work) / layout.mesh.size
    return found


def chip_in(layout: Layout) -> Chip:
    chip = chip_of(layout.mesh.devices.ravel()[0])
    assert chip  # topologies are of known chips only
    return chip
