"""GRPO and its variants against the lines of `trl`'s trainer that compute its loss: values and gradients.

Advantages are not compared: trl computes them amid its generation, in no function of their own, and differently: it
divides by the sample standard deviation (ours is the population's) plus 1e-4 (ours 1e-6).
"""

import collections
import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from r1jax.objectives.grpo import grpo_loss
from tests.shared.loss_batches import LAYOUTS, LONGEST, pack, preset

NEEDED = "parity with trl needs torch and `pip install trl==1.16.0` (see requirements-dev.txt)"
torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("trl", minversion="1.16.0", reason=NEEDED)
GRPOTrainer = pytest.importorskip("trl.trainer.grpo_trainer", reason=NEEDED).GRPOTrainer

# What a user of trl would set for the same. Its `loss_type` "dapo" is the mean over all tokens, "grpo" the mean over
# outputs of their means; only for CISPO `epsilon_high` is the largest ratio itself.
TRL = {
    "grpo": dict(loss_type="grpo", epsilon_low=0.2, epsilon_high=0.2, beta=0.001),
    "dapo": dict(loss_type="dapo", epsilon_low=0.2, epsilon_high=0.28),
    "dr_grpo": dict(loss_type="dr_grpo", epsilon_low=0.2, epsilon_high=0.2),
    "gspo": dict(loss_type="grpo", importance_sampling_level="sequence", epsilon_low=3e-4, epsilon_high=4e-4),
    "cispo": dict(loss_type="cispo", epsilon_high=5.0),
}
# A preset changed: ours, and trl's.
TOKEN_MEAN = dict(aggregation="token_mean"), dict(loss_type="dapo")
CHANGED = {
    "grpo_token_mean": ("grpo", *TOKEN_MEAN),
    "gspo_token_mean": ("gspo", *TOKEN_MEAN),
    "corrected_kl": (
        "grpo",
        dict(kl_correction=True, kl_coef=0.1) | TOKEN_MEAN[0],
        dict(use_bias_correction_kl=True, beta=0.1) | TOKEN_MEAN[1],
    ),
}


def batch(masked: bool):
    """Good and bad outputs alike have ratios below, within and above every bound; one may be masked altogether."""
    rng = np.random.default_rng(0)
    lengths = np.array([7, 1, 4, 9, 3, 9, 0 if masked else 5, 6])
    logp, ref = -rng.random((8, 9)) * 3, -rng.random((8, 9)) * 3
    shift = np.array([0.5, 0.5, -0.5, -0.5, 0, 0, 0, 0])
    noise = np.array([0.3, 0.3, 0.3, 0.3, 1e-4, 1e-4, 1.5, 1.5])  # 1e-4: within GSPO's bounds; 1.5: beyond CISPO's
    old = logp - shift[:, None] - noise[:, None] * rng.normal(size=(8, 9))
    advantage = np.array([1, -1] * 4) * (0.1 + rng.random(8))
    return logp, old, ref, advantage, (np.arange(9) < lengths[:, None]).astype(float)


def trl_loss(logp, old, ref, advantage, mask, parts: int, **settings):
    """What trl's trainer accumulates over an update of `parts` micro-batches: the loss and its gradient."""
    # A whole trainer needs a model and a data set; its loss reads only these. First trl's defaults.
    defaults = dict(importance_sampling_level="token", epsilon_low=0.2, beta=0.0, use_bias_correction_kl=False)
    off = dict(delta=None, off_policy_mask_threshold=None, use_vllm=False, aux_loss_enabled=False)
    no_entropy = dict(top_entropy_quantile=1.0, _entropy_bonus_enabled=False)
    trainer = SimpleNamespace(
        **defaults | off | no_entropy | settings,
        max_completion_length=LONGEST,
        steps_per_generation=parts,
        current_gradient_accumulation_steps=parts,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        model=torch.nn.Module(),
        _metrics={"train": collections.defaultdict(list)},
    )
    trainer.args = trainer  # trl reads some settings from here, some from there
    leaf = torch.tensor(logp, requires_grad=True)
    total = torch.zeros(())
    for rows in np.split(np.arange(len(logp)), parts):
        given = leaf[rows]  # in place of a model's
        trainer._get_per_token_logps_and_entropies = lambda *_, x=given, **__: (x, torch.zeros_like(x), None)
        inputs = dict(
            old_per_token_logps=old[rows], ref_per_token_logps=ref[rows], advantages=advantage[rows],
            completion_mask=mask[rows], num_items_in_batch=mask.sum(),
            prompt_ids=mask[rows, :0], prompt_mask=mask[rows, :0], completion_ids=mask[rows],
        )  # fmt: skip
        inputs = {name: torch.as_tensor(x) for name, x in inputs.items()}
        total = total + GRPOTrainer._compute_loss(trainer, None, inputs)
    total.backward()
    return total.item(), leaf.grad.numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [*TRL, *CHANGED])
def test_loss_and_gradient_equal_trl(name, masked, parts, layout):
    base, ours, theirs = CHANGED.get(name, (name, {}, {}))
    config = dataclasses.replace(preset(base), **ours)
    logp, old, ref, advantage, mask = batch(masked)
    expected, gradient = trl_loss(logp, old, ref, advantage, mask, parts, **TRL[base] | theirs)
    if config.aggregation != "token_mean":  # trl also counts an output without a trained token, ours doesn't
        trained = (mask.sum(axis=1) > 0).mean()
        expected, gradient = expected / trained, gradient / trained
    with jax.enable_x64(True):
        packed = pack(layout, mask, advantage, old=old, ref=ref)
        run = lambda x: grpo_loss(packed.place(x), packed.batch, config, LONGEST)[0].mean()  # noqa: E731
        value, found = jax.value_and_grad(run)(logp)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(found, gradient, rtol=1e-6, atol=1e-12)


def test_batch_is_on_every_side_of_every_bound():
    logp, old, _, advantage, mask = batch(masked=True)
    of_tokens = np.exp(logp - old)[mask > 0]
    of_outputs = np.exp(((logp - old) * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1))
    for good in (True, False):
        tokens = of_tokens[np.broadcast_to((advantage > 0)[:, None] == good, mask.shape)[mask > 0]]
        outputs = of_outputs[(advantage > 0) == good]
        for ratio, low, high in ((tokens, 0.8, 1.2), (tokens, 0.8, 1.28), (outputs, 1 - 3e-4, 1 + 4e-4)):
            assert set(np.digitize(ratio, [low, high])) == {0, 1, 2}
    assert of_tokens.max() > 5
