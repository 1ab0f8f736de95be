"""Evaluation on held-out problems by the papers' protocol (R1, section 3): k samples each; and one greedy output."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from etils import epath

from r1jax.config import EvaluateConfig
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.parallel.hosts import is_main_process
from r1jax.parallel.layout import Layout
from r1jax.parallel.programs import random_key
from r1jax.report.evaluation import intervals, write_evaluation
from r1jax.rewards.grading import failures_since, grade_outputs
from r1jax.rewards.rules import Reward, failure_counts, learned_inputs
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.policy import Policy, load_policy
from r1jax.runs.run import Run, sha256
from r1jax.telemetry.files import write_whole
from r1jax.telemetry.statistics import lengths, outcomes, solved, summarize
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
    """Figures of the policy in `checkpoint`. Writes them (JSON, table, plot), and the samples that the report shows.

    `problems` are those of the task that are held out, if None.
    """
    if "accuracy" not in rewards:
        raise UsageError(f"{name}: an evaluation goes by a reward named 'accuracy', and there is none: give one")
    problems = list(problems or task.held_out(config.problems, run.seed))
    asked = sha256(json.dumps([asdict(p) for p in problems]).encode())
    inputs = {"checkpoint": checkpoint} | learned_inputs(rewards)
    terms = {reward: r.terms_of for reward, r in rewards.items()}
    stage = run.stage(name, "evaluate", inputs, evaluate=config, task=task.name, problems=asked, rewards=terms)
    if (result := stage.result()) is not None:
        return result
    policy = load_policy(checkpoint, run.layout)
    figures, groups = measure(run.layout, policy, config, task, rewards, problems, run.seed)
    if is_main_process():
        write_files(stage.directory, name, config, figures, groups)
    stage.complete(figures)
    hidden = intervals(figures)
    said = [f"{key} {value:.3g}" for key, value in figures.items() if key not in hidden]
    run.progress.say(f"{name}: " + "  ".join(said))
    return figures


def write_files(
    directory: epath.Path,
    title: str,
    config: EvaluateConfig,
    figures: Mapping[str, float],
    groups: Sequence[Sequence[Sample]],
) -> None:
    """An evaluation's files: figures as JSON, table and plot, and each problem's first sample."""
    protocol = {"problems": len(groups)} | {
        field: value for field, value in asdict(config).items() if field not in ("rollout", "problems", "k")
    }
    write_evaluation(directory, title, protocol, figures, groups)
    rows = [json.dumps(asdict(group[0])) for group in groups]
    write_whole(directory / "samples.jsonl", "\n".join(rows) + "\n")


def measure(
    layout: Layout,
    policy: Policy,
    config: EvaluateConfig,
    task: Task,
    rewards: Mapping[str, Reward],
    problems: list[Problem],
    seed: int,
) -> tuple[dict[str, float], list[list[Sample]]]:
    """Figures, and the graded samples of each problem.

    Those of accuracy are over the problems that the reward of this name applies to, and, where these are of several
    sources, also over each source's: `gsm8k/pass@1`.
    """
    before = failure_counts(rewards)
    greedy = draw(layout, policy, config, task, rewards, problems, samples=1, temperature=0.0, seed=seed)
    sampled = draw(layout, policy, config, task, rewards, problems, config.samples, config.temperature, seed)
    outcome = rewards["accuracy"]
    judged = [place for place, group in enumerate(sampled) if outcome.applies(group[0])]

    def of_outcome(places: list[int]) -> dict[str, float]:
        groups = [sampled[place] for place in places]
        answers = [[outcome.answer(sample) for sample in group] for group in groups]
        return {"greedy_accuracy": solved([greedy[i] for i in places], 1)} | outcomes(groups, answers, config.k)

    figures = of_outcome(judged) if judged else {}
    figures |= {key: value for key, value in summarize(sampled).items() if key != "accuracy"} | lengths(sampled)
    sources = list(dict.fromkeys(problems[place].source for place in judged))
    for source in sources if len(sources) > 1 else ():
        places = [place for place in judged if problems[place].source == source]
        of_source = of_outcome(places) | lengths([sampled[place] for place in places])
        figures |= {f"{source}/{key}": value for key, value in of_source.items()}
    # Without a verdict an output is not right; how many there were is said here.
    figures |= failures_since(before, rewards)
    return figures, sampled


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
    rollout = replace(config.rollout, top_p=config.top_p)  # the greedy output is the likeliest, which it leaves in
    limits = (config.max_prompt_tokens, config.max_new_tokens)
    engine = RolloutEngine(layout, policy.model, task.tokenizer, rollout, samples, *limits)
    asked = [(p.id, task.tokenizer.encode(task.prompt(p.question))) for p in problems]
    outputs = engine.generate(policy.params, policy.router_bias, asked, random_key(seed), temperature)
    return grade_outputs(problems, outputs, rewards)
