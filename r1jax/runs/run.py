"""A run's directory, and its stages: each with its config, inputs, metrics, outputs and completion mark.

A stage's directory holds `config.json` (its numbers, and each input's path and content), `sessions.json` (who worked on
it, and when: command, git state, versions), what it makes, and, when it is done, `complete.json` (its result, and the
content of its output). Contents make a chain: a stage's inputs are the contents of other stages' outputs
(runs/lineage.py reads it).
"""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from etils import epath

from r1jax.config import FinishedRunConfig, ModelConfig, StageConfig, WithRollouts
from r1jax.errors import RunError, UsageError
from r1jax.parallel import hosts
from r1jax.parallel.layout import Layout
from r1jax.parallel.memory import at_once, require_memory, stage_memory
from r1jax.parallel.programs import random_key
from r1jax.paths import absolute
from r1jax.rollout.engine import require_possible
from r1jax.runs.lineage import MARK, content, is_exported, sha256
from r1jax.telemetry.files import write_whole
from r1jax.telemetry.progress import Progress

VERSIONS_OF = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "seqio", "gin-config")


@dataclass(frozen=True)
class Run:
    workdir: epath.Path
    seed: int
    layout: Layout
    progress: Progress
    session: dict = field(default_factory=dict)  # what the stages that this process works on keep of it

    def relative(self, path: epath.Path) -> str:
        """How a stage's config names an input: within the workdir where it lies there, so that a run can be moved."""
        return str(path.relative_to(self.workdir) if path.is_relative_to(self.workdir) else path)

    def stage(self, name: str, kind: str, inputs: Mapping[str, epath.Path], **configs: Any) -> "Stage":
        """The stage's directory. Raises UsageError when it was made with other numbers, or of other inputs."""
        check_batches(self.layout, *configs.values())
        if "model" in configs:
            check_lengths(configs["model"], *configs.values())
        stage = Stage(self, name)
        hosts.broadcast_from_main(f"{name}: its config", lambda: self.take_up(stage, kind, inputs, configs))
        return stage

    def take_up(self, stage: "Stage", kind: str, inputs: Mapping[str, epath.Path], configs: Mapping[str, Any]) -> None:
        """Holds the stage's config against what is there, or writes it; and who works on it."""
        found = {key: {"path": self.relative(path), "content": content(path)} for key, path in inputs.items()}
        # Through JSON and back, so that it equals what a file holds: tuples become lists.
        plain = {"kind": kind} | {key: _plain(value) for key, value in configs.items()} | {"inputs": found}
        wanted = json.loads(json.dumps(plain))
        if stage.config_path.exists():
            changed = differences(without_costs(json.loads(stage.config_path.read_text())), without_costs(wanted))
            if changed:
                raise UsageError(
                    f"{stage.directory} was made with another config: {'; '.join(changed)}. Set the same numbers,"
                    f" another --workdir, or --from {stage.name}, which makes it and what hangs on it again"
                )
        else:
            stage.directory.mkdir(parents=True, exist_ok=True)
            write_whole(stage.config_path, json.dumps(wanted, indent=1))
        if stage.read_result() is None:
            sessions = json.loads(stage.sessions_path.read_text()) if stage.sessions_path.exists() else []
            write_whole(stage.sessions_path, json.dumps([*sessions, self.session | {"began": now()}], indent=1))


@dataclass(frozen=True)
class Stage:
    """One node: `workdir/<name>/`."""

    run: Run
    name: str

    @property
    def directory(self) -> epath.Path:
        return self.run.workdir / self.name

    @property
    def config_path(self) -> epath.Path:
        return self.directory / "config.json"

    @property
    def sessions_path(self) -> epath.Path:
        return self.directory / "sessions.json"

    @property
    def checkpoints(self) -> epath.Path:
        return self.directory / "checkpoints"

    def result(self) -> dict | None:
        """What the stage ended with; None while it is not complete. All processes ask together."""
        return hosts.broadcast_from_main(f"{self.name}: its result", self.read_result)

    def read_result(self) -> dict | None:
        path = self.directory / MARK
        if not path.exists():
            return None
        return {name: value for name, value in json.loads(path.read_text()).items() if name != "content"}

    def complete(self, result: dict[str, Any], *, output: str | None = None) -> None:
        """Marks the stage as done. `output` is what its output holds, as a hash; None: its result is all it gives."""
        hosts.broadcast_from_main(f"{self.name}: its end", lambda: self.mark(result, output))

    def mark(self, result: dict[str, Any], output: str | None) -> None:
        output = output or sha256(json.dumps(result).encode())
        sessions = json.loads(self.sessions_path.read_text())
        write_whole(self.sessions_path, json.dumps([*sessions[:-1], sessions[-1] | {"ended": now()}], indent=1))
        write_whole(self.directory / MARK, json.dumps(result | {"content": output}, indent=1))

    @property
    def number(self) -> int:
        """What stands for the stage in a random number's position."""
        return zlib.crc32(self.name.encode()) & 0x7FFFFFFF

    def key(self, *position: int):
        """A random key: a function of the run's seed, this stage and the position in it."""
        return random_key(self.run.seed, self.number, *position)


