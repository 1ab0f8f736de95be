"""Corpora and problems as seqio tasks and mixtures, their examples on disk, where Grain reads them, and SentencePiece.

The only file that imports seqio: it brings TensorFlow, many seconds and 0.8 GB. Import it where data has to be made.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence

import seqio
import tensorflow as tf
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from r1jax.config import JsonlConfig
from r1jax.data.feeds import record_files, write_array_record
from r1jax.data.sources import GENERATORS, Source
from r1jax.data.tokenizer import WordTokenizer
from r1jax.data.toy import chat, running_sum
from r1jax.errors import UsageError
from r1jax.types import Problem


class WordVocabulary(seqio.Vocabulary):
    """`WordTokenizer` as a seqio vocabulary, in Python and in TensorFlow."""

    def __init__(self, tokenizer: WordTokenizer):
        super().__init__(extra_ids=0)
        self.tokenizer = tokenizer
        words, ids = list(tokenizer.ids), list(tokenizer.ids.values())
        initializer = tf.lookup.KeyValueTensorInitializer(words, tf.constant(ids, tf.int32))
        self._table = tf.lookup.StaticHashTable(initializer, default_value=-1)

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.size

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def unk_id(self) -> int | None:
        return None  # an unknown word is an error

    def _encode(self, s: str) -> list[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids) -> str:
        return self.tokenizer.decode(list(ids))

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        ids = self._table.lookup(tf.strings.split(s))
        with tf.control_dependencies([tf.debugging.assert_non_negative(ids, f"unknown word in {s}")]):
            return tf.identity(ids)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.strings.reduce_join(tf.gather(tf.constant(self.tokenizer.words), ids), separator=" ", axis=-1)


class SentencePieceCodec:
    """A tokenizer.model, through seqio."""

    def __init__(self, path: epath.Path):
        try:
            self.vocabulary = seqio.SentencePieceVocabulary(str(path))
            self.model = self.vocabulary.tokenizer
        except Exception as error:  # protobuf's and SentencePiece's own
            raise UsageError(f"{path} can't be read: {error}") from error
        self.size = self.vocabulary.vocab_size
        self.bos, self.eos = (
            self.model.id_to_piece(i) if i >= 0 else "" for i in (self.model.bos_id(), self.model.eos_id())
        )

    def token_id(self, token: str) -> int | None:
        found = self.model.piece_to_id(token)
        return found if token and self.model.id_to_piece(found) == token else None

    def encode(self, text: str) -> list[int]:
        return list(self.vocabulary.encode(text))

    def decode(self, ids: list[int]) -> str:
        return self.vocabulary.decode(ids)


VOCABULARY = WordVocabulary(running_sum.TOKENIZER)


def add_corpus(name: str, generate: Callable[[int], Iterator[str]]) -> None:
    """Registers a base model's documents, as tokens."""

    def source(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files
        # From Python to TensorFlow in blocks: one crossing for each document would take ten times as long.
        blocks = tf.data.Dataset.from_generator(
            lambda: _blocks(generate(seed or 0)), output_signature=tf.TensorSpec((None,), tf.string)
        )
        return blocks.unbatch().map(lambda text: {"inputs": text})

    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(source, splits=("train",)),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"inputs": seqio.Feature(VOCABULARY, add_eos=True)},
    )


add_corpus("running_sum_corpus", running_sum.documents)
add_corpus("r1_corpus", chat.documents)

# Problems stay text: the stage that asks them knows the tokenizer and the template.
PROBLEM = {
    field.name: seqio.Feature(
        seqio.PassThroughVocabulary(0), add_eos=False, rank=0, dtype=tf.int32 if field.name == "id" else tf.string
    )
    for field in dataclasses.fields(Problem)
}


def add_problems(name: str, source: Source, splits: tuple[str, ...]) -> None:
    """Registers a source of problems as a seqio task."""

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files
        return tf.data.Dataset.from_generator(
            lambda: map(vars, source.problems(split, seed or 0)),
            output_signature={field: tf.TensorSpec((), feature.dtype) for field, feature in PROBLEM.items()},
        )

    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=splits),
        preprocessors=[],
        output_features=PROBLEM,
    )


for generator in GENERATORS:
    add_problems(f"{generator}_problems", Source(generator), ("train", "test"))


