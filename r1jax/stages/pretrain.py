"""Pretraining: makes the base model from a corpus."""

from etils import epath

from r1jax.checkpoint.store import about
from r1jax.config import ModelConfig, PretrainConfig
from r1jax.data.feeds import packed_batches, token_batch
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.model.spec import count_params
from r1jax.parallel import programs
from r1jax.runs.run import Run
from r1jax.runs.state import policy_hash
from r1jax.runs.training import train


def pretrain(
    run: Run, name: str, config: PretrainConfig, model: ModelConfig, task: Task, corpus: epath.Path
) -> epath.Path:
    """Trains on `corpus` (an ArrayRecord of documents); returns the stage's directory, whose checkpoint is the base."""
    if (model.tokenizer_size or model.vocab_size) != task.tokenizer.size:
        name = "vocab_size" if model.tokenizer_size is None else "tokenizer_size"
        raise UsageError(
            f"ModelConfig.{name} is {model.tokenizer_size or model.vocab_size}, expected the {task.tokenizer.size} of"
            f" task '{task.name}'"
        )
    stage = run.stage(name, "pretrain", {"corpus": corpus}, pretrain=config, model=model, task=task.name)
    if stage.result() is not None:
        return stage.directory
    task.save_tokenizer(stage.directory)

    run.progress.say(f"{name}: {sum(count_params(model).values()):,} parameters")
    params, router_bias = programs.init_policy(run.layout, model)(stage.key())
    state = train(
        run,
        stage,
        config,
        config.steps,
        programs.start_training(run.layout, model, config.optimizer)(params, router_bias),
        packed_batches(corpus, config.batch_size, config.sequence_length, run.seed),
        token_batch,
        programs.pretrain_step(run.layout, model, config),
        about(model, task.name),
    )
    stage.complete({"steps": config.steps}, output=policy_hash(run.layout, state))
    return stage.directory
