"""R1 on an imported base with DeepSeek's tokenizer: every stage from files, through the command line."""

import json

import pytest
from etils import epath

from experiments.r1 import Config
from r1jax.cli.gin_config import read_config
from r1jax.cli.main import main
from r1jax.config import PromptConfig
from r1jax.errors import UsageError
from r1jax.runs.policy import load_policy
from tests.shared.deepseek_tokens import needs_data, publish
from tests.shared.small_r1 import EVALUATED, NUMBERS, STAGES, bind, taught, write_files


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


@needs_data
@pytest.mark.slow
def test_more_prompts_than_problems_are_refused_before_the_first_stage(tmp_path, model, capsys):
    assert main(["import-hf", str(publish(tmp_path, model)), str(tmp_path / "base")]) == 0
    values = NUMBERS | write_files(tmp_path) | {"BaseConfig.path": repr(str(tmp_path / "base"))}
    values |= {"rejection/RejectionConfig.num_prompts": 99}
    assert main(["run", "r1", "--gin", "algorithm/r1.gin", "--workdir", str(tmp_path / "run"), *bind(values)]) == 2
    assert "8 problems, expected 99 or more: lower the stage's num_prompts" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


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
