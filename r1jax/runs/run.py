"""A run's directory and its stages: their configs, inputs, outputs and completion marks.

A stage's directory holds `config.json` (its numbers, and each input's path and content hash), `sessions.json` (one
record for each process that worked on it: command, git state, versions, times), its outputs and, when it is complete,
`complete.json` (its result and the content hash of its output). The hash of a stage's input is the hash of another
stage's output, so that the files of a run record its lineage (runs/lineage.py).
"""

import contextlib
import dataclasses
import itertools
import json
import platform
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import jax
from etils import epath

from r1jax.config import (
    FinishedRunConfig,
    ModelConfig,
    RLConfig,
)
from r1jax.data.chat_template import freeze_date
from r1jax.data.tasks import Task
from r1jax.errors import RunError, UsageError, cause_of
from r1jax.parallel import hosts
from r1jax.parallel.layout import Layout
from r1jax.paths import PACKAGE, absolute, project, read_json
from r1jax.runs.changes import differences, drop_mutable_fields, effect_of_more_steps, extended_from, with_steps
from r1jax.runs.checks import check_sizes, check_stages
from r1jax.runs.code import PROMPT, record_code, sources_of
from r1jax.runs.lineage import FORMAT, MARK, content_hash, read_mark, require_current_format, sha256, stage_directories
from r1jax.runs.workdir import keep, lock
from r1jax.sampling.draw import position_key
from r1jax.telemetry.files import write_atomically
from r1jax.telemetry.loggers import Logger, open_loggers, require_loggers
from r1jax.telemetry.profile import Profiler
from r1jax.telemetry.progress import Progress

DRAWING = ("rl", "evaluate", "rejection", "preferences")  # kinds of stages
ASKING = (*DRAWING, "sft", "reward_model")  # in the task's prompt
LIBRARY = "train"  # the experiment's name in runs of `r1jax.train`
VERSIONS_OF = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "seqio", "gin-config")


@dataclass(frozen=True)
class Experiment:
    """An experiment as `run.json` and the report describe it."""

    name: str
    summary: str = ""
    note: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)  # its code, by path (runs/code.py)


@dataclass(frozen=True)
class Run:
    """A run's directory, and what all its stages share.

    For one stage with another model or task, fork the run: `dataclasses.replace(run, model=..., task=...)`.
    """

    workdir: epath.Path
    seed: int
    layout: Layout
    progress: Progress
    model: ModelConfig
    task: Task | None = None  # set by the experiment, with `with_task`
    session: dict = field(default_factory=dict)  # this process's record, written to the stages that it works on
    sources: Mapping[str, str] = field(default_factory=dict)  # the experiment's code, by path
    accept_code: bool = False  # stages that were made with other code are resumed, or kept
    loggers: tuple[str, ...] = ()  # RunConfig's, and its project
    project: str = ""
    saved: Callable[[], None] = lambda: None  # called when a checkpoint is begun
    profiled: range = range(0)  # steps of each stage, of which the profiler writes a trace

    def relative(self, path: epath.Path) -> str:
        """`path` as a stage's config names it: relative inside the workdir, so that a run can be moved."""
        return str(path.relative_to(self.workdir) if path.is_relative_to(self.workdir) else path)

    def with_task(self, task: Task) -> "Run":
        return dataclasses.replace(self, task=task)

    def stage(self, name: str) -> "Stage":
        """The handle of the stage `name`; the stage function that receives it opens it."""
        return Stage(self, name)


