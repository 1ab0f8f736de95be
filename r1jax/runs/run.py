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
import math
import platform
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TextIO

import jax
from etils import epath

from r1jax.config import (
    FinishedRunConfig,
    ModelConfig,
    PretrainConfig,
    RewardModelConfig,
    RLConfig,
    RolloutStageConfig,
    SFTConfig,
    StageConfig,
)
from r1jax.data.tasks import Task
from r1jax.errors import RunError, UsageError
from r1jax.parallel import hosts
from r1jax.parallel.layout import Layout
from r1jax.parallel.memory import at_once, require_memory, stage_memory
from r1jax.parallel.programs import on_platform
from r1jax.paths import PACKAGE, absolute, in_bucket, project
from r1jax.rollout.engine import require_possible
from r1jax.runs.code import PROMPT, record_code, sources_of
from r1jax.runs.extension import effect_on_learning_rate, extended_from, with_steps
from r1jax.runs.lineage import FORMAT, MARK, content_hash, read_mark, require_current_format, sha256, stage_directories
from r1jax.sampling.draw import position_key
from r1jax.telemetry.files import read_json, write_atomically
from r1jax.telemetry.progress import Progress

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
            self.check_code(code)
            if steps is not None:
                self.extend(configs["rl"], steps, text)
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.check_code(code)
            write_atomically(path, text)
        if not (self.directory / MARK).exists():
            sessions = read_json(self.sessions_path) if self.sessions_path.exists() else []
            write_atomically(self.sessions_path, json.dumps([*sessions, self.run.session | {"began": now()}], indent=1))

    def check_code(self, code: Sequence[Any]) -> None:
        """Records the code that the stage is made with. Raises UsageError when it was made with other code."""
        sources = dict(self.run.sources)
        for value in code:
            sources |= sources_of(value)
        if code and self.run.task:
            sources[PROMPT] = self.run.task.prompt("{question}")
        changed = "; ".join(record_code(self.run.workdir, self.directory, sources, self.run.accept_code))
        if changed and not self.run.accept_code:
            raise UsageError(
                f"{self.directory} was made with other code: {changed}. Sources are in {self.run.workdir / 'code'}."
                f" Set --accept_code to go on with the new code and keep what was made, another --workdir, or --from"
                f" {self.name} to rerun the stage and everything downstream"
            )
        if changed:
            self.run.progress.say(f"{self.name}: accepted other code than before: {changed}")

    def extend(self, config: RLConfig, then: int, text: str) -> None:
        """Makes a stage of RL, complete or not, one of more steps. Stages downstream are archived, to be rerun."""
        moved = archive(self.run.workdir, self.name, stays=True)
        (self.directory / MARK).unlink(missing_ok=True)  # before the config, which says no more than what is there
        write_atomically(self.directory / "config.json", text)
        rerun = f"; archived, to be rerun: {', '.join(moved)}" if moved else ""
        effect = effect_on_learning_rate(config, then)
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
    directory = absolute(workdir)

    arguments = (directory, experiment, config.run.seed, progress, rerun_from)
    this_session = hosts.broadcast_from_main("the run's directory", lambda: open_directory(*arguments))
    if not (directory / "run.json").exists():  # written by process 0
        raise RunError(f"process {jax.process_index()} does not see {directory}: set a --workdir that all hosts share")
    run = Run(directory, config.run.seed, layout, progress, config.model, session=this_session)
    return dataclasses.replace(run, sources=experiment.sources, accept_code=accept_code)


def open_directory(
    directory: epath.Path, experiment: Experiment, seed: int, progress: Progress, rerun_from: str | None
) -> dict[str, Any]:
    """The file access of `open_run`, on process 0: adds this session's record to `run.json` and returns it."""
    path = directory / "run.json"
    described = {"experiment": experiment.name, "summary": experiment.summary, "note": experiment.note}
    record: dict[str, Any] = {"format": FORMAT, **described, "sessions": []}
    try:
        if path.exists():
            record = read_json(path)
            require_current_format(record, directory)
            if record["experiment"] != experiment.name:
                raise UsageError(
                    f"{directory} holds a run of experiment '{record['experiment']}', not of '{experiment.name}':"
                    " set another --workdir"
                )
        elif directory.exists() and any(child.name != ".lock" for child in directory.iterdir()):
            raise UsageError(f"{directory} is not empty and holds no run: set another --workdir")
        if rerun_from is not None:
            downstream(directory, rerun_from)  # raises before anything is written
        directory.mkdir(parents=True, exist_ok=True)
        lock(directory)
        record["sessions"].append(session(seed))
        write_atomically(path, json.dumps(record, indent=1))
        if rerun_from is not None:
            progress.say(f"rerun: {', '.join(archive(directory, rerun_from))}")
    except OSError as error:
        raise RunError(f"can't write to {directory}: {error}") from error
    return record["sessions"][-1]


