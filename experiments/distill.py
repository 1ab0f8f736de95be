"""Distillation: a small dense student learns R1's curated data; another has RL alone (DeepSeek-R1, section 2.4).

make r1 && python -m r1jax run distill --workdir runs/distill      # the data are those of a finished run of r1
"""

from dataclasses import dataclass

from etils import epath

from experiments import r1
from r1jax.config import (
    EvaluateConfig,
    ExamplesConfig,
    FinishedRunConfig,
    MeshConfig,
    ModelConfig,
    PretrainConfig,
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

GIN_FILES = ("model/tiny_dense.gin", "scale/cpu.gin", "scale/distill_cpu.gin", "algorithm/grpo.gin")
REPORT_NOTE = (
    "Two copies of one small base: the first is shown what R1 said right and readably, the second has to find it by RL,"
    " with as many outputs as the first is shown demonstrations."
)


@dataclass(frozen=True)
class Config:
    """Every number of the experiment. A field's name is its scope in gin."""

    run: RunConfig
    mesh: MeshConfig
    model: ModelConfig
    r1: FinishedRunConfig
    pretrain: PretrainConfig
    general: ExamplesConfig
    distilled: SFTConfig
    rl: RLConfig
    evaluate: EvaluateConfig


def run(run: Run, config: Config) -> None:
    kept = finished_stage(config.r1, "rejection")
    corpus, sums, general = ensure_records(
        [
            Records("r1_corpus", "train", config.pretrain.documents),
            Records(r1.TASK.prompts, "train", config.rl.prompts),
            Records("chat_demonstrations", "train", config.general.examples),
        ],
        run.seed,
        run.workdir / "data",
    )
    problems = r1.held_out(config.evaluate.problems, run.seed)
    rules = r1.rules(config.rl, 1.0)

    def measure(name: str, checkpoint: epath.Path) -> None:
        evaluate(run, f"evaluate_{name}", config.evaluate, checkpoint, r1.TASK, rules | r1.watched(), problems)

    base = pretrain(run, "pretrain", config.pretrain, config.model, r1.TASK, corpus)
    measure("base", base)
    distilled = sft(run, "distilled", config.distilled, config.model, base, r1.TASK, {"kept": kept, "general": general})
    measure("distilled", distilled)
    alone = rl(run, "rl", config.rl, config.model, base, r1.TASK, sums, rules)
    measure("rl_alone", alone)
