"""What speculation, 8-bit weights and an 8-bit cache cost and bring, on a trained policy.

python benchmarks/rollout_options.py runs/r1_zero/pretrain      # after `make demo`

Sampled answers to held-out problems, each form twice, and the second time counts. The gap is |the sampler's
log-probability of a token - the trainer's|; KL is the k3 estimator of the same.
"""

import argparse
import time

import jax
import numpy as np
from absl import logging
from etils import epath

from r1jax.config import EngineConfig, MeshConfig, SamplingConfig
from r1jax.objectives.logprobs import sample_logprobs
from r1jax.parallel.layout import make_layout
from r1jax.rollout.engine import RolloutEngine
from r1jax.rollout.packing import BatchShape, pack_microbatches
from r1jax.runs.policy import load_policy
from r1jax.sampling.draw import position_key

PROBLEMS, SAMPLES, P, N = 128, 4, 24, 44
FORMS = {
    "as the model is": {},
    "speculative": {"speculative": True},
    "int8 weights": {"weight_dtype": "int8"},
    "fp8 weights": {"weight_dtype": "fp8"},
    "int8 cache": {"cache_dtype": "int8"},
    "int8 weights and cache, speculative": {"weight_dtype": "int8", "cache_dtype": "int8", "speculative": True},
}


def measure(layout, policy, asked, slots: int, form: dict) -> dict[str, float]:
    config, sampling = EngineConfig(slots=slots, **form), SamplingConfig(P, N)
    engine = RolloutEngine(layout, policy.model, policy.tokenizer, config, sampling, SAMPLES)
    for seed in (0, 1):
        start, engine.counts = time.perf_counter(), type(engine.counts)()
        groups = engine.generate(policy.weights, asked, position_key(seed))
        seconds = time.perf_counter() - start
    samples = [sample for group in groups for sample in group]
    for sample in samples:
        sample.advantages = [0.0] * len(sample.tokens)
    [batch] = pack_microbatches(samples, BatchShape(len(samples), P + N, 1))
    run = jax.jit(sample_logprobs, static_argnames="model")
    logp, _, _ = run(policy.weights, batch, 1.0, model=policy.model)
    gap = np.asarray(logp - batch.logprobs_sampler_BT)[batch.loss_mask_BT]
    return {
        "speed": engine.counts.tokens / seconds,
        "acceptance": engine.metrics().get("draft_acceptance", 0.0),
        "mean": float(np.abs(gap).mean()),
        "max": float(np.abs(gap).max()),
        "kl": float((np.exp(gap) - gap - 1).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    layout = make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1])
    logging.set_verbosity(logging.ERROR)
    policy = load_policy(epath.Path(parser.parse_args().checkpoint).absolute(), layout)
    problems = policy.task.held_out(PROBLEMS, 0)
    asked = [(p, policy.ask(p.question)) for p in problems]
    print("| slots | form | tokens/s | against the first | drafts accepted | gap, mean | gap, max | KL |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for slots in (1, 8, 64):
        first = None
        for name, form in FORMS.items():
            m = measure(layout, policy, asked if slots > 1 else asked[:8], slots, form)
            first = first or m["speed"]
            print(
                f"| {slots} | {name} | {m['speed']:,.0f} | {m['speed'] / first:.2f} | {m['acceptance']:.2f} |"
                f" {m['mean']:.1e} | {m['max']:.1e} | {m['kl']:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
