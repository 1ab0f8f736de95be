"""The gin files of each scale of `r1_zero`, and its number of devices."""

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config

B16 = ("model/deepseek_v2_lite.gin", "algorithm/r1.gin", "scale/r1_zero_16b.gin")
B30 = ("model/qwen3_30b_a3b.gin", "algorithm/r1.gin", "scale/r1_zero_16b.gin")
B671 = ("model/deepseek_v3.gin", "algorithm/r1.gin", "scale/r1_zero_671b.gin")
FILES = {
    "cpu": ("model/tiny.gin", "algorithm/grpo.gin", "scale/cpu.gin", "scale/token_mean.gin"),
    "gpu_1": ("model/small.gin", "algorithm/grpo.gin", "scale/gpu_1.gin"),
    "v5e_16": (*B16, "scale/v5e_16.gin"),
    "v6e_64": (*B16, "scale/v6e_64.gin"),
    "qwen3_v5e_64": (*B30, "scale/qwen3_v5e_64.gin"),
    "qwen3_v6e_64": (*B30, "scale/qwen3_v6e_64.gin"),
    "v5p_256": (*B671, "scale/v5p_256.gin"),
    "pretrain_v3": ("model/deepseek_v3.gin", "algorithm/r1.gin", "scale/pretrain_v3.gin", "scale/v5p_256.gin"),
    "v5p_1024": (*B671, "scale/v5p_1024.gin"),
    "v5p_1024_32k": (*B671, "scale/v5p_1024_32k.gin"),
    "v5p_2x1024": (*B671, "scale/v5p_2x1024.gin"),
}
DEVICES = {"cpu": 1, "gpu_1": 1, "v5e_16": 16, "v6e_64": 64, "qwen3_v5e_64": 64, "qwen3_v6e_64": 64}
DEVICES |= {"v5p_256": 128, "pretrain_v3": 128, "v5p_1024": 512, "v5p_1024_32k": 512, "v5p_2x1024": 1024}


def scale_config(scale: str, *bindings: str):
    """The config of `r1_zero` at a scale."""
    return read_config(load_experiment("r1_zero").Config, [gin_path(file) for file in FILES[scale]], list(bindings))