@dataclass(frozen=True)
class Stage:
    """The handle of one stage, whose directory is `workdir/<name>/`. A stage function opens and completes it."""

    run: Run
    name: str

    def open(self, kind: str, inputs: Mapping[str, epath.Path], *, code: Sequence[Any] = (), **configs: Any) -> None:
        """Writes `config.json` and this session's record, or checks them against those of an earlier session.

        `code` are functions, and objects with methods, on which the stage's output depends (runs/code.py).

        Raises UsageError when the stage exists with another config, other inputs or other code, or when `configs` do
        not fit the mesh or the model. A stage of RL may have more steps than before.
        """
        check_sizes(self.run.layout, configs.get("model"), *configs.values())
        hosts.broadcast_from_main(f"{self.name}: its config", lambda: self.open_on_main(kind, inputs, code, configs))

    def open_on_main(
        self, kind: str, inputs: Mapping[str, epath.Path], code: Sequence[Any], configs: Mapping[str, Any]
    ) -> None:
        """The file access of `open`, on process 0."""
        found = {key: {"path": self.run.relative(path), "content": content_hash(path)} for key, path in inputs.items()}
        text = json.dumps({"kind": kind, **configs, "inputs": found}, indent=1, default=dataclasses.asdict)
        wanted = json.loads(text)  # tuples become lists, as in the file
        path = self.directory / "config.json"
        if path.exists():
            made_with = read_json(path)
            steps = extended_from(made_with, wanted)
            compared = wanted if steps is None else with_steps(wanted, steps)
            if changed := differences(drop_mutable_fields(made_with), drop_mutable_fields(compared)):
                raise UsageError(
                    f"{self.directory} was made with another config: {'; '.join(changed)}. Set the same numbers,"
                    f" another --workdir, or --from {self.name} to rerun the stage and everything downstream"
                )
            self.check_code(kind, code)
            if steps is not None:
                self.extend(configs["rl"], steps, text)
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
            self.check_code(kind, code)
        if not (self.directory / MARK).exists():
            sessions = read_json(self.sessions_path) if self.sessions_path.exists() else []
            write_atomically(self.sessions_path, json.dumps([*sessions, self.run.session | {"began": now()}], indent=1))

    def check_code(self, kind: str, code: Sequence[Any]) -> None:
        """Records the code that the stage is made with. Raises UsageError when it was made with other code."""
        sources, task = dict(self.run.sources), self.run.task
        environments = [task.environments.make] if task and task.environments and kind in DRAWING else []
        for value in (*code, *environments):
            sources |= sources_of(value)
        if task and kind in ASKING:
            sources[PROMPT] = str(task.prompt("{question}"))
        changed = "; ".join(record_code(self.run.workdir, self.directory, sources, self.run.accept_code))
        if changed and not self.run.accept_code:
            raise UsageError(
                f"{self.directory} was made with other code: {changed}. Sources are in {self.run.workdir / 'code'}."
                f" Set --accept_code to go on with the new code and keep what was made, another --workdir, or --from"
                f" {self.name} to rerun the stage and everything downstream (with --accept_code for stages before it)"
            )
        if changed:
            self.run.progress.say(f"{self.name}: accepted other code than before: {changed}")

    def extend(self, config: RLConfig, then: int, text: str) -> None:
        """Makes a stage of RL, complete or not, one of more steps. Stages downstream are archived, to be rerun."""
        steps = [int(child.name) for child in self.checkpoints.glob("*") if child.name.isdigit()]
        if (self.directory / MARK).exists() and then not in steps:
            raise UsageError(
                f"{self.directory} can't have more steps: there is no checkpoint of step {then}. It was removed, or RL"
                " stopped early"
            )
        moved = archive(self.run.workdir, self.name, stays=True)
        (self.directory / MARK).unlink(missing_ok=True)  # before the config, which says no more than what is there
        write_atomically(self.directory / "config.json", text)
        rerun = f"; archived, to be rerun: {', '.join(moved)}" if moved else ""
        effect = effect_of_more_steps(config, then)
        self.run.progress.say(f"{self.name}: extended from {then} to {config.steps} steps; {effect}{rerun}")

    @property
    def model(self) -> ModelConfig:
        return self.run.model

    @property
    def task(self) -> Task:
        """Raises UsageError when the experiment has set none."""
        if self.run.task is None:
            raise UsageError(f"{self.name}: Run.task is not set: call run.with_task(TASK) before the first stage")
        return self.run.task

    @property
    def directory(self) -> epath.Path:
        return self.run.workdir / self.name

    @property
    def sessions_path(self) -> epath.Path:
        return self.directory / "sessions.json"

    @property
    def checkpoints(self) -> epath.Path:
        return self.directory / "checkpoints"

    def result(self) -> dict | None:
        """The result given to `complete`, or None while the stage is not complete. All processes must call it."""
        result = hosts.broadcast_from_main(f"{self.name}: its result", lambda: read_mark(self.directory)[0])
        if result is not None:
            self.run.progress.say(f"{self.name}: complete, skipped")
        return result

    def complete(self, result: dict[str, Any], *, output: str | None = None) -> None:
        """Marks the stage as complete. `output` is the content hash of its output, by default of `result`."""
        hosts.broadcast_from_main(f"{self.name}: its end", lambda: self.mark(result, output))

    def mark(self, result: dict[str, Any], output: str | None) -> None:
        sessions = read_json(self.sessions_path)
        write_atomically(self.sessions_path, json.dumps([*sessions[:-1], sessions[-1] | {"ended": now()}], indent=1))
        content = output or sha256(json.dumps(result).encode())
        write_atomically(self.directory / MARK, json.dumps(result | {"content": content}, indent=1))

    def loggers(self, first_step: int = 0) -> list[Logger]:
        """Those of the run, on the main process, for the steps from `first_step` on."""
        names = self.run.loggers if hosts.is_main_process() else ()
        return open_loggers(names, self.run.project, self.directory, first_step)

    def profiler(self) -> Profiler:
        return Profiler(self.run.profiled, self.directory / "profile")

    @property
    def number(self) -> int:
        """The stage's part of a random key's position: a hash of its name."""
        return zlib.crc32(self.name.encode()) & 0x7FFFFFFF

    def key(self, *position: int):
        """A random key: a function of the run's seed, the stage's name and `position`."""
        return position_key(self.run.seed, self.number, *position)


