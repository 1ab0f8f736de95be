"""Import and export of published checkpoints (safetensors or GGUF, config.json, tokenizer), tensor by tensor.

The source is checked completely before anything is written. The destination appears by a rename, once it is complete.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
from etils import epath

from r1jax.checkpoint import store as checkpoint
from r1jax.checkpoint.arrays import chunk_key, create_policy, open_array, written
from r1jax.checkpoint.published import PublishedTensor, check_tensors, copies, published_tensors
from r1jax.checkpoint.published_config import from_published, to_published
from r1jax.checkpoint.safetensors_files import INDEX, SINGLE, Entry, open_safetensors
from r1jax.config import ModelConfig
from r1jax.data.published_tokenizer import (
    CONFIGS,
    FILES,
    config_end_ids,
    copy_files,
    load_tokenizer,
    read_json,
)
from r1jax.data.tokenizer import Tokenizer
from r1jax.errors import RunError, UsageError
from r1jax.model.spec import count_params
from r1jax.paths import absolute
from r1jax.runs.hub import HUB_ID, find_source
from r1jax.runs.lineage import MARK, content_hash
from r1jax.runs.policy import find_task
from r1jax.telemetry.files import write_atomically
from r1jax.telemetry.progress import Progress

SHARD_BYTES = 5_000_000_000  # size of an exported file, and what an export holds in memory
MODELS = "~/.cache/r1jax/models"  # what `imported` converts
READ_CACHE_BYTES = 1 << 30  # an Orbax chunk holds many tensors: cached, so that it is read once


class TensorFiles(Protocol):
    """The tensors of a published checkpoint, under published names."""

    @property
    def entries(self) -> dict[str, Entry]: ...
    def shapes(self) -> dict[str, tuple[int, ...]]: ...
    def read(self, name: str, dtype) -> np.ndarray: ...
    def same(self, a: str, b: str) -> bool: ...


@dataclass(frozen=True)
class Source:
    """A published checkpoint: `directory` has its config.json and its tokenizer."""

    path: epath.Path  # as messages name it
    directory: epath.Path
    files: TensorFiles


def open_source(path: epath.Path, scratch: epath.Path) -> Source:
    """The checkpoint at `path`; config and tokenizer of a GGUF file are written into `scratch`."""
    if path.suffix != ".gguf":
        return Source(path, path, open_safetensors(path))
    from r1jax.checkpoint.gguf_files import open_gguf
    from r1jax.checkpoint.gguf_tokenizer import tokenizer_files

    config, metadata, tensors = open_gguf(path)
    for name, text in {"config.json": json.dumps(config), **tokenizer_files(metadata, path)}.items():
        (scratch / name).write_text(text)
    return Source(path, scratch, tensors)


def is_published(source: epath.Path | str) -> bool:
    """Whether `source` is a published model: a directory, a .gguf file, or the id of one on the Hugging Face Hub."""
    path = absolute(source)
    if not path.exists():
        return HUB_ID.fullmatch(str(source)) is not None
    return path.suffix == ".gguf" or ((path / "config.json").exists() and not (path / "checkpoints").exists())


def imported(source: epath.Path | str, progress: Progress) -> epath.Path:
    """The checkpoint of a published model, which is converted once for each state of its files.

    Raises UsageError as `import_hf`.
    """
    path = find_source(source, None, mtp=True)
    with tempfile.TemporaryDirectory() as scratch:
        opened = open_source(path, epath.Path(scratch))
        model = from_published(read_json(opened.directory / "config.json"), mtp=True)
        state = hashlib.sha256(json.dumps([str(path), fingerprint(model, opened.files)]).encode()).hexdigest()[:16]
        dest = epath.Path(MODELS).expanduser() / f"{'--'.join(epath.Path(source).parts[-2:])}-{state}"
        if not dest.exists():
            convert(opened, dest, mtp=True, progress=progress)
    return dest


def import_hf(
    source: epath.Path | str, dest: epath.Path, *, mtp: bool, progress: Progress, revision: str | None = None
) -> None:
    """Converts a published checkpoint to one of ours at `dest`.

    The source is a directory, a .gguf file, or the id of a model on the Hugging Face Hub, at a `revision`. Called
    again, it resumes an interrupted import. Without `mtp` the multi-token-prediction modules are left out. Raises
    UsageError, before `dest` is written, when the source is incomplete, damaged or of an unsupported architecture.
    """
    require_free(dest)
    path = find_source(source, revision, mtp=mtp)
    with tempfile.TemporaryDirectory() as scratch:
        convert(open_source(path, epath.Path(scratch)), dest, mtp=mtp, progress=progress)


def convert(source: Source, dest: epath.Path, *, mtp: bool, progress: Progress) -> None:
    files = source.files
    model = from_published(read_json(source.directory / "config.json"), mtp=mtp)
    check_tensors(model, files.shapes(), str(source.path), ignore_mtp=not mtp)
    dtype = stored_dtype(model, files)
    model = replace(model, param_dtype=dtype, dtype=dtype)
    check_copies(model, files)
    tokenizer = load_tokenizer(source.directory)
    if tokenizer is None:
        progress.say(f"{source.path} has no tokenizer.json or tokenizer.model: prompts can only be given as ids")
    elif tokenizer.size > model.vocab_size:
        raise UsageError(
            f"{source.path}: config.json's vocab_size is {model.vocab_size}, expected more than the tokenizer's largest"
            f" id, {tokenizer.size - 1}"
        )
    elif tokenizer.size < model.vocab_size:
        model = replace(model, tokenizer_size=tokenizer.size)
    config_end_ids(source.directory, model.vocab_size)  # raises for anything but ids
    if tokenizer is not None and tokenizer.template is not None and tokenizer.template.error:
        progress.say(tokenizer.template.error)

    partial = open_partial(dest, model, fingerprint(model, files))
    policy = partial / "checkpoints" / "0" / "policy"
    write_tensors(policy, model, files, progress)
    (partial / "tokenizer").mkdir(exist_ok=True)
    copy_files(source.directory, partial / "tokenizer", CONFIGS if tokenizer is None else FILES)
    partial.rename(dest)
    (dest / "source.json").unlink()
    # The mark of a stage: runs read the hash from it, instead of the whole checkpoint.
    write_atomically(dest / MARK, json.dumps({"content": content_hash(dest)}))
    progress.say(f"{dest}: {sum(count_params(model).values()):,} parameters in {model.param_dtype}")


def write_tensors(policy: epath.Path, model: ModelConfig, files: TensorFiles, progress: Progress) -> None:
    """Writes every published tensor into its part of our arrays, except parts that an earlier call wrote."""
    tensors = list(published_tensors(model))
    with progress.start("tensors", 0, len(tensors)) as bar:
        for name, group in groupby(enumerate(tensors, 1), key=lambda numbered: numbered[1].array):
            array = open_array(policy, name)
            done_keys = written(array)
            for number, tensor in group:
                if chunk_key(tensor.index, len(tensor.spec.shape)) not in done_keys:
                    values = files.read(tensor.name, np.dtype(array.dtype.name))
                    array[tensor.index].write(tensor.to_ours(values)).result()
                bar.step(number, {})


def open_partial(dest: epath.Path, model: ModelConfig, source: dict) -> epath.Path:
    """The directory that is renamed to `dest`: a new one, or that of an interrupted import of the same source."""
    partial = dest.with_name(dest.name + ".partial")
    record = partial / "source.json"
    if partial.exists() and not (record.exists() and json.loads(record.read_text()) == source):
        raise UsageError(f"{partial} exists and is not an interrupted import of this source: remove it")
    if not partial.exists():
        partial.mkdir(parents=True)
        write_atomically(record, json.dumps(source))
    create_policy(partial / "checkpoints" / "0", model, checkpoint.make_metadata(model, None))
    return partial


def fingerprint(model: ModelConfig, files: TensorFiles) -> dict:
    """Identifies a source without reading its tensors: the model, and size and modification time of each file."""
    shards = {str(file): file.stat() for file in {e.file for e in files.entries.values()}}
    sizes = {name: [stat.length, stat.mtime] for name, stat in sorted(shards.items())}
    return {"model": asdict(model), "shards": sizes}


def stored_dtype(model: ModelConfig, files: TensorFiles) -> str:
    """bfloat16 when all weights are bfloat16 or FP8, which DeepSeek dequantises to bfloat16 too; else float32."""
    params = [tensor.name for tensor in published_tensors(model) if tensor.array.startswith("params.")]
    return "bfloat16" if {files.entries[name].dtype for name in params} <= {"BF16", "F8_E4M3"} else "float32"


def check_copies(model: ModelConfig, files: TensorFiles) -> None:
    """Raises UsageError when a tensor that our model shares differs from its original in the source."""
    for copy, original in copies(model).items():
        if copy in files.entries and not files.same(copy, original):
            hint = "; --no-mtp leaves the multi-token-prediction module out" if copy.startswith("model.layers.") else ""
            raise UsageError(f"{files.entries[copy].file}: {copy} differs from {original}, which it must equal{hint}")


def export_hf(source: epath.Path, dest: epath.Path, *, progress: Progress) -> None:
    """Writes the policy of a checkpoint in the published form: safetensors, index, config.json, tokenizer.

    Raises UsageError when there is no checkpoint or its model has no published form.
    """
    require_free(dest)
    store, step = checkpoint.find_checkpoint(source)
    model, task = checkpoint.read_metadata(store, step)
    _, tokenizer = find_task(store.directory.parent, task, checkpoint.read_template(store, step))
    configs = store.directory.parent / "tokenizer"  # beside an import, and beside what was trained from it
    ids = special_ids(configs, tokenizer)
    config = to_published(model, bos_id=None, eos_id=None) | ids
    partial = dest.with_name(dest.name + ".partial")
    if partial.exists():
        raise UsageError(f"{partial} exists, perhaps from an interrupted export: remove it")
    partial.mkdir(parents=True)
    write_shards(store.directory / str(step) / "policy", partial, model, progress)
    (partial / "generation_config.json").write_text(json.dumps(ids))
    if tokenizer is None:  # the source's generation_config.json, if any
        copy_files(configs, partial, CONFIGS)
    else:
        tokenizer.save(partial)
    (partial / "config.json").write_text(json.dumps(config, indent=1))
    partial.rename(dest)
    progress.say(f"{dest}: {sum(count_params(model).values()):,} parameters in {model.param_dtype}")


def special_ids(configs: epath.Path, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The ids of special tokens for config.json: what the source's said, where it didn't the tokenizer's."""
    eos_ids = () if tokenizer is None else tokenizer.eos_ids
    ids = {
        "bos_token_id": None if tokenizer is None else tokenizer.bos_id,
        "eos_token_id": list(eos_ids) if len(eos_ids) > 1 else next(iter(eos_ids), None),
    }
    source = read_json(configs / "config.json") if (configs / "config.json").exists() else {}
    names = (*ids, "pad_token_id")
    return ids | {name: source[name] for name in names if source.get(name) is not None}


def write_shards(policy: epath.Path, dest: epath.Path, model: ModelConfig, progress: Progress) -> None:
    tensors = {tensor.name: tensor for tensor in published_tensors(model)}
    if not model.tie_word_embeddings:  # published models with tied embeddings store no copies
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
    (dest / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1))


def plan_shards(tensors: dict[str, PublishedTensor], model: ModelConfig) -> Iterator[list[str]]:
    """Splits the names, in order, into shards of at most SHARD_BYTES."""
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
    return math.prod(tensor.shape) * (4 if is_bias else np.dtype(model.param_dtype).itemsize)


def read_published(policy: epath.Path, tensors: dict[str, PublishedTensor]) -> dict[str, np.ndarray]:
    """Reads tensors in their published form. Raises RunError when a part of the checkpoint is missing or damaged."""
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
    parent = next(path for path in dest.parents if path.exists())
    if not parent.is_dir():
        raise UsageError(f"{dest} can't be created: {parent} is not a directory; set another DEST")
