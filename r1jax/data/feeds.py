"""Grain feeds: deterministic, endless, checkpointable iterators over ArrayRecords of JSON objects."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import fsspec
import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from r1jax.data.sources import Source, fingerprint
from r1jax.errors import RunError, UsageError
from r1jax.parallel.hosts import broadcast_from_main, is_main_process
from r1jax.paths import in_bucket
from r1jax.types import Problem, TokenBatch

NO_THREADS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # records are tiny: threads double their cost


@dataclass(frozen=True)
class Records:
    """A number of examples of one split: of a seqio task, or of a mixture of sources, which `task` is the name of."""

    task: str
    split: str
    examples: int
    sources: tuple[Source, ...] = ()

    def file_name(self, seed: int) -> str:
        """Two that differ in anything have two names. Raises UsageError when a source can't be read."""
        name = f"{self.task}-{self.split}-seed{seed}-{self.examples}"
        if self.sources:
            name += f"-{fingerprint(self.sources):08x}"
        return f"{name}.array_record"


def ensure_records(wanted: Sequence[Records], seed: int, folder: epath.Path) -> list[epath.Path]:
    """Paths of ArrayRecords with the wanted examples; what is not there yet is made.

    It is made in a process of its own, so that TensorFlow's memory and threads don't stay with the run. Raises
    UsageError, before that, for a file with a line that is no problem.
    """
    paths = [folder / r.file_name(seed) for r in wanted]
    broadcast_from_main("records", lambda: make_records(wanted, paths, seed, folder))
    return paths


def make_records(wanted: Sequence[Records], paths: Sequence[epath.Path], seed: int, folder: epath.Path) -> None:
    """What of `wanted` is not there yet; see `ensure_records`."""
    missing = [
        {**asdict(r), "seed": seed, "path": str(p)} for r, p in zip(wanted, paths, strict=True) if not p.exists()
    ]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "r1jax.data.seqio_tasks", json.dumps(missing)]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if made.returncode:
            raise RunError(f"the seqio tasks could not be written to {folder}:\n{made.stderr.strip()[-2000:]}")


def record_files(path: epath.Path) -> list[str]:
    """The ArrayRecords of a file, or of a stage's directory, by its `index.json`."""
    if not path.is_dir():
        return [on_this_machine(path)]
    return [on_this_machine(path / shard["file"]) for shard in json.loads((path / "index.json").read_text())["shards"]]


def on_this_machine(path: epath.Path) -> str:
    """Where an ArrayRecord can be read, which only local files can: one in a bucket is copied here once."""
    if not in_bucket(path):
        return str(path)
    held = fsspec.filesystem("gcs").checksum(str(path))  # of what the bucket knows of it, its generation too
    key = hashlib.sha256(f"{path} {held}".encode()).hexdigest()[:16]
    local = epath.Path("~/.cache/r1jax/records").expanduser() / key / path.name
    if not local.exists():
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(f"{local.name}.{os.getpid()}.partial")
        path.copy(partial, overwrite=True)
        partial.replace(local)
    return str(local)


def records(paths: epath.Path | Sequence[epath.Path], seed: int | None) -> grain.MapDataset:
    """All records of one epoch, in order, or shuffled with `seed`."""
    files = [file for path in ([paths] if isinstance(paths, epath.Path) else paths) for file in record_files(path)]
    dataset = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files))
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    return dataset.map(json.loads)


def write_array_record(path: epath.Path, rows: Iterable[Mapping]) -> None:
    """JSON objects as an ArrayRecord, which appears when it is whole; of several processes the first writes it."""
    if not is_main_process():
        return
    is_local = not in_bucket(path)
    with tempfile.TemporaryDirectory(dir=path.parent if is_local else None, suffix=".partial") as folder:
        partial = epath.Path(folder) / path.name
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for row in rows:
            writer.write(json.dumps(row).encode())
        writer.close()
        if is_local:
            partial.replace(path)
        else:
            partial.copy(path, overwrite=True)  # an object in a bucket appears when it is whole


def distinct_problems(path: epath.Path, count: int) -> list[Problem]:
    """The first `count` problems of an ArrayRecord, each question once. Raises UsageError when there are fewer."""
    dataset = records(path, None)
    if len(dataset) < count:
        raise UsageError(f"{count} problems are asked of {path}, which has {len(dataset)}: set `prompts` lower")
    found: dict[str, Problem] = {}
    for row in (dataset[i] for i in range(count)):
        found.setdefault(row["question"], problem(row))
    return list(found.values())


def packed_batches(path: epath.Path, batch_size: int, sequence_length: int, seed: int) -> grain.DatasetIterator:
    """Endless batches of documents packed whole into rows, first fit; see `token_batch`.

    `get_state` and `set_state` of the iterator save and restore its position exactly.
    """
    dataset = (
        records(path, seed).repeat().map(lambda r: {"tokens": np.asarray(r["inputs"][:sequence_length], np.int32)})
    )
    packed = grain.experimental.FirstFitPackIterDataset(
        dataset.to_iter_dataset(NO_THREADS),
        length_struct={"tokens": sequence_length},
        num_packing_bins=batch_size,
        shuffle_bins=False,
    )
    return iter(packed.batch(batch_size, drop_remainder=True))


def empty_rows(rows: int, T: int, *others: str) -> dict[str, np.ndarray]:
    """Rows as Grain packs them, with nothing in them; `others` are packed beside the tokens."""
    names = ("tokens", "tokens_positions", "tokens_segment_ids", *others)
    return {name: np.zeros((rows, T), np.int32) for name in names}


def token_batch(packed: dict[str, np.ndarray]) -> TokenBatch:
    """Grain's packed rows as the record that the model takes."""
    return TokenBatch(packed["tokens"], packed["tokens_positions"], packed["tokens_segment_ids"])


def problem(record: dict) -> Problem:
    return Problem(**record)


def problem_batches(path: epath.Path, questions: int, seed: int) -> grain.DatasetIterator:
    """Endless lists of `questions` problems."""
    dataset = records(path, seed).repeat().map(problem)
    return iter(dataset.batch(questions, batch_fn=list).to_iter_dataset(NO_THREADS))
