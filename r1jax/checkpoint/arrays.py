"""Parts of a checkpoint's arrays on disk, without the rest of it in memory.

Orbax keeps arrays as Zarr in TensorStore, but saves and restores them whole. What is larger than a host's memory is
written and read here, part by part, in the same format: Orbax restores it onto any mesh.
"""

import json
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from r1jax.checkpoint.published import array_specs, policy_specs
from r1jax.config import ModelConfig
from r1jax.model.spec import STACKED, ParamSpec, is_spec, uses_router_bias
from r1jax.paths import in_bucket


def create_policy(directory: epath.Path, model: ModelConfig, about: dict) -> None:
    """One step's directory with its metadata and, for each array of the policy, an empty one in chunks.

    Orbax writes the metadata for a tree of single numbers, in whose place the arrays are put. What is there already
    from an interrupted call is kept.
    """
    if not directory.exists():
        numbers = jax.tree.map(lambda spec: np.zeros([1] * len(spec.shape)), policy_specs(model), is_leaf=is_spec)
        handlers = {
            "policy": ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False),
            "about": ocp.JsonCheckpointHandler(),
        }
        items = ocp.args.Composite(policy=ocp.args.PyTreeSave(numbers), about=ocp.args.JsonSave(about))
        ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)).save(directory, items)
    for name, spec in array_specs(model).items():
        path = directory / "policy" / name
        metadata = path / ".zarray"
        if not metadata.exists() or json.loads(metadata.read_text())["shape"] != list(spec.shape):
            if path.exists():
                path.rmtree()
            create_array(path, spec, "float32" if name.startswith("router_bias.") else model.param_dtype)
        if name.startswith("router_bias.") and not uses_router_bias(model):  # none is published: they stay zero
            open_array(directory / "policy", name).write(np.zeros(spec.shape, np.float32)).result()


def create_array(path: epath.Path, spec: ParamSpec, dtype: str) -> None:
    """A chunk is one tensor of a published checkpoint, so that it is written at once, or not at all."""
    chunks = [1 if axis in STACKED else size for size, axis in zip(spec.shape, spec.axes, strict=True)]
    metadata = {
        "shape": spec.shape,
        "chunks": chunks,
        "dtype": "bfloat16" if dtype == "bfloat16" else np.dtype(dtype).str,
        "fill_value": None,
        "compressor": None,  # weights hardly compress
    }
    ts.open({"driver": "zarr", "kvstore": url(path), "metadata": metadata}, create=True).result()


def open_array(policy: epath.Path, name: str, *, cache_bytes: int = 0) -> Any:
    """The TensorStore of one array of a checkpoint's `policy` item, written here or by Orbax.

    What a chunk holds beside the part that is read or written is kept for the next one, up to `cache_bytes`. A chunk
    that is not there is an error where it is read.
    """
    metadata = json.loads((policy / "_METADATA").read_text())
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    kvstore: Any = url(policy / name)
    if metadata.get("use_ocdbt"):
        kvstore = {"driver": "ocdbt", "base": url(policy), "path": f"{name}/"}
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
    return ts.open(spec, context=context, open=True).result()


def written(array: Any) -> set[str]:
    """The chunks of an array that are on disk."""
    return {key.decode() for key in array.kvstore.list().result()}


def chunk_key(tensor_index: tuple[int, ...], dimensions: int) -> str:
    """The name of a chunk on disk: its position in the grid of chunks."""
    return ".".join(str(i) for i in (*tensor_index, *[0] * (dimensions - len(tensor_index))))


def url(path: epath.Path) -> str:
    return f"{path}/" if in_bucket(path) else f"file://{path}/"


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
