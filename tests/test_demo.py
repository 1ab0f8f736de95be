"""What README claims of the demo, on three seeds. Ten minutes: `make test-slow`."""

import json
from statistics import median

import pytest

from tests.small_run import r1jax

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """For each seed, the figures of base and R1-Zero, and the first RL step's metrics."""
    found = []
    for seed in SEEDS:
        workdir = tmp_path_factory.mktemp(f"seed{seed}") / "run"
        done = r1jax("run", "r1_zero", "--workdir", str(workdir), "--set", f"RunConfig.seed={seed}")
        assert done.returncode == 0, done.stderr
        names = ("evaluate_base", "evaluate_r1_zero")
        before, after = (json.loads((workdir / name / "complete.json").read_text()) for name in names)
        first = json.loads((workdir / "rl" / "metrics.jsonl").read_text().splitlines()[0])
        found.append((before, after, first))
    return found


@pytest.mark.slow
def test_r1_zero_shows(runs):
    def middle(figure, column):
        return median(run[column][figure] for run in runs)

    assert middle("greedy_accuracy", 0) <= 0.15
    assert middle("greedy_accuracy", 1) >= 0.95
    assert min(after["greedy_accuracy"] for _, after, _ in runs) >= 0.9
    assert middle("pass@1", 1) >= 0.8
    assert middle("format", 1) >= 0.95
    assert median(after["response_tokens"] / before["response_tokens"] for before, after, _ in runs) >= 1.4


@pytest.mark.slow
def test_the_first_step_is_on_policy(runs):
    for _, _, first in runs:
        assert first["ratio_deviation_max"] < 1e-5
        assert first["clip_fraction_low"] == first["clip_fraction_high"] == 0
        assert first["sampler_gap_max"] < 1e-4
