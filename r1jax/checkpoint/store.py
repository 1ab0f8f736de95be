"""Orbax checkpoints: all that a stage needs to resume, and that later stages and commands need of it.

One step's directory holds four items: `policy` (params and router bias), `training` (the rest of the stage's state),
`data` (the feed's position) and `metadata` (the model's config and the task's name).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from r1jax.config import CheckpointConfig, ModelConfig, PromptConfig, RopeScalingConfig
from r1jax.errors import RunError, UsageError, cause_of
from r1jax.paths import absolute, read_json
from r1jax.types import Params

CHUNKS = ocp.SaveArgs(chunk_byte_size=1 << 26)  # small chunks bound the memory of an export, which reads part by part


class Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: parallel/hosts.py asks JAX instead, with one step counter for all stages of a run."""
        return False


class CheckpointStore:
    """The checkpoints of one stage, by default the latest two. Saving is asynchronous and atomic."""

    def __init__(self, directory: epath.Path, *, read_only: bool = False, kept: CheckpointConfig | None = None):
        self.directory = absolute(directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation(kept or CheckpointConfig()),
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,  # of saves that a kill cut off
        )
        self.manager = Manager(self.directory, options=options)

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def save(
        self, step: int, policy: Any, training: Any, data: dict, metadata: dict, metric: float | None = None
    ) -> None:
        """`metric` tells how good the policy is, where the best are kept."""
        policy_args = ocp.args.StandardSave(policy, save_args=jax.tree.map(lambda _: CHUNKS, policy))
        arrays = dict(policy=policy_args, training=ocp.args.StandardSave(training))
        records = dict(data=ocp.args.JsonSave(data), metadata=ocp.args.JsonSave(metadata))
        with self.saving():
            metrics = None if metric is None else {"metric": metric, "step": step}
            self.manager.save(step, args=ocp.args.Composite(**arrays, **records), metrics=metrics)

    def restore(self, step: int, policy: Any, training: Any) -> tuple[Any, Any, dict]:
        """(policy, training, data) of a step, with the shapes, dtypes and shardings of the arguments.

        Raises RunError when the checkpoint can't be read.
        """
        arrays = dict(policy=ocp.args.StandardRestore(policy), training=ocp.args.StandardRestore(training))
        restored = self._restore(step, **arrays, data=ocp.args.JsonRestore())
        return restored["policy"], restored["training"], restored["data"]

    def restore_policy(self, step: int, policy: Any) -> Any:
        return self._restore(step, policy=ocp.args.StandardRestore(policy))["policy"]

    def metadata(self, step: int) -> dict:
        return self._restore(step, metadata=ocp.args.JsonRestore())["metadata"]

    def _restore(self, step: int, **items):
        try:
            return self.manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax, TensorStore and JSON raise many types
            reason = " ".join(str(error).split())[:200]
            raise RunError(
                f"checkpoint {self.directory / str(step)} can't be read: it is damaged or of another model"
                f" ({type(error).__name__}: {reason}). Remove that directory and the stage's complete.json to resume"
                " from an earlier step"
            ) from error

    def close(self) -> None:
        """Waits for an unfinished save, then closes the store. Raises RunError when it could not be written."""
        with self.saving():
            self.manager.wait_until_finished()
            self.manager.close()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Turns the failure of a save, of this step or of the one before, into an error of one line."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many types
            raise RunError(
                f"a checkpoint in {self.directory} can't be written: {cause_of(error)}. Those before it are unaffected:"
                " the same command resumes from the latest"
            ) from error


def preservation(kept: CheckpointConfig) -> policies.PreservationPolicy:
    rules: list[policies.PreservationPolicy] = [policies.LatestN(kept.keep)]
    if kept.keep_every:
        rules.append(policies.EveryNSteps(kept.keep_every))
    if kept.keep_best:
        rules.append(
            policies.BestN(
                get_metric_fn=lambda metrics: (metrics["metric"], -metrics["step"]),  # of equals the first
                n=kept.keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    return policies.AnyPreservationPolicy(rules)


def make_metadata(model: ModelConfig, task: str | None, template: PromptConfig | None = None) -> dict:
    """The `metadata` item of a checkpoint.

    `task` is None for an imported one, which has a tokenizer of its own. `template` is how a task with a published
    tokenizer asks.
    """
    return {"model": asdict(model), "task": task, "template": template and asdict(template)}


def read_template(store: CheckpointStore, step: int) -> PromptConfig:
    """How the checkpoint's task asks; the default for a checkpoint that doesn't say."""
    return PromptConfig(**store.metadata(step).get("template") or {})


def read_metadata(store: CheckpointStore, step: int) -> tuple[ModelConfig, str | None]:
    """The model and the task's name of a checkpoint. Raises RunError when they can't be read."""
    fields = store.metadata(step)
    try:
        model = fields["model"] | {"rope_scaling": RopeScalingConfig(**fields["model"]["rope_scaling"])}
        return ModelConfig(**model), fields["task"]
    except (TypeError, KeyError, ValueError) as error:
        raise RunError(f"{store.directory} is of a version of r1jax with another ModelConfig: {error}") from error


def find_checkpoint(path: epath.Path) -> tuple[CheckpointStore, int]:
    """The checkpoint at `path`: one step's directory, or the latest step of a stage's directory or its `checkpoints`.

    Raises UsageError when there is no checkpoint.
    """
    path = epath.Path(path)
    if any(part.endswith(".partial") for part in path.parts):
        raise UsageError(f"{path} is an interrupted import: repeat the import to resume it")
    if path.name.isdigit() and (path / "metadata").exists():
        return CheckpointStore(path.parent, read_only=True), int(path.name)
    for directory in (path / "checkpoints", path):
        if directory.is_dir() and any(child.name.isdigit() for child in directory.iterdir()):
            store = CheckpointStore(directory, read_only=True)
            step = store.latest_step()
            if step is not None:
                require_last(path, step)
                return store, step
    raise UsageError(f"no checkpoint at {path}: {what_instead(path)}")


def what_instead(path: epath.Path) -> str:
    """What to give instead of a path without a checkpoint, which may be a published model or a Hub id."""
    if path.suffix == ".gguf" or (path / "config.json").exists():
        return f"it is a published model; `r1jax import-hf {path} DEST` makes a checkpoint of it: give DEST"
    here = absolute(".")
    names = path.relative_to(here).parts if path.is_relative_to(here) else ()
    is_hub_id = len(names) == 2 and not {*names} & {"checkpoints", "runs"} and not path.exists()  # OWNER/NAME
    source, dest = ("/".join(names), "DEST") if is_hub_id else ("SOURCE", "DEST" if path.exists() else path)
    expected = "expected a stage's directory (WORKDIR/rl) or one step's in it"
    return f"{expected}; `r1jax import-hf {source} {dest}` makes one of a published model"


def require_last(stage: epath.Path, step: int) -> None:
    """Raises RunError when a stage was completed at another step than its latest checkpoint's, which may be removed."""
    mark = stage / "complete.json"
    if mark.exists() and (steps := read_json(mark).get("steps", step)) != step:
        raise RunError(
            f"the latest checkpoint of {stage} is of step {step}, expected step {steps}, where the stage was completed:"
            f" remove {mark} to resume from step {step}"
        )


def policy_item(params: Params, router_bias: dict) -> dict:
    return {"params": params, "router_bias": router_bias}
