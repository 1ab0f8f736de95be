"""Lowers every program of every stage to StableHLO."""

import time
from dataclasses import dataclass
from typing import Any

from r1jax.dry_run.stage_programs import Program, stage_programs
from r1jax.errors import UsageError
from r1jax.parallel.layout import Layout
from r1jax.runs.checks import stages
from r1jax.telemetry.progress import Progress
from r1jax.types import Environments


@dataclass(frozen=True)
class Lowering:
    """A lowered program of a stage."""

    stage: str
    program: str
    argument_bytes: int  # on each device
    seconds: float  # 0 where an earlier stage has the same program
    shared_with: str | None  # that stage


def lower_stages(
    config: Any, layout: Layout, progress: Progress, environments: Environments | None = None
) -> list[Lowering]:
    """Lowers every program of every stage, a program that several stages share only once. Results are not kept.

    `environments` are those of the experiment's task.

    Raises UsageError for a program that can't be lowered.
    """
    lowered: list[Lowering] = []
    first: dict[Any, str] = {}  # the first stage with a program, by the program's key
    configs = stages(config)
    with progress.start("lowering", 0, len(configs)):
        for number, (stage, stage_config) in enumerate(configs.items()):
            try:
                for program in stage_programs(layout, config.model, stage_config, environments):
                    shared_with, start = first.get(program.key), time.perf_counter()
                    if shared_with is None:
                        lower_program(program)
                        first[program.key] = stage
                    seconds = time.perf_counter() - start if shared_with is None else 0.0
                    lowered.append(Lowering(stage, program.name, program.argument_bytes, seconds, shared_with))
            except UsageError as error:
                kind = type(stage_config).__name__
                raise UsageError(f"{stage}: {error}. Set ModelConfig, MeshConfig or {stage}/{kind}") from error
            progress.step(number + 1, {"programs": len(first)})
    return lowered


def lower_program(program: Program) -> Any:
    """The program's `jax.stages.Lowered`. Raises UsageError for a program that can't be lowered."""
    try:
        return program.traced.lower()
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UsageError(f"'{program.name}' can't be lowered: {reason}") from error
