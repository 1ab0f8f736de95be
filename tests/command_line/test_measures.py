"""`bench`, `--profile` and what a step's log says of speed."""

import json

import jax
import pytest

from r1jax.config import ModelConfig
from r1jax.telemetry.flops import Work, model_flops, rl_step_flops
from r1jax.telemetry.metrics import read_metrics
from r1jax.types import Problem, Sample
from tests.shared.command_line import command
from tests.shared.configs import change
from tests.shared.small_run import r1jax, settings


def test_bench_counts_what_it_measured(tmp_path):
    """Four prompts of 5 tokens, four responses of 12 each, which the update runs with their prompts, in two halves."""
    file = tmp_path / "figures.json"
    options = settings(**{"RLConfig.minibatches_per_rollout": 2})
    arguments = ("r1_zero", *options, "--prompt_tokens", "5", "--steps", "1", "--json", str(file))
    done = r1jax("bench", *arguments)
    assert done.returncode == 0, done.stderr
    parts = {row["part"]: row for row in json.loads(file.read_text())["figures"]}
    tokens = {name: row["tokens"] for name, row in parts.items() if "tokens" in row}
    drawn, whole = 4 * 4 * 12, 4 * 4 * (5 + 12)
    passes = 2  # old log-probabilities and the reference's
    assert tokens == {
        "prefill": 20, "decoding": drawn, "log-probabilities": passes * whole, "update": whole, "RL step": drawn,
    }  # fmt: skip
    for name in tokens:
        assert parts[name]["tokens_per_second"] * parts[name]["seconds"] == pytest.approx(tokens[name])
    assert sum(parts[name]["seconds"] for name in ("log-probabilities", "update")) < parts["RL step"]["seconds"]


@pytest.mark.parametrize("arguments, named", [(("--stage", "evaluate"), "rl"), (("--prompt_tokens", "900"), "24")])
def test_what_bench_lacks_is_said(capsys, arguments, named):
    status, _, err = command(capsys, "bench", "r1_zero", *arguments)
    assert status == 2 and named in err and len(err.splitlines()) == 1


def test_the_flops_of_a_step_by_hand(experiment_config):
    """Each prompt runs once, each response once; then a reference pass and two epochs of three passes on all of it."""
    c: ModelConfig = experiment_config.model
    config = change(experiment_config.rl, minibatches_per_rollout=1, epochs_per_rollout=2, kl_coef=0.1)
    problem = Problem(0, "q", "1", "en")
    group = [Sample(problem, tokens=[5] * (3 + n), loss_mask=[0] * 3 + [1] * n) for n in (4, 2)]

    def tokens(first: int, last: int) -> float:  # from `first` on, each attends to itself and those before it
        return sum(model_flops(c, Work(1, n + 1, 1)) for n in range(first, last))

    drawn = tokens(0, 3) + tokens(3, 7) + tokens(3, 5)
    passes = 1 + 1 + 3 * 2  # old policy, for the second epoch; reference; updates
    assert rl_step_flops(c, config, [group], [group]) == pytest.approx(drawn + passes * (tokens(0, 7) + tokens(0, 5)))


def test_a_step_says_how_fast_it_was(finished):
    for stage in ("pretrain", "rl"):
        rows = read_metrics(finished / stage / "metrics.jsonl")
        assert all(row["tokens_per_second"] == row["tokens_per_second_per_device"] > 0 for row in rows)  # one device
        assert all(row["memory_gib"] > 0 for row in rows)
        assert rows[-1]["seconds_left"] == 0 and all(row["seconds_left"] > 0 for row in rows[:-1])
        assert not any("mfu" in row for row in rows)  # nobody knows this CPU's peak
    for row in rows:
        phases = [row[name] for name in row if name.startswith("seconds_") and name != "seconds_left"]
        assert row["tokens_per_second"] == pytest.approx(row["rollout_tokens"] / sum(phases))


@pytest.mark.slow
def test_a_profile_has_the_steps_and_the_model_s_parts(tmp_path):
    workdir = str(tmp_path / "run")
    done = r1jax("run", "r1_zero", "--workdir", workdir, "--profile", "2:3", *settings())
    assert done.returncode == 0, done.stderr
    [trace] = (tmp_path / "run" / "rl" / "profile").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(trace)).planes
    names = {event.name for plane in planes for line in plane.lines for event in line.events}
    assert any("rl_gradients" in name for name in names), sorted(names)[:50]
    refused = r1jax("run", "r1_zero", "--workdir", workdir, "--profile", "3:2", *settings())
    assert refused.returncode == 2 and "3:2" in refused.stderr and len(refused.stderr.splitlines()) == 1