def downstream(workdir: epath.Path, stage: str) -> list[str]:
    """`stage` and the stages that depend on its output, directly or not. Raises UsageError for an unknown stage."""
    inputs = {}
    for directory in stage_directories(workdir):
        entries = read_json(directory / "config.json")["inputs"].values()
        inputs[directory.name] = {entry["path"].split("/")[0] for entry in entries}
    if stage not in inputs:
        raise UsageError(f"--from {stage}: expected a stage of {workdir}: {', '.join(sorted(inputs)) or 'it has none'}")
    found = [stage]
    for name in found:  # `found` grows in the loop
        found += [other for other, of in inputs.items() if name in of and other not in found]
    return found


def archive(workdir: epath.Path, stage: str, *, stays: bool = False) -> list[str]:
    """Moves a stage and everything downstream to `workdir/archive/N/`, so that a run reruns them; returns their names.

    The stage itself is moved last: when this is interrupted, calling it again moves the rest. If it `stays`, only what
    is downstream is moved.
    """
    found = downstream(workdir, stage)[stays:]
    if not found:
        return []
    directories = (workdir / "archive" / str(number) for number in itertools.count(1))
    directory = next(path for path in directories if not path.exists())
    directory.mkdir(parents=True)
    for name in reversed(found):
        (workdir / name).rename(directory / name)
    return found


