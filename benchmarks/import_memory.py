"""Peak host memory of import-hf and export-hf against the number of layers, each in a process of its own.

python benchmarks/import_memory.py        # writes about 6 GB below the system's temporary directory, and removes it
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

from r1jax.checkpoint.published import published_tensors
from r1jax.checkpoint.published_config import to_published
from r1jax.config import ModelConfig

ROOT = Path(__file__).resolve().parent.parent
# Runs a command of r1jax, then prints the most memory that its process ever held.
PEAK = """
import resource, sys
from r1jax.cli.main import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def model_of(layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=32000,
        hidden_size=1024,
        num_hidden_layers=layers,
        first_k_dense_replace=0,
        intermediate_size=4096,
        moe_intermediate_size=1024,
        n_routed_experts=32,
        n_shared_experts=1,
        num_experts_per_tok=4,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        num_attention_heads=16,
        q_lora_rank=None,
        kv_lora_rank=256,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        num_nextn_predict_layers=0,
        param_dtype="bfloat16",
        dtype="bfloat16",
    )


def write_source(directory: Path, model: ModelConfig) -> int:
    """A published checkpoint of random numbers, a file for each layer. Returns its bytes."""
    files: dict[str, list] = defaultdict(list)
    for tensor in published_tensors(model):
        layer = tensor.name.split(".")[2] if ".layers." in tensor.name else "rest"
        files[f"model-{layer}.safetensors"].append(tensor)
    rng, weight_map = np.random.default_rng(0), {}
    directory.mkdir(parents=True)
    for file, tensors in files.items():
        values = {t.name: rng.standard_normal(t.shape, np.float32).astype(ml_dtypes.bfloat16) for t in tensors}
        safetensors.numpy.save_file(values, directory / file)
        weight_map |= dict.fromkeys(values, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(to_published(model, bos_id=None, eos_id=None)))
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def peak_mib(*command: str) -> float:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command], env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    print("| layers | weights, MiB | import, MiB | export, MiB |")
    print("| --- | --- | --- | --- |")
    for layers in (2, 8):
        with tempfile.TemporaryDirectory() as home:
            size = write_source(Path(home) / "hf", model_of(layers))
            into = peak_mib("import-hf", f"{home}/hf", f"{home}/ours")
            out = peak_mib("export-hf", f"{home}/ours", f"{home}/back")
            print(f"| {layers} | {size / 2**20:,.0f} | {into:,.0f} | {out:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
