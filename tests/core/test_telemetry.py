"""Statistics against closed forms, and metrics files."""

import random

import pytest
from etils import epath

from r1jax.errors import RunError
from r1jax.telemetry.loggers import open_loggers
from r1jax.telemetry.metrics import MetricsWriter, read_metrics
from r1jax.telemetry.statistics import confidence_interval, consensus, pass_at_k, solved, summarize
from r1jax.types import Problem, Sample
from tests.shared.samples import make_sample


def group(*accuracies: float) -> list[Sample]:
    problem = Problem(0, "q", "1", "en")
    return [make_sample(problem, "t", [5] * (i + 1), rewards={"accuracy": a}) for i, a in enumerate(accuracies)]


def test_pass_at_k_by_hand():
    assert pass_at_k(1, 4, 1) == 0.25
    assert pass_at_k(1, 4, 2) == 0.5
    assert pass_at_k(0, 4, 4) == 0
    assert pass_at_k(2, 4, 3) == 1
    assert solved([group(1, 0, 0, 0), group(1, 1, 1, 1)], 2) == 0.75


def test_consensus_takes_the_most_frequent_answer():
    groups = [group(1, 0, 0), group(0, 1, 1), group(0, 0, 0)]
    assert consensus(groups, [["1", "2", "2"], ["3", "1", "1"], [None, None, None]]) == pytest.approx(1 / 3)
    assert consensus([group(1, 0)], [["1", None]]) == 1  # a missing answer has no vote


def test_summary_is_the_mean_over_samples():
    assert summarize([group(1, 0), group(0, 0)]) == {"accuracy": 0.25, "response_tokens": 1.5, "finished": 1.0}


Z = 1.959964  # the normal distribution's 97.5 % quantile


def test_the_interval_of_verdicts_solves_wilsons_equation():
    """Its ends are where the mean is 1.96 standard errors away: (p - x)² = z² x (1 - x) / n, for n right and wrong."""
    for right in (0, 1, 30, 99, 100):
        for x in confidence_interval([1.0] * right + [0.0] * (100 - right), 1):
            assert (right / 100 - x) ** 2 == pytest.approx(Z**2 * x * (1 - x) / 100, abs=1e-9)
    assert confidence_interval([0.0] * 100, 1)[1] == pytest.approx(Z**2 / (100 + Z**2))
    assert confidence_interval([1.0] * 100, 16)[0] == pytest.approx(100 / (100 + Z**2))


def test_samples_of_equally_hard_problems_count_each_and_of_extreme_ones_none():
    equal = [0.25, 0.75] * 50  # the variance of a mean of four tosses of a coin: n × 4 answers
    assert confidence_interval(equal, 4) == pytest.approx(confidence_interval([0.0, 1.0] * 198, 1), abs=1e-12)
    assert confidence_interval(equal, 2) == pytest.approx(confidence_interval([0.0, 1.0] * 100, 1))  # at most n × 2
    assert confidence_interval([0.0, 1.0] * 50, 16) == confidence_interval([0.0, 1.0] * 50, 1)


@pytest.mark.parametrize("alpha, beta", [(0.3, 0.3), (2, 2), (8, 2), (20, 1)])
def test_the_interval_covers_the_mean_in_95_of_100_draws(alpha, beta):
    """Of 64 problems whose difficulty is drawn from a beta distribution, with four samples each."""
    rng = random.Random(0)
    covered, trials = 0, 2000
    for _ in range(trials):
        difficulties = [rng.betavariate(alpha, beta) for _ in range(64)]
        low, high = confidence_interval([sum(rng.random() < p for _ in range(4)) / 4 for p in difficulties], 4)
        covered += low <= alpha / (alpha + beta) <= high
    assert 0.93 <= covered / trials <= 0.97


def test_metrics_are_dropped_from_the_step_that_a_run_resumes_at(tmp_path):
    directory = epath.Path(tmp_path)
    writer = MetricsWriter(directory, 1, open_loggers(("tensorboard",), "", directory, 1))
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    writer = MetricsWriter(directory, 3, open_loggers(("tensorboard",), "", directory, 3))
    writer.write(3, {"loss": 30.0})
    writer.close()
    rows = read_metrics(directory / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert list(directory.glob("tensorboard/events*"))


def test_tensorboard_reads_what_was_written_and_a_full_disk_is_said(tmp_path):
    from tensorflow.python.summary.summary_iterator import summary_iterator

    [logger] = open_loggers(("tensorboard",), "", epath.Path(tmp_path), 3)
    logger.log(3, {"loss": 0.5, "reward": 2.0})
    [path] = tmp_path.glob("tensorboard/events*")
    events = list(summary_iterator(str(path)))
    assert [event.step for event in events if event.HasField("session_log")] == [3]  # hides later steps of before
    assert [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value] == [
        (3, "loss", 0.5),
        (3, "reward", 2.0),
    ]
    logger.writer._py_recordio_writer._writer = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(RunError, match="tensorboard.*space"):
        for step in range(4, 100):
            logger.log(step, {"loss": 0.5})
