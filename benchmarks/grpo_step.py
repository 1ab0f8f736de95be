"""Seconds of a GRPO step, r1jax beside trl and google-tunix, from the same weights, prompts and lengths.

python benchmarks/grpo_step.py [--steps N] [tiny] [deepseek] [smollm2]    # by default all three shapes, on CPUs

One update on each rollout: group advantages, token mean, KL 0.001 against a reference, Adam, float32. Each framework
runs in a process of its own, one after the other, and first takes a step that does not count, which compiles. Responses
never end before the limit. Beside other work, CPU seconds (of all threads) say more than seconds. Peers are installed
on first use (benchmarks/peers.py).

The last lines are `ratio SHAPE NUMBER`: the fastest peer's seconds over those of r1jax.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import peers
from etils import epath
from rollout import MODEL

from r1jax.checkpoint.store import CheckpointStore, make_metadata, policy_item
from r1jax.cli.devices import start_jax
from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import ModelConfig
from r1jax.data.published_tokenizer import load_tokenizer
from r1jax.model.spec import count_params, init_params, init_router_bias
from r1jax.runs.hugging_face import export_hf
from r1jax.telemetry.progress import Progress

HERE = Path(__file__).resolve().parent
GSM8K = HERE.parents[1] / "shared" / "data" / "gsm8k" / "train.jsonl"
SCRIPTS = {name: HERE / f"grpo_step_{name}.py" for name in ("r1jax", "trl", "tunix")}
PHASES = ("generation", "reference", "update")


@dataclass(frozen=True)
class Shape:
    """A step's sizes, and what a user of each framework would set for it.

    Attributes:
      prompts, prompt_tokens, group_size, new_tokens: of a step.
      microbatch: sequences that a peer runs at once, forward and backward.
      rl: fields of our RLConfig.
    """

    prompts: int
    prompt_tokens: int
    group_size: int
    new_tokens: int
    microbatch: dict[str, int]
    rl: dict[str, Any]


SHAPES = {
    "tiny": Shape(16, 20, 16, 44, {"trl": 64}, {"microbatch_rows": 64}),
    "deepseek": Shape(8, 64, 8, 64, {"trl": 16}, {"microbatch_rows": 2, "share_prompts": True}),
    "smollm2": Shape(4, 150, 8, 64, {"trl": 8, "tunix": 8}, {"microbatch_rows": 1, "share_prompts": True}),
}


def tiny_model() -> ModelConfig:
    """The demo's, without the multi-token-prediction module, which a peer would neither train nor draft with."""
    module = load_experiment("r1_zero")
    files = [gin_path(file) for file in module.GIN_FILES]
    return replace(read_config(module.Config, files, []).model, num_nextn_predict_layers=0)


def write_random(model: ModelConfig, home: Path) -> tuple[Path, Path]:
    """Random weights as a Hugging Face directory, and as a checkpoint of ours."""
    store = CheckpointStore(epath.Path(home) / "ours" / "checkpoints")
    weights = policy_item(init_params(jax.random.key(0), model), init_router_bias(model))
    store.save(1, weights, {"step": np.int32(1)}, {}, make_metadata(model, None))
    store.close()
    export_hf(epath.Path(home) / "ours", epath.Path(home) / "hf", progress=Progress(quiet=True))
    return home / "hf", home / "ours"


def gsm8k_prompts(shape: Shape, directory: Path) -> list[list[int]]:
    """Those of GSM8K's questions whose prompts, in the chat template, come closest to the shape's length."""
    tokenizer = load_tokenizer(epath.Path(directory))
    assert tokenizer
    questions = [json.loads(line)["question"] for line in GSM8K.read_text().splitlines()[:500]]
    ids = [tokenizer.prompt(question) for question in questions]
    return sorted(ids, key=lambda one: abs(len(one) - shape.prompt_tokens))[: shape.prompts]


def make_job(name: str, shape: Shape, steps: int, home: Path) -> dict[str, Any]:
    if name == "smollm2":
        hf, ours, vocab_size = peers.smollm2(), peers.smollm2_checkpoint(), 49152
        parameters = "134,515,008 parameters"
    else:
        model = tiny_model() if name == "tiny" else MODEL
        hf, ours = write_random(model, home)
        vocab_size, parameters = model.vocab_size, f"{sum(count_params(model).values()):,} parameters"
    if name == "smollm2" and GSM8K.exists():
        prompts = gsm8k_prompts(shape, hf)
    else:
        rng = np.random.default_rng(0)
        prompts = rng.integers(1, vocab_size, (shape.prompts, shape.prompt_tokens)).tolist()
        if name == "smollm2":
            print("GSM8K is not there: prompts are random ids", file=sys.stderr)
    lengths = sorted(map(len, prompts))
    print(
        f"\n{name}: {parameters}, {shape.prompts} prompts of {lengths[0]} to {lengths[-1]} tokens x {shape.group_size}"
        f" samples x {shape.new_tokens} new tokens, median of {steps} steps\n"
    )
    return dict(
        model=str(hf), checkpoint=str(ours), prompts=prompts, group_size=shape.group_size,
        new_tokens=shape.new_tokens, steps=steps, slots=shape.prompts * shape.group_size, rl=shape.rl,
    )  # fmt: skip


def measure(name: str, steps: int) -> float:
    """Prints the table of a shape; the fastest peer's seconds over ours."""
    shape, seconds = SHAPES[name], {}
    with tempfile.TemporaryDirectory() as home:
        job = make_job(name, shape, steps, Path(home))
        print(f"| framework | seconds | range | CPU seconds | {' | '.join(PHASES)} |\n{'| --- ' * 7}|")
        for framework in ("r1jax", *shape.microbatch):
            python = sys.executable if framework == "r1jax" else peers.peer_python(framework)
            job["microbatch"] = shape.microbatch.get(framework)
            result = peers.run_job(python, SCRIPTS[framework], job, PYTHONPATH=str(HERE.parent), JAX_PLATFORMS="cpu")
            counted = result["steps"][1:]
            wanted = shape.prompts * shape.group_size * shape.new_tokens
            drawn = {step["tokens"] for step in counted}
            assert drawn == {wanted}, f"{framework} drew {drawn} tokens, expected {wanted}"
            found = {phase: median(step[phase] for step in counted) for phase in ("seconds", "cpu", *PHASES)}
            seconds[framework] = found["seconds"]
            spread = sorted(step["seconds"] for step in counted)
            between = f"{spread[0]:.2f} to {spread[-1]:.2f}"
            columns = " | ".join(f"{found[phase]:.2f}" for phase in ("cpu", *PHASES))
            print(f"| {result['version']} | {found['seconds']:.2f} | {between} | {columns} |", flush=True)
    return min(seconds[peer] for peer in shape.microbatch) / seconds["r1jax"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)}; by default all")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="steps that count (default 3)")
    args = parser.parse_args()
    start_jax(cpu_only=True)
    print(f"{os.cpu_count()} CPU cores, float32")
    ratios = {name: measure(name, args.steps) for name in args.shapes or SHAPES}
    for name, ratio in ratios.items():
        print(f"ratio {name} {ratio:.2f}")


if __name__ == "__main__":
    main()
