"""Distillation: SFT of a small dense student on R1's curated data, against RL alone (DeepSeek-R1, section 2.4).

make r1 && python -m r1jax run distill --workdir runs/distill    # reads the data of the finished run in runs/r1

Takes minutes on 2 CPU cores. Expected: sampled accuracy 0.95 (language 1.00) after distillation, 0.46 (0.87)
after RL alone.
"""

from dataclasses import dataclass

from etils import epath

from experiments import _toy
from r1jax.config import (
    EvaluateConfig,
    ExamplesConfig,
    FinishedRunConfig,
    MeshConfig,
    ModelConfig,
    PretrainConfig,
    RewardConfig,
    RLConfig,
    RunConfig,
    SFTConfig,
)
from r1jax.data.feeds import Records, ensure_records
from r1jax.runs.run import Run, finished_stage
from r1jax.stages.evaluate import evaluate
from r1jax.stages.pretrain import pretrain
from r1jax.stages.rl import rl
from r1jax.stages.sft import sft

GIN_FILES = (
    "model/tiny_dense.gin",
    "algorithm/grpo.gin",
    "scale/cpu.gin",
    "scale/token_mean.gin",
    "scale/distill_cpu.gin",
)
REPORT_NOTE = (
    "Two copies of one small base: the first is fine-tuned on R1's right and readable responses, the second is trained"
    " by RL alone, with more samples than the first has demonstrations."
)


@dataclass(frozen=True)
class Config:
    """Every number of the experiment. The name of a field is its scope in gin."""

    run: RunConfig
    mesh: MeshConfig
    model: ModelConfig
    r1: FinishedRunConfig
    pretrain: PretrainConfig
    general: ExamplesConfig
    distilled: SFTConfig
    rl: RLConfig
    rewards: RewardConfig
    evaluate: EvaluateConfig


def run(run: Run, config: Config) -> None:
    run = run.with_task(_toy.TASK)
    kept = finished_stage(config.r1, "rejection")
    corpus, sums, general = ensure_records(
        [
            Records("r1_corpus", "train", config.pretrain.documents),
            Records(_toy.TASK.prompts, "train", config.rl.num_prompts),
            Records("chat_demonstrations", "train", config.general.examples),
        ],
        run.seed,
        run.workdir / "data",
    )
    problems = _toy.held_out(config.evaluate.num_prompts, run.seed)
    rules = _toy.rules(config.rewards, 1.0)

    def measure(name: str, checkpoint: epath.Path) -> None:
        evaluate(run.stage(f"evaluate_{name}"), config.evaluate, checkpoint, rules | _toy.watched(), problems)

    base = pretrain(run.stage("pretrain"), config.pretrain, corpus)
    measure("base", base)
    distilled = sft(run.stage("distilled"), config.distilled, base, {"kept": kept, "general": general})
    measure("distilled", distilled)
    alone = rl(run.stage("rl"), config.rl, base, sums, rules)
    measure("rl_alone", alone)
