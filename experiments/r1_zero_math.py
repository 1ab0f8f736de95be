"""R1-Zero on an imported base and files of mathematics (DeepSeek-R1, arXiv 2501.12948, section 2.2).

python -m r1jax import-hf DeepSeek-V2-Lite/ checkpoints/base
python -m r1jax run r1_zero_math --workdir runs/math            # reads GSM8K from data/gsm8k/{train,test}.jsonl
python -m r1jax run r1_zero_math --workdir runs/math --dry_run  # prints memory and FLOPs on these devices

Run so far with tiny random bases only: no time or accuracy of a published base can be stated.

For another base or other files, set --set BaseConfig.path="'…'", --set train/JsonlConfig.path="'…'" and the same with
held_out/. For files whose columns are not GSM8K's: --gin algorithm/grpo.gin --gin scale/math.gin --gin data/math.gin.
"""

from dataclasses import dataclass
from functools import cached_property

from r1jax.config import (
    BaseConfig,
    EvaluateConfig,
    JsonlConfig,
    MeshConfig,
    ModelConfig,
    RewardConfig,
    RLConfig,
    RunConfig,
)
from r1jax.data.feeds import Records, ensure_records
from r1jax.data.sources import Source
from r1jax.data.tasks import text_task
from r1jax.paths import absolute
from r1jax.rewards.mathematics import MathVerifier
from r1jax.rewards.rules import Reward, format_reward
from r1jax.rewards.unicode_scripts import script_consistency_reward
from r1jax.runs.policy import base_model
from r1jax.runs.run import Run
from r1jax.stages.evaluate import evaluate
from r1jax.stages.rl import rl

GIN_FILES = ("algorithm/grpo.gin", "scale/math.gin", "data/gsm8k.gin")
REPORT_NOTE = "The base is a published model, prompted with R1-Zero's template; math-verify decides accuracy."


@dataclass(frozen=True)
class Config:
    """Every number of the experiment. The name of a field is its scope in gin."""

    run: RunConfig
    mesh: MeshConfig
    base: BaseConfig
    train: JsonlConfig
    held_out: JsonlConfig
    rl: RLConfig
    rewards: RewardConfig
    evaluate: EvaluateConfig

    @cached_property
    def model(self) -> ModelConfig:
        """The architecture of the imported base."""
        return base_model(self.base)


def run(run: Run, config: Config) -> None:
    base = absolute(config.base.path)
    task = text_task("math", base / "tokenizer", Source("math", file=config.held_out).problems)
    run = run.with_task(task)
    held_out = task.held_out(config.evaluate.num_prompts, run.seed)  # read first, so that a bad file fails at once
    train = Records("math", "train", config.rl.num_prompts, (Source("math", file=config.train),))
    [problems] = ensure_records([train], run.seed, run.workdir / "data")
    with MathVerifier() as verifier:
        rewards = {
            "accuracy": Reward(verifier, 1.0),
            "format": Reward(format_reward, config.rewards.format_weight),
            "language": Reward(script_consistency_reward(), 0.0),  # weight 0: logged only
        }
        evaluate(run.stage("evaluate_base"), config.evaluate, base, rewards, held_out)
        r1_zero = rl(run.stage("rl"), config.rl, base, problems, rewards)
        evaluate(run.stage("evaluate_r1_zero"), config.evaluate, r1_zero, rewards, held_out)
