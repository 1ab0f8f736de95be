"""A policy learns to use a calculator on sums that it can't do in its head; and to do without, for comparison.

python -m r1jax run r1_tools --workdir runs/r1_tools

Takes 5 minutes on 2 CPU cores, of which the base takes 3. Expected, median of three seeds: sampled accuracy with the
calculator from 0.13 (base) to 1.00; without, 0.
"""

from dataclasses import dataclass, replace

from r1jax.config import EvaluateConfig, MeshConfig, ModelConfig, PretrainConfig, RewardConfig, RLConfig, RunConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.data.tasks import TASKS
from r1jax.data.toy import episodes
from r1jax.environments.shipped_tools import calculator
from r1jax.environments.tools import ToolEnvironment
from r1jax.rewards.rules import Reward, accuracy_reward, format_reward
from r1jax.runs.run import Run
from r1jax.stages.evaluate import evaluate
from r1jax.stages.pretrain import pretrain
from r1jax.stages.rl import rl
from r1jax.types import Environments

GIN_FILES = ("model/tiny.gin", "algorithm/grpo.gin", "scale/cpu.gin", "scale/token_mean.gin", "scale/r1_tools_cpu.gin")
REPORT_NOTE = (
    "The base was pretrained on answers of which one in eight calls the calculator and the others guess. RL is run"
    " twice from it: with a calculator that answers, and with none."
)


@dataclass(frozen=True)
class Config:
    """Every number of the experiment. The name of a field is its scope in gin."""

    run: RunConfig
    mesh: MeshConfig
    architecture: ModelConfig
    pretrain: PretrainConfig
    rl: RLConfig
    rewards: RewardConfig
    evaluate: EvaluateConfig

    @property
    def model(self) -> ModelConfig:
        return self.architecture


def spelled_calculator(expression: str) -> str:
    """Computes with numbers whose digits are words."""
    return episodes.spell(calculator(expression.replace(" ", "")))


def make_environment() -> ToolEnvironment:
    return ToolEnvironment([spelled_calculator], episodes.RESULT, episodes.ERROR)


TASK = replace(TASKS["tool_sums"], environments=Environments(make_environment, episodes.TOKENIZER.encode_plain))


def run(run: Run, config: Config) -> None:
    corpus, problems = ensure_records(
        [
            Records(TASK.corpus, "train", config.pretrain.documents),
            Records(TASK.prompts, "train", config.rl.num_prompts),
        ],
        run.seed,
        run.workdir / "data",
    )
    rewards = {"accuracy": Reward(accuracy_reward, 1.0), "format": Reward(format_reward, config.rewards.format_weight)}
    held_out = TASK.held_out(config.evaluate.num_prompts, run.seed)
    base = pretrain(run.with_task(TASK).stage("pretrain"), config.pretrain, corpus)
    for name, task in {"tool": TASK, "no_tool": replace(TASK, environments=None)}.items():
        each = run.with_task(task)
        evaluate(each.stage(f"evaluate_base_{name}"), config.evaluate, base, rewards, held_out)
        policy = rl(each.stage(f"rl_{name}"), config.rl, base, problems, rewards)
        evaluate(each.stage(f"evaluate_{name}"), config.evaluate, policy, rewards, held_out)