def downstream(workdir: epath.Path, stage: str) -> list[str]:
    """A stage of a run, and all that were made of its output, or of theirs. Raises UsageError when there is none."""
    inputs = {
        path.parent.name: {entry["path"].split("/")[0] for entry in json.loads(path.read_text())["inputs"].values()}
        for path in workdir.glob("*/config.json")
        if not is_exported(path.parent)
    }
    if stage not in inputs:
        raise UsageError(f"--from {stage}: {workdir} has no such stage, only {', '.join(sorted(inputs)) or 'none'}")
    found = [stage]
    for name in found:  # which grows
        found += [other for other, of in inputs.items() if name in of and other not in found]
    return found


def archive(workdir: epath.Path, stage: str) -> list[str]:
    """Moves a stage, and what hangs on it, to `workdir/replaced/N/`: a run then makes them again. Their names."""
    found, number = downstream(workdir, stage), 1
    while (workdir / "replaced" / str(number)).exists():
        number += 1
    aside = workdir / "replaced" / str(number)
    aside.mkdir(parents=True)
    for name in reversed(found):  # the first one last: who is interrupted here, and asks again, moves the others still
        (workdir / name).rename(aside / name)
    return found


def open_run(
    workdir: str,
    experiment: str,
    config: Any,
    layout: Layout,
    progress: Progress,
    *,
    summary: str,
    note: str,
    rerun_from: str | None = None,
) -> Run:
    """Makes the directory, or takes up the run in it. `summary` and `note` are for the report.

    `rerun_from` is a stage that is made again, with all that hang on it; what there was of them is set aside.

    Raises UsageError when it holds another experiment or the mesh can't divide a batch, RunError when it can't be
    written.
    """
    check_stages(layout, config)
    directory = absolute(workdir)

    def take_up() -> dict[str, Any]:
        return take_up_run(directory, experiment, config.run.seed, progress, summary, note, rerun_from)

    this_session = hosts.broadcast_from_main("the run's directory", take_up)
    if not (directory / "run.json").exists():  # process 0 has written it
        raise RunError(f"process {jax.process_index()} does not see {directory}: set a --workdir that all hosts share")
    return Run(directory, config.run.seed, layout, progress, this_session)


def take_up_run(
    directory: epath.Path,
    experiment: str,
    seed: int,
    progress: Progress,
    summary: str,
    note: str,
    rerun_from: str | None,
) -> dict[str, Any]:
    """This session's record, which is added to the run's; see `open_run`."""
    record = directory / "run.json"
    about: dict[str, Any] = {"experiment": experiment, "summary": summary, "note": note, "sessions": []}
    try:
        if record.exists():
            about = json.loads(record.read_text())
            if about["experiment"] != experiment:
                raise UsageError(
                    f"{directory} holds a run of '{about['experiment']}', not of '{experiment}': set another --workdir"
                )
        elif directory.exists() and any(directory.iterdir()):
            raise UsageError(f"{directory} is not empty and holds no run: set another --workdir")
        if rerun_from is not None:
            downstream(directory, rerun_from)  # or nothing is written
        directory.mkdir(parents=True, exist_ok=True)
        about["sessions"].append(session(seed))
        write_whole(record, json.dumps(about, indent=1))
        if rerun_from is not None:
            progress.say(f"made again: {', '.join(archive(directory, rerun_from))}")
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"can't write to {directory}: {error}") from error
    return about["sessions"][-1]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def session(seed: int) -> dict:
    """What a later reader needs to repeat this: command, code, versions, devices."""
    root = epath.Path(__file__).parent.parent.parent
    try:
        command = ["git", "describe", "--always", "--dirty"]
        git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git on this machine
        git = ""
    sent = root / "GIT_STATE"  # beside code that tpu_scripts/ sent
    git = git or (sent.read_text().strip() if sent.exists() else "")
    return {
        "started": now(),
        "command": " ".join(["python -m r1jax", *sys.argv[1:]]),
        "git": git or "not a git checkout",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in VERSIONS_OF},
        },
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "seed": seed,
    }