def open_run(
    workdir: str,
    experiment: Experiment,
    config: Any,
    layout: Layout,
    progress: Progress,
    *,
    rerun_from: str | None = None,
    accept_code: bool = False,
) -> Run:
    """Makes the directory `workdir`, or resumes the run in it.

    `rerun_from` names a stage to rerun with everything downstream; their old outputs are archived.
    With `accept_code` stages that were made with other code are kept, or resumed.

    Raises UsageError when the directory holds another experiment, or `config` does not fit the mesh or the devices'
    memory, and RunError when the directory can't be written.
    """
    check_stages(layout, config)
    require_loggers(config.run.loggers)
    directory = absolute(workdir)

    arguments = (directory, experiment, config.run.seed, progress, rerun_from)
    this_session, first = hosts.broadcast_from_main("the run's directory", lambda: open_directory(*arguments))
    if not (directory / "run.json").exists():  # written by process 0
        raise RunError(f"process {jax.process_index()} does not see {directory}: set a --workdir that all hosts share")
    freeze_date(first)
    run = Run(directory, config.run.seed, layout, progress, config.model, session=this_session)
    said = {"loggers": config.run.loggers, "project": config.run.project}
    return dataclasses.replace(run, sources=experiment.sources, accept_code=accept_code, **said)


def open_directory(
    directory: epath.Path, experiment: Experiment, seed: int, progress: Progress, rerun_from: str | None
) -> tuple[dict[str, Any], str]:
    """The file access of `open_run`, on process 0: adds this session's record to `run.json`.

    Returns it, and the time at which the run was first started.
    """
    path = directory / "run.json"
    described = {"experiment": experiment.name, "summary": experiment.summary, "note": experiment.note}
    record: dict[str, Any] = {"format": FORMAT, **described, "sessions": []}
    try:
        lock(directory)
        if path.exists():
            record = read_json(path)
            require_current_format(record, directory)
            if record["experiment"] != experiment.name:
                raise UsageError(
                    f"{directory} holds a run of experiment '{record['experiment']}', not of '{experiment.name}':"
                    " set another --workdir"
                )
        elif any(child.name != ".lock" and child.suffix != ".partial" for child in directory.iterdir()):
            raise UsageError(f"{directory} is not empty and holds no run: set another --workdir")
        if rerun_from is not None:
            moved = archive(directory, rerun_from)
            progress.say(f"rerun: {', '.join(moved)}")
            keep(directory)
        record["sessions"].append(session(seed, experiment.name))
        write_atomically(path, json.dumps(record, indent=1))
    except OSError as error:
        raise RunError(f"can't write to {directory}: {cause_of(error)}") from error
    return record["sessions"][-1], record["sessions"][0]["started"]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def session(seed: int, experiment: str) -> dict:
    """A record of this process from which the run can be repeated: command, git state, versions, devices, seed."""
    root = epath.Path(__file__).parent.parent.parent
    is_wheel = project() != PACKAGE.parent
    git = ""
    with contextlib.suppress(OSError):  # git is not installed
        command = ["git", "describe", "--always", "--dirty"]
        if not is_wheel:  # a git checkout around site-packages is another project's
            git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    copied = root / "GIT_STATE"  # tpu_scripts/ copies the code without its git directory, and writes this file
    git = git or (copied.read_text().strip() if copied.exists() else "")
    recorded = (*VERSIONS_OF, "r1jax") if is_wheel else VERSIONS_OF
    return {
        "started": now(),
        "command": shlex.join(["python", "-m", "r1jax", *sys.argv[1:]]) if experiment != LIBRARY else "r1jax.train(…)",
        "git": git or "not a git checkout",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in recorded},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "seed": seed,
    }


def write_index(stage: epath.Path, files: Mapping[str, int]) -> str:
    """Writes `index.json`, which lists a stage's files and their numbers of records; returns its content hash."""

    def write_on_main() -> str:
        shards = [{"file": f, "records": n, "content": content_hash(stage / f)} for f, n in files.items()]
        text = json.dumps({"shards": shards}, indent=1)
        write_atomically(stage / "index.json", text)
        return sha256(text.encode())

    return hosts.broadcast_from_main(f"{stage.name}: its index", write_on_main)


def finished_stage(config: FinishedRunConfig, name: str) -> epath.Path:
    """The directory of a stage of another run. Raises UsageError when it does not exist or is not complete."""
    stage = absolute(config.path) / name
    if not (stage / MARK).exists():
        raise UsageError(f"{stage} is not a complete stage: set FinishedRunConfig.path to a finished run's --workdir")
    return stage
