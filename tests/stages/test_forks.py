"""A fork brings its own advantage, its own loss, or its own copy of the loop, in a file outside the package."""

import ast
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
from etils import epath

from r1jax.data.tasks import TASKS
from r1jax.errors import UsageError
from r1jax.rewards.rules import Reward
from r1jax.rollout.advantages import compute_advantages
from r1jax.runs.run import Experiment, open_run
from r1jax.stages import rl as rl_stage
from r1jax.telemetry.metrics import read_metrics
from r1jax.telemetry.progress import Progress
from tests.conftest import ROOT
from tests.shared.configs import change

TASK = TASKS["running_sum"]
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
