"""Reward models: the policy's trunk with a scalar head, trained on preference data (R1, supplement)."""

from collections.abc import Mapping

import grain
from etils import epath

from r1jax.checkpoint.store import make_metadata
from r1jax.config import ModelConfig, RewardModelConfig
from r1jax.data.feeds import NO_THREADS
from r1jax.data.preferences import count_preferences, preference_batch, preference_records, split_questions
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.objectives.metrics import Metrics, merge_metrics
from r1jax.objectives.optimizer import updated_model
from r1jax.parallel import reward_programs as programs
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Run, Stage
from r1jax.runs.state import finite_values, policy_hash
from r1jax.runs.training import Training, train
from r1jax.types import TrainState


def reward_model(
    stage: Stage, config: RewardModelConfig, base: epath.Path, records: Mapping[str, epath.Path]
) -> epath.Path:
    """Trains the trunk of the policy in `base` and a new head on `records`: name -> preference data.

    Returns the stage's directory; its result has accuracy, margin and loss on held-out questions. Raises UsageError for
    records that are not of `config.kind` (data/preferences.py), or when all held-out ones are too long.
    """
    run, model, task = stage.run, stage.model, stage.task
    stage.open("reward_model", {"base": base, **records}, reward_model=config, model=model, task=task.name)
    if stage.result() is not None:
        return stage.directory

    task.save_tokenizer(stage.directory)
    learnt, held_out = split_questions(list(records.values()), config.kind, config.held_out)
    size = run.layout.round_up(config.batch_size)  # padded, so that it divides over the devices
    steps = config.epochs * -(-len(learnt) // config.batch_size)
    feed = preference_records(learnt, config.batch_size, config.epochs, run.seed)
    scored = programs.scored_model(model)
    training = Training(
        steps,
        feed,
        lambda rows: preference_batch(task, config.kind, rows, size, config.max_tokens),
        programs.make_reward_model_step(run.layout, scored, config.optimizer, config.kind),
        make_metadata(scored, task.name, task.template)
        | {"reward_model": {"kind": config.kind, "max_tokens": config.max_tokens}},
        shown=("loss", "accuracy", "margin"),
        derive=with_margin,
        first_full_update=2,  # the head starts as zeros, through which the trunk has no gradient
    )
    policy = load_policy(base, run.layout, updated_model(config.optimizer, model))
    trunk = programs.trunk(policy.weights, scored)
    state = programs.make_start_reward_model(run.layout, scored, config.optimizer)(trunk)
    state = train(stage, config, state, training)
    figures = measure(run, config, scored, state, task, held_out)
    run.progress.say(f"{stage.name}, held out: " + "  ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    stage.complete({"steps": steps} | figures, output=policy_hash(run.layout, state))
    return stage.directory


def measure(
    run: Run, config: RewardModelConfig, scored: ModelConfig, state: TrainState, task: Task, held_out: grain.MapDataset
) -> dict[str, float]:
    """Accuracy, margin and loss on the held-out records."""
    metrics_program = programs.make_reward_model_metrics(run.layout, scored, config.kind)
    size = run.layout.round_up(config.batch_size)
    metrics: Metrics = {}
    too_long = 0
    for rows in held_out.batch(config.batch_size, batch_fn=list).to_iter_dataset(NO_THREADS):
        batch = preference_batch(task, config.kind, rows, size, config.max_tokens)
        found = metrics_program(state.params, state.router_bias, run.layout.put_batch(batch))
        metrics = merge_metrics(metrics, found)
        too_long += len(rows) - count_preferences(batch, config.kind)
    if too_long == len(held_out):
        raise UsageError(
            f"all {too_long} held-out records are longer than RewardModelConfig.max_tokens ({config.max_tokens}):"
            " set it higher"
        )
    values = with_margin(finite_values(metrics, "held out", int(state.step)))
    figures = {figure: values[figure] for figure in ("accuracy", "margin", "loss")}
    return figures | {"held_out": len(held_out), "too_long": too_long}


def with_margin(values: dict[str, float]) -> dict[str, float]:
    """Adds `margin`: the mean score of chosen or safe responses minus that of rejected or unsafe ones."""
    return values | {"margin": values["score_good"] - values["score_bad"]}
