"""Pretraining of a base model on a corpus."""

from etils import epath

from r1jax.config import PretrainConfig
from r1jax.data.feeds import packed_batches, token_batch
from r1jax.errors import UsageError
from r1jax.model.spec import count_params
from r1jax.objectives.optimizer import updated_model
from r1jax.parallel import programs
from r1jax.runs.run import Stage
from r1jax.runs.training import train_language_model


def pretrain(stage: Stage, config: PretrainConfig, corpus: epath.Path) -> epath.Path:
    """Trains on `corpus` (an ArrayRecord of documents); returns the stage's directory, whose checkpoint is the base.

    Raises UsageError when the model's vocabulary is not the task's.
    """
    run, model, task = stage.run, stage.model, stage.task
    if (model.tokenizer_size or model.vocab_size) != task.tokenizer.size:
        field = "vocab_size" if model.tokenizer_size is None else "tokenizer_size"
        raise UsageError(
            f"ModelConfig.{field} is {model.tokenizer_size or model.vocab_size}, expected the {task.tokenizer.size} of"
            f" task '{task.name}'"
        )
    stage.open("pretrain", {"corpus": corpus}, pretrain=config, model=model, task=task.name)
    if stage.result() is not None:
        return stage.directory

    run.progress.say(f"{stage.name}: {sum(count_params(model).values()):,} parameters")
    weights = programs.make_init_weights(run.layout, updated_model(config.optimizer, model))(stage.key())
    feed = packed_batches(corpus, config.batch_size, config.sequence_length, run.seed)
    output = train_language_model(stage, config, weights, config.steps, feed, token_batch)
    stage.complete({"steps": config.steps}, output=output)
    return stage.directory
