"""Evaluation on held-out problems by the papers' protocol (R1, section 3): k samples each; and one greedy output."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from etils import epath

from r1jax.config import EvaluateConfig, SamplingConfig
from r1jax.data.tasks import Task
from r1jax.errors import UsageError
from r1jax.parallel.hosts import is_main_process
from r1jax.report.evaluation import intervals, write_evaluation
from r1jax.rewards.grading import Grading
from r1jax.rewards.rules import Reward, learned_inputs
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.policy import Policy, load_policy
from r1jax.runs.run import Stage, sha256
from r1jax.sampling.draw import position_key
from r1jax.telemetry.loggers import Logger
from r1jax.telemetry.metrics import sample_row
from r1jax.telemetry.progress import Progress
from r1jax.telemetry.statistics import lengths, outcomes, solved, summarize
from r1jax.types import Problem, Sample


def evaluate(
    stage: Stage,
    config: EvaluateConfig,
    checkpoint: epath.Path,
    rewards: Mapping[str, Reward],
    problems: Sequence[Problem] | None = None,
) -> dict[str, float]:
    """Figures of the policy in `checkpoint`. Writes them (JSON, table, plot), and the samples that the report shows.

    `problems` are those of the task that are held out, if None.
    """
    run, name, task = stage.run, stage.name, stage.task
    if "accuracy" not in rewards:
        raise UsageError(f"{name}: an evaluation goes by a reward named 'accuracy', and there is none: give one")
    problems = list(problems or task.held_out(config.num_prompts, run.seed))
    asked = sha256(json.dumps([asdict(p) for p in problems]).encode())
    inputs = {"checkpoint": checkpoint} | learned_inputs(rewards)
    terms = {reward: r.settings for reward, r in rewards.items()}
    code = [reward.function for reward in rewards.values()]
    stage.open("evaluate", inputs, code=code, evaluate=config, task=task.name, problems=asked, rewards=terms)
    if (result := stage.result()) is not None:
        return result
    policy = load_policy(checkpoint, run.layout)
    figures, groups = measure(
        policy, config, task, rewards, problems, run.seed, run.progress.start(name, 0, 2 * len(problems))
    )
    if is_main_process():
        write_evaluation(stage.directory, name, config, figures, groups)
        log(stage.loggers(), figures, groups)
    stage.complete(figures)
    hidden = intervals(figures)
    said = [f"{key} {value:.3g}" for key, value in figures.items() if key not in hidden]
    run.progress.say(f"{name}: " + "  ".join(said))
    return figures


def log(loggers: Sequence[Logger], figures: Mapping[str, float], groups: Sequence[Sequence[Sample]]) -> None:
    """Figures, and a sample of each problem, as step 0."""
    for logger in loggers:
        logger.log_samples(0, [sample_row(group[0]) for group in groups])
        logger.log(0, figures)
        logger.close()


def measure(
    policy: Policy,
    config: EvaluateConfig,
    task: Task,
    rewards: Mapping[str, Reward],
    problems: list[Problem],
    seed: int,
    progress: Progress,
) -> tuple[dict[str, float], list[list[Sample]]]:
    """Figures, and the graded samples of each problem. `progress` is of problems, each of which is asked twice.

    Those of accuracy are over the problems that the reward of this name applies to, and, where these are of several
    sources, also over each source's: `gsm8k/pass@1`.
    """
    tokenizer = task.tokenizer
    asked = [(p, tokenizer.encode(task.prompt(p.question))) for p in problems]

    def draw(sampling: SamplingConfig, group_size: int) -> list[list[Sample]]:
        engine = RolloutEngine(
            policy.layout, policy.model, tokenizer, config.engine, sampling, group_size, environments=task.environments
        )
        groups = engine.generate(policy.weights, asked, position_key(seed), done=complete)
        grading.collect()
        return groups

    def complete(samples: list[Sample]) -> None:
        grading.submit(samples)
        progress.step(next(done), {})

    done = itertools.count(1)
    with progress, Grading(rewards) as grading:
        greedy = draw(replace(config.sampling, temperature=0.0), 1)
        sampled = draw(config.sampling, config.samples_per_prompt)
        failures = grading.failures()
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
    # A sample that could not be graded counts as wrong; `failures` says how many there were.
    return figures | failures, sampled
