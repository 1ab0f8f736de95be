"""What a person sees: exit status, one clear line, nothing lost."""

import asyncio
import json
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1jax.cli.devices import start_jax
from r1jax.cli.experiments import load_experiment
from r1jax.data.tasks import TASKS
from r1jax.runs.policy import load_environments
from tests.shared.checkpoints import save_policy
from tests.shared.command_line import command
from tests.shared.small_run import r1jax, settings


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "RLConfig.stepz=3"], "stepz"),
        (["--set", "sft/OptimizerConfig.learning_rate=1.0"], "sft/OptimizerConfig.learning_rate"),
        (["--set", "RLConfig.steps='x'"], "RLConfig.steps"),
        (["--set", "PretrainConfig.batch_size=6"], "PretrainConfig.batch_size"),
        (["--set", "PretrainConfig.batch_size=9"], "PretrainConfig.batch_size"),
        (["--set", "MeshConfig.data=5"], "MeshConfig"),
        (["--gin", "model/nonsense.gin"], "model/nonsense.gin"),
    ],
)
def test_a_bad_run_writes_nothing(capsys, tmp_path, arguments, named):
    workdir = tmp_path / "run"
    status, _, err = command(capsys, "run", "r1_zero", "--workdir", str(workdir), *arguments)
    assert status == 2
    assert named in err
    assert err.startswith("r1jax: ")
    assert len(err.strip().splitlines()) == 1
    assert not workdir.exists()


def test_experiments_that_are_not_there_or_not_whole(capsys, tmp_path):
    status, _, err = command(capsys, "run", "r2_zero", "--workdir", str(tmp_path / "w"))
    assert (status, "r2_zero" in err) == (2, True)
    half = tmp_path / "half.py"
    half.write_text("GIN_FILES = ()")
    status, _, err = command(capsys, "run", str(half), "--workdir", str(tmp_path / "w"))
    assert (status, "Config, run" in err) == (2, True)
    half.write_text("import nonsense")
    status, _, err = command(capsys, "run", str(half), "--workdir", str(tmp_path / "w"))
    assert (status, str(half) in err and "nonsense" in err) == (2, True)


def test_modules_may_stand_beside_an_experiment_or_where_a_command_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "stands_beside.py").write_text("GIN_FILES = ('beside.gin',)")
    (tmp_path / "imports_it.py").write_text("from stands_beside import GIN_FILES\nConfig = run = None")
    assert load_experiment(str(tmp_path / "imports_it.py")).GIN_FILES == ("beside.gin",)
    here = tmp_path / "here"
    here.mkdir()
    (here / "lies_here.py").write_text("class Game: pass")
    monkeypatch.chdir(here)
    policy: Any = SimpleNamespace(tokenizer=TASKS["running_sum"].tokenizer)
    environments = load_environments("lies_here:Game", policy)
    assert environments and type(environments.make()).__module__ == "lies_here"


