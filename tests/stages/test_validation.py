"""Validations between the steps of RL: figures, the checkpoints that are kept, early stops, resumption."""

import dataclasses
import json
from statistics import fmean

import pytest

from r1jax.config import CheckpointConfig, ValidationConfig
from r1jax.data.tasks import TASKS
from r1jax.errors import UsageError
from r1jax.rewards.grading import grade_groups
from r1jax.rewards.rules import Reward
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Experiment, open_run
from r1jax.sampling.draw import position_key
from r1jax.stages.rl import rl
from r1jax.telemetry.metrics import MetricsWriter, read_metrics
from r1jax.telemetry.progress import Progress
from tests.shared.command_line import command
from tests.shared.configs import change

STEPS, SEED = 8, 0
TASK = dataclasses.replace(TASKS["running_sum"], validation=TASKS["running_sum"].held_out(8, SEED))


def variety(sample) -> float:
    return len(set(sample.response_tokens)) / 10


REWARDS = {"variety": Reward(variety, 1.0)}


@pytest.fixture
def start(tmp_path, experiment_config, one_device, model, saved_policy, toy_records):
    """Runs the stage in a directory; returns its config and directory."""
    config = change(
        experiment_config.rl, steps=STEPS, prompts_per_step=4, group_size=4, minibatches_per_rollout=1, num_prompts=16,
        max_new_tokens=12, slots=16, kl_coef=0.0, save_every=1, learning_rate=0.003,
    )  # fmt: skip

    def start(workdir: str, task=TASK, keep: dict | None = None, **validation):
        numbers = dict(every=2, num_prompts=8, samples_per_prompt=2, metric="variety")
        own = dataclasses.replace(
            config, validation=ValidationConfig(**numbers | validation), checkpoints=CheckpointConfig(**keep or {})
        )
        opened = open_run(str(tmp_path / workdir), Experiment("x"), experiment_config, one_device, Progress(quiet=True))
        run = dataclasses.replace(opened, model=model, task=task)
        return own, rl(run.stage("rl"), own, saved_policy, toy_records[task.prompts], REWARDS)

    return start


def figures(directory) -> dict[int, float]:
    rows = read_metrics(directory / "metrics.jsonl")
    return {row["step"]: row["validation_variety"] for row in rows if "validation_variety" in row}


def steps_kept(directory) -> list[int]:
    return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


def test_the_best_checkpoint_is_kept_and_has_the_figure_that_is_logged(start, one_device):
    config, directory = start("run", keep=dict(keep=1, keep_every=3, keep_best=1))
    found = figures(directory)
    assert list(found) == [2, 4, 6, 8] and len(set(found.values())) == 4
    best = max(found, key=found.get)
    assert json.loads((directory / "complete.json").read_text()).items() >= {
        "steps": 8, "best_step": best, "best_validation_variety": found[best],
    }.items()  # fmt: skip
    assert steps_kept(directory) == sorted({best, 3, 6, 8})
    # The same problems, drawn by the checkpoint's policy.
    policy = load_policy(directory / "checkpoints" / str(best), one_device)
    engine = RolloutEngine(one_device, policy.model, TASK.tokenizer, config.engine, config.sampling, 2)
    asked = [(p, TASK.tokenizer.encode(TASK.prompt(p.question))) for p in TASK.validation]
    groups = engine.generate(policy.weights, asked, position_key(SEED))
    grade_groups(REWARDS, groups)
    assert found[best] == pytest.approx(fmean(s.rewards["variety"] for group in groups for s in group), abs=1e-12)


def test_validations_change_nothing_of_the_training(start):
    _, validated = start("validated")
    _, plain = start("plain", every=0)
    content = [json.loads((directory / "complete.json").read_text())["content"] for directory in (validated, plain)]
    assert content[0] == content[1] and not figures(plain)


def test_an_early_stop_is_the_same_after_a_kill(start, monkeypatch):
    """Patience 1 ends RL at the first validation that is no better than the best, killed before or not."""
    _, whole = start("whole", patience=None)
    by_step = figures(whole)
    expected = next(
        step for step in list(by_step)[1:] if by_step[step] <= max(v for s, v in by_step.items() if s < step)
    )
    assert expected < STEPS, "the figures only rise: the test shows nothing"
    _, stopped = start("stopped", patience=1)

    def killed(self, step, values):
        if step == expected:
            raise KeyboardInterrupt
        write(self, step, values)

    write = MetricsWriter.write
    monkeypatch.setattr(MetricsWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        start("killed", patience=1)
    monkeypatch.undo()
    _, resumed = start("killed", patience=1)
    marks = [json.loads((directory / "complete.json").read_text()) for directory in (stopped, resumed)]
    assert marks[0] == marks[1] and marks[0]["steps"] == expected
    assert figures(resumed) == {step: v for step, v in by_step.items() if step <= expected}


def test_what_a_validation_lacks_is_said(start):
    with pytest.raises(UsageError, match="num_prompts"):
        start("few", num_prompts=9)
    with pytest.raises(UsageError, match="variety"):
        start("metric", metric="accuracy")


@pytest.mark.parametrize(
    "experiment, scope", [("r1_zero", "rl"), pytest.param("r1", "final_rl", marks=pytest.mark.slow)]
)
def test_an_experiment_refuses_a_wrong_metric_before_its_first_stage(experiment, scope, tmp_path, capsys, monkeypatch):
    def nothing(*_, **__):
        raise AssertionError("a stage has begun")

    monkeypatch.setattr("experiments._toy.pretrain", nothing)
    wrong = [f"{scope}/ValidationConfig.{setting}" for setting in ("every=20", "num_prompts=4", "metric=acuracy")]
    sets = [word for binding in wrong for word in ("--set", binding)]
    status, _, err = command(capsys, "run", experiment, "--workdir", str(tmp_path / "run"), *sets)
    assert (status, len(err.strip().splitlines())) == (2, 1), err
    assert f"{scope}: ValidationConfig.metric is 'acuracy', expected one of accuracy, format" in err
    assert not (tmp_path / "run").exists()
