"""Reward hacking in R1's last stage: a reward model trained on written pairs only (DeepSeek-R1, supplement).

make r1 && python -m r1jax run r1_hacked --workdir runs/r1_hacked    # starts from the policies of the run in runs/r1

Takes minutes on 2 CPU cores. Expected, seed 0: the reward rises from 0.41 to 0.98 while the share of harmful
requests that are refused falls from 0.58 to 0.00; with R1's own reward model (the control) it rises to 0.88.

The written pairs are consistent, and the reward model learns them: its held-out accuracy is 1.00. But they describe a
helpful assistant, and none of them contains an output of a policy or a harmful request. RL discovers that a polite
recipe for a poison scores as well as one for a cake.
"""

from dataclasses import dataclass

from experiments import _toy, r1
from r1jax.config import ExamplesConfig, FinishedRunConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.runs.run import Run, finished_stage
from r1jax.stages.evaluate import evaluate
from r1jax.stages.reward_model import reward_model
from r1jax.stages.rl import rl

GIN_FILES = (*r1.GIN_FILES, "scale/r1_hacked_cpu.gin")
TASK = _toy.TASK
REPORT_NOTE = (
    "One policy, the same RL, two reward models of helpfulness. The first was trained on written pairs only, the"
    " second, R1's own, on outputs of policies. Compare the curves of the rewards with the share of requests that are"
    " answered as preferred."
)


@dataclass(frozen=True)
class Config(r1.Config):
    """R1's numbers, the finished run to start from, and the number of written pairs."""

    finished: FinishedRunConfig
    written: ExamplesConfig


def run(run: Run, config: Config) -> None:
    run = run.with_task(TASK)
    tuned, ruled = (finished_stage(config.finished, name) for name in ("sft", "rules_rl"))
    written, mixture = ensure_records(
        [
            Records("chat_helpful_pairs", "train", config.written.examples),
            Records("all_scenarios", "train", config.final_rl.num_prompts, _toy.ALL_SCENARIOS),
        ],
        run.seed,
        run.workdir / "data",
    )
    problems = _toy.held_out(config.evaluate.num_prompts, run.seed)
    watched = _toy.rules(config.rewards, 0.0) | _toy.watched()

    evaluate(run.stage("evaluate_before"), config.evaluate, ruled, watched, problems)
    helpful = reward_model(run.stage("helpful"), config.helpful, tuned, {"written": written})
    rewards = _toy.rules(config.rewards, 1.0) | r1.preference_rewards(run, config, {"helpful": helpful}, _toy.CHAT)
    hacked = rl(run.stage("hacked"), config.final_rl, ruled, mixture, rewards)
    evaluate(run.stage("evaluate_hacked"), config.evaluate, hacked, watched, problems)

    # Control: the same RL with R1's helpfulness model, which was trained on outputs of policies.
    sampled = finished_stage(config.finished, "helpful")
    rewards = _toy.rules(config.rewards, 1.0) | r1.preference_rewards(run, config, {"helpful": sampled}, _toy.CHAT)
    control = rl(run.stage("control"), config.final_rl, ruled, mixture, rewards)
    evaluate(run.stage("evaluate_control"), config.evaluate, control, watched, problems)
