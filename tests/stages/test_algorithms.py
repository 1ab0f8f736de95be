"""Every preset in gin_configs/algorithm against NumPy loops written from the papers, values and gradients."""

import dataclasses

import jax
import numpy as np
import pytest

from r1jax.cli.main import main
from r1jax.config import LossConfig
from r1jax.objectives.grpo import grpo_loss, importance_weights
from r1jax.rollout.advantages import ADVANTAGES
from tests.conftest import ROOT
from tests.shared.loss_batches import LAYOUTS, LONGEST, pack, preset

PRESETS = sorted(path.stem for path in (ROOT / "gin_configs" / "algorithm").glob("*.gin"))


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
    "grpo": by_token(0.2, 0.2, 0.001, lambda n, lengths: n * len(lengths)),
    "dapo": by_token(0.2, 0.28, 0.0, lambda n, lengths: sum(lengths)),
    "r1": by_token(10.0, 10.0, 0.001, lambda n, lengths: n * len(lengths)),
    "dr_grpo": by_token(0.2, 0.2, 0.0, lambda n, lengths: len(lengths) * LONGEST),
    "rloo": by_token(1.0, 1e3, 0.001, lambda n, lengths: len(lengths) * LONGEST),
    "gspo": by_sequence(lambda n, lengths: 1 / len(lengths)),
    "cispo": cispo,
    "grpo, token_mean": by_token(0.2, 0.2, 0.001, lambda n, lengths: sum(lengths)),
    "gspo, token_mean": by_sequence(lambda n, lengths: n / sum(lengths)),
    "defaults": by_token(0.2, 0.2, 0.001, lambda n, lengths: n * len(lengths)),  # LossConfig's are DeepSeekMath's
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


def loss_of(packed, config: LossConfig, logp_ON):
    return grpo_loss(packed.place(logp_ON), packed.batch, config, LONGEST)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_and_gradient_equal_the_papers_loops(name, layout):
    logp, old, ref, A, lengths, mask = numbers()
    config = LossConfig() if name == "defaults" else preset(*name.split(", "))
    expected, gradient = LOSSES[name](logp, old, ref, A, lengths)
    with jax.enable_x64(True):
        packed = pack(layout, mask, A, old=old, ref=ref)
        run = lambda x: loss_of(packed, config, x)[0].mean()  # noqa: E731
        value, found = jax.value_and_grad(run)(logp)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(found, gradient, rtol=1e-6, atol=1e-12)
    assert np.abs(gradient).max() > 0


def test_every_preset_is_tested():
    assert set(PRESETS) == {name for name in LOSSES if "," not in name} - {"defaults"}
    assert preset("dr_grpo").advantage == "centred"
    assert preset("rloo").advantage == "leave_one_out"
    assert {preset(name).advantage for name in PRESETS} == set(ADVANTAGES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_importance_weights_by_hand(layout):
    log_ratio = np.log([[1.5, 1.5, 8.0], [0.5, 3.0, 1.0]])
    mask = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    packed = pack(layout, mask, np.zeros(2), old=log_ratio, sampler=0.0)

    def weights(**changes):
        config = dataclasses.replace(preset("grpo"), **changes)
        return packed.take(importance_weights(packed.batch, config))

    np.testing.assert_array_equal(weights(), mask)
    np.testing.assert_allclose(weights(importance="token"), [[1.5, 1.5, 0], [0.5, 2, 1]], rtol=1e-6)
    np.testing.assert_allclose(
        weights(importance="token", importance_mode="mask"), [[1.5, 1.5, 0], [0.5, 0, 1]], rtol=1e-6
    )
    np.testing.assert_allclose(weights(importance="sequence"), [[2, 2, 0], [1.5, 1.5, 1.5]], rtol=1e-6)
    np.testing.assert_allclose(
        weights(importance="sequence", importance_mode="mask"), [[0, 0, 0], [1.5, 1.5, 1.5]], rtol=1e-6
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_scale_the_objective_and_not_the_kl(layout):
    logp, old, ref, A, _, mask = numbers()
    weights = np.random.default_rng(1).random((6, 9))
    config = dataclasses.replace(preset("grpo"), importance="token")

    def loss(A, kl, w):
        packed = pack(layout, mask, A, old=old, ref=ref, sampler=old - np.log(w))
        c = dataclasses.replace(config, kl_coef=kl, importance_limit=2.1)
        return float(loss_of(packed, c, logp)[0].mean())

    with jax.enable_x64(True):
        assert loss(A, 0.3, 2.0) == pytest.approx(2 * loss(A, 0.0, 1.0) + loss(0 * A, 0.3, 1.0), rel=1e-6)
        assert loss(A, 0.0, weights) != pytest.approx(loss(A, 0.0, 1.0))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_and_their_correction(estimator):
    """Expected over the old policy, the corrected k1 and k3 are KL(new || reference); k2 is near it."""
    new, old, ref = (np.log(p) for p in ([[0.5, 0.3, 0.2]], [[0.2, 0.5, 0.3]], [[0.4, 0.35, 0.25]]))
    exact = float((np.exp(new) * (new - ref)).sum())
    config = dataclasses.replace(preset("grpo"), kl_estimator=estimator, kl_correction=True)

    def kl(i):
        packed = pack("one a row", np.ones((1, 1)), np.zeros(1), old=old[:, [i]], ref=ref[:, [i]])
        return loss_of(packed, config, new[:, [i]])[1]["kl"].value()

    with jax.enable_x64(True):
        found = sum(np.exp(old[0, i]) * kl(i) for i in range(3))
    assert found == pytest.approx(exact, rel=0.2 if estimator == "k2" else 1e-6)


@pytest.mark.parametrize(
    "binding",
    [
        "advantage = 'gae'",
        "ratio = 'word'",
        "objective = 'ppo'",
        "kl_estimator = 'k4'",
        "mask_truncated = 'drop'",
        "old_logprobs = 'both'",
        "importance = 'word'",
        "importance_mode = 'drop'",
        "importance_limit = 0.0",
        "overlong_buffer = 45",
        "clip_low = 0.0",
    ],
)
def test_choices_that_are_none(capsys, tmp_path, binding):
    assert main(["run", "r1_zero", "--workdir", str(tmp_path / "w"), "--set", f"LossConfig.{binding}"]) == 2
    assert binding.split()[0] in capsys.readouterr().err.replace(f"LossConfig.{binding}", "")
