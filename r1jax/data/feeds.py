"""Grain feeds: deterministic, endless, checkpointable iterators over ArrayRecords of JSON objects."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import fsspec
import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from r1jax.data.jsonl import read_problems
from r1jax.data.sources import Source, fingerprint
from r1jax.errors import RunError, UsageError
from r1jax.parallel.hosts import broadcast_from_main, is_main_process
from r1jax.paths import in_bucket, read_json
from r1jax.types import Problem, TokenBatch

NO_THREADS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # records are tiny: threads double their cost


@dataclass(frozen=True)
class Records:
    """`examples` of one split of the seqio task named `task`, or of a mixture of `sources` that is given this name.

    `examples` None: as many as the sources' files have lines.
    """

    task: str
    split: str
    examples: int | None
    sources: tuple[Source, ...] = ()

    def counted(self) -> "Records":
        """The same with a number of examples. Raises UsageError where none is given and a source has no end."""
        if self.examples is not None:
            return self
        files = [source.file for source in self.sources if source.file is not None]
        if not files or len(files) < len(self.sources):
            raise UsageError(
                f"RLConfig.num_prompts is not set, but '{self.task}' has generated problems, of which there is no end:"
                " set it to how many are asked"
            )
        return replace(self, examples=sum(len(read_problems(file, self.task)) for file in files))

    def file_name(self, seed: int) -> str:
        """Unique to the contents: it hashes the sources. Raises UsageError when a source can't be read."""
        contents = f"-{fingerprint(self.sources):08x}" if self.sources else ""
        return f"{self.task}-{self.split}-seed{seed}-{self.examples}{contents}.array_record"


def ensure_records(wanted: Sequence[Records], seed: int, folder: epath.Path) -> list[epath.Path]:
    """Writes the ArrayRecords that `folder` lacks, and returns the paths of all, in the order of `wanted`.

    A subprocess writes them, so that TensorFlow's memory and threads end with it. Source files are read before that:
    raises UsageError for a line that isn't a problem and for a number that is not known, and RunError when the
    subprocess fails.
    """
    wanted = [records.counted() for records in wanted]
    paths = [folder / r.file_name(seed) for r in wanted]
    broadcast_from_main("records", lambda: write_missing(wanted, paths, seed, folder))
    return paths


def write_missing(wanted: Sequence[Records], paths: Sequence[epath.Path], seed: int, folder: epath.Path) -> None:
    pairs = zip(wanted, paths, strict=True)
    missing = [{**asdict(r), "seed": seed, "path": str(path)} for r, path in pairs if not path.exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "r1jax.data.seqio_tasks", json.dumps(missing)]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if made.returncode:
            reason = made.stderr.strip().rpartition("\n")[2][:500] if made.returncode > 0 else "its process was killed"
            full = RuntimeError(made.stderr[-10_000:])  # for the traceback
            raise RunError(f"the seqio tasks could not be written to {folder}: {reason}") from full


def numbered(problems: Iterable[Problem], name: str) -> list[Problem]:
    """The problems of this process's own making, with their places as ids.

    Raises UsageError for anything but problems of text, and for none.
    """
    found = []
    for place, problem in enumerate(problems):
        fields = vars(problem) | {"id": ""} if isinstance(problem, Problem) else {"": None}
        if not all(isinstance(text, str) for text in fields.values()):
            raise UsageError(f"{name}: number {place} is {str(problem)[:100]}, expected a Problem of text")
        found.append(replace(problem, id=place))
    if not found:
        raise UsageError(f"{name}: there are none, expected one or more")
    return found


def write_problems(problems: Iterable[Problem], name: str, folder: epath.Path) -> epath.Path:
    """Writes problems as an ArrayRecord, unless `folder` has it; its name hashes them. Raises as `numbered`."""
    rows = [asdict(problem) for problem in numbered(problems, name)]
    contents = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    path = folder / f"{name}-{contents}.array_record"

    def write() -> None:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_array_record(path, rows)

    broadcast_from_main("records", write)
    return path


def record_files(path: epath.Path) -> list[str]:
    """Local paths of one ArrayRecord, or of all that the `index.json` of a stage's directory lists."""
    if not path.is_dir():
        return [local_copy(path)]
    return [local_copy(path / shard["file"]) for shard in read_json(path / "index.json")["shards"]]


