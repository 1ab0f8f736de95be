"""Pretraining: makes the base model from a corpus."""

from etils import epath

from r1jax.checkpoint.store import CheckpointStore, about
from r1jax.config import ModelConfig, PretrainConfig
from r1jax.data.feeds import packed_batches, token_batch
from r1jax.parallel import programs
from r1jax.stages.run import Run
from r1jax.stages.state import finite_values, restore_onto, split
from r1jax.telemetry.metrics import MetricsWriter


def pretrain(
    run: Run, name: str, config: PretrainConfig, model: ModelConfig, task: str, corpus: epath.Path
) -> epath.Path:
    """Trains on `corpus` (an ArrayRecord of documents); returns the stage's directory, whose checkpoint is the base."""
    stage = run.stage(name, "pretrain", pretrain=config, model=model, task=task, corpus=corpus.name)
    if stage.result() is not None:
        return stage.directory

    step_program = programs.pretrain_step(run.layout, model, config)
    feed = packed_batches(corpus, config.batch_size, config.sequence_length, run.seed)
    params, router_bias = programs.init_policy(run.layout, model)(stage.key())
    state = programs.start_training(run.layout, model, config.optimizer)(params, router_bias)
    store = CheckpointStore(stage.checkpoints)
    first = store.latest_step() or 0
    if first:
        state, position = restore_onto(store, first, state)
        feed.set_state(position)

    metrics_writer = MetricsWriter(stage.directory, first + 1)
    with run.progress.start(name, first, config.steps) as progress:
        for step in range(first + 1, config.steps + 1):
            batch = run.layout.put_batch(token_batch(next(feed)))
            state, metrics = step_program(state, batch)
            if step % config.log_every == 0 or step == config.steps:
                values = finite_values(metrics, stage.name, step)
                metrics_writer.write(step, values)
                progress.step(step, {"loss": values["loss"]})
            if step % config.save_every == 0 or step == config.steps:
                store.save(step, *split(state), feed.get_state(), about(model, task))
    store.close()
    metrics_writer.close()
    stage.complete({"steps": config.steps})
    return stage.directory
