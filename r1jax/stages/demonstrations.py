"""Demonstrations that people wrote, from a file (R1, section 2.3.1); `rejection.py` makes a policy's own."""

from etils import epath

from r1jax.config import DemonstrationsConfig
from r1jax.data.feeds import write_array_record
from r1jax.data.jsonl import read_demonstrations
from r1jax.parallel.hosts import broadcast_from_main
from r1jax.paths import absolute
from r1jax.runs.run import Run, shard, write_index


def demonstrations(run: Run, name: str, config: DemonstrationsConfig) -> epath.Path:
    """Takes a file of questions, reasoning and summaries over into the run; returns the stage's directory.

    Raises UsageError for a line that is none.
    """
    read = read_demonstrations(config)
    stage = run.stage(name, "demonstrations", {"file": absolute(config.path)}, demonstrations=config)
    if stage.result() is not None:
        return stage.directory
    path = stage.directory / "demonstrations.array_record"
    write_array_record(path, [row | {"stage": name} for row in read])
    shards = broadcast_from_main(f"{name}: what it holds", lambda: [shard(path, len(read))])
    stage.complete({"kept": len(read)}, output=write_index(stage.directory, shards))
    return stage.directory
