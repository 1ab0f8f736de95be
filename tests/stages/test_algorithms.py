"""Every preset in gin_configs/algorithm against NumPy loops written from the papers, values and gradients."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.cli.gin_config import read_config
from r1jax.cli.main import load_experiment, main
from r1jax.config import RLConfig
from r1jax.objectives.grpo import ADVANTAGES, grpo_loss, importance_weights
from tests.conftest import ROOT

PRESETS = sorted(path.stem for path in (ROOT / "gin_configs" / "algorithm").glob("*.gin"))
LONGEST = 44  # max_new_tokens of scale/cpu.gin


def preset(name: str) -> RLConfig:
    files = [str(ROOT / "gin_configs" / f) for f in ("model/tiny.gin", "scale/cpu.gin", f"algorithm/{name}.gin")]
    return read_config(load_experiment("r1_zero").Config, files, []).rl


def surrogate(logp, old, ref, A, low, high, kl):
    """A token's clipped objective minus kl * k3, and its derivative by logp."""
    ratio = np.exp(logp - old)
    if A >= 0:
        value, slope = (ratio * A, ratio * A) if ratio < 1 + high else ((1 + high) * A, 0.0)
    else:
        value, slope = (ratio * A, ratio * A) if ratio > 1 - low else ((1 - low) * A, 0.0)
    k3 = np.exp(ref - logp) - (ref - logp) - 1
    return value - kl * k3, slope - kl * (1 - np.exp(ref - logp))


def by_token(low, high, kl, divide):
    """Loss and gradient of a sum of token surrogates, each divided by `divide(output's length, all lengths)`."""

    def loss(logp, old, ref, A, lengths):
        total, gradient = 0.0, np.zeros_like(logp)
        for i, n in enumerate(lengths):
            for t in range(n):
                value, slope = surrogate(logp[i, t], old[i, t], ref[i, t], A[i], low, high, kl)
                total -= value / divide(n, lengths)
                gradient[i, t] = -slope / divide(n, lengths)
        return total, gradient

    return loss


def by_sequence(share):
    """GSPO; `share(n, lengths)` is what an output of n tokens weighs in the mean."""

    def loss(logp, old, ref, A, lengths):
        total, gradient = 0.0, np.zeros_like(logp)
        for i, n in enumerate(lengths):
            s = np.exp((logp[i, :n] - old[i, :n]).sum() / n)
            is_cut = (A[i] > 0 and s > 1 + 4e-4) or (A[i] < 0 and s < 1 - 3e-4)
            total -= min(s * A[i], np.clip(s, 1 - 3e-4, 1 + 4e-4) * A[i]) * share(n, lengths)
            gradient[i, :n] = 0 if is_cut else -s * A[i] / n * share(n, lengths)
        return total, gradient

    return loss


def cispo(logp, old, ref, A, lengths):
    total, gradient = 0.0, np.zeros_like(logp)
    for i, n in enumerate(lengths):
        for t in range(n):
            weight = min(np.exp(logp[i, t] - old[i, t]), 5.0) * A[i] / sum(lengths)
            total -= weight * logp[i, t]
            gradient[i, t] = -weight
    return total, gradient


LOSSES = {
    "grpo": by_token(0.2, 0.2, 0.001, lambda n, lengths: sum(lengths)),
    "dapo": by_token(0.2, 0.28, 0.0, lambda n, lengths: sum(lengths)),
    "r1": by_token(10.0, 10.0, 0.001, lambda n, lengths: n * len(lengths)),
    "dr_grpo": by_token(0.2, 0.2, 0.0, lambda n, lengths: len(lengths) * LONGEST),
    "rloo": by_token(1.0, 1e3, 0.001, lambda n, lengths: len(lengths) * LONGEST),
    "gspo": by_sequence(lambda n, lengths: n / sum(lengths)),
    "cispo": cispo,
    "gspo's paper": by_sequence(lambda n, lengths: 1 / len(lengths)),
    "paper": by_token(0.2, 0.2, 0.001, lambda n, lengths: n * len(lengths)),
}


def numbers():
    """Ratios on both sides of every bound, with advantages of both signs, of outputs of different lengths."""
    rng = np.random.default_rng(0)
    lengths = [7, 1, 4, 9, 3, 9]
    logp, ref = -rng.random((6, 9)) * 3, -rng.random((6, 9)) * 3
    old = logp + rng.normal(size=(6, 9)) * 0.5
    old[2:4] = logp[2:4] + rng.normal(size=(2, 9)) * 1e-4  # within GSPO's bounds
    old[4:] = logp[4:] + rng.normal(size=(2, 9)) * 2  # beyond CISPO's
    A = np.abs(rng.normal(size=6)) * [1, -1, 1, -1, 1, -1]
    ratio = np.exp(logp - old)
    assert all(((ratio < 0.7) & (A[:, None] * sign > 0)).any() for sign in (1, -1))
    assert all(((ratio > 5) & (A[:, None] * sign > 0)).any() for sign in (1, -1))
    return logp, old, ref, A, lengths, (np.arange(9) < np.array(lengths)[:, None]).astype(float)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_and_gradient_equal_the_papers_loops(name):
    logp, old, ref, A, lengths, mask = numbers()
    config = preset({"paper": "grpo", "gspo's paper": "gspo"}.get(name, name))
    if name == "gspo's paper":
        config = dataclasses.replace(config, aggregation="sequence_mean")
    if name == "paper":  # the defaults of RLConfig are DeepSeekMath's
        defaults = {f.name: f.default for f in dataclasses.fields(RLConfig)}
        names = ("advantage", "ratio", "objective", "kl_estimator", "aggregation", "clip_low", "clip_high", "kl_coef")
        config = dataclasses.replace(config, **{n: defaults[n] for n in names})
    expected, gradient = LOSSES[name](logp, old, ref, A, lengths)
    with jax.enable_x64(True):
        run = lambda x: grpo_loss(x, old, ref, A, mask, config)[0].mean()  # noqa: E731
        value, found = jax.value_and_grad(run)(logp)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(found, gradient, rtol=1e-6, atol=1e-12)
    assert np.abs(gradient).max() > 0


