"""Measure prefill, decoding, training and whole RL steps of an experiment on this machine, with random weights."""

import argparse
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from r1jax.cli.arguments import positive_int
from r1jax.cli.devices import find_devices, start_jax
from r1jax.cli.experiments import gin_paths, load_experiment
from r1jax.errors import UsageError

HEADERS = {
    "tokens_per_second": "tokens/s", "tokens_per_second_per_device": "tokens/s/device", "mfu": "MFU", "gib": "GiB",
}  # fmt: skip

if TYPE_CHECKING:
    from r1jax.rollout.engine import RolloutEngine
    from r1jax.stages.rl import Trainer
    from r1jax.types import RLState, Weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("experiment", metavar="EXPERIMENT", help="a name (see `experiments`) or a path to a file")
    add("--gin", action="append", metavar="FILE", help="gin files instead of the experiment's own")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a gin binding, applied after the files")
    add("--stage", default="rl", metavar="FIELD", help="the RLConfig to measure, by its scope in gin (default rl)")
    add("--prompt_tokens", type=positive_int, metavar="N", help="of each prompt; default: SamplingConfig's limit")
    add("--steps", type=positive_int, default=3, metavar="N", help="measured after one that compiles (default 3)")
    add("--json", type=Path, metavar="FILE", help="also write the figures to a file")


def main(args: argparse.Namespace) -> None:
    from r1jax.cli.gin_config import read_config

    if args.json is not None and not args.json.parent.is_dir():
        raise UsageError(f"--json is {args.json}, whose directory does not exist")
    start_jax()
    module = load_experiment(args.experiment)
    config = read_config(module.Config, gin_paths(module, args.gin), args.set)
    find_devices()
    import jax

    from r1jax.parallel.layout import make_layout
    from r1jax.runs.checks import check_stages

    layout = make_layout(config.mesh)
    check_stages(layout, config)
    rows = measure(layout, config.model, rl_config(config, args))
    devices = layout.mesh.devices
    print_table(rows, f"{args.experiment}, {args.stage}, on {devices.size} × {devices.ravel()[0].device_kind}")
    if args.json is not None:
        about = {"experiment": args.experiment, "stage": args.stage, "jax": jax.__version__, "devices": devices.size}
        about |= {"device": devices.ravel()[0].device_kind, "figures": rows}
        args.json.write_text(json.dumps(about, indent=1) + "\n")


def rl_config(config: Any, args: argparse.Namespace) -> Any:
    """The stage's RLConfig, for the steps that are measured. Raises UsageError where there is none of that name."""
    from r1jax.config import RLConfig

    stages = {name: value for name, value in vars(config).items() if isinstance(value, RLConfig)}
    if args.stage not in stages:
        known = ", ".join(stages) or "none: it has no RL"
        raise UsageError(f"--stage is '{args.stage}', expected one of {args.experiment}'s: {known}")
    stage = stages[args.stage]
    length = args.prompt_tokens or stage.sampling.max_prompt_tokens
    if length > stage.sampling.max_prompt_tokens:
        limit = stage.sampling.max_prompt_tokens
        raise UsageError(f"--prompt_tokens is {length}, expected at most SamplingConfig.max_prompt_tokens ({limit})")
    return replace(stage, steps=args.steps + 1, sampling=replace(stage.sampling, max_prompt_tokens=length))


