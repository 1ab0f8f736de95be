"""Lineage: which stage's output each stage was made from, read from the files that runs/run.py writes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any

from etils import epath

from r1jax.errors import RunError, UsageError
from r1jax.paths import in_bucket, read_json
from r1jax.telemetry.metrics import read_metrics

FORMAT = 2  # the version of a run directory's files, which `run.json` names as "format"


def require_current_format(record: dict[str, Any], directory: epath.Path) -> None:
    """Raises UsageError when `record`, the content of `directory/run.json`, is of another format."""
    if (found := record.get("format", 1)) != FORMAT:
        raise UsageError(f"{directory} holds a run of format {found}, expected format {FORMAT}: set another --workdir")


# ---- content hashes

MARK = "complete.json"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def read_mark(stage: epath.Path) -> tuple[dict[str, Any] | None, str | None]:
    """The result of a stage and the content hash of its output; (None, None) when the stage is not complete."""
    if not (stage / MARK).exists():
        return None, None
    try:
        result = read_json(stage / MARK)
        content = result.pop("content", None)
    except (RunError, AttributeError) as error:
        raise RunError(f"{stage / MARK} is damaged: {error}. Remove it, and the stage is resumed") from error
    return result, content


def content_hash(path: epath.Path) -> str:
    """The hash of an input: for a stage, the one in its mark; for files, of their names and bytes.

    Raises UsageError when `path` does not exist or is a stage that is not complete.
    """
    result, content = read_mark(path)
    if content is not None:
        return content
    if result is not None:
        raise RunError(f"{path / MARK} has no content hash: an older version of r1jax wrote it; rerun the stage")
    if (path / "config.json").exists() and (path / "sessions.json").exists():
        raise UsageError(f"the input {path} is a stage that is not complete: finish it first")
    if not path.exists():
        raise UsageError(f"the input {path} does not exist")
    if path.is_dir():
        children = sorted(path.iterdir(), key=lambda child: child.name)
        return sha256("".join(f"{child.name} {content_hash(child)}\n" for child in children).encode())
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# ---- the stages of a run


@dataclass(frozen=True)
class Input:
    """One input of a stage."""

    name: str  # base, problems, ...
    path: str  # relative inside the workdir
    content: str  # its hash when the stage was made
    found: str | None  # its hash now; None: it does not exist, or is a stage that is not complete

    @property
    def stage(self) -> str:
        """The name of the stage whose output it is; for an input outside the workdir, its path."""
        return self.path if self.path.startswith("/") or in_bucket(self.path) else self.path.split("/")[0]


@dataclass(frozen=True)
class StageRecord:
    """The files of a stage, complete or not."""

    name: str
    config: Mapping[str, Any]
    inputs: Sequence[Input]
    sessions: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, float]]
    result: Mapping[str, Any] | None  # None: not complete
    content: str | None
    written: float  # modification time of its config.json, in seconds

    @property
    def kind(self) -> str:
        return str(self.config.get("kind", "unknown"))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The stage's own config, without the model's."""
        found = self.config.get(self.kind)
        return found if isinstance(found, dict) else {}

    @property
    def began(self) -> tuple[str, float, str]:
        """A key that orders stages by the time they began."""
        first = self.sessions[0] if self.sessions else {}
        return str(first.get("began", first.get("started", "9"))), self.written, self.name

    @property
    def seconds(self) -> float | None:
        """Seconds that its sessions took, without sessions that were killed; None when no session ended."""
        read = datetime.fromisoformat
        spans = [read(s["ended"]) - read(s["began"]) for s in self.sessions if "began" in s and "ended" in s]
        return sum(span.total_seconds() for span in spans) if spans else None


def read_stages(workdir: epath.Path, unreadable: dict[str, str] | None = None) -> list[StageRecord]:
    """The stages of a run in topological order; stages that do not depend on each other by the time they began.

    With a dictionary `unreadable`, stages that can't be read are added to it, with the reason, and left out.
    """
    found: dict[str, str | None] = {}
    left = []
    for directory in stage_directories(workdir):
        try:
            left.append(read_stage(directory, found))
        except (RunError, OSError, LookupError, TypeError, AttributeError) as error:
            if unreadable is None:
                raise
            unreadable[directory.name] = str(error)
    left.sort(key=lambda stage: stage.began)
    ordered: list[StageRecord] = []
    while left:
        waiting = {stage.name for stage in left}
        # Only files edited by hand have a cycle, in which no stage is ready.
        ready = [stage for stage in left if not waiting & {i.stage for i in stage.inputs}] or left
        ordered.append(ready[0])
        left.remove(ready[0])
    return ordered


def stage_directories(workdir: epath.Path) -> list[epath.Path]:
    """The directories with a `config.json`, without exported checkpoints, which have one too."""
    found = [config.parent for config in workdir.glob("*/config.json")]
    return [directory for directory in found if not (directory / "model.safetensors.index.json").exists()]


def read_stage(directory: epath.Path, found: dict[str, str | None]) -> StageRecord:
    """Reads one stage. `found` caches the hashes of inputs by path, so that each is computed once for all stages."""
    config = read_json(directory / "config.json")
    inputs = config.get("inputs", {})
    for path in {entry["path"] for entry in inputs.values()} - found.keys():
        found[path] = content_now(epath.Path(path) if in_bucket(path) else directory.parent / path)
    sessions = directory / "sessions.json"
    result, content = read_mark(directory)
    return StageRecord(
        name=directory.name,
        config=config,
        inputs=[Input(name, e["path"], e["content"], found[e["path"]]) for name, e in inputs.items()],
        sessions=read_json(sessions) if sessions.exists() else [],
        metrics=read_metrics(directory / "metrics.jsonl"),
        result=result,
        content=content,
        written=(directory / "config.json").stat().mtime,
    )


def content_now(path: epath.Path) -> str | None:
    try:
        return content_hash(path)
    except (UsageError, RunError):
        return None


def parents(stage: StageRecord, stages: Sequence[StageRecord]) -> list[str]:
    """The names of the stages among `stages`, in order, that `stage` was made from; its policy's comes first."""
    earlier = {other.name for other in takewhile(lambda other: other.name != stage.name, stages)}
    found = [policy_parent(stage), *(i.stage for i in stage.inputs)]
    return [name for name in dict.fromkeys(found) if name in earlier]


def policy_parent(stage: StageRecord) -> str:
    """The stage whose policy `stage` trains, samples from or evaluates; without one, its first input's stage."""
    policies = [i.stage for i in stage.inputs if i.name in ("base", "policy", "checkpoint")]
    return next(iter([*policies, *(i.stage for i in stage.inputs)]), "")


def find_stale(stages: Sequence[StageRecord]) -> dict[str, list[str]]:
    """Stages whose inputs have changed since they were made: name -> reasons."""
    stale: dict[str, list[str]] = {}
    for stage in stages:
        reasons = []
        for i in stage.inputs:
            if i.found is None:
                reasons.append(f"{i.name} ({i.path}) no longer exists")
            elif i.found != i.content:
                reasons.append(f"{i.name} ({i.path}) has content {i.found}, expected {i.content}")
            elif i.stage in stale:
                reasons.append(f"{i.name} ({i.path}) is stale")
        if reasons:
            stale[stage.name] = reasons
    return stale
