"""Supervised fine-tuning on demonstrations: R1's cold start, its SFT of the base, and distillation."""

from collections.abc import Mapping

from etils import epath

from r1jax.checkpoint.store import about
from r1jax.config import ModelConfig, SFTConfig
from r1jax.data.demonstrations import count_batches, demonstration_batches, taught_batch
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.parallel import programs
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Run
from r1jax.runs.state import policy_hash
from r1jax.runs.training import train


def sft(
    run: Run,
    name: str,
    config: SFTConfig,
    model: ModelConfig,
    base: epath.Path,
    task: Task,
    demonstrations: Mapping[str, epath.Path],
) -> epath.Path:
    """Trains the policy in `base` on records of questions and responses (data/demonstrations.py), by name.

    Returns the stage's directory. The loss is on responses only, the whole of each is seen `config.epochs` times.
    """
    stage = run.stage(name, "sft", {"base": base, **demonstrations}, sft=config, model=model, task=task.name)
    if stage.result() is not None:
        return stage.directory
    task.save_tokenizer(stage.directory)

    feed, counts = demonstration_batches(list(demonstrations.values()), task, config, run.seed)
    steps = count_batches(feed)
    if config.optimizer.warmup_steps >= steps:
        raise UsageError(
            f"{name}: OptimizerConfig.warmup_steps is {config.optimizer.warmup_steps}, but the demonstrations make"
            f" {steps} steps: set it lower, or SFTConfig.epochs higher"
        )
    run.progress.say(f"{name}: {counts['used']:,} demonstrations, {counts['too_long']:,} too long")
    policy = load_policy(base, run.layout, model)
    state = programs.start_training(run.layout, model, config.optimizer)(policy.params, policy.router_bias)
    state = train(
        run,
        stage,
        config,
        steps,
        state,
        feed,
        lambda packed: taught_batch(packed, config),
        programs.sft_step(run.layout, model, config, steps),
        about(model, task.name),
    )
    stage.complete({"steps": steps} | counts, output=policy_hash(run.layout, state))
    return stage.directory
