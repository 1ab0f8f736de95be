"""R1-Zero on an imported base and files of mathematics (DeepSeek-R1, arXiv 2501.12948, section 2.2).

python -m r1jax import-hf DeepSeek-V2-Lite/ checkpoints/base
python -m r1jax run r1_zero_math --workdir runs/math            # reads GSM8K from data/gsm8k/{train,test}.jsonl
python -m r1jax run r1_zero_math --dry_run  # prints memory and programs on these devices

Run so far with tiny random bases only: no time or accuracy of a published base can be stated.

Another base and other files: --set BaseConfig.path=… --set train/JsonlConfig.path=… --set held_out/JsonlConfig.path=…,
with --set JsonlConfig.answer_form=plain where the column `answer` is the answer alone. For columns that are not
GSM8K's: --gin algorithm/grpo.gin --gin scale/math.gin --gin data/math.gin.
"""

from experiments.r1_zero import Config, run

__all__ = ["GIN_FILES", "REPORT_NOTE", "Config", "run"]

GIN_FILES = ("algorithm/grpo.gin", "scale/math.gin", "data/gsm8k.gin")
REPORT_NOTE = "The base is a published model; math-verify decides accuracy."
