"""Dense against grouped experts, forward and backward, in one run: which should `ModelConfig.experts` be here?

python benchmarks/experts.py
"""

import dataclasses
import time

import jax
import jax.numpy as jnp

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import ModelConfig
from r1jax.model.moe import moe
from r1jax.model.spec import init_params

ROUNDS = 5


def seconds(model: ModelConfig, tokens: int):
    """Best of some rounds of one layer's gradient; the two forms take turns, so that noise hits both."""
    forms = {name: dataclasses.replace(model, experts=name) for name in ("dense", "grouped")}
    weights = jax.tree.map(lambda w: w[0], init_params(jax.random.key(0), model)["moe"]["feed_forward"])
    x = jax.random.normal(jax.random.key(1), (1, tokens, model.hidden_size))
    bias, mask = jnp.zeros(model.n_routed_experts), jnp.ones((1, tokens))

    def make(c):
        return jax.jit(jax.grad(lambda w, x: (moe(w, bias, x, mask, c)[0] ** 2).sum(), argnums=(0, 1)))

    programs = {name: make(c) for name, c in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for program in programs.values():
        jax.block_until_ready(program(weights, x))
    for _ in range(ROUNDS):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(weights, x))
            times[name].append(time.perf_counter() - start)
    return {name: min(t) for name, t in times.items()}


def main() -> None:
    module = load_experiment("r1_zero")
    tiny = read_config(module.Config, [gin_path(f) for f in module.GIN_FILES], []).model
    wide = dataclasses.replace(tiny, hidden_size=256, moe_intermediate_size=192)
    print(f"{jax.devices()[0].device_kind}, {ROUNDS} rounds, best\n")
    print("| experts | chosen | width | tokens | dense ms | grouped ms | dense / grouped |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for base, experts, chosen in ((tiny, 4, 2), (wide, 16, 4), (wide, 64, 4)):
        model = dataclasses.replace(base, n_routed_experts=experts, num_experts_per_tok=chosen)
        for tokens in (256, 4096):
            t = seconds(model, tokens)
            print(
                f"| {experts} | {chosen} | {model.hidden_size} x {model.moe_intermediate_size} | {tokens} |"
                f" {1e3 * t['dense']:.1f} | {1e3 * t['grouped']:.1f} | {t['dense'] / t['grouped']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
