"""Supervised fine-tuning on demonstrations, for R1's cold start, its SFT of the base, and distillation."""

from collections.abc import Mapping

from etils import epath

from r1jax.config import SFTConfig
from r1jax.data.demonstrations import count_batches, demonstration_batches, sft_batch
from r1jax.errors import UsageError
from r1jax.objectives.optimizer import updated_model
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Stage
from r1jax.runs.training import train_language_model


def sft(stage: Stage, config: SFTConfig, base: epath.Path, demonstrations: Mapping[str, epath.Path]) -> epath.Path:
    """Trains the policy in `base` on `demonstrations`: name -> records of questions and responses.

    Returns the stage's directory. The loss is on response tokens only. Each response is trained on `config.epochs`
    times (data/demonstrations.py). Raises UsageError when the warm-up is not shorter than training.
    """
    run, model, task = stage.run, stage.model, stage.task
    stage.open("sft", {"base": base, **demonstrations}, sft=config, model=model, task=task.name)
    if stage.result() is not None:
        return stage.directory

    feed, counts = demonstration_batches(list(demonstrations.values()), task, config, run.seed)
    steps = count_batches(feed)
    if config.optimizer.warmup_steps >= steps:
        raise UsageError(
            f"{stage.name}: OptimizerConfig.warmup_steps is {config.optimizer.warmup_steps}, expected less than the"
            f" {steps} steps that the demonstrations give: set it lower, or SFTConfig.epochs higher"
        )
    run.progress.say(f"{stage.name}: {counts['used']:,} demonstrations, {counts['too_long']:,} too long")
    weights = load_policy(base, run.layout, updated_model(config.optimizer, model)).weights
    output = train_language_model(stage, config, weights, steps, feed, lambda packed: sft_batch(packed, config))
    stage.complete({"steps": steps} | counts, output=output)
    return stage.directory
