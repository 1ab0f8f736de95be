"""What a run would ask of this machine, or of a larger one, without a weight: `r1jax run EXPERIMENT --dry_run`."""

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from r1jax.config import ModelConfig, RewardModelConfig
from r1jax.dry_run.stage_programs import Program, stage_programs
from r1jax.errors import UsageError
from r1jax.model.spec import count_active_params, count_params
from r1jax.parallel.layout import Layout, make_layout
from r1jax.parallel.memory import GIB, at_once, device_memory, stage_memory
from r1jax.runs.run import check_stages, stages
from r1jax.telemetry.progress import Progress


@dataclass(frozen=True)
class Lowering:
    """A program of a stage, that was traced to StableHLO."""

    stage: str
    program: str
    argument_bytes: int  # on each device
    seconds: float  # 0 where another stage had it lowered
    shared_with: str | None  # that stage


def dry_run(config: Any) -> None:
    """Parameters, memory and programs of an experiment's config. Raises UsageError for a stage that can't be."""
    print_parameters(config.model)
    layout = make_layout(config.mesh)
    check_stages(layout, config, memory=False)
    print_memory(config, layout)
    print_programs(lower_stages(config, layout, Progress()))


def lower_stages(config: Any, layout: Layout, progress: Progress) -> list[Lowering]:
    """Every program of every stage; what several stages share is lowered once, and none is kept.

    Raises UsageError for a program that can't be lowered.
    """
    lowered: list[Lowering] = []
    first: dict[Any, str] = {}  # the stage that had a program lowered
    wanted = stages(config)
    with progress.start("lowering", 0, len(wanted)):
        for number, (stage, stage_config) in enumerate(wanted.items()):
            try:
                lowered += [lower(stage, p, first) for p in stage_programs(layout, config.model, stage_config)]
            except UsageError as error:
                kind = type(stage_config).__name__
                raise UsageError(f"{stage}: {error}. Set ModelConfig, MeshConfig or {stage}/{kind}") from error
            progress.step(number + 1, {"programs": len(first)})
    return lowered


def lower(stage: str, program: Program, first: dict[Any, str]) -> Lowering:
    """Lowers a program that no stage before had."""
    shared_with, start = first.get(program.key), time.perf_counter()
    if shared_with is None:
        lower_one(program)
        first[program.key] = stage
    seconds = time.perf_counter() - start if shared_with is None else 0.0
    return Lowering(stage, program.name, program.argument_bytes, seconds, shared_with)


def lower_one(program: Program) -> Any:
    """A `jax.stages.Lowered`. Raises UsageError for a program that can't be lowered."""
    try:
        return program.lower()
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UsageError(f"'{program.name}' can't be lowered: {reason}") from error


def print_parameters(model: ModelConfig) -> None:
    """The parameters, by part."""
    counts = count_params(model)
    mtp = counts.pop("mtp", 0) + counts.pop("router_bias.mtp", 0)
    table = make_table("parameters", "number")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    table.add_row("all", f"{sum(counts.values()):,}", style="bold")
    table.add_row("active for a token", f"{count_active_params(model):,}")
    table.add_row("multi-token prediction, besides", f"{mtp:,}")
    make_console().print(table)


def print_memory(config: Any, layout: Layout) -> None:
    """What each stage holds on each device, and whether the device has it; `stage_memory` says what is not counted."""
    wanted = stages(config)
    needs = {name: stage_memory(layout, config.model, stage) for name, stage in wanted.items()}
    parts = list(dict.fromkeys(part for held in needs.values() for part in held))
    there = device_memory(layout)
    table = make_table("GiB on each device", *parts, "at once", f"in {there / GIB:,.1f}")
    for name, held in needs.items():
        numbers = (f"{held[part] / GIB:,.3f}" if part in held else "" for part in parts)
        needed = sum(at_once(held).values())
        table.add_row(name, *numbers, f"{needed / GIB:,.3f}", "fits" if needed <= there else "does not fit")
    console = make_console()
    console.print(table)
    for name in (name for name, stage in wanted.items() if isinstance(stage, RewardModelConfig)):
        weights = needs[name]["weights"] / GIB
        console.print(f"an RL stage that asks {name} for rewards holds its weights too: {weights:,.3f}")
    console.print("what training steps compute comes on top")


def print_programs(lowered: list[Lowering]) -> None:
    """The programs by stage, with what they are given and how long they took to lower."""
    table = make_table("stage", "program", "arguments on each device", "seconds to lower")
    table.columns[1].justify = "left"
    for number, one in enumerate(lowered):
        is_new = number == 0 or lowered[number - 1].stage != one.stage
        cost = f"{one.seconds:.2f}" if one.shared_with is None else f"as in {one.shared_with}"
        table.add_row(one.stage if is_new else "", one.program, readable(one.argument_bytes), cost)
    console = make_console()
    console.print(table)
    own = [one.seconds for one in lowered if one.shared_with is None]
    console.print(
        f"{len(own)} programs lowered in {sum(own):.0f} s; {len(lowered) - len(own)} more are the same as these"
    )
    console.print("where a program is there in several sizes, of prompts and caches, this is the largest")


def readable(size: float) -> str:
    """Bytes in a unit that leaves few digits."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def make_table(*columns: str) -> Table:
    """With numbers behind the first column; a narrow terminal folds them, and cuts no digit off."""
    table = Table(*columns)
    for number, column in enumerate(table.columns):
        column.justify, column.overflow = "right" if number else "left", "fold"
    return table


def make_console() -> Console:
    """A file or a pipe has no width to keep to."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 200)
    return console
