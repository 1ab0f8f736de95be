"""Pretraining: makes the base model from a corpus."""

from etils import epath

from r1jax.checkpoint.store import CheckpointStore, about
from r1jax.config import ModelConfig, PretrainConfig
from r1jax.data.feeds import packed_batches, token_batch
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.model.spec import count_params
from r1jax.parallel import programs
from r1jax.stages.run import Run
from r1jax.stages.state import finite_values, restore_onto, split
from r1jax.telemetry.metrics import MetricsWriter


def pretrain(
    run: Run, name: str, config: PretrainConfig, model: ModelConfig, task: Task, corpus: epath.Path
) -> epath.Path:
    """Trains on `corpus` (an ArrayRecord of documents); returns the stage's directory, whose checkpoint is the base."""
    if model.vocab_size != task.tokenizer.size:
        raise UsageError(
            f"ModelConfig.vocab_size is {model.vocab_size}, expected the {task.tokenizer.size} of task '{task.name}'"
        )
    if config.sequence_length > model.max_position_embeddings:
        raise UsageError(
            f"PretrainConfig.sequence_length is {config.sequence_length}, expected at most"
            f" ModelConfig.max_position_embeddings ({model.max_position_embeddings})"
        )
    stage = run.stage(name, "pretrain", pretrain=config, model=model, task=task.name, corpus=run.relative(corpus))
    if stage.result() is not None:
        return stage.directory
    task.save_tokenizer(stage.directory)

    step_program = programs.pretrain_step(run.layout, model, config)
    feed = packed_batches(corpus, config.batch_size, config.sequence_length, run.seed)
    run.progress.say(f"{name}: {sum(count_params(model).values()):,} parameters")
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
            saves = step % config.save_every == 0 or step == config.steps
            if step % config.log_every == 0 or saves:  # nothing is saved that was not looked at
                values = finite_values(metrics, stage.name, step)
                metrics_writer.write(step, values)
                progress.step(step, {"loss": values["loss"]})
            if saves:
                store.save(step, *split(state), feed.get_state(), about(model, task.name))
    store.close()
    metrics_writer.close()
    stage.complete({"steps": config.steps})
    return stage.directory
