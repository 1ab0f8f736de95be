"""Reads and writes parts of a checkpoint's arrays on disk, for checkpoints that are larger than a host's memory.

Orbax stores arrays as Zarr through TensorStore, but saves and restores them whole. This module writes the same format
part by part, so that Orbax can restore the result onto any mesh.
"""

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from r1jax.checkpoint.published import array_specs, policy_specs
from r1jax.config import ModelConfig
from r1jax.model.spec import STACKED, ParamSpec, uses_router_bias
from r1jax.paths import in_bucket


def create_policy(directory: epath.Path, model: ModelConfig, metadata: dict) -> None:
    """Creates one step's directory, with `metadata` and an empty chunked array for each array of the policy.

    Orbax writes the tree's structure for arrays of one number each; the empty arrays then replace these. Arrays that an
    interrupted call created are kept.
    """
    if not directory.exists():
        numbers = jax.tree.map(lambda spec: np.zeros([1] * len(spec.shape)), policy_specs(model))
        policy_handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=False)
        handler = ocp.CompositeCheckpointHandler(policy=policy_handler, metadata=ocp.JsonCheckpointHandler())
        items = ocp.args.Composite(policy=ocp.args.PyTreeSave(numbers), metadata=ocp.args.JsonSave(metadata))
        ocp.Checkpointer(handler).save(directory, items)
    for name, spec in array_specs(model).items():
        path, is_bias = directory / "policy" / name, name.startswith("router_bias.")
        header = path / ".zarray"
        if not header.exists() or json.loads(header.read_text())["shape"] != list(spec.shape):
            if path.exists():
                path.rmtree()
            create_array(path, spec, "float32" if is_bias else model.param_dtype)
        if is_bias and not uses_router_bias(model):  # published models of this kind have none
            open_array(directory / "policy", name).write(np.zeros(spec.shape, np.float32)).result()


def create_array(path: epath.Path, spec: ParamSpec, dtype: str) -> None:
    """Creates an empty array whose chunks are one published tensor each, so that writing a tensor is atomic."""
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
    """The TensorStore of one array of a checkpoint's `policy` item, written by this module or by Orbax.

    Chunks are cached up to `cache_bytes`. Reading a missing chunk is an error.
    """
    metadata = json.loads((policy / "_METADATA").read_text())
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    ocdbt = {"driver": "ocdbt", "base": url(policy), "path": f"{name}/"}
    kvstore = ocdbt if metadata.get("use_ocdbt") else url(policy / name)
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
    return ts.open(spec, context=context, open=True).result()


def written(array: Any) -> set[str]:
    """The keys of an array's chunks that are on disk."""
    return {key.decode() for key in array.kvstore.list().result()}


def chunk_key(tensor_index: tuple[int, ...], dimensions: int) -> str:
    """The key of a chunk on disk: its position in the grid of chunks."""
    return ".".join(str(i) for i in (*tensor_index, *[0] * (dimensions - len(tensor_index))))


def url(path: epath.Path) -> str:
    return f"{path}/" if in_bucket(path) else f"file://{path}/"
