"""seqio tasks and mixtures of corpora, problems and records, written to disk for Grain to read; SentencePiece.

The only file that imports seqio, and so TensorFlow, which takes many seconds and 0.8 GB: import it to write data only.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import seqio
import tensorflow as tf
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from r1jax.config import JsonlConfig, ReasoningGymConfig
from r1jax.data import toy
from r1jax.data.feeds import record_files, write_array_record
from r1jax.data.sources import GENERATORS, Source
from r1jax.data.tokenizer import WordTokenizer
from r1jax.errors import UsageError
from r1jax.types import Problem


class SentencePieceCodec:
    """A tokenizer.model, read by seqio."""

    def __init__(self, path: epath.Path):
        try:
            self.vocabulary = seqio.SentencePieceVocabulary(str(path))
            self.model = self.vocabulary.tokenizer
        except Exception as error:  # protobuf and SentencePiece raise their own
            raise UsageError(f"{path} can't be read: {error}") from error
        self.size = self.vocabulary.vocab_size
        ids = self.model.bos_id(), self.model.eos_id()
        self.bos, self.eos = (self.model.id_to_piece(i) if i >= 0 else "" for i in ids)

    def token_id(self, token: str) -> int | None:
        found = self.model.piece_to_id(token)
        return found if token and self.model.id_to_piece(found) == token else None

    def begin(self, text: str) -> list[str]:
        """None: a tokenizer.model has a begin token, and tokenizer_config.json says whether it precedes a text."""
        return []

    def encode(self, text: str) -> list[int]:
        return list(self.vocabulary.encode(text))

    def encode_plain(self, text: str) -> list[int]:
        """SentencePiece reads no control tokens in text."""
        return self.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.vocabulary.decode(ids)


def add_corpus(name: str, generate: Callable[[int], Iterator[str]], tokenizer: WordTokenizer) -> None:
    """Registers a base model's documents, each as ids with an end token."""

    def source(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files
        # From Python to TensorFlow in blocks: one crossing for each document would take ten times as long.
        blocks = tf.data.Dataset.from_generator(
            lambda: _blocks(generate(seed or 0), tokenizer),
            output_signature=tf.RaggedTensorSpec((None, None), tf.int32),
        )
        return blocks.unbatch().map(lambda ids: {"inputs": ids})

    data_source = seqio.FunctionDataSource(source, splits=("train",))
    vocabulary = seqio.PassThroughVocabulary(tokenizer.size, tokenizer.eos_id)
    features = {"inputs": seqio.Feature(vocabulary, add_eos=False)}
    seqio.TaskRegistry.add(name, source=data_source, preprocessors=[], output_features=features)


def add_rows(
    name: str,
    generate: Callable[..., Iterable[dict]],
    columns: Mapping[str, tf.DType],
    splits: Sequence[str] = ("train",),
) -> None:
    """Registers the rows of `generate(split, seed)`, untokenised: the stages that read them have the tokenizer."""

    def source(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files
        signature = {column: tf.TensorSpec((), dtype) for column, dtype in columns.items()}
        return tf.data.Dataset.from_generator(lambda: generate(split, seed or 0), output_signature=signature)

    features = {
        column: seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, rank=0, dtype=dtype)
        for column, dtype in columns.items()
    }
    data_source = seqio.FunctionDataSource(source, splits=splits)
    seqio.TaskRegistry.add(name, source=data_source, preprocessors=[], output_features=features)


def add_problems(name: str, source: Source, splits: Sequence[str]) -> None:
    """Registers a source of problems."""
    columns = {field: tf.int32 if field == "id" else tf.string for field in Problem.__annotations__}
    add_rows(name, lambda split, seed: map(vars, source.problems(split, seed)), columns, splits)


def add_mixture(name: str, split: str, sources: Sequence[Source]) -> None:
    """Registers sources, and a mixture that draws from them at their rates. A file repeats when it is exhausted."""
    names = [f"{name}.{source.name}.{i}" for i, source in enumerate(sources)]  # two files may share a source's name
    for task, source in zip(names, sources, strict=True):
        add_problems(task, source, (split,))
    seqio.MixtureRegistry.add(name, [(task, source.rate) for task, source in zip(names, sources, strict=True)])


def add_records(name: str, path: epath.Path, columns: Mapping[str, tf.DType]) -> None:
    """Registers columns of an ArrayRecord of JSON objects, or of the output of a stage, given its directory."""

    def rows(split: str, seed: int) -> Iterator[dict]:
        del split, seed
        for file in record_files(path):
            for row in ArrayRecordDataSource(file):
                yield {column: json.loads(row)[column] for column in columns}

    add_rows(name, rows, columns)


for name, corpus in toy.CORPORA.items():
    add_corpus(name, *corpus)
for name in GENERATORS:
    add_problems(f"{name}_problems", Source(name), ("train", "test"))
for name, (generate, columns) in toy.RECORDS.items():
    dtypes = {column: tf.bool if kind is bool else tf.string for column, kind in columns.items()}
    add_rows(name, lambda split, seed, generate=generate: generate(seed), dtypes)


def write_records(task: str, split: str, examples: int, seed: int, path: epath.Path, sources: Sequence[Source]) -> None:
    """Writes the first `examples` of a task or mixture as an ArrayRecord of JSON objects.

    A record's id becomes its place in the file. Ids key the sampler's randomness, and the ids of a mixture's sources
    overlap: two problems with one id would share their noise, and a repeated problem would repeat its outputs.
    """
    if sources:
        task = path.stem.replace("-", "_")  # names the mixture with its seed and the hash of its files
        add_mixture(task, split, sources)
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        sequence_length=None, split=split, shuffle=False, seed=seed, trim_output_features=False
    )
    write_array_record(path, (row | {"id": place} for place, row in enumerate(_examples(dataset.take(examples)))))


def _examples(dataset: tf.data.Dataset) -> Iterator[dict]:
    # In blocks, as in `add_corpus`: one crossing for each example would take most of the time.
    for block in dataset.ragged_batch(1000):
        columns = {name: _rows(column) for name, column in block.items()}
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _rows(column: tf.Tensor | tf.RaggedTensor) -> list:
    rows = column.to_list() if isinstance(column, tf.RaggedTensor) else column.numpy().tolist()
    return [row.decode() if isinstance(row, bytes) else row for row in rows]


def _blocks(documents: Iterator[str], tokenizer: WordTokenizer, size: int = 1000) -> Iterator[tf.RaggedTensor]:
    while block := [[*tokenizer.encode(text), tokenizer.eos_id] for text in itertools.islice(documents, size)]:
        yield tf.RaggedTensor.from_row_lengths(list(itertools.chain(*block)), [len(ids) for ids in block])


if __name__ == "__main__":  # started by r1jax/data/feeds.py
    for request in json.loads(sys.argv[1]):
        sources = [
            Source(
                s["name"],
                s["rate"],
                s["file"] and JsonlConfig(**s["file"]),
                s["gym"] and ReasoningGymConfig(**s["gym"]),
            )
            for s in request["sources"]
        ]
        write_records(**request | {"path": epath.Path(request["path"]), "sources": sources})
