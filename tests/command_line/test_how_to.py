"""The commands of docs/how_to.md and README.md name files and settings that exist; code runs, figures are computed."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from etils import epath

from experiments import r1_zero
from r1jax.cli import evaluate, export_hf
from r1jax.cli.evaluation import check
from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.cli.main import make_parser
from r1jax.config import MeshConfig
from r1jax.data.jsonl import read_problems
from r1jax.model.spec import count_params
from r1jax.parallel.layout import make_layout
from r1jax.parallel.memory import GIB, at_once, stage_memory
from r1jax.parallel.rollout_programs import RolloutSpec
from r1jax.runs.checks import stages
from r1jax.runs.policy import load_policy
from r1jax.telemetry.metrics import read_metrics
from tests.conftest import ROOT
from tests.shared.byte_tokenizer import publish_bytes
from tests.shared.checkpoints import import_
from tests.shared.command_line import command

PAGE = (ROOT / "docs" / "how_to.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
README = (ROOT / "README.md").read_text()
SECTIONS |= dict(re.findall(r"^### (Your own data)\n(.*?)(?=^## )", README, re.DOTALL | re.MULTILINE))
FORKS = {name: code for code, name in re.findall(r'```python\n("""[^"]*"""  # (\w+\.py)\n.*?)```', PAGE, re.DOTALL)}
# Stands for every program: prints its words, and does nothing.
STUB = """#!/usr/bin/env python3
import json, sys
print(json.dumps(sys.argv[1:]))
"""


def commands(section: str, folder) -> list[list[str]]:
    """The words of each r1jax command of a section, as its shell would give them to it."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in (".venv/bin/python", "curl"):
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    (folder / "runs" / "mine" / "rl").mkdir(parents=True)
    (folder / "runs" / "mine" / "rl" / "complete.json").write_text(
        json.dumps({"steps": 200, "best_step": 120}, indent=1)
    )
    code = "\n".join(re.findall(r"```bash\n(.*?)```", SECTIONS[section], re.DOTALL))
    done = subprocess.run(["bash", "-euc", f"PATH=.:$PATH\n{code}"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = map(json.loads, done.stdout.splitlines())
    return [found[2:] for found in words if found[:2] == ["-m", "r1jax"]]


def write_forks(folder: Path) -> None:
    for name, code in FORKS.items():
        (folder / name).write_text(code)


@pytest.mark.parametrize("section", SECTIONS)
def test_documented_commands_are_read(section, tmp_path, saved_policy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_forks(tmp_path)
    parsed = []
    for words in commands(section, tmp_path):
        words = [word.replace("runs/r1_zero/pretrain", str(saved_policy)) for word in words]  # the demo's base
        parsed.append(make_parser().parse_args(words))
    runs = [args for args in parsed if hasattr(args, "experiment")]
    assert runs
    for args in runs:
        experiment = load_experiment(args.experiment)
        files = [gin_path(file) for file in args.gin or experiment.GIN_FILES]
        config = read_config(experiment.Config, files, args.set)
        assert config.base is None or not config.base.path.startswith("'")
        if any("boxed" in binding for binding in args.set):
            assert config.prompt.question == "{question} Put the answer in \\boxed{}."
        if Path("train.jsonl").exists():  # README.md writes it
            assert len(read_problems(config.train, "train")) >= config.rl.prompts_per_step
    for args in parsed:
        if args.command is evaluate.main:
            Path(args.file).touch()
            check(args)
            assert args.max_tokens  # else the cache has room for as many as the model has positions
        if args.command is export_hf.main and section.startswith("Your model"):
            assert args.checkpoint in ("runs/mine/rl", "runs/mine/rl/checkpoints/120")


def test_rows_of_a_parquet_file_become_lines(tmp_path, monkeypatch):
    parquet, table = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow").table
    monkeypatch.chdir(tmp_path)
    parquet.write_table(table({"question": ["a", "b"], "answer": ["1", "2"]}), "train.parquet")
    [code] = re.findall(r"```python\n(import json, pathlib.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "parquet", "exec"), {})
    rows = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    assert rows == [{"question": "a", "answer": "1"}, {"question": "b", "answer": "2"}]


def test_the_metrics_that_are_named_are_logged(finished):
    section = PAGE[PAGE.index("### What to set first") : PAGE.index("### Afterwards")]
    named = {name for name in re.findall(r"`(\w+)`", section) if name.islower()}
    assert {"reward", "groups_with_signal", "entropy", "finished"} <= named
    [row, *_] = read_metrics(epath.Path(finished / "rl" / "metrics.jsonl"))
    assert named <= row.keys()


# Qwen2.5's published config.json, beside the presets of 1.5B and 7B, and the numbers of parameters on its model cards.
SIZES = {
    "Qwen2.5-0.5B": dict(
        hidden_size=896, num_hidden_layers=24, first_k_dense_replace=24, intermediate_size=4864,
        num_attention_heads=14, head_dim=64,
    ),
    "Qwen2.5-1.5B": {},
    "Qwen2.5-3B": dict(
        hidden_size=2048, num_hidden_layers=36, first_k_dense_replace=36, intermediate_size=11008,
        num_attention_heads=16,
    ),
    "Qwen2.5-7B": {},
}  # fmt: skip
PARAMETERS = {
    "Qwen2.5-0.5B": 494_032_768, "Qwen2.5-1.5B": 1_543_714_304, "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
}  # fmt: skip
HEADER, *ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SECTIONS["Your model, your GPU, your data"].splitlines()
    if re.match(r"\| (model|Qwen2\.5-)", line)
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_the_memory_of_a_size_is_what_a_dry_run_counts(row, monkeypatch):
    monkeypatch.setattr(RolloutSpec, "unstacks", False)  # as on an accelerator: a CPU unrolls layers
    layout = make_layout(MeshConfig(data=1), devices=jax.devices()[:1])
    preset = "model/qwen2_5_7b.gin" if row[0] == "Qwen2.5-7B" else "model/qwen2_5_1_5b.gin"
    files = [gin_path(file) for file in (preset, "algorithm/grpo.gin", "scale/math.gin")]
    settings: list[str] = []
    for column, cell in zip(HEADER[1:], row[1:], strict=True):
        settings += [binding.replace(" = ", "=") for binding in re.findall("`([^`]+)`", column) if "=" in binding]
        config = read_config(r1_zero.Config, files, settings)
        model = replace(config.model, **SIZES[row[0]])
        assert sum(count_params(model).values()) == PARAMETERS[row[0]]
        peaks = [sum(at_once(stage_memory(layout, model, stage)).values()) for stage in stages(config).values()]
        assert cell == f"{max(peaks) / GIB:.1f}", (column, settings)


@pytest.mark.slow
def test_the_documented_reward_takes_the_verifiers_place(tmp_path, model, capsys, monkeypatch):
    import_(publish_bytes(tmp_path, model), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    write_forks(tmp_path)
    rows = [{"question": f"{letter}?", "answer": letter.upper()} for letter in "abcdefgh"]
    for name in ("train.jsonl", "test.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    [words] = [w for w in commands("Your model, your GPU, your data", tmp_path / "stub") if w[1] == "mine.py"]
    small = {
        "BaseConfig.path": "base", "RLConfig.steps": 2, "RLConfig.prompts_per_step": 4, "RLConfig.group_size": 4,
        "SamplingConfig.max_prompt_tokens": 24, "SamplingConfig.max_new_tokens": 24, "RLConfig.row_tokens": 48,
        "EngineConfig.slots": 8, "EvaluateConfig.samples_per_prompt": 2, "EvaluateConfig.k": 2, "MeshConfig.data": 8,
        "MeshConfig.fsdp": 1, "RLConfig.log_samples_every": 1,
    }  # fmt: skip
    status, _, err = command(
        capsys, *words, *(w for name, value in small.items() for w in ("--set", f"{name}={value}"))
    )
    assert status == 0, err
    rl = tmp_path / "runs" / "own_reward" / "rl"
    assert json.loads((rl / "config.json").read_text())["rewards"].keys() == {"accuracy", "language"}
    for sample in map(json.loads, (rl / "samples.jsonl").read_text().splitlines()):
        assert sample["rewards"]["accuracy"] == (sample["problem"]["answer"].lower() in sample["text"].lower())


@pytest.mark.slow
def test_the_documented_sft_alone(tmp_path, model, one_device, capsys, monkeypatch):
    import_(publish_bytes(tmp_path, model), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    write_forks(tmp_path)
    rows = [{"question": f"{n}?", "summary": f"{n + 1}."} for n in range(40)]
    (tmp_path / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [words] = [w for w in commands("Your model, your GPU, your data", tmp_path / "stub") if w[1] == "own_sft.py"]
    small = ("BaseConfig.path=base", "SFTConfig.batch_size=8", "SFTConfig.sequence_length=64")
    status, _, err = command(capsys, *words, *(word for binding in small for word in ("--set", binding)))
    assert status == 0, err
    policy = load_policy(epath.Path(tmp_path / "runs" / "sft" / "sft"), one_device)
    assert policy.template.template == "chat"
