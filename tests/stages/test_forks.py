"""A fork brings its own reward, advantage, loss, task or copy of the loop, in a file outside the package.

The complete files of docs/extending.md are run as they stand there.
"""

import ast
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from etils import epath

from r1jax.config import MeshConfig
from r1jax.data.tasks import TASKS
from r1jax.errors import UsageError
from r1jax.parallel.layout import make_layout
from r1jax.rewards.rules import Reward
from r1jax.rollout.advantages import compute_advantages
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Experiment, open_run
from r1jax.stages import rl as rl_stage
from r1jax.telemetry.metrics import read_metrics
from r1jax.telemetry.progress import Progress
from tests.conftest import ROOT
from tests.shared.byte_tokenizer import publish_bytes
from tests.shared.checkpoints import import_
from tests.shared.command_line import command
from tests.shared.configs import change
from tests.shared.small_run import r1jax, settings

TASK = TASKS["running_sum"]
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = {name: code for code, name in re.findall(r'```python\n("""[^"]*"""  # (\w+\.py)\n.*?)```', PAGE, re.DOTALL)}
GIN = dict(re.findall(r"```\n# (\w+\.gin)\n(.*?)```", PAGE, re.DOTALL))
CLOCKS = ("seconds", "tokens_per_second", "device_idle", "memory_gib")
REWARDS = {"varied": Reward(lambda sample: sum(sample.tokens) % 97 / 97, 1.0)}  # differs within every group

ADVANTAGE = '''"""Tokens before the first </think> are worth 0.1 more."""

from r1jax.data.toy.running_sum import TOKENIZER
from r1jax.rollout.advantages import broadcast_advantages


def thinking_bonus(samples, rewards_G, valid_G, config):
    """Adds 0.1 to the advantage of each token of the response before its first </think>."""
    advantages = broadcast_advantages(samples, rewards_G, valid_G, config)
    end = TOKENIZER.ids["</think>"]
    for sample, advantage in zip(samples, advantages, strict=True):
        if end in sample.response_tokens:
            advantage[: sample.tokens.index(end, sample.prompt_length)] += 0.1
    return advantages
'''

LOSS = '''"""REINFORCE: no ratio, no clip, no reference."""

from r1jax.objectives.grpo import token_mean


def reinforce(logp_BT, batch, config, max_new_tokens):
    """-advantage * log p, the mean over all tokens."""
    loss = token_mean(-batch.advantages_BT * logp_BT, batch)
    return loss, {"loss": loss, "logp": token_mean(logp_BT, batch)}
'''


def load(path: Path, text: str):
    """The module in a file of this text."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def start(tmp_path_factory, experiment_config, one_device, model, saved_policy, toy_records):
    """Two steps of RL with the functions of a fork; returns the stage's metrics and directory."""
    config = change(
        experiment_config.rl, steps=2, prompts_per_step=4, group_size=4, minibatches_per_rollout=1, num_prompts=16,
        max_new_tokens=40, slots=16, kl_coef=0.0, save_every=2,
    )  # fmt: skip
    home = tmp_path_factory.mktemp("forks")

    def start(workdir: str, rl=rl_stage.rl, **functions) -> tuple[list[dict[str, float]], epath.Path]:
        opened = open_run(str(home / workdir), Experiment("fork"), experiment_config, one_device, Progress())
        run = replace(opened, model=model, task=TASK)
        directory = rl(run.stage("rl"), config, saved_policy, toy_records[TASK.prompts], REWARDS, **functions)
        return read_metrics(directory / "metrics.jsonl"), directory

    return start


@pytest.fixture(scope="module")
def original(start) -> list[dict[str, float]]:
    """The metrics of the package's own loop with its own functions."""
    rows, directory = start("original")
    assert "functions" not in json.loads((directory / "config.json").read_text())
    return rows


