"""Every stage of R1 on SmolLM2-135M-Instruct, in miniature (DeepSeek-R1, arXiv 2501.12948, section 2.3).

make r1_smollm2    # fetches and imports the base, then: python -m r1jax run r1_smollm2 --workdir runs/r1_smollm2

Takes half an hour on 2 CPU cores. Seed 0: sampled accuracy from 0.09 (base) over 0.14 (cold start), 0.23 (reasoning RL)
and 0.32 (SFT) to 0.37.

Problems are those of smollm2.py. Chat requests and preferences are the 96 pairs of smollm2_preferences.jsonl, which
a language model wrote. A response is readable that has words in it, not the number alone.
"""

from experiments.r1 import Config, run

__all__ = ["GIN_FILES", "REPORT_NOTE", "Config", "run"]

GIN_FILES = ("algorithm/grpo.gin", "scale/token_mean.gin", "scale/smollm2_cpu.gin", "scale/r1_smollm2_cpu.gin")
REPORT_NOTE = (
    "SmolLM2-135M-Instruct in its chat template. Demonstrations are its own right and readable responses; 96 written"
    " pairs train the reward model. Stages are short: they show that each runs on a published model, not how far it"
    " goes."
)
