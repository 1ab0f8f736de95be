"""Reads a run's directory for the report, finished or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from etils import epath

from r1jax.errors import UsageError
from r1jax.paths import read_json
from r1jax.report.embedded import short
from r1jax.runs import lineage
from r1jax.runs.code import last_sources
from r1jax.runs.lineage import StageRecord


@dataclass(frozen=True)
class RunRecord:
    """A run as the files of its directory show it."""

    workdir: epath.Path
    about: Mapping[str, Any]  # run.json
    stages: Sequence[StageRecord]
    unreadable: Mapping[str, str]  # stages with a damaged file: name -> reason

    @cached_property
    def code(self) -> Mapping[str, Mapping[str, str]]:
        """The sources that each stage was made with, by name, and among them its prompt (runs/code.py)."""
        return {stage.name: last_sources(self.workdir, self.workdir / stage.name) for stage in self.stages}

    @property
    def evaluations(self) -> dict[str, StageRecord]:
        """The complete ones, by name."""
        return {stage.name: stage for stage in self.stages if stage.kind == "evaluate" and stage.result}

    @property
    def made(self) -> list[StageRecord]:
        """The stages that are no evaluations."""
        return [stage for stage in self.stages if stage.kind != "evaluate"]

    @property
    def session(self) -> Mapping[str, Any]:
        """The latest process that worked on the run."""
        sessions = self.about.get("sessions") or [{}]
        return sessions[-1]


def read_run(workdir: epath.Path) -> RunRecord:
    """Raises UsageError where the directory holds no run, or one of another format."""
    if not (workdir / "run.json").exists():
        raise UsageError(f"{workdir} holds no run: expected the --workdir of `r1jax run`")
    about = read_json(workdir / "run.json")
    lineage.require_current_format(about, workdir)
    unreadable: dict[str, str] = {}
    stages = lineage.read_stages(workdir, unreadable)
    return RunRecord(workdir, about, stages, unreadable)


def figures_of(run: RunRecord, label: str) -> list[dict[str, Any]]:
    """A run's evaluations, as the page's script reads them."""
    found = {name: stage.result or {} for name, stage in run.evaluations.items()}
    return [
        {"run": label, "evaluation": name, "figures": {key: short(value) for key, value in figures.items()}}
        for name, figures in found.items()
    ]
