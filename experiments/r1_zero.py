"""R1-Zero: pure RL with GRPO on a base model, rewarded by rules alone (DeepSeek-R1, arXiv 2501.12948, section 2.2).

python -m r1jax run r1_zero --workdir runs/r1_zero    # or: make demo

Takes about 3 minutes on 2 CPU cores. Expected, seed 0: sampled accuracy from 0.10 (base) to 0.93, format rate from 0.19
to 0.96.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from r1jax.config import EvaluateConfig, MeshConfig, ModelConfig, PretrainConfig, RewardConfig, RLConfig, RunConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.data.tasks import TASKS, Task
from r1jax.rewards.rules import Reward, accuracy_reward, format_reward, language_mix_reward
from r1jax.runs.run import Run
from r1jax.stages.evaluate import evaluate
from r1jax.stages.pretrain import pretrain
from r1jax.stages.rl import rl

GIN_FILES = ("model/tiny.gin", "algorithm/grpo.gin", "scale/cpu.gin", "scale/token_mean.gin")
TASK = TASKS["running_sum"]
REPORT_NOTE = (
    "The base was pretrained on worked sums and, now and then, on the tags: it can solve these problems but seldom does"
    " (compare its pass@8 with its pass@1). RL reinforces what the base has seen, and responses grow longer because"
    " written steps pay; RL does not invent reasoning from nothing."
)


@dataclass(frozen=True)
class Config:
    """Every number of the experiment. The name of a field is its scope in gin."""

    run: RunConfig
    mesh: MeshConfig
    model: ModelConfig
    pretrain: PretrainConfig
    rl: RLConfig
    rewards: RewardConfig
    evaluate: EvaluateConfig


def make_rewards(config: Config, task: Task) -> dict[str, Reward]:
    return {
        "accuracy": Reward(accuracy_reward, 1.0),
        "format": Reward(format_reward, config.rewards.format_weight),
        "language_mix": Reward(language_mix_reward(task.lexicons), 0.0),  # weight 0: logged only
    }


def run(run: Run, config: Config, rewards: Mapping[str, Reward] | None = None, **functions: Callable) -> None:
    """`functions` are a fork's own `advantage` and `loss` (stages/rl.py)."""
    run = run.with_task(TASK)
    rewards = rewards or make_rewards(config, TASK)
    corpus, problems = ensure_records(
        [
            Records(TASK.corpus, "train", config.pretrain.documents),
            Records(TASK.prompts, "train", config.rl.num_prompts),
        ],
        run.seed,
        run.workdir / "data",
    )
    base = pretrain(run.stage("pretrain"), config.pretrain, corpus)
    evaluate(run.stage("evaluate_base"), config.evaluate, base, rewards)
    r1_zero = rl(run.stage("rl"), config.rl, base, problems, rewards, **functions)
    evaluate(run.stage("evaluate_r1_zero"), config.evaluate, r1_zero, rewards)