def add_mixture(name: str, split: str, sources: Sequence[Source]) -> None:
    """Registers sources, and a mixture that draws from them by their rates; a file begins again at its end."""
    names = [f"{name}.{source.name}.{i}" for i, source in enumerate(sources)]  # two files may be of one source
    for task, source in zip(names, sources, strict=True):
        add_problems(task, source, (split,))
    seqio.MixtureRegistry.add(name, [(task, source.rate) for task, source in zip(names, sources, strict=True)])


def add_judged(name: str, generate: Callable[[int], Iterator[dict]], columns: dict[str, tf.DType]) -> None:
    """A task of judged responses, as text: what is read of them, and so their tokens, is the reward model's choice."""

    def source(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files
        signature = {column: tf.TensorSpec((), dtype) for column, dtype in columns.items()}
        return tf.data.Dataset.from_generator(lambda: generate(seed or 0), output_signature=signature)

    seqio.TaskRegistry.add(
        name, source=seqio.FunctionDataSource(source, splits=("train",)), preprocessors=[], output_features={}
    )


add_judged("chat_demonstrations", chat.demonstrations, dict.fromkeys(("question", "response", "source"), tf.string))
add_judged("chat_preferences", chat.preferences, dict.fromkeys(("question", "chosen", "rejected"), tf.string))
add_judged("chat_helpful_pairs", chat.helpful_pairs, dict.fromkeys(("question", "chosen", "rejected"), tf.string))
add_judged("chat_safety", chat.marked_responses, {"question": tf.string, "response": tf.string, "safe": tf.bool})


def add_records(name: str, path: epath.Path, columns: dict[str, tf.DType]) -> None:
    """Registers what a stage wrote (its directory, with an `index.json`), or an ArrayRecord of JSON objects."""

    def source(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files, seed

        def rows() -> Iterator[dict]:
            for file in record_files(path):
                for row in ArrayRecordDataSource(file):
                    yield {column: json.loads(row)[column] for column in columns}

        signature = {column: tf.TensorSpec((), dtype) for column, dtype in columns.items()}
        return tf.data.Dataset.from_generator(rows, output_signature=signature)

    seqio.TaskRegistry.add(
        name, source=seqio.FunctionDataSource(source, splits=("train",)), preprocessors=[], output_features={}
    )


def write_records(
    task: str, split: str, examples: int, seed: int, path: epath.Path, sources: Sequence[Source] = ()
) -> None:
    """The first `examples` of a task or mixture as an ArrayRecord of JSON objects. The file appears when it is whole.

    A record's id is its place in the file. Ids key the sampler's randomness, and those of a mixture's sources overlap:
    two problems of one id would be answered with the same noise, and a problem that comes again in the same words.
    """
    if sources:
        task = path.stem.replace("-", "_")  # the mixture as it is here, of this seed and these files
        add_mixture(task, split, sources)
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        sequence_length=None, split=split, shuffle=False, seed=seed, trim_output_features=False
    )
    write_array_record(path, (row | {"id": place} for place, row in enumerate(_examples(dataset.take(examples)))))


def _examples(dataset: tf.data.Dataset) -> Iterator[dict]:
    # In blocks, as in the source: one crossing for each example would take most of the time.
    for block in dataset.ragged_batch(1000):
        columns = {name: _rows(column) for name, column in block.items()}
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _rows(column: tf.Tensor | tf.RaggedTensor) -> list:
    rows = column.to_list() if isinstance(column, tf.RaggedTensor) else column.numpy().tolist()
    return [row.decode() if isinstance(row, bytes) else row for row in rows]


def _blocks(texts: Iterator[str], size: int = 1000) -> Iterator[list[str]]:
    while block := list(itertools.islice(texts, size)):
        yield block


def read_source(fields: dict) -> Source:
    """A source as it came through JSON."""
    return Source(**fields | {"file": JsonlConfig(**fields["file"]) if fields["file"] else None})


if __name__ == "__main__":  # r1jax/data/feeds.py: TensorFlow's memory and threads end with this process
    for request in json.loads(sys.argv[1]):
        sources = [read_source(fields) for fields in request["sources"]]
        write_records(**request | {"path": epath.Path(request["path"]), "sources": sources})
