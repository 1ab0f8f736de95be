"""R1 on an imported base with DeepSeek's tokenizer: every stage from files, through the command line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from etils import epath

from experiments.r1 import Config
from r1jax.cli.gin_config import read_config
from r1jax.cli.main import main
from r1jax.config import BaseConfig, OptimizerConfig, PromptConfig, SFTConfig
from r1jax.data.feeds import write_array_record
from r1jax.data.tasks import text_task
from r1jax.errors import UsageError
from r1jax.runs.policy import base_model, load_policy
from r1jax.runs.run import Experiment, open_run
from r1jax.stages.sft import sft
from r1jax.telemetry.progress import Progress
from tests.shared.deepseek_tokens import needs_data, publish

ASKED, NEW = 24, 24
NUMBERS = {
    "prompt/PromptConfig.template": "'plain'", "BaseConfig.dtype": "'float32'", "BaseConfig.experts": "'dense'",
    "RLConfig.steps": 1, "RLConfig.prompts_per_step": 2, "RLConfig.group_size": 4, "RLConfig.num_prompts": 8,
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


@pytest.mark.slow
@needs_data
def test_every_stage_runs_from_files_on_an_imported_base(tmp_path, model, one_device, experiment_config):
    assert main(["import-hf", str(publish(tmp_path, model)), str(tmp_path / "base")]) == 0
    values = NUMBERS | write_files(tmp_path)
    values |= {"BaseConfig.path": repr(str(taught(tmp_path, one_device, experiment_config)))}
    gin = ["--gin", "algorithm/r1.gin"]
    assert main(["run", "r1", *gin, "--workdir", str(tmp_path / "run"), *bind(values)]) == 0
    complete = {path.parent.name for path in (tmp_path / "run").glob("*/complete.json")}
    assert complete == STAGES | {f"evaluate_{name}" for name in EVALUATED}
    assert json.loads((tmp_path / "run" / "rejection" / "complete.json").read_text())["kept"] > 0
    samples = [json.loads(line) for line in (tmp_path / "run" / "final_rl" / "samples.jsonl").read_text().splitlines()]
    graded = {
        s["problem"]["source"]: {name for name, value in s["rewards"].items() if value is not None} for s in samples
    }
    assert graded["math"] == {"accuracy", "format", "language"}
    assert graded["requests"] == {"helpful", "safe", "chat_format"}
    policy = load_policy(epath.Path(tmp_path / "run" / "final_rl"), one_device)
    assert policy.task.template == PromptConfig("plain")
    assert policy.tokenizer.decode(policy.ask("Who?")).endswith("Who?")


@pytest.mark.parametrize(
    "change, named",
    [
        ({"BaseConfig.path": None}, "BaseConfig"),
        ({"train/JsonlConfig.path": None, "JsonlConfig.answer_form": None}, "train"),
        ({"pairs_file/PreferenceFileConfig.path": None}, "pairs_file"),
        ({"chat/ExamplesConfig.examples": 4}, "chat"),
    ],
)
def test_data_that_are_missing_or_not_read_are_named(tmp_path, change, named):
    values = NUMBERS | write_files(tmp_path) | {"BaseConfig.path": repr(str(tmp_path / "base"))} | change
    bindings = [f"{name} = {value}" for name, value in values.items() if value is not None]
    with pytest.raises(UsageError) as error:
        read_config(Config, ["gin_configs/algorithm/r1.gin"], bindings)
    assert named in str(error.value) and "\n" not in str(error.value)