def test_an_advantage_by_token_is_one_short_function(start, tmp_path, monkeypatch):
    fork = load(tmp_path / "thinking.py", ADVANTAGE)
    [function] = [node for node in ast.parse(ADVANTAGE).body if isinstance(node, ast.FunctionDef)]
    assert function.end_lineno - function.lineno + 1 <= 15
    end, seen = TASK.tokenizer.ids["</think>"], []

    def comparing(groups, loss, sampling, function):
        by_default = [s.advantages for s in compute_advantages(groups, loss, sampling)]
        samples = compute_advantages(groups, loss, sampling, function)
        seen.extend(zip(samples, by_default, strict=True))
        return samples

    monkeypatch.setattr(rl_stage, "compute_advantages", comparing)
    rows, directory = start("thinking", advantage=fork.thinking_bonus)
    assert len(rows) == 2 and all(row["grad_norm"] > 0 for row in rows)
    assert len(seen) == 2 * 16
    raised = 0
    for sample, by_default in seen:
        response = sample.response_tokens
        thinking = response.index(end) if end in response else 0  # tokens before the tag
        found, default = sample.advantages[sample.prompt_length :], by_default[sample.prompt_length :]
        for n in range(len(response)):
            assert found[n] == pytest.approx(default[n] + (0.1 if n < thinking else 0.0), abs=1e-6), (n, thinking)
        raised += thinking
    assert 0 < raised < sum(len(sample.response_tokens) for sample, _ in seen)
    assert any(default[-1] != 0 for _, default in seen)

    # The stage's config names the function: the stage is not resumed with another one.
    assert json.loads((directory / "config.json").read_text())["functions"] == ["thinking_bonus"]
    with pytest.raises(UsageError, match="functions"):
        start("thinking")


def test_a_loss_of_its_own(start, original, tmp_path):
    """At ratio 1, in the first update, the gradient of REINFORCE is GRPO's without a KL term."""
    fork = load(tmp_path / "losses.py", LOSS)
    rows, directory = start("losses", loss=fork.reinforce)
    assert json.loads((directory / "config.json").read_text())["functions"] == ["reinforce"]
    assert len(rows) == 2
    for row in rows:
        assert row["logp"] < 0 < row["grad_norm"]
        assert "ratio_max" not in row
        assert {"entropy", "mtp_loss", "logprob_gap_max"} <= row.keys()  # those of every loss
    assert rows[0]["grad_norm"] == pytest.approx(original[0]["grad_norm"], rel=1e-4)
    assert rows[0]["loss"] != pytest.approx(original[0]["loss"], rel=1e-4)


def test_a_copy_of_the_loop_alone_is_a_fork(start, original, tmp_path):
    """`r1jax/stages/rl.py`, as a file outside the package: the same metrics in both steps."""
    copy = load(tmp_path / "my_rl.py", (ROOT / "r1jax" / "stages" / "rl.py").read_text())
    assert copy.rl is not rl_stage.rl
    rows, _ = start("copied", copy.rl)
    assert len(rows) == 2

    def without_clocks(rows):
        return [{name: x for name, x in row.items() if not name.startswith(CLOCKS)} for row in rows]

    assert without_clocks(rows) == without_clocks(original)


def test_the_documented_files_are_short():
    lengths = {name: len(code.splitlines()) for name, code in FILES.items()}
    assert lengths.keys() == {"brevity.py", "best_of_group.py", "backwards.py"}
    assert lengths["brevity.py"] <= 15 and lengths["best_of_group.py"] <= 15
    both = [line for line in (FILES["backwards.py"] + GIN["backwards.gin"]).splitlines() if line.strip()]
    assert lengths["backwards.py"] <= 40 and len(both) <= 40


SMALLER = settings(**{"RLConfig.steps": 2, "EvaluateConfig.num_prompts": 4, "EvaluateConfig.samples_per_prompt": 2,
                      "EvaluateConfig.k": 2})  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brevity.py", "best_of_group.py"])
