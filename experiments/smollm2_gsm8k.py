"""R1-Zero on SmolLM2-135M-Instruct and GSM8K, which is hard for it (DeepSeek-R1, arXiv 2501.12948, section 2.2).

make checkpoints/smollm2
python -m r1jax run smollm2_gsm8k --workdir runs/smollm2_gsm8k    # reads data/gsm8k/{train,test}.jsonl
"""

from experiments.r1_zero import Config, run

__all__ = ["GIN_FILES", "REPORT_NOTE", "Config", "run"]

GIN_FILES = ("algorithm/grpo.gin", "scale/token_mean.gin", "scale/smollm2_gsm8k_cpu.gin", "data/gsm8k.gin")
REPORT_NOTE = "SmolLM2-135M-Instruct in its chat template; the answer is the last number of a response."
