"""The demo's published figures: three seeds, each preset, two negative controls. Half an hour: `make test-slow`."""

import json
import shutil
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from tests.shared.small_run import OPTIMISED, r1jax

SEEDS = (0, 1, 2)
pytestmark = pytest.mark.slow


def figures(workdir: Path) -> tuple[dict, dict, dict]:
    """The figures of the base and of R1-Zero, and the first RL step's metrics."""
    names = ("evaluate_base", "evaluate_r1_zero")
    before, after = (json.loads((workdir / name / "complete.json").read_text()) for name in names)
    return before, after, json.loads((workdir / "rl" / "metrics.jsonl").read_text().splitlines()[0])


def run(workdir: Path, *arguments: str) -> tuple[dict, dict, dict]:
    done = r1jax("run", "r1_zero", "--workdir", str(workdir), *arguments, variables=OPTIMISED)
    assert done.returncode == 0, done.stderr
    return figures(workdir)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[Path]:
    """The demo's directory for each seed."""
    workdirs = [tmp_path_factory.mktemp(f"seed{seed}") / "run" for seed in SEEDS]
    for seed, workdir in zip(SEEDS, workdirs, strict=True):
        run(workdir, "--set", f"RunConfig.seed={seed}")
    return workdirs


@pytest.fixture
def from_the_base(seeds, tmp_path):
    """Runs RL with another config on seed 0's base."""

    def start(*arguments: str) -> tuple[dict, dict, dict]:
        for name in ("data", "pretrain", "evaluate_base"):
            shutil.copytree(seeds[0] / name, tmp_path / "run" / name)
        shutil.copy(seeds[0] / "run.json", tmp_path / "run" / "run.json")
        return run(tmp_path / "run", *arguments)

    return start


def test_r1_zero_shows(seeds):
    runs = [figures(workdir) for workdir in seeds]

    def middle(figure, column):
        return median(run[column][figure] for run in runs)

    assert middle("greedy_accuracy", 0) <= 0.15
    assert middle("greedy_accuracy", 1) >= 0.95
    assert min(after["greedy_accuracy"] for _, after, _ in runs) >= 0.9
    assert middle("pass@1", 1) >= 0.8
    assert middle("format", 1) >= 0.95
    assert median(after["response_tokens"] / before["response_tokens"] for before, after, _ in runs) >= 1.4


def test_the_first_step_is_on_policy(seeds):
    for workdir in seeds:
        _, _, first = figures(workdir)
        assert first["ratio_deviation_max"] == 0
        assert first["clip_fraction_low"] == first["clip_fraction_high"] == 0
        assert first["logprob_gap_max"] < 1e-4


def test_bfloat16_with_masters_learns_as_float32_does(seeds, tmp_path):
    """Over 50 steps of RL, its mean reward of each 10 lies in the range of float32's seeds, widened by their spread."""
    run(tmp_path / "run", "--set", "ModelConfig.param_dtype='bfloat16'")

    def curve(workdir: Path) -> np.ndarray:
        rows = [json.loads(line) for line in (workdir / "rl" / "metrics.jsonl").read_text().splitlines()]
        return np.array([row["reward"] for row in rows[:50]]).reshape(5, 10).mean(axis=1)

    curves = np.array([curve(workdir) for workdir in seeds])
    low, high = curves.min(axis=0), curves.max(axis=0)
    ours, spread = curve(tmp_path / "run"), (high - low).max()
    assert (ours >= low - spread).all() and (ours <= high + spread).all(), (ours, curves)


@pytest.mark.parametrize("preset", ["dapo", "dr_grpo", "gspo", "cispo", "rloo"])
def test_each_preset_learns_as_the_demo_does(from_the_base, preset):
    files = ["model/tiny.gin", f"algorithm/{preset}.gin", "scale/cpu.gin"]
    files += ["scale/token_mean.gin"] if preset == "gspo" else []  # its own aggregation learns to guess, as GRPO's does
    before, after, _ = from_the_base(*(word for file in files for word in ("--gin", file)))
    assert after["greedy_accuracy"] >= 0.95
    assert after["pass@1"] >= 0.8
    assert after["format"] >= 0.95
    assert after["response_tokens"] / before["response_tokens"] >= 1.4


def test_the_mean_over_each_output_learns_to_guess(from_the_base):
    """A negative control: tokens of short outputs weigh more, so that RL learns to guess before it learns steps."""
    before, after, _ = from_the_base("--set", "LossConfig.aggregation='sequence_mean'")
    assert after["response_tokens"] < 0.75 * before["response_tokens"]
    assert after["pass@1"] < 0.6
    assert after["greedy_accuracy"] < 0.8


def test_a_weak_bases_answers_shrink(tmp_path):
    """A negative control: when steps do not help the base, RL finds shorter answers and no reasoning."""
    before, after, _ = run(tmp_path / "run", "--set", "PretrainConfig.steps=100")
    assert after["response_tokens"] < 0.75 * before["response_tokens"]
    assert after["greedy_accuracy"] < 0.5
