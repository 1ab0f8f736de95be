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

from r1jax.config import MeshConfig, RolloutConfig
from r1jax.parallel import programs
from r1jax.parallel.layout import make_layout
from r1jax.rollout.engine import RolloutEngine
from r1jax.rollout.packing import Taught, microbatches
from r1jax.runs.policy import load_policy
from r1jax.sampling.score import by_output, output_mask, score

PROBLEMS, SAMPLES, P, N = 128, 4, 24, 44
FORMS = {
    "as the model is": {},
    "speculative": {"speculative": True},
    "int8 weights": {"weights": "int8"},
    "fp8 weights": {"weights": "fp8"},
    "int8 cache": {"cache": "int8"},
    "int8 weights and cache, speculative": {"weights": "int8", "cache": "int8", "speculative": True},
}


def measure(layout, policy, asked, slots: int, form: dict) -> dict[str, float]:
    engine = RolloutEngine(layout, policy.model, policy.tokenizer, RolloutConfig(slots=slots, **form), SAMPLES, P, N)
    weights = (policy.params, policy.router_bias)
    for seed in (0, 1):
        start, engine.counts = time.perf_counter(), type(engine.counts)()
        outputs = engine.generate(*weights, asked, programs.random_key(seed), 1.0)
        seconds = time.perf_counter() - start
    drawn = [Taught(ids, output, 0.0) for (_, ids), group in zip(asked, outputs, strict=True) for output in group]
    [packed] = microbatches(drawn, (len(drawn), P + N, 1))
    run = jax.jit(score, static_argnames=("longest", "c"))
    logp, _, _ = run(*weights, packed, longest=N, temperature=1.0, c=policy.model)
    mask = np.asarray(output_mask(packed, N)) > 0
    gap = np.asarray(logp - by_output(packed.logp_sampler_BT, packed, N))[mask]
    return {
        "speed": engine.counts.tokens / seconds,
        "acceptance": engine.figures().get("draft_acceptance", 0.0),
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
    asked = [(p.id, policy.ask(p.question)) for p in problems]
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