def test_every_preset_is_tested():
    assert set(PRESETS) == LOSSES.keys() - {"paper", "gspo's paper"}
    assert preset("dr_grpo").advantage == "centred"
    assert preset("rloo").advantage == "leave_one_out"
    assert {preset(name).advantage for name in PRESETS} == set(ADVANTAGES)


def test_importance_weights_by_hand():
    log_ratio = np.log([[1.5, 1.5, 8.0], [0.5, 3.0, 1.0]])
    mask = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])

    def weights(**changes):
        return np.asarray(importance_weights(log_ratio, mask, dataclasses.replace(preset("grpo"), **changes))) * mask

    np.testing.assert_array_equal(weights(), mask)
    np.testing.assert_allclose(weights(importance="token"), [[1.5, 1.5, 0], [0.5, 2, 1]], rtol=1e-6)
    np.testing.assert_allclose(
        weights(importance="token", importance_beyond="mask"), [[1.5, 1.5, 0], [0.5, 0, 1]], rtol=1e-6
    )
    np.testing.assert_allclose(weights(importance="sequence"), [[2, 2, 0], [1.5, 1.5, 1.5]], rtol=1e-6)
    np.testing.assert_allclose(
        weights(importance="sequence", importance_beyond="mask"), [[0, 0, 0], [1.5, 1.5, 1.5]], rtol=1e-6
    )


def test_weights_scale_the_objective_and_not_the_kl():
    logp, old, ref, A, _, mask = numbers()
    weights = np.random.default_rng(1).random((6, 9))
    config = dataclasses.replace(preset("grpo"), kl_coef=0.3)
    with jax.enable_x64(True):
        loss = lambda A, kl, w: float(  # noqa: E731
            grpo_loss(logp, old, ref, A, mask, dataclasses.replace(config, kl_coef=kl), w)[0].mean()
        )
        assert loss(A, 0.3, 2.0) == pytest.approx(2 * loss(A, 0.0, 1.0) + loss(0 * A, 0.3, 1.0), rel=1e-6)
        assert loss(A, 0.0, weights) != pytest.approx(loss(A, 0.0, 1.0))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_and_their_correction(estimator):
    """Expected over the old policy, the corrected k1 and k3 are KL(new || reference); k2 is near it."""
    new, old, ref = (np.log(p) for p in ([[0.5, 0.3, 0.2]], [[0.2, 0.5, 0.3]], [[0.4, 0.35, 0.25]]))
    exact = float((np.exp(new) * (new - ref)).sum())
    mask = np.ones((1, 3))
    config = dataclasses.replace(preset("grpo"), kl_estimator=estimator, kl_correction=True)
    with jax.enable_x64(True):
        found = sum(
            np.exp(old[0, i])
            * grpo_loss(new[:, [i]], old[:, [i]], ref[:, [i]], np.zeros(1), mask[:, :1], config)[1]["kl"].value()
            for i in range(3)
        )
    assert found == pytest.approx(exact, rel=0.2 if estimator == "k2" else 1e-6)


@pytest.mark.parametrize(
    ("binding", "says"),
    [
        ("RLConfig.advantage = 'gae'", "expected one of 'group', 'centred', 'leave_one_out'"),
        ("RLConfig.ratio = 'word'", "expected one of 'token', 'sequence'"),
        ("RLConfig.objective = 'ppo'", "expected one of 'clipped', 'weighted'"),
        ("RLConfig.kl_estimator = 'k4'", "expected one of 'k1', 'k2', 'k3'"),
        ("RLConfig.truncated = 'drop'", "expected one of 'keep', 'mask'"),
        ("RLConfig.old_logprobs = 'both'", "expected one of 'trainer', 'sampler'"),
        ("RLConfig.importance = 'word'", "expected one of 'none', 'token', 'sequence'"),
        ("RLConfig.importance_limit = 0.0", "importance_limit is 0.0, expected more than 0"),
        ("RLConfig.overlong_buffer = 45", "overlong_buffer is 45, expected 0 to max_new_tokens"),
        ("RLConfig.clip_low = 0.0", "expected more than 0"),
    ],
)
def test_choices_that_are_none(capsys, tmp_path, binding, says):
    assert main(["run", "r1_zero", "--workdir", str(tmp_path / "w"), "--set", binding]) == 2
    assert says in capsys.readouterr().err
