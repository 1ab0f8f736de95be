"""How R1's last stage fails: a reward model that knows written pairs only is hacked (DeepSeek-R1, supplement).

make r1 && python -m r1jax run r1_hacked --workdir runs/r1_hacked      # from the policies of a finished run of r1

The pairs are well-formed and right, and the reward model learns them: its accuracy on held-out ones says so. But they
are what people write of a helpful assistant, and none is on what a policy says, or to whom. RL finds that who asks for
a poison is pleased by a kind recipe too.
"""

from dataclasses import dataclass

from experiments import r1
from r1jax.config import ExamplesConfig, FinishedRunConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.runs.run import Run, finished_stage
from r1jax.stages.evaluate import evaluate
from r1jax.stages.reward_model import reward_model
from r1jax.stages.rl import rl

GIN_FILES = (*r1.GIN_FILES, "scale/r1_hacked_cpu.gin")
TASK = r1.TASK
REPORT_NOTE = (
    "One policy, one RL, two reward models of helpfulness. The first has seen pairs that people wrote, and none that a"
    " policy gave: its reward rises, and what it stands for falls. The second is R1's, and shows what RL can do by it."
)


@dataclass(frozen=True)
class Config(r1.Config):
    """R1's numbers, and where its policies are."""

    finished: FinishedRunConfig
    written: ExamplesConfig


def run(run: Run, config: Config) -> None:
    tuned, ruled = (finished_stage(config.finished, name) for name in ("sft", "rules_rl"))
    written, mixture = ensure_records(
        [
            Records("chat_helpful_pairs", "train", config.written.examples),
            Records("all_scenarios", "train", config.final_rl.prompts, r1.ALL_SCENARIOS),
        ],
        run.seed,
        run.workdir / "data",
    )
    problems = r1.held_out(config.evaluate.problems, run.seed)
    watched = r1.rules(config.rl, 0.0) | r1.watched()

    evaluate(run, "evaluate_before", config.evaluate, ruled, TASK, watched, problems)
    helpful = reward_model(run, "helpful", config.helpful, config.model, tuned, TASK, {"written": written})
    rewards = r1.rules(config.final_rl, 1.0) | r1.preferences(run, config.final_rl, {"helpful": helpful})
    hacked = rl(run, "hacked", config.final_rl, config.model, ruled, TASK, mixture, rewards)
    evaluate(run, "evaluate_hacked", config.evaluate, hacked, TASK, watched, problems)

    # The control: the same RL by R1's helpful reward model alone, which learnt from pairs that policies gave.
    sampled = finished_stage(config.finished, "helpful")
    rewards = r1.rules(config.final_rl, 1.0) | r1.preferences(run, config.final_rl, {"helpful": sampled})
    control = rl(run, "control", config.final_rl, config.model, ruled, TASK, mixture, rewards)
    evaluate(run, "evaluate_control", config.evaluate, control, TASK, watched, problems)
