"""Orbax checkpoints: everything that a stage needs to go on, and what a later stage or command needs of it.

One step's directory holds four items: `policy` (params and router bias), `training` (the rest of the stage's state),
`data` (the feed's position) and `about` (the model's config and the task's name, so that the directory speaks for
itself).
"""

import json
from dataclasses import asdict
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from r1jax.config import ModelConfig, RopeScalingConfig
from r1jax.errors import RunError, UsageError
from r1jax.paths import absolute
from r1jax.types import Params

CHUNKS = ocp.SaveArgs(chunk_byte_size=1 << 26)  # a policy is exported part by part, in bounded memory


class Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Not asked: JAX wants one counter for the whole run (parallel/hosts.py), and a stage's steps begin anew."""
        return False


class CheckpointStore:
    """The checkpoints of one stage. Saving is asynchronous and atomic; the two latest are kept."""

    def __init__(self, directory: epath.Path, *, read_only: bool = False):
        self.directory = absolute(directory)
        options = ocp.CheckpointManagerOptions(max_to_keep=2, read_only=read_only, create=not read_only)
        self.manager = Manager(self.directory, options=options)

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def save(self, step: int, policy: Any, training: Any, data: dict, about: dict) -> None:
        self.manager.save(
            step,
            args=ocp.args.Composite(
                policy=ocp.args.StandardSave(policy, save_args=jax.tree.map(lambda _: CHUNKS, policy)),
                training=ocp.args.StandardSave(training),
                data=ocp.args.JsonSave(data),
                about=ocp.args.JsonSave(about),
            ),
        )

    def restore(self, step: int, policy: Any, training: Any) -> tuple[Any, Any, dict]:
        """(policy, training, data) of a step, onto the shapes, dtypes and shardings of the arguments.

        Raises RunError when the checkpoint can't be read.
        """
        restored = self._restore(
            step,
            policy=ocp.args.StandardRestore(policy),
            training=ocp.args.StandardRestore(training),
            data=ocp.args.JsonRestore(),
        )
        return restored["policy"], restored["training"], restored["data"]

    def restore_policy(self, step: int, policy: Any) -> Any:
        return self._restore(step, policy=ocp.args.StandardRestore(policy))["policy"]

    def about(self, step: int) -> dict:
        return self._restore(step, about=ocp.args.JsonRestore())["about"]

    def _restore(self, step: int, **items):
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax, TensorStore and JSON each raise their own; all mean: not readable
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"checkpoint {self.directory / str(step)} can't be read: it is damaged or of another model"
                f" ({type(error).__name__}: {reason}). Remove that directory, and"
                " the stage's complete.json, to go on from an earlier one"
            ) from error

    def close(self) -> None:
        """Waits for a save under way."""
        self.manager.wait_until_finished()
        self.manager.close()


def about(model: ModelConfig, task: str | None) -> dict:
    """What a checkpoint says of itself; `task` is None for one that was imported, with a tokenizer of its own."""
    return {"model": asdict(model), "task": task}


def read_about(store: CheckpointStore, step: int) -> tuple[ModelConfig, str | None]:
    """The model and task of a checkpoint. Raises RunError when they can't be read."""
    fields = store.about(step)
    try:
        model = fields["model"] | {"rope_scaling": RopeScalingConfig(**fields["model"]["rope_scaling"])}
        return ModelConfig(**model), fields["task"]
    except (TypeError, KeyError, ValueError) as error:
        raise RunError(
            f"{store.directory} was written by another version of r1jax: its model config does not fit: {error}"
        ) from error


def find(path: epath.Path) -> tuple[CheckpointStore, int]:
    """The store and step that a path means: a stage's directory, its `checkpoints`, or one step in it.

    Raises UsageError when there is no checkpoint.
    """
    path = epath.Path(path)
    if any(part.endswith(".partial") for part in path.parts):
        raise UsageError(f"{path} is of an interrupted import: repeat the import, and it goes on")
    if path.name.isdigit() and (path / "about").exists():
        return CheckpointStore(path.parent, read_only=True), int(path.name)
    for directory in (path / "checkpoints", path):
        if directory.is_dir() and any(child.name.isdigit() for child in directory.iterdir()):
            store = CheckpointStore(directory, read_only=True)
            step = store.latest_step()
            if step is not None:
                require_last(path, step)
                return store, step
    raise UsageError(f"no checkpoint at {path}: expected a stage's directory (WORKDIR/rl) or a step in its checkpoints")


def require_last(stage: epath.Path, step: int) -> None:
    """Raises RunError when a stage is marked complete at another step than its latest checkpoint's."""
    mark = stage / "complete.json"
    if mark.exists() and (steps := json.loads(mark.read_text()).get("steps", step)) != step:
        raise RunError(
            f"{stage} was completed at step {steps}, but its latest checkpoint is of step {step}: remove {mark},"
            " so that the next run goes on from there"
        )


def policy_item(params: Params, router_bias: dict) -> dict:
    return {"params": params, "router_bias": router_bias}