def check_batches(layout: Layout, *configs: Any) -> None:
    """Every config that says what is split over the mesh is held against it, before anything is written."""
    for config in configs:
        for name, size in config.batch_sizes().items() if hasattr(config, "batch_sizes") else ():
            layout.require_batch(name, size)
        for name, size in config.row_lengths().items() if hasattr(config, "row_lengths") else ():
            layout.require_row(name, size)


def shard(path: epath.Path, records: int) -> dict[str, Any]:
    """An ArrayRecord's line in an `index.json`."""
    return {"file": path.name, "records": records, "content": content(path)}


def write_index(stage: epath.Path, shards: Sequence[dict[str, Any]]) -> str:
    """What a stage's records are found by (data/feeds.py); returns what they hold, as a hash."""
    text = json.dumps({"shards": list(shards)}, indent=1)
    write_whole(stage / "index.json", text)
    return sha256(text.encode())


def finished_stage(config: FinishedRunConfig, name: str) -> epath.Path:
    """A stage of another run. Raises UsageError when it is not there, or not complete."""
    stage = absolute(config.path) / name
    if not (stage / MARK).exists():
        raise UsageError(f"{stage} is no finished stage: set FinishedRunConfig.path to the --workdir of a finished run")
    return stage


def check_lengths(model: ModelConfig, *configs: Any) -> None:
    """Every config that says how long its rows are is held against the model's positions."""
    for config in configs:
        for name, size in config.sequence_lengths().items() if hasattr(config, "sequence_lengths") else ():
            if size > model.max_position_embeddings:
                raise UsageError(
                    f"{name} is {size}, expected at most ModelConfig.max_position_embeddings"
                    f" ({model.max_position_embeddings})"
                )


# What decides how fast a step is and how much memory it takes, not which tokens rollouts give nor, but for rounding,
# what is learnt from them: whoever ran out of memory may set it lower, and go on.
ROLLOUT_COSTS = ("slots", "steps_per_round", "prefill_rows", "prefill_chunk", "speculative", "mesh")
UPDATE_COSTS = ("row_tokens", "microbatch_rows", "offload")
MODEL_COSTS = ("remat",)


def without_costs(stage_config: dict) -> dict:
    """A stage's config as JSON, without what may change while it runs, and where its inputs lie."""

    def one(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = {name: v for name, v in value.items() if name not in MODEL_COSTS}
        if "rollout" not in value:
            return value
        rollout = {name: v for name, v in value["rollout"].items() if name not in ROLLOUT_COSTS}
        return {name: v for name, v in value.items() if name not in UPDATE_COSTS} | {"rollout": rollout}

    held = {name: {"content": entry["content"]} for name, entry in stage_config.get("inputs", {}).items()}
    return {key: one(value) for key, value in stage_config.items()} | {"inputs": held}


def check_stages(layout: Layout, config: Any, *, memory: bool = True) -> None:
    """Every stage is held against the mesh, the model and the devices' memory, before anything is written."""
    for name, stage in stages(config).items():
        try:
            check_batches(layout, stage)
            check_lengths(config.model, stage)
            if isinstance(stage, WithRollouts):
                require_possible(config.model, stage.rollout, stage.max_prompt_tokens, stage.max_new_tokens)
            if memory:
                require_memory(layout, at_once(stage_memory(layout, config.model, stage)))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error


def stages(config: Any) -> dict[str, StageConfig]:
    """Those of an experiment's config that need the devices."""
    return {name: stage for name, stage in vars(config).items() if isinstance(stage, StageConfig)}


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, as `name: found -> wanted`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [d for key in keys for d in differences(found.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))]
    return [] if found == wanted else [f"{path}: {found} there, {wanted} now"]


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