def test_a_documented_reward_and_advantage_on_the_base_of_another_run(name, tmp_path, finished):
    (tmp_path / name).write_text(FILES[name])
    base = ("--set", f"BaseConfig.path={finished / 'pretrain'}")
    done = r1jax("run", str(tmp_path / name), "--workdir", str(tmp_path / "run"), *SMALLER, *base, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read_metrics(epath.Path(tmp_path / "run" / "rl" / "metrics.jsonl"))
    config = json.loads((tmp_path / "run" / "rl" / "config.json").read_text())
    assert len(rows) == 2 and not (tmp_path / "run" / "pretrain").exists()
    assert config["inputs"]["base"]["path"] == str(finished / "pretrain")
    if name == "brevity.py":
        assert all(row["brevity"] == pytest.approx(1 - row["response_tokens"] / 44) for row in rows)
        assert config["rewards"]["brevity"]["weight"] == 0.1 and rows[0]["grad_norm"] > 0
    else:
        assert config["functions"] == ["best_of_group"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory, model) -> Path:
    home = tmp_path_factory.mktemp("imported")
    import_(publish_bytes(home, model), home / "base")
    return home / "base"


def write_task(folder: Path, base: Path, text: str = FILES["backwards.py"]) -> list[str]:
    """Writes the fork and its numbers into `folder`; the arguments that run it on `base`, small."""
    folder.mkdir()
    (folder / "backwards.py").write_text(text)
    (folder / "backwards.gin").write_text(GIN["backwards.gin"])
    small = {
        "BaseConfig.path": base, "RLConfig.steps": 1, "RLConfig.prompts_per_step": 2, "RLConfig.group_size": 4,
        "RLConfig.num_prompts": 8, "EvaluateConfig.num_prompts": 2, "EvaluateConfig.samples_per_prompt": 2,
        "EvaluateConfig.k": 2, "EngineConfig.slots": 8, "RLConfig.log_samples_every": 1,
    }  # fmt: skip
    sets = [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    return ["run", str(folder / "backwards.py"), *sets]


@pytest.mark.slow
def test_a_documented_task_on_an_import_and_on_another_runs_stage(tmp_path, imported):
    """Its generator, verifier and prompt are its own, and its gin file is found beside it, from another directory."""
    arguments = write_task(tmp_path / "fork", imported)
    done = r1jax(*arguments, "--workdir", str(tmp_path / "run"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    asked = [json.loads(line) for line in (tmp_path / "run" / "rl" / "samples.jsonl").read_text().splitlines()]
    words = [re.fullmatch("Spell ([b-f][a-f]{3}) backwards.", s["problem"]["question"])[1] for s in asked]
    assert len(asked) == 8 and [word[::-1] for word in words] == [s["problem"]["answer"] for s in asked]
    policy = load_policy(epath.Path(tmp_path / "run" / "rl"), make_layout(MeshConfig(data=1), jax.devices()[:1]))
    assert policy.tokenizer.decode(policy.ask("Hi")) == "<s>[user]Hi[assistant]"
    held_out = (tmp_path / "run" / "evaluate_base" / "samples.jsonl").read_text()
    assert re.findall("Spell ([a-f]{4})", held_out) and not re.findall("Spell [b-df]", held_out)

    again = [arg.replace(str(imported), str(tmp_path / "run" / "rl")) for arg in arguments]
    done = r1jax(*again, "--workdir", str(tmp_path / "second"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    base = json.loads((tmp_path / "second" / "rl" / "config.json").read_text())["inputs"]["base"]
    assert base["content"] == json.loads((tmp_path / "run" / "rl" / "complete.json").read_text())["content"]


def test_a_task_without_an_end_needs_a_number_of_problems(tmp_path, imported, capsys, monkeypatch):
    monkeypatch.setattr("experiments._files.ENDLESS", 40)
    arguments = [*write_task(tmp_path / "fork", imported), "--set", "RLConfig.num_prompts=None"]
    status, _, err = command(capsys, *arguments, "--workdir", str(tmp_path / "run"))
    assert status == 2 and "40 problems or more: set RLConfig.num_prompts" in err, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("yield Problem(number, ", "yield (number, "), "expected a Problem"),
        (("word[::-1], ", "len(word), "), "expected a Problem of text"),
        (("for number in itertools.count():", "for number in range(0):"), "there are none"),
        (('"backwards.gin"', '"forwards.gin"'), "forwards.gin"),
        (("Spell {word}", "Spell {word * 99}"), "max_prompt_tokens"),
    ],
)
def test_a_wrong_task_is_one_line(tmp_path, imported, capsys, wrong, named):
    assert wrong[0] in FILES["backwards.py"]
    arguments = write_task(tmp_path / "fork", imported, FILES["backwards.py"].replace(*wrong))
    status, _, err = command(capsys, *arguments, "--workdir", str(tmp_path / "run"))
    assert status == 2 and named in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "run").exists()