def local_copy(path: epath.Path) -> str:
    """A local path of an ArrayRecord, which can't be read from a bucket: such a file is downloaded once."""
    if not in_bucket(path):
        return str(path)
    checksum = fsspec.filesystem("gcs").checksum(str(path))  # covers the object's generation
    key = hashlib.sha256(f"{path} {checksum}".encode()).hexdigest()[:16]
    local = epath.Path("~/.cache/r1jax/records").expanduser() / key / path.name
    if not local.exists():
        local.parent.mkdir(parents=True, exist_ok=True)
        partial = local.with_name(f"{local.name}.{os.getpid()}.partial")
        path.copy(partial, overwrite=True)
        partial.replace(local)
    return str(local)


def records(paths: epath.Path | Sequence[epath.Path], seed: int | None) -> grain.MapDataset:
    """All records of one epoch: shuffled with `seed`, or in order when it is None."""
    files = [file for path in ([paths] if isinstance(paths, epath.Path) else paths) for file in record_files(path)]
    dataset = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files))
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    return dataset.map(json.loads)


def write_array_record(path: epath.Path, rows: Iterable[Mapping]) -> None:
    """Writes JSON objects, on the main process only. The file appears once it is complete."""
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
            partial.copy(path, overwrite=True)  # uploads to a bucket are atomic


def distinct_problems(path: epath.Path, count: int) -> list[Problem]:
    """The first `count` problems without repeated questions. Raises UsageError when the file has fewer than `count`."""
    dataset = records(path, None)
    if len(dataset) < count:
        raise UsageError(f"{path} has {len(dataset)} problems, expected {count} or more: lower the stage's num_prompts")
    found: dict[str, Problem] = {}
    for row in (dataset[i] for i in range(count)):
        found.setdefault(row["question"], Problem(**row))
    return list(found.values())


def packed_batches(path: epath.Path, batch_size: int, sequence_length: int, seed: int) -> grain.DatasetIterator:
    """Endless batches of rows [batch_size, sequence_length] with documents packed first fit; see `token_batch`.

    A document is never split over rows; one longer than a row is cut. The iterator's `get_state` and `set_state` save
    and restore its position exactly.
    """
    documents = records(path, seed).repeat()
    rows = documents.map(lambda r: {"tokens": np.asarray(r["inputs"][:sequence_length], np.int32)})
    return pack(rows, batch_size, {"tokens": sequence_length})


def pack(rows: grain.MapDataset, batch_size: int, lengths: dict[str, int]) -> grain.DatasetIterator:
    """Batches of rows into which records are packed first fit; `lengths` has the row length of each feature."""
    packed = grain.experimental.FirstFitPackIterDataset(
        rows.to_iter_dataset(NO_THREADS), length_struct=lengths, num_packing_bins=batch_size, shuffle_bins=False
    )
    return iter(packed.batch(batch_size, drop_remainder=False))


def empty_rows(rows: int, T: int, *others: str) -> dict[str, np.ndarray]:
    """All-padding rows [rows, T] in Grain's packed form; `others` name further features packed with the tokens."""
    names = ("tokens", "tokens_positions", "tokens_segment_ids", *others)
    return {name: np.zeros((rows, T), np.int32) for name in names}


def token_batch(packed: dict[str, np.ndarray]) -> TokenBatch:
    """Converts Grain's packed rows, int32 [B, T], to the model's record."""
    return TokenBatch(packed["tokens"], packed["tokens_positions"], packed["tokens_segment_ids"])


def problem_batches(path: epath.Path, batch_size: int, seed: int) -> grain.DatasetIterator:
    """Endless lists of `batch_size` problems. No list has a problem twice: an epoch leaves out what fills no list.

    Raises UsageError when there are fewer than `batch_size` problems.
    """
    dataset = records(path, seed)
    if len(dataset) < batch_size:
        raise UsageError(f"{path} has {len(dataset)} problems, expected {batch_size} or more: lower prompts_per_step")
    batches = dataset.map(lambda record: Problem(**record)).batch(batch_size, drop_remainder=True, batch_fn=list)
    return iter(batches.repeat().to_iter_dataset(NO_THREADS))
