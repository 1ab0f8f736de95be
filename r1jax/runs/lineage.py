"""Where a result comes from: what stages' directories say of themselves, and of what they were made (runs/run.py)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any

from etils import epath

from r1jax.errors import RunError, UsageError
from r1jax.paths import in_bucket
from r1jax.telemetry.metrics import read_metrics

# ---- contents

MARK = "complete.json"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def read_mark(stage: epath.Path) -> str:
    """Raises RunError for a stage of an older version, whose mark has no content."""
    mark = json.loads((stage / MARK).read_text())
    if "content" not in mark:
        raise RunError(f"{stage} was made by an older version of r1jax, which did not say what it holds: make it again")
    return mark["content"]


def content(path: epath.Path) -> str:
    """What an input holds: of a stage, what its mark says; of files, the hash of their names and bytes.

    Raises UsageError when there is nothing, or an unfinished stage.
    """
    if (path / MARK).exists():
        return read_mark(path)
    if (path / "config.json").exists() and (path / "sessions.json").exists():
        raise UsageError(f"{path} is a stage that is not complete: it can't be an input yet")
    if not path.exists():
        raise UsageError(f"{path} does not exist, and a stage has it as its input")
    if path.is_dir():
        held = sorted(path.iterdir(), key=lambda child: child.name)
        return sha256("".join(f"{child.name} {content(child)}\n" for child in held).encode())
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()[:16]


# ---- stages that were made, or begun


@dataclass(frozen=True)
class Input:
    """What a stage was made of."""

    name: str  # what the stage calls it: base, problems, …
    path: str  # within the workdir where it lies there
    content: str  # when the stage was made
    found: str | None  # what it holds now; None: there is nothing, or nothing finished

    @property
    def stage(self) -> str:
        """The stage of this run whose output it is, if it is one; another run's has its whole path."""
        return self.path if self.path.startswith("/") or in_bucket(self.path) else self.path.split("/")[0]


@dataclass(frozen=True)
class StageRecord:
    """A stage's directory, as far as it got."""

    name: str
    config: Mapping[str, Any]
    inputs: Sequence[Input]
    sessions: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, float]]
    result: Mapping[str, Any] | None  # None: not complete
    content: str | None
    written: float  # when its config was, by the file system's clock

    @property
    def kind(self) -> str:
        return str(self.config.get("kind", "unknown"))

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its own numbers, without the model's."""
        found = self.config.get(self.kind)
        return found if isinstance(found, dict) else {}

    @property
    def began(self) -> tuple[str, float, str]:
        """What orders stages that don't hang on each other."""
        first = self.sessions[0] if self.sessions else {}
        return str(first.get("began", first.get("started", "9"))), self.written, self.name

    @property
    def seconds(self) -> float | None:
        """How long those who worked on it took, without one that was killed; None where nothing says so."""
        spans = [(s["began"], s["ended"]) for s in self.sessions if "began" in s and "ended" in s]
        if not spans:
            return None
        return sum(
            (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() for start, end in spans
        )


def read_stages(workdir: epath.Path) -> list[StageRecord]:
    """Every stage after those it was made of; where that leaves a choice, in the order in which they were begun."""
    found: dict[str, str | None] = {}
    left = [
        read_stage(config.parent, found) for config in workdir.glob("*/config.json") if not is_exported(config.parent)
    ]
    left.sort(key=lambda stage: stage.began)
    ordered: list[StageRecord] = []
    while left:
        waiting = {stage.name for stage in left}
        # A stage can't be made of itself: without one that is ready, somebody wrote these files by hand.
        ready = [stage for stage in left if not waiting & {i.stage for i in stage.inputs}] or left
        ordered.append(ready[0])
        left.remove(ready[0])
    return ordered


def is_exported(directory: epath.Path) -> bool:
    """Whether it is a published checkpoint, which has a config.json too."""
    return (directory / "model.safetensors.index.json").exists()


def read_stage(directory: epath.Path, found: dict[str, str | None]) -> StageRecord:
    """`found` has what inputs hold, of those that were looked at already: a file is read once for all stages."""
    config = json.loads((directory / "config.json").read_text())
    inputs = config.get("inputs", {})
    for path in {entry["path"] for entry in inputs.values()} - found.keys():
        found[path] = content_now(epath.Path(path) if in_bucket(path) else directory.parent / path)
    mark, sessions = directory / MARK, directory / "sessions.json"
    result = json.loads(mark.read_text()) if mark.exists() else None
    return StageRecord(
        name=directory.name,
        config=config,
        inputs=[Input(name, e["path"], e["content"], found[e["path"]]) for name, e in inputs.items()],
        sessions=json.loads(sessions.read_text()) if sessions.exists() else [],
        metrics=read_metrics(directory / "metrics.jsonl"),
        result=None if result is None else {name: value for name, value in result.items() if name != "content"},
        content=result and result.get("content"),
        written=(directory / "config.json").stat().mtime,
    )


def content_now(path: epath.Path) -> str | None:
    try:
        return content(path)
    except (UsageError, RunError):
        return None


def parents(stage: StageRecord, stages: Sequence[StageRecord]) -> list[str]:
    """The stages of this run that a stage was made of, of `stages` in order; what it goes on from comes first."""
    earlier = {other.name for other in takewhile(lambda other: other.name != stage.name, stages)}
    found = [goes_on_from(stage), *(i.stage for i in stage.inputs)]
    return [name for name in dict.fromkeys(found) if name in earlier]


def goes_on_from(stage: StageRecord) -> str:
    """The stage whose policy it changes, asks or measures."""
    policies = [i.stage for i in stage.inputs if i.name in ("base", "policy", "checkpoint")]
    return next(iter([*policies, *(i.stage for i in stage.inputs)]), "")


def find_stale(stages: Sequence[StageRecord]) -> dict[str, list[str]]:
    """Of each stage that another one would now be made in place of: why."""
    stale: dict[str, list[str]] = {}
    for stage in stages:
        reasons = []
        for i in stage.inputs:
            if i.found is None:
                reasons.append(f"{i.name} ({i.path}) is not there any more")
            elif i.found != i.content:
                reasons.append(f"{i.name} ({i.path}) holds {i.found}, and held {i.content}")
            elif i.stage in stale:
                reasons.append(f"{i.name} ({i.path}) is stale")
        if reasons:
            stale[stage.name] = reasons
    return stale