LOCKS: dict[str, TextIO] = {}  # by directory; held until this process ends, however it ends


def lock(directory: epath.Path) -> None:
    """Takes the directory for this process. Raises UsageError while another one is at work in it.

    A directory in a bucket can't be locked, nor one on Windows.
    """
    if in_bucket(directory) or str(directory) in LOCKS:
        return
    try:
        import fcntl
    except ImportError:  # Windows
        return
    file = open(directory / ".lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another process is at work in {directory}: wait for it, or set another --workdir") from error
    LOCKS[str(directory)] = file


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def session(seed: int) -> dict:
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
        "command": " ".join(["python -m r1jax", *sys.argv[1:]]),
        "git": git or "not a git checkout",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in recorded},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "seed": seed,
    }


def row_length(config: Any) -> tuple[str, int] | None:
    """The field of a stage's config that says how long its rows are, and their length."""
    if isinstance(config, PretrainConfig | SFTConfig):
        return f"{type(config).__name__}.sequence_length", config.sequence_length
    if isinstance(config, RewardModelConfig):
        return "RewardModelConfig.max_tokens", config.max_tokens
    if isinstance(config, RLConfig):
        return "RLConfig.row_tokens", max(config.row_tokens or 0, config.sampling.max_tokens)
    return None


def check_sizes(layout: Layout, model: ModelConfig | None, *configs: Any) -> None:
    """Raises UsageError for a batch or row that does not divide over the mesh, or a sequence too long for the model."""
    for config in configs:
        if isinstance(config, PretrainConfig | SFTConfig):
            layout.require_batch(f"{type(config).__name__}.batch_size", config.batch_size)
        if row := row_length(config):
            layout.require_row(*row)
            most = model.max_position_embeddings if model else math.inf
            if row[1] > most and not isinstance(config, RLConfig):  # a row of RL holds several samples
                raise UsageError(f"{row[0]} is {row[1]}, expected at most ModelConfig.max_position_embeddings ({most})")


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


# Fields that change only the speed and memory of a step: rollouts give the same tokens, and updates differ by rounding
# at most. A stage that ran out of memory may be resumed with other values.
MUTABLE_ENGINE_FIELDS = (
    "slots", "steps_per_round", "prefill_rows", "prefill_chunk", "append_rows", "append_chunk", "environment_threads",
    "environment_seconds", "speculative", "mesh",
)  # fmt: skip
MUTABLE_UPDATE_FIELDS = ("row_tokens", "microbatch_rows", "offload")
MUTABLE_MODEL_FIELDS = ("remat",)


def drop_mutable_fields(stage_config: dict) -> dict:
    """A stage's `config.json` without the fields that may change between sessions and without its inputs' paths."""

    def drop(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = {name: v for name, v in value.items() if name not in MUTABLE_MODEL_FIELDS}
        if "engine" not in value:
            return value
        engine = {name: v for name, v in value["engine"].items() if name not in MUTABLE_ENGINE_FIELDS}
        return {name: v for name, v in value.items() if name not in MUTABLE_UPDATE_FIELDS} | {"engine": engine}

    inputs = {name: {"content": entry["content"]} for name, entry in stage_config.get("inputs", {}).items()}
    return {key: drop(value) for key, value in stage_config.items()} | {"inputs": inputs}


def check_stages(layout: Layout, config: Any, *, memory: bool = True) -> None:
    """Raises UsageError when a stage of an experiment does not fit the mesh, the model or the devices' memory."""
    for name, stage in stages(config).items():
        try:
            check_sizes(layout, config.model, stage)
            shares = isinstance(stage, RLConfig) and stage.share_prompts and layout.devices(layout.rules.tokens) > 1
            if shares and on_platform(layout, config.model).attention == "splash":
                raise UsageError(
                    "RLConfig.share_prompts is True and MeshConfig.context above 1: the attention of samples that share"
                    " a prompt takes place in rows of their own, which are not divided. Set RLConfig.share_prompts ="
                    " False, MeshConfig.context = 1, or ModelConfig.attention = 'chunked'"
                )
            if isinstance(stage, RolloutStageConfig):
                require_possible(config.model, stage.engine, stage.sampling)
            if memory:
                require_memory(layout, at_once(stage_memory(layout, config.model, stage)))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error


def stages(config: Any) -> dict[str, StageConfig]:
    """The configs of an experiment's stages that use the devices, by field name."""
    return {name: stage for name, stage in vars(config).items() if isinstance(stage, StageConfig)}


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, as `name: FOUND there, WANTED now`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [d for key in keys for d in differences(found.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))]
    return [] if found == wanted else [f"{path}: {found} there, {wanted} now"]
