"""Reward models: the policy's trunk with a scalar head, trained on judged responses (R1, supplement)."""

from collections.abc import Mapping

import grain
from etils import epath

from r1jax.checkpoint.store import about
from r1jax.config import ModelConfig, RewardModelConfig
from r1jax.data.preferences import count_judgements, judged_batch, judged_records, split_questions
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.objectives.metrics import Metrics, merge_metrics
from r1jax.parallel import reward_programs as programs
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Run
from r1jax.runs.state import finite_values, policy_hash
from r1jax.runs.training import train
from r1jax.types import TrainState


def reward_model(
    run: Run,
    name: str,
    config: RewardModelConfig,
    model: ModelConfig,
    base: epath.Path,
    task: Task,
    judged: Mapping[str, epath.Path],
) -> epath.Path:
    """Trains the trunk of the policy in `base`, and a head, on records of judged responses (by name).

    Returns the stage's directory. Its result has accuracy and margin on the questions that were held out.
    """
    inputs = {"base": base, **judged}
    stage = run.stage(name, "reward_model", inputs, reward_model=config, model=model, task=task.name)
    if stage.result() is not None:
        return stage.directory

    task.save_tokenizer(stage.directory)
    learnt, held_out = split_questions(list(judged.values()), config.kind, config.held_out)
    size = run.layout.round_up(config.batch_size)  # with padding, so that devices share it evenly
    steps = config.epochs * -(-len(learnt) // config.batch_size)
    feed = judged_records(learnt, config.batch_size, config.epochs, run.seed)
    scored = programs.scored_model(model)
    state = train(
        run,
        stage,
        config,
        steps,
        start(run, config, model, scored, base),
        feed,
        lambda judgements: judged_batch(task, config.kind, judgements, size, config.max_tokens),
        programs.reward_model_step(run.layout, scored, config, steps),
        about(scored, task.name) | {"reward_model": {"kind": config.kind, "max_tokens": config.max_tokens}},
        shown=("loss", "accuracy", "margin"),
        derive=with_margin,
    )
    figures = measure(run, config, scored, state, task, held_out)
    run.progress.say(f"{name}, held out: " + "  ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    stage.complete({"steps": steps} | figures, output=policy_hash(run.layout, state))
    return stage.directory


def start(run: Run, config: RewardModelConfig, model: ModelConfig, scored: ModelConfig, base: epath.Path) -> TrainState:
    """A fresh optimizer on the base policy's trunk, with a head that says nothing yet."""
    policy = load_policy(base, run.layout, model)
    trunk = programs.trunk(policy.params, policy.router_bias, scored)
    return programs.start_reward_model(run.layout, scored, config.optimizer)(*trunk)


def measure(
    run: Run, config: RewardModelConfig, scored: ModelConfig, state: TrainState, task: Task, held_out: grain.MapDataset
) -> dict[str, float]:
    """Accuracy, margin and the like on records that were not learnt from."""
    metrics_program = programs.reward_model_metrics(run.layout, scored, config.kind)
    size = run.layout.round_up(config.batch_size)
    metrics: Metrics = {}
    too_long = 0
    for records in held_out.batch(config.batch_size, batch_fn=list):
        batch = judged_batch(task, config.kind, records, size, config.max_tokens)
        found = metrics_program(state.params, state.router_bias, run.layout.put_batch(batch))
        metrics = merge_metrics(metrics, found)
        too_long += len(records) - count_judgements(batch, config.kind)
    if too_long == len(held_out):
        raise UsageError(f"all that is held out is longer than RewardModelConfig.max_tokens ({config.max_tokens})")
    values = with_margin(finite_values(metrics, "held out", int(state.step)))
    figures = {figure: values[figure] for figure in ("accuracy", "margin", "loss")}
    return figures | {"held_out": len(held_out), "too_long": too_long}


def with_margin(values: dict[str, float]) -> dict[str, float]:
    """And the mean score of chosen or safe responses - that of rejected or unsafe ones."""
    return values | {"margin": values["score_good"] - values["score_bad"]}
