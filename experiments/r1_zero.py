"""R1-Zero: pure RL with GRPO on a base model, rewarded by rules alone (DeepSeek-R1, arXiv 2501.12948, section 2.2).

make demo                                                       # about 4 minutes on 2 CPU cores
python -m r1jax run r1_zero --workdir runs/r1_zero              # the same
"""

from collections.abc import Mapping
from dataclasses import dataclass

from r1jax.config import EvaluateConfig, MeshConfig, ModelConfig, PretrainConfig, RLConfig, RunConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.data.tasks import TASKS, Task
from r1jax.rewards.rules import Reward, accuracy_reward, format_reward, language_mix_reward
from r1jax.runs.run import Run
from r1jax.stages.evaluate import evaluate
from r1jax.stages.pretrain import pretrain
from r1jax.stages.rl import rl

GIN_FILES = ("model/tiny.gin", "scale/cpu.gin", "algorithm/grpo.gin")
TASK = TASKS["running_sum"]
REPORT_NOTE = (
    "The base has read worked sums and, now and then, the tags: it can solve these problems but seldom does (compare"
    " its pass@8 with its pass@1). RL selects and sharpens what it has seen, and answers grow longer because steps"
    " pay; it does not invent reasoning from nothing."
)


@dataclass(frozen=True)
class Config:
    """Every number of the experiment. A field's name is its scope in gin."""

    run: RunConfig
    mesh: MeshConfig
    model: ModelConfig
    pretrain: PretrainConfig
    rl: RLConfig
    evaluate: EvaluateConfig


def make_rewards(config: Config, task: Task) -> dict[str, Reward]:
    return {
        "accuracy": Reward(accuracy_reward, 1.0),
        "format": Reward(format_reward, config.rl.format_weight),
        "language_mix": Reward(language_mix_reward(task.lexicons), 0.0),  # watched, not rewarded
    }


def run(run: Run, config: Config, rewards: Mapping[str, Reward] | None = None) -> None:
    rewards = rewards or make_rewards(config, TASK)
    corpus, problems = ensure_records(
        [
            Records(TASK.corpus, "train", config.pretrain.documents),
            Records(TASK.prompts, "train", config.rl.prompts),
        ],
        run.seed,
        run.workdir / "data",
    )
    base = pretrain(run, "pretrain", config.pretrain, config.model, TASK, corpus)
    evaluate(run, "evaluate_base", config.evaluate, base, TASK, rewards)
    r1_zero = rl(run, "rl", config.rl, config.model, base, TASK, problems, rewards)
    evaluate(run, "evaluate_r1_zero", config.evaluate, r1_zero, TASK, rewards)
