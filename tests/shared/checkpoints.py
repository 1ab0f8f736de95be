"""Checkpoints written and read back for tests: ours, and published ones."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from etils import epath

from r1jax.checkpoint.store import CheckpointStore, make_metadata, policy_item
from r1jax.model.spec import init_params, init_router_bias
from r1jax.runs.hugging_face import export_hf, import_hf
from r1jax.telemetry.metrics import read_metrics
from r1jax.telemetry.progress import Progress


def contents(checkpoint: epath.Path) -> dict:
    """Every array and every JSON value of a checkpoint."""
    with ocp.PyTreeCheckpointer() as reader:
        items = {name: reader.restore(checkpoint / name) for name in ("policy", "training")}
    flat = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(items)}
    return flat | {name: (checkpoint / name / "metadata").read_text() for name in ("data", "metadata")}


def require_same_bits(finished, other, rl_step=4):
    """Two small runs have equal checkpoints and metrics, and the checkpoints are complete."""
    for stage, step in (("pretrain", 4), ("rl", rl_step)):
        whole = contents(epath.Path(finished) / stage / "checkpoints" / str(step))
        resumed = contents(epath.Path(other) / stage / "checkpoints" / str(step))
        assert whole.keys() == resumed.keys()
        for name in whole:
            np.testing.assert_array_equal(resumed[name], whole[name], err_msg=f"{stage} {name}")
        kept = ("step", "loss", "reward", "accuracy", "kl", "grad_norm")
        rows, resumed_rows = (
            [{k: r[k] for k in kept if k in r} for r in read_metrics(epath.Path(w) / stage / "metrics.jsonl")]
            for w in (finished, other)
        )
        assert rows == resumed_rows
    names = whole.keys()
    for part in ("params", "router_bias", "opt_state", "reference", "reference_update"):
        assert any(part in name for name in names), f"{part} is not in the checkpoint"


def save_policy(stage: Path | epath.Path, model, policy, task: str | None, template=None) -> epath.Path:
    """Saves (params, router_bias) as the first step of a stage's checkpoints; returns the stage's directory."""
    store = CheckpointStore(epath.Path(stage) / "checkpoints")
    store.save(1, policy_item(*policy), {"step": np.int32(1)}, {}, make_metadata(model, task, template))
    store.close()
    return epath.Path(stage)


def make_checkpoint(directory: Path, model, seed: int = 0) -> None:
    """A random policy without a task, with uneven router biases where the model has any."""
    params = init_params(jax.random.key(seed), model)
    bias = init_router_bias(model)
    if model.topk_method == "noaux_tc":
        bias = jax.tree.map(lambda b: 0.1 * jax.random.normal(jax.random.key(seed + 1), b.shape), bias)
    save_policy(directory, model, (params, bias), None)


def import_(source: Path, dest: Path, mtp: bool = True) -> None:
    import_hf(epath.Path(source), epath.Path(dest), mtp=mtp, progress=Progress())


def export(source: Path, dest: Path) -> None:
    export_hf(epath.Path(source), epath.Path(dest), progress=Progress())


def read_tensors(directory: Path, files: str = "*") -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a published checkpoint by the safetensors library: dtype, shape, bytes."""
    found = {}
    for file in sorted(directory.glob(f"{files}.safetensors")):
        for name, view in safetensors.deserialize(file.read_bytes()):
            found[name] = (view["dtype"], tuple(view["shape"]), bytes(view["data"]))
    return found
