"""R1 on an imported base, from files of problems and preferences (DeepSeek-R1, arXiv 2501.12948, section 2.3).

python -m r1jax import-hf DeepSeek-V2-Lite/ checkpoints/base
python -m r1jax run r1_math --workdir runs/r1_math    # reads data/gsm8k/{train,test}.jsonl and data/preferences.jsonl

Every stage has been run on a tiny random base only. `pairs_file/PreferenceFileConfig.path` is a file of preference
pairs; `ratings_file/PreferenceFileConfig.path`, with a `safe` reward model, one of safety ratings, and
`general_file/DemonstrationsConfig.path` one of general demonstrations. Without a file of ratings R1 has no safety
reward, and without general demonstrations the second SFT has those of rejection sampling alone.
"""

from experiments.r1 import Config, run

__all__ = ["GIN_FILES", "REPORT_NOTE", "Config", "run"]

GIN_FILES = ("algorithm/r1.gin", "scale/r1_math.gin", "data/gsm8k.gin")
REPORT_NOTE = "The base is a published model; math-verify decides accuracy, written preferences train the reward model."