def test_reads_that_a_failed_restore_leaves_say_nothing(capfd, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    start_jax()

    async def read():
        try:
            await asyncio.Future()
        finally:
            raise Exception("of another array")

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    left = read()
    left.send(None)
    del left
    loop.close()
    assert capfd.readouterr().err == ""


def test_a_workdir_of_another_experiment(capsys, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    status, _, err = command(capsys, "run", "r1_zero", "--workdir", str(finished))
    assert status == 2
    assert "'variety'" in err and "'r1_zero'" in err and "--workdir" in err
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_a_workdir_with_other_things_in_it(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    status, _, err = command(capsys, "run", "r1_zero", "--workdir", str(tmp_path))
    assert (status, f"{tmp_path} " in err and "--workdir" in err) == (2, True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_workdir_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = command(capsys, "run", "r1_zero", "--workdir", str(tmp_path / "file" / "run"))
    assert status == 1
    assert str(tmp_path / "file" / "run") in err
    assert len(err.strip().splitlines()) == 1


def test_a_dry_run_states_parameters_and_memory(capsys, monkeypatch):
    monkeypatch.setattr("r1jax.dry_run.run.lower_stages", lambda *_: [])  # slow; test_dry_run.py has it
    status, out, _ = command(capsys, "run", "r1_zero", "--dry_run", "--set", "EngineConfig.slots=2048")
    assert status == 0
    assert "129,796" in out
    # 256 slots on each of 8 devices, of 24 + 44 + 8 tokens, in two layers of 48 float32 numbers
    header, rl = (next(line for line in out.splitlines() if name in line) for name in ("┃ cache ┃", "│ rl "))
    assert rl.split("│")[header.split("┃").index(" cache ")].strip() == f"{256 * 76 * 2 * 48 * 4 / 2**30:.3f}"
    assert out.count("does not fit") == 0
    gin = [
        word for file in ("model/deepseek_v3.gin", "algorithm/grpo.gin", "scale/cpu.gin") for word in ("--gin", file)
    ]
    status, out, err = command(capsys, "run", "r1_zero", "--dry_run", *gin)
    assert (status, out.count("does not fit")) == (1, 3)  # as with --topology, after the tables
    assert "3 of 3 stages do not fit here: pretrain, rl, evaluate" in err and "MeshConfig" in err


@pytest.mark.parametrize(
    ("binding", "stage", "field"),
    [
        ("SamplingConfig.max_new_tokens=5000", "rl: ", "max_new_tokens"),
        ("evaluate/EngineConfig.routing_replay=True", "evaluate: ", "routing_replay"),
        ("rl/EngineConfig.speculative=True", "rl: ", "speculative"),
        ("SamplingConfig.stop=('',)", "", "stop"),
    ],
)
def test_rollouts_that_the_model_cannot_have_are_refused_first(capsys, tmp_path, binding, stage, field):
    dense = ["--set", "ModelConfig.first_k_dense_replace=2", "--set", "ModelConfig.num_nextn_predict_layers=0"]
    for where in (["--workdir", str(tmp_path / "w")], ["--dry_run"]):
        status, _, err = command(capsys, "run", "r1_zero", *where, *dense, "--set", binding)
        assert (status, stage in err, field in err) == (2, True, True), err
    assert not (tmp_path / "w").exists()


def test_a_run_that_cannot_fit_is_refused_before_anything_is_written(capsys, tmp_path):
    long = ["--set", "SamplingConfig.max_new_tokens=131072", "--set", "ModelConfig.max_position_embeddings=200000"]
    long += ["--set", "EngineConfig.slots=100000"]
    status, _, err = command(capsys, "run", "r1_zero", "--workdir", str(tmp_path / "w"), *long)
    assert status == 2
    assert "rl: " in err
    assert "EngineConfig.slots" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "w").exists()


def test_usage_errors(capsys):
    assert command(capsys)[0] == 2
    assert command(capsys, "nonsense")[0] == 2
    assert command(capsys, "run", "r1_zero")[0] == 2  # --workdir is required


def test_experiments_are_listed_with_what_they_are(capsys):
    status, out, _ = command(capsys, "experiments")
    assert status == 0
    assert any(line.startswith("r1_zero ") and "pure RL with GRPO" in line for line in out.splitlines())


def test_a_whole_run_prints_plain_lines_and_where_the_report_is(finished):
    """From another directory, by the path of an experiment outside the project."""
    stdout = (finished.parent / "stdout.txt").read_text()
    lines = stdout.splitlines()
    assert any(line.startswith("pretrain 4/4 loss") for line in lines)
    assert any(line.startswith("rl 4/4 reward") and "tokens_per_second" in line for line in lines)
    assert lines[-1] == f"report: {finished / 'report.html'}"
    assert "\x1b" not in stdout
    page = (finished / "report.html").read_text()
    assert "variety" in page
    assert page.count('class="card"') == 12


@pytest.mark.slow
def test_a_run_over_8_devices(tmp_path, fork):
    changes = {"RLConfig.prompts_per_step": 8, "PretrainConfig.batch_size": 8}
    done = r1jax("run", str(fork), "--workdir", str(tmp_path / "w"), *settings(**changes), devices=8)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w" / "report.html").exists()


def test_generate(finished):
    arguments = ("generate", str(finished / "rl"), "--prompt", "compute 3 #a - 1", "--json", "--max_tokens", "6")
    a, b = (r1jax(*arguments, "--ignore_eos", "--temperature", "0.7", "--seed", s) for s in ("1", "1"))
    assert a.returncode == 0, a.stderr
    assert a.stdout == b.stdout
    output = json.loads(a.stdout)
    assert set(output) == {"text", "ids", "logprobs", "finish_reason"}
    assert len(output["ids"]) == len(output["logprobs"]) == 6
    assert all(x <= 0 for x in output["logprobs"])
    assert output["finish_reason"] == "length"
    ids = r1jax("generate", str(finished / "rl" / "checkpoints" / "2"), "--prompt_ids", "1,7,9", "--max_tokens", "3")
    assert ids.returncode == 0, ids.stderr


def test_generate_continues_plain_text_as_far_as_the_model_goes(tmp_path, model, policy, capsys):
    """By default to the model's last position, and a cut is said on stderr; the template wraps nothing with --raw."""
    checkpoint = str(
        save_policy(tmp_path / "pretrain", replace(model, max_position_embeddings=40), policy, "running_sum")
    )
    text = TASKS["running_sum"].prompt("compute 3 #a - 1")
    ids = ",".join(map(str, TASKS["running_sum"].tokenizer.encode(text)))
    same = (["--prompt", "compute 3 #a - 1"], ["--prompt", text, "--raw"], ["--prompt_ids", ids])
    outputs = [command(capsys, "generate", checkpoint, *prompt, "--json", "--max_tokens", "5") for prompt in same]
    assert outputs[0][0] == 0 and outputs[0] == outputs[1] == outputs[2]
    assert not outputs[0][2]  # JSON has the finish reason

    status, out, err = command(capsys, "generate", checkpoint, "--prompt_ids", "1,7,9", "--ignore_eos")
    assert (status, len(out.split())) == (0, 37)
    assert "cut off after 37 tokens (all that the model's positions leave)" in err
    status, out, err = command(capsys, "generate", checkpoint, *same[2], "--ignore_eos", "--max_tokens", "4")
    assert status == 0 and "cut off after 4 tokens (--max_tokens)" in err
    status, _, err = command(capsys, "generate", checkpoint, "--prompt_ids", ",".join(["7"] * 40))
    assert status == 2 and "no room" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompt", "what is love"], "'what'"),
        (["--prompt_ids", "1,7", "--raw"], "--raw"),
        (["--prompt", "3", "--max_tokens", "0"], "--max_tokens"),
        (["--prompt_ids", "1,x"], "--prompt_ids"),
        (["--prompt_ids", "1,999"], "--prompt_ids"),
        (["--prompt", "3", "--top_p", "0"], "--top_p"),
        (["--prompt", "3", "--stop", ""], "--stop"),
        (["--prompt", "3", "--seed", "99999999999999999999"], "--seed"),
    ],
)
def test_generate_refuses_what_it_cannot_read(capsys, finished, arguments, named):
    status, _, err = command(capsys, "generate", str(finished / "rl"), *arguments)
    assert (status, named in err.splitlines()[-1]) == (2, True), err


def test_eval_gives_a_table_and_json(finished):
    done = r1jax("eval", str(finished / "rl"), "--task", "running_sum", "--problems", "16", "--max_tokens", "12")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert {"greedy_accuracy", "pass@1", "pass@1_low", "pass@8", "cons@8", "format"} <= figures.keys()
    assert "│ pass@1 " in done.stdout


def test_eval_errors(capsys, finished):
    for arguments in (
        ["--task", "nonsense"],
        ["--k", "0", "--task", "running_sum"],
        ["--problems", "-5", "--task", "running_sum"],
        ["--temperature", "-1", "--task", "running_sum"],
    ):
        status, _, err = command(capsys, "eval", str(finished / "rl"), *arguments)
        assert (status, arguments[0] in err.splitlines()[-1]) == (2, True), err
    status, _, err = command(capsys, "eval", str(finished / "nowhere"), "--task", "running_sum")
    assert (status, str(finished / "nowhere") in err) == (2, True)


def test_report_again(capsys, finished, tmp_path):
    workdir = Path(shutil.copytree(finished, tmp_path / "run"))
    (workdir / "report.html").unlink()
    status, out, _ = command(capsys, "report", str(workdir))
    assert status == 0
    assert (workdir / "report.html").exists()
    assert command(capsys, "report", str(workdir / "rl"))[0] == 2


def test_importing_and_exporting_print_nothing_to_stderr(finished, tmp_path):
    """With JAX's choice of platform left open, as users have it: on a machine without a TPU libtpu complains aloud."""
    open_platform = {"JAX_PLATFORMS": "", "XLA_FLAGS": ""}
    there = r1jax("export-hf", str(finished / "rl"), str(tmp_path / "hf"), variables=open_platform)
    assert (there.returncode, there.stderr) == (0, "")
    back = r1jax("import-hf", str(tmp_path / "hf"), str(tmp_path / "back"), variables=open_platform)
    assert (back.returncode, back.stderr) == (0, "")
