"""R1 in miniature from files: an imported base with DeepSeek's tokenizer, and a file of each kind."""

import json
from dataclasses import replace
from pathlib import Path

from etils import epath

from r1jax.config import BaseConfig, OptimizerConfig, PromptConfig, SFTConfig
from r1jax.data.feeds import write_array_record
from r1jax.data.tasks import text_task
from r1jax.runs.policy import base_model
from r1jax.runs.run import Experiment, open_run
from r1jax.stages.sft import sft
from r1jax.telemetry.progress import Progress

ASKED, NEW = 24, 24
NUMBERS = {
    "prompt/PromptConfig.template": "'plain'", "BaseConfig.dtype": "'float32'", "BaseConfig.experts": "'dense'",
    "RLConfig.steps": 1, "RLConfig.prompts_per_step": 2, "RLConfig.group_size": 4,
    "final_rl/RLConfig.steps": 4, "RLConfig.log_samples_every": 1,
    "RLConfig.minibatches_per_rollout": 1, "OptimizerConfig.learning_rate": 1e-4, "OptimizerConfig.mtp": "'off'",
    "SamplingConfig.max_prompt_tokens": ASKED, "SamplingConfig.max_new_tokens": NEW, "EngineConfig.slots": 8,
    "EngineConfig.prefill_rows": 2, "EvaluateConfig.num_prompts": 2, "EvaluateConfig.samples_per_prompt": 2,
    "EvaluateConfig.k": 2, "RejectionConfig.num_prompts": 8, "RejectionConfig.samples_per_prompt": 4,
    "RejectionConfig.language": 0.0, "SFTConfig.batch_size": 8, "SFTConfig.sequence_length": 64, "SFTConfig.epochs": 1,
    "RewardModelConfig.max_tokens": 64, "RewardModelConfig.batch_size": 4, "RewardModelConfig.held_out": 0.3,
    "helpful/RewardModelConfig.kind": "'pairwise'", "safe/RewardModelConfig.kind": "'pointwise'",
}  # fmt: skip
STAGES = {
    "r1_zero", "cold_start_data", "cold_start", "reasoning_rl", "rejection", "general", "sft", "preference_pairs",
    "helpful", "ratings", "safe", "rules_rl", "final_rl",
}  # fmt: skip
EVALUATED = {"base", "r1_zero", "cold_start", "reasoning_rl", "sft", "r1"}


def write_lines(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return repr(str(path))


def write_files(home: Path) -> dict[str, str]:
    """Files of all kinds, and the bindings of their paths."""
    problems = [{"question": f"What is {n} + {7 - n}?", "answer": "so\n#### 7"} for n in range(8)]
    pairs = [{"question": f"Dish {n}?", "chosen": "Mix it, please.", "rejected": "No."} for n in range(20)]
    rated = [{"question": f"Dish {n}?", "response": "Mix it.", "safe": n % 2 == 0} for n in range(20)]
    general = [{"question": f"Who is {n}?", "summary": "Nobody."} for n in range(4)]
    return {
        "train/JsonlConfig.path": write_lines(home / "train.jsonl", *problems),
        "held_out/JsonlConfig.path": write_lines(home / "test.jsonl", *problems[:2]),
        "JsonlConfig.answer_form": "'hashes'",
        "pairs_file/PreferenceFileConfig.path": write_lines(home / "pairs.jsonl", *pairs),
        "ratings_file/PreferenceFileConfig.path": write_lines(home / "ratings.jsonl", *rated),
        "general_file/DemonstrationsConfig.path": write_lines(home / "general.jsonl", *general),
        "general_file/DemonstrationsConfig.reasoning": "None",
    }


def bind(values: dict) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def taught(home: Path, one_device, experiment_config) -> epath.Path:
    """The imported base after some SFT: it answers 7 in R1-Zero's form, or rejection sampling would keep nothing."""
    base = epath.Path(home / "base")
    model = base_model(BaseConfig(str(base), dtype="float32", param_dtype="float32", experts="dense"))
    rows = [
        {"question": f"What is {n} + {7 - n}?", "response": "<think> 7 </think> <answer> 7 </answer>"} for n in range(8)
    ]
    write_array_record(base / "demonstrations.array_record", rows)
    opened = open_run(str(home / "teach"), Experiment("teach"), experiment_config, one_device, Progress(quiet=True))
    task = text_task("math", base / "tokenizer", template=PromptConfig("plain"))
    run = replace(opened, model=model, task=task)
    config = SFTConfig(OptimizerConfig(2e-2, mtp="off"), epochs=15, batch_size=2, sequence_length=64)
    return sft(run.stage("taught"), config, base, {"rows": base / "demonstrations.array_record"})
