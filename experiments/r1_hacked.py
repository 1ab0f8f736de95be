"""How R1's last stage fails: reward models that know written judgements only are hacked (DeepSeek-R1, supplement).

make r1 && python -m r1jax run r1_hacked --workdir runs/r1_hacked      # from the policies of a finished run of r1

The judgements are well-formed and right, and the reward models learn them: their accuracy on held-out ones says so. But
none is on what a policy says. RL finds answers that please these models, and nobody else.
"""

from dataclasses import dataclass

from experiments import r1
from r1jax.config import ExamplesConfig, FinishedRunConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.stages.evaluate import evaluate
from r1jax.stages.reward_model import reward_model
from r1jax.stages.rl import rl
from r1jax.stages.run import Run, finished_stage

GIN_FILES = (*r1.GIN_FILES, "scale/r1_hacked_cpu.gin")
TASK = r1.TASK
REPORT_NOTE = (
    "The numbers are those of r1, and so is the policy that is trained; only what the reward models have seen is not."
    " The reward rises, and what it stands for falls."
)


@dataclass(frozen=True)
class Config(r1.Config):
    """R1's numbers, and where its policies are."""

    finished: FinishedRunConfig
    written: ExamplesConfig


def run(run: Run, config: Config) -> None:
    tuned, ruled = (finished_stage(config.finished, name) for name in ("sft", "rules_rl"))
    written, marked, mixture = ensure_records(
        [
            Records("chat_preferences", "train", config.written.examples),
            Records("chat_safety", "train", config.written.examples),
            Records("all_scenarios", "train", config.final_rl.prompts, r1.ALL_SCENARIOS),
        ],
        run.seed,
        run.workdir / "data",
    )
    problems = r1.held_out(config.evaluate.problems, run.seed)
    watched = r1.rules(config.rl, 0.0) | r1.watched()

    evaluate(run, "evaluate_before", config.evaluate, ruled, TASK, watched, problems)
    helpful = reward_model(run, "helpful", config.helpful, config.model, tuned, TASK, {"written": written})
    safe = reward_model(run, "safe", config.safe, config.model, tuned, TASK, {"written": marked})
    rewards = r1.rules(config.final_rl, 1.0) | r1.learned(run, config.final_rl, helpful, safe)
    hacked = rl(run, "final_rl", config.final_rl, config.model, ruled, TASK, mixture, rewards)
    evaluate(run, "evaluate_hacked", config.evaluate, hacked, TASK, watched, problems)
