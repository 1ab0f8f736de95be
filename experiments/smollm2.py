"""R1-Zero on SmolLM2-135M-Instruct, a published model (DeepSeek-R1, arXiv 2501.12948, section 2.2).

make smollm2    # fetches and imports the base, then: python -m r1jax run smollm2 --workdir runs/smollm2

Takes about 20 minutes on 2 CPU cores. Expected on problems with other numbers than the training problems, median of
three seeds: sampled accuracy from 0.09 (base) to 0.38 and greedy from 0.29 to 0.57.

Problems are easy arithmetic (r1jax/data/arithmetic.py); the answer is the last number of a response.
"""

from experiments.r1_zero import Config, run

__all__ = ["GIN_FILES", "REPORT_NOTE", "Config", "run"]

GIN_FILES = ("algorithm/grpo.gin", "scale/token_mean.gin", "scale/smollm2_cpu.gin")
REPORT_NOTE = (
    "SmolLM2-135M-Instruct in its chat template. The answer is the last number of a response, so that part of a gain"
    " may be that the policy learns to state a number and stop."
)
