"""R1-Zero on an imported base and files of mathematics (DeepSeek-R1, arXiv 2501.12948, section 2.2).

python -m r1jax import-hf DeepSeek-V2-Lite/ checkpoints/base
python -m r1jax run r1_zero_math --workdir runs/math            # GSM8K in data/gsm8k/{train,test}.jsonl
python -m r1jax run r1_zero_math --workdir runs/math --dry_run  # what it needs on these devices

Other bases and files: --set BaseConfig.path="'…'", --set train/JsonlConfig.path="'…'", and held_out/ the same. Files
with other columns than GSM8K's: --gin scale/math.gin --gin algorithm/grpo.gin --gin data/math.gin.
"""

from dataclasses import dataclass
from functools import cached_property

from r1jax.config import BaseConfig, EvaluateConfig, JsonlConfig, MeshConfig, ModelConfig, RLConfig, RunConfig
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

GIN_FILES = ("scale/math.gin", "algorithm/grpo.gin", "data/gsm8k.gin")
REPORT_NOTE = "The base is a published one, asked in R1-Zero's dialogue; accuracy is the verifier's."


@dataclass(frozen=True)
class Config:
    """Every number of the experiment. A field's name is its scope in gin."""

    run: RunConfig
    mesh: MeshConfig
    base: BaseConfig
    train: JsonlConfig
    held_out: JsonlConfig
    rl: RLConfig
    evaluate: EvaluateConfig

    @cached_property
    def model(self) -> ModelConfig:
        """The base's own."""
        return base_model(self.base)


def run(run: Run, config: Config) -> None:
    base = absolute(config.base.path)
    task = text_task("math", base / "tokenizer", Source("math", file=config.held_out).problems)
    held_out = task.held_out(config.evaluate.problems, run.seed)  # read first: what is wrong with it is said at once
    train = Records("math", "train", config.rl.prompts, (Source("math", file=config.train),))
    [problems] = ensure_records([train], run.seed, run.workdir / "data")
    with MathVerifier() as verifier:
        rewards = {
            "accuracy": Reward(verifier, 1.0),
            "format": Reward(format_reward, config.rl.format_weight),
            "language": Reward(script_consistency_reward(), 0.0),  # watched, not rewarded
        }
        evaluate(run, "evaluate_base", config.evaluate, base, task, rewards, held_out)
        r1_zero = rl(run, "rl", config.rl, config.model, base, task, problems, rewards)
        evaluate(run, "evaluate_r1_zero", config.evaluate, r1_zero, task, rewards, held_out)