def measure(layout: Any, model: Any, config: Any) -> list[dict[str, Any]]:
    """Figures of each part of a step: the medians over all steps but the first."""
    import jax
    import numpy as np

    from r1jax.objectives.optimizer import updated_model
    from r1jax.parallel import programs
    from r1jax.parallel.memory import GIB, memory_in_use
    from r1jax.stages.rl import Trainer
    from r1jax.telemetry.flops import rl_step_flops, sequence_flops, throughput

    trainer = Trainer(layout, model, config)
    weights = programs.make_init_weights(layout, updated_model(config.optimizer, model))(jax.random.key(0))
    shape = (config.prompts_per_step, config.sampling.max_prompt_tokens)
    ids = np.random.default_rng(0).integers(1, model.tokenizer_size or model.vocab_size, shape).tolist()
    steps = list(time_steps(trainer, trainer.start_from(weights), ids))
    first, *others = steps
    seconds = {name: median(step[name] for step in others) for name in first if name not in ("groups", "tokens")}
    groups, tokens = others[-1]["groups"], median(step["tokens"] for step in others)
    trained = [len(sample.tokens) for sample in chain(*groups)]
    prompts = [len(prompt) for prompt in ids]
    whole = rl_step_flops(model, config, groups, groups)
    prefill, update = sequence_flops(model, prompts, 1), sequence_flops(model, trained, 3 * config.epochs_per_rollout)
    passes = config.needs_old_logprobs + config.has_reference
    scored = sequence_flops(model, trained, passes)
    parts = {
        "prefill": (sum(prompts), prefill, seconds["prefill"]),
        "decoding": (tokens, whole - prefill - update - scored, seconds["generation"] - seconds["prefill"]),
        "log-probabilities": (sum(trained) * passes, scored, seconds["reference"]),
        "update": (sum(trained) * config.epochs_per_rollout, update, seconds["update"]),
        "RL step": (tokens, whole, seconds["seconds"]),
    }
    return [
        {"part": name, "seconds": s, "tokens": float(n), **throughput(layout, n, flops, s)}
        for name, (n, flops, s) in parts.items()
        if n
    ] + [
        {"part": "first step, which compiles", "seconds": first["seconds"]},
        {"part": "peak memory of a device", "gib": memory_in_use(layout) / GIB},
    ]


def time_steps(trainer: "Trainer", state: "RLState", prompt_ids: Sequence[list[int]]) -> Iterator[dict[str, Any]]:
    """Seconds and phases of each step, its groups, and the tokens that it draws; responses go on to the limit.

    These are the steps of `stages/rl.py`, by the same engine, packing and trainer, without environments, rewards,
    staleness, dynamic sampling, records, logs and checkpoints. Prompts are run once more, apart, to tell prefill from
    decoding.
    """
    import time

    import jax

    from r1jax.rollout.advantages import compute_advantages
    from r1jax.rollout.engine import RolloutEngine
    from r1jax.rollout.packing import make_minibatches
    from r1jax.sampling.draw import position_key
    from r1jax.telemetry.progress import Stopwatch
    from r1jax.types import Problem

    config, clock = trainer.config, Stopwatch()
    engine = RolloutEngine(
        trainer.layout,
        trainer.model,
        None,
        config.engine,
        config.sampling,
        config.group_size,
        keeps_sampling_masks=True,
    )
    prompts = [(Problem(i, "", "", "en"), ids) for i, ids in enumerate(prompt_ids)]
    for step in range(1, config.steps + 1):
        prefill = time_prefill(engine, state.train.weights, prompts)
        clock.restart()
        start, cpu = time.perf_counter(), time.process_time()
        with clock("generation"):
            groups = engine.generate(state.train.weights, prompts, position_key(0, step), ignore_eos=True)
        for sample in chain(*groups):
            sample.reward = float(sum(sample.response_tokens) % 2)  # cheap, and different within most groups
        samples = compute_advantages(groups, config.loss, config.sampling)
        minibatches = make_minibatches(samples, config, (0, step))
        with clock("reference"):  # with the old policy's log-probabilities, where the trainer computes them
            packed, _ = jax.block_until_ready(trainer.add_logprobs(state, minibatches))
        with clock("update"):
            state, _ = jax.block_until_ready(trainer.update(state, packed, step, lambda: None))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        tokens = sum(sum(sample.loss_mask) for sample in samples)
        phases = clock.seconds | {"prefill": prefill, "seconds": seconds, "cpu": cpu}
        yield {**phases, "tokens": tokens, "groups": groups}


def time_prefill(engine: "RolloutEngine", weights: "Weights", prompts: Sequence[Any]) -> float:
    """Seconds in which the engine runs all prompts."""
    import time

    from r1jax.parallel import rollout_programs

    weights = rollout_programs.sync(engine.spec, weights)
    start, queue = time.perf_counter(), deque(range(len(prompts)))
    while queue:
        engine.prefill(weights, prompts, queue)
    return time.perf_counter() - start


def print_table(rows: Sequence[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    forms = {"seconds": ",.3f", "tokens": ",.0f", "tokens_per_second": ",.0f", "tokens_per_second_per_device": ",.0f"}
    forms |= {"mfu": ".1%", "gib": ".2f"}
    shown = [name for name in forms if any(name in row for row in rows)]
    table = Table("", *(HEADERS.get(name, name) for name in shown), title=title)
    for row in rows:
        table.add_row(row["part"], *(format(row[name], forms[name]) if name in row else "" for name in shown))
    Console().print(table)
