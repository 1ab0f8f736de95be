"""Reads written demonstrations from a file (R1, section 2.3.1); `rejection.py` samples them from a policy instead."""

from etils import epath

from r1jax.config import DemonstrationsConfig
from r1jax.data.feeds import write_array_record
from r1jax.data.jsonl import read_demonstrations
from r1jax.paths import absolute
from r1jax.runs.run import Stage, write_index


def demonstrations(stage: Stage, config: DemonstrationsConfig) -> epath.Path:
    """Converts a file of questions, reasoning and summaries to records; returns the stage's directory.

    Raises UsageError, naming the line and column, for a line that is no demonstration.
    """
    rows = read_demonstrations(config)
    stage.open("demonstrations", {"file": absolute(config.path)}, demonstrations=config)
    if stage.result() is not None:
        return stage.directory
    file = "demonstrations.array_record"
    write_array_record(stage.directory / file, [row | {"stage": stage.name} for row in rows])
    stage.complete({"kept": len(rows)}, output=write_index(stage.directory, {file: len(rows)}))
    return stage.directory
