"""Evaluation on held-out problems: one greedy output and `samples` sampled ones for each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from etils import epath

from r1jax.config import EvaluateConfig
from r1jax.data.tasks import Task
from r1jax.parallel.layout import Layout
from r1jax.parallel.programs import random_key
from r1jax.rewards.rules import Reward, failure_counts, parse
from r1jax.rollout.engine import RolloutEngine
from r1jax.stages.grading import grade_outputs
from r1jax.stages.policy import Policy, load_policy
from r1jax.stages.run import Run, sha256
from r1jax.telemetry.statistics import confidence_interval, consensus, solved, summarize
from r1jax.types import Problem, Sample


def evaluate(
    run: Run,
    name: str,
    config: EvaluateConfig,
    checkpoint: epath.Path,
    task: Task,
    rewards: Mapping[str, Reward],
    problems: Sequence[Problem] | None = None,
) -> dict[str, float]:
    """Figures of the policy in `checkpoint`. Writes them, and the samples that the report shows.

    `problems` are those of the task that are held out, if None.
    """
    problems = list(problems or task.held_out(config.problems, run.seed))
    asked = sha256(json.dumps([asdict(p) for p in problems]).encode())
    stage = run.stage(name, "evaluate", {"checkpoint": checkpoint}, evaluate=config, task=task.name, problems=asked)
    if (result := stage.result()) is not None:
        return result
    policy = load_policy(checkpoint, run.layout)
    figures, samples = measure(run.layout, policy, config, task, rewards, problems, run.seed)
    rows = [json.dumps(asdict(sample)) for sample in samples]
    (stage.directory / "samples.jsonl").write_text("\n".join(rows) + "\n")
    stage.complete(figures)
    run.progress.say(f"{name}: " + "  ".join(f"{key} {value:.3g}" for key, value in figures.items()))
    return figures


def measure(
    layout: Layout,
    policy: Policy,
    config: EvaluateConfig,
    task: Task,
    rewards: Mapping[str, Reward],
    problems: list[Problem],
    seed: int,
) -> tuple[dict[str, float], list[Sample]]:
    """Figures, and the first sampled output for each problem.

    Those of accuracy are over the problems that the reward of this name applies to.
    """
    before = failure_counts(rewards)
    greedy = draw(layout, policy, config, task, rewards, problems, samples=1, temperature=0.0, seed=seed)
    sampled = draw(layout, policy, config, task, rewards, problems, config.samples, config.temperature, seed)
    judged = [group for group in sampled if rewards["accuracy"].applies(group[0])]
    answers = [[parts.answer if (parts := parse(s.text)) else None for s in group] for group in judged]
    low, high = confidence_interval([solved([group], 1) for group in judged])
    figures = {"greedy_accuracy": summarize(greedy)["accuracy"], "pass@1": solved(judged, 1)}
    figures |= {"pass@1_low": low, "pass@1_high": high, f"pass@{config.k}": solved(judged, config.k)}
    figures |= {f"cons@{config.samples}": consensus(judged, answers)}
    figures |= {key: value for key, value in summarize(sampled).items() if key != "accuracy"}
    # Without a verdict an output is not right; how many there were is said here.
    figures |= {kind: n - before.get(kind, 0.0) for kind, n in failure_counts(rewards).items()}
    return figures, [group[0] for group in sampled]


def draw(
    layout: Layout,
    policy: Policy,
    config: EvaluateConfig,
    task: Task,
    rewards: Mapping[str, Reward],
    problems: list[Problem],
    samples: int,
    temperature: float,
    seed: int,
) -> list[list[Sample]]:
    """Graded outputs for all problems."""
    lengths = (config.max_prompt_tokens, config.max_new_tokens)
    engine = RolloutEngine(layout, policy.model, task.tokenizer, config.rollout, samples, *lengths)
    asked = [(p.id, task.tokenizer.encode(task.prompt(p.question))) for p in problems]
    outputs = engine.generate(policy.params, policy.router_bias, asked, random_key(seed), temperature)
    return grade_outputs(problems, outputs, rewards)
