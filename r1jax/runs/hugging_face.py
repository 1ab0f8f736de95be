"""Published checkpoints (safetensors, config.json, tokenizer) into ours and back, tensor by tensor.

Everything that can be wrong is looked for before anything is written; what is written appears whole, by a rename.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import groupby

import numpy as np
import safetensors.numpy
from etils import epath

from r1jax.checkpoint import store as checkpoint
from r1jax.checkpoint.arrays import chunk_key, create_policy, numpy_dtype, open_array, written
from r1jax.checkpoint.published import (
    PublishedTensor,
    check_tensors,
    copies,
    published_tensors,
)
from r1jax.checkpoint.published_config import from_published, to_published
from r1jax.checkpoint.safetensors_files import INDEX, SINGLE, SafetensorsFiles, open_safetensors
from r1jax.config import ModelConfig
from r1jax.data.published_tokenizer import load_tokenizer, read_json
from r1jax.errors import RunError, UsageError
from r1jax.model.spec import count_params
from r1jax.runs.lineage import MARK, content
from r1jax.runs.policy import find_task
from r1jax.telemetry.files import write_whole
from r1jax.telemetry.progress import Progress

SHARD_BYTES = 5_000_000_000  # of exported files, and what an export holds in memory
READ_CACHE_BYTES = 1 << 30  # Orbax's chunks hold many of our tensors: each is read once


def import_hf(source: epath.Path, dest: epath.Path, *, mtp: bool, progress: Progress) -> None:
    """Makes a checkpoint at `dest` of the published one in `source`; an interrupted import goes on when repeated.

    Raises UsageError for a source that is not a whole model of a family that we know; `dest` is then untouched.
    """
    require_free(dest)
    files = open_safetensors(source)
    model = from_published(read_json(source / "config.json"), mtp=mtp)
    check_tensors(model, files.shapes(), str(source), ignore_mtp=not mtp)
    dtype = stored_dtype(model, files)
    model = replace(model, param_dtype=dtype, dtype=dtype)
    check_copies(model, files)
    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        progress.say(f"{source} has no tokenizer.json or tokenizer.model: prompts must be given as ids")
    elif tokenizer.size > model.vocab_size:
        raise UsageError(
            f"{source}: the tokenizer has ids up to {tokenizer.size - 1}, but config.json's vocab_size is"
            f" {model.vocab_size}"
        )
    elif tokenizer.size < model.vocab_size:
        model = replace(model, tokenizer_size=tokenizer.size)

    partial = open_partial(dest, model, fingerprint(model, files))
    policy = partial / "checkpoints" / "0" / "policy"
    write_tensors(policy, model, files, progress)
    if tokenizer is not None:
        (partial / "tokenizer").mkdir(exist_ok=True)
        tokenizer.save(partial / "tokenizer")
    partial.rename(dest)
    (dest / "source.json").unlink()
    write_whole(
        dest / MARK, json.dumps({"content": content(dest)})
    )  # as stages say it: a run need not read it all again
    progress.say(f"{dest}: {sum(count_params(model).values()):,} parameters in {model.param_dtype}")


def write_tensors(policy: epath.Path, model: ModelConfig, files: SafetensorsFiles, progress: Progress) -> None:
    """Every published tensor into its part of our arrays; what is there already is left."""
    tensors = list(published_tensors(model))
    with progress.start("tensors", 0, len(tensors)) as bar:
        done = 0
        for name, group in groupby(tensors, key=lambda tensor: tensor.array):
            array = open_array(policy, name)
            there = written(array)
            for tensor in group:
                if chunk_key(tensor.index, len(tensor.spec.shape)) not in there:
                    values = files.read(tensor.name, numpy_dtype(array.dtype.name))
                    array[tensor.index].write(tensor.to_ours(values)).result()
                done += 1
                bar.step(done, {})


def open_partial(dest: epath.Path, model: ModelConfig, source: dict) -> epath.Path:
    """The directory that becomes `dest`: a new one, or that of an interrupted import of the same source."""
    partial = dest.with_name(dest.name + ".partial")
    record = partial / "source.json"
    if partial.exists() and not (record.exists() and json.loads(record.read_text()) == source):
        raise UsageError(f"{partial} is there, and is not of an interrupted import of this source: remove it")
    if not partial.exists():
        partial.mkdir(parents=True)
        write_whole(record, json.dumps(source))
    create_policy(partial / "checkpoints" / "0", model, checkpoint.about(model, None))
    return partial


def fingerprint(model: ModelConfig, files: SafetensorsFiles) -> dict:
    """What tells one source from another without reading it whole."""
    shards = {str(file): file.stat() for file in {e.file for e in files.entries.values()}}
    return {
        "model": asdict(model),
        "shards": {name: [stat.length, stat.mtime] for name, stat in sorted(shards.items())},
    }


def stored_dtype(model: ModelConfig, files: SafetensorsFiles) -> str:
    """bfloat16, unless a tensor would lose by it; FP8 weights are dequantised to bfloat16, as DeepSeek does."""
    params = [tensor.name for tensor in published_tensors(model) if tensor.array.startswith("params.")]
    return "bfloat16" if {files.entries[name].dtype for name in params} <= {"BF16", "F8_E4M3"} else "float32"


def check_copies(model: ModelConfig, files: SafetensorsFiles) -> None:
    """Raises UsageError when a tensor that our model shares is another one in the source."""
    for copy, original in copies(model).items():
        if copy in files.entries and not files.same(copy, original):
            hint = "; --no-mtp leaves the multi-token-prediction module out" if copy.startswith("model.layers.") else ""
            raise UsageError(f"{files.entries[copy].file}: {copy} differs from {original}, which it must equal{hint}")


def export_hf(source: epath.Path, dest: epath.Path, *, progress: Progress) -> None:
    """Writes the policy of a checkpoint as a published one: safetensors, index, config.json, tokenizer.

    Raises UsageError when there is no checkpoint, or its model has no published form.
    """
    require_free(dest)
    store, step = checkpoint.find(source)
    model, task = checkpoint.read_about(store, step)
    _, tokenizer = find_task(store.directory.parent, task)
    bos_id, eos_id = (None, None) if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id)
    config = to_published(model, bos_id=bos_id, eos_id=eos_id)
    partial = dest.with_name(dest.name + ".partial")
    if partial.exists():
        raise UsageError(f"{partial} is there, perhaps of an interrupted export: remove it")
    partial.mkdir(parents=True)
    write_shards(store.directory / str(step) / "policy", partial, model, progress)
    (partial / "config.json").write_text(json.dumps(config, indent=1))
    (partial / "generation_config.json").write_text(json.dumps({"bos_token_id": bos_id, "eos_token_id": eos_id}))
    if tokenizer is not None:
        tokenizer.save(partial)  # with the generation_config.json that it came with, if it did
    partial.rename(dest)
    progress.say(f"{dest}: {sum(count_params(model).values()):,} parameters in {model.param_dtype}")


def write_shards(policy: epath.Path, dest: epath.Path, model: ModelConfig, progress: Progress) -> None:
    tensors = {tensor.name: tensor for tensor in published_tensors(model)}
    if not model.tie_word_embeddings:  # with tied ones only modules would have copies, of what is no tensor of its own
        tensors |= {copy: tensors[original] for copy, original in copies(model).items()}
    shards = list(plan_shards(tensors, model))
    weight_map: dict[str, str] = {}
    with progress.start("shards", 0, len(shards)) as bar:
        for number, names in enumerate(shards, 1):
            file = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            values = read_published(policy, {name: tensors[name] for name in names})
            safetensors.numpy.save_file(values, dest / file, {"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
            bar.step(number, {})
    total = sum(tensor_bytes(tensor, model) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (dest / INDEX).write_text(json.dumps(index, indent=1))


def plan_shards(tensors: dict[str, PublishedTensor], model: ModelConfig) -> Iterator[list[str]]:
    """Names in order, cut where a shard would grow over SHARD_BYTES."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor_bytes(tensor, model) > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor_bytes(tensor, model)
    yield names


def tensor_bytes(tensor: PublishedTensor, model: ModelConfig) -> int:
    is_bias = tensor.array.startswith("router_bias.")
    return math.prod(tensor.shape) * (4 if is_bias else numpy_dtype(model.param_dtype).itemsize)


def read_published(policy: epath.Path, tensors: dict[str, PublishedTensor]) -> dict[str, np.ndarray]:
    """Raises RunError when a part of the checkpoint is missing or damaged."""
    found: dict[str, np.ndarray] = {}
    for name, group in groupby(tensors.items(), key=lambda item: item[1].array):
        try:
            array = open_array(policy, name, cache_bytes=READ_CACHE_BYTES)
            found |= {key: tensor.to_published(array[tensor.index].read().result()) for key, tensor in group}
        except (OSError, ValueError) as error:
            raise RunError(f"{policy / name} can't be read: {' '.join(str(error).split())[:200]}") from error
    return found


def require_free(dest: epath.Path) -> None:
    if dest.exists():
        raise UsageError(f"{dest} exists: set another DEST, or remove it")
    above = next(path for path in dest.parents if path.exists())
    if not above.is_dir():
        raise UsageError(f"{dest} can't be made: {above} is no directory")
