"""Inputs from an imported base, and from files or generators of problems, files of demonstrations and preferences."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

from etils import epath

from experiments._inputs import Inputs, Problems, held_out_count, split_held_out
from r1jax.config import JsonlConfig, RLConfig, SamplingConfig
from r1jax.data.feeds import (
    Records,
    distinct_problems,
    ensure_records,
    numbered,
    problem_batches,
    write_problems,
)
from r1jax.data.jsonl import read_problems
from r1jax.data.sources import Source, alternate
from r1jax.data.tasks import Task, text_task
from r1jax.errors import UsageError
from r1jax.paths import absolute
from r1jax.rewards.countdown import countdown_reward
from r1jax.rewards.mathematics import EXTRACT, MathVerifier
from r1jax.rewards.reasoning_gym import ReasoningGymVerifier
from r1jax.rewards.rules import Reward, by_source, format_reward
from r1jax.rewards.unicode_scripts import SCRIPTS, script_consistency_reward
from r1jax.runs.policy import tokenizer_directory
from r1jax.runs.run import Run
from r1jax.stages.demonstrations import demonstrations
from r1jax.stages.preferences import written_preferences
from r1jax.types import Problem

OWN = {"arithmetic", "countdown"}  # generators of problems in plain text
ENDLESS = 100_000  # problems of a fork's task that does not say how many are asked
TASK, FILE, REQUESTS = "problems", "math", "requests"  # the task; the sources of a file, and of R1's chat requests


def sources(config: Any, file: JsonlConfig | None) -> tuple[Source, ...]:
    """The problems of `file` and those of the generators."""
    read = () if file is None else (Source(FILE, file=file),)
    if config.generated is None:
        return read
    if unknown := set(config.generated.names) - OWN:
        raise UsageError(f"GeneratedConfig.names has '{min(unknown)}', expected some of {', '.join(sorted(OWN))}")
    if "countdown" in config.generated.names and config.prompt.answer != "marked":
        raise UsageError(
            "PromptConfig.answer is 'last_number', but an answer of countdown is an equation: set 'marked'"
        )
    own = (Source(name) for name in config.generated.names)
    return (*read, *own, *(Source(f"gym_{gym.dataset}", gym=gym) for gym in config.generated.datasets))


def zero_inputs(run: Run, config: Any, stack: ExitStack) -> Inputs:
    """R1-Zero's: `config` is a `r1_zero.Config` with a base. The processes of verifiers end with `stack`."""
    directory, held_out = absolute(config.base.path), sources(config, config.held_out)
    task = text_task(TASK, tokenizer_directory(directory), alternate(held_out), config.prompt)
    problems = task.held_out(held_out_count(config), run.seed)  # read first, so that a bad file fails at once
    asked, validation = split_held_out(problems, config)
    require_room(task, asked, config.evaluate.sampling)
    trained = read_problems(config.train, FILE) if config.train else []
    require_room(task, [*trained, *validation], config.rl.sampling)
    wanted = Records(TASK, "train", config.rl.num_prompts, sources(config, config.train))
    [records] = ensure_records([wanted], run.seed, run.workdir / "data")
    require_batches(records, config)
    task = replace(task, validation=validation)
    return Inputs(task, lambda run: directory, records, asked, make_rules(config, stack))


def task_inputs(run: Run, config: Any, problems: Problems, rewards: Mapping[str, Reward]) -> Inputs:
    """Those of a fork's own task: `config` is a `r1_zero.TaskConfig`."""
    directory, count = absolute(config.base.path), config.rl.num_prompts
    task = text_task(TASK, tokenizer_directory(directory), problems, config.prompt)
    asked, trained = (
        numbered(islice(problems(split, run.seed), most), f"the task's {split} problems")
        for split, most in (("test", held_out_count(config)), ("train", count or ENDLESS))
    )
    if count is None and len(trained) == ENDLESS:
        raise UsageError(f"the task has {ENDLESS:,} problems or more: set RLConfig.num_prompts to how many are asked")
    asked, validation = split_held_out(asked, config)
    require_room(task, asked, config.evaluate.sampling)
    require_room(task, [*trained, *validation], config.rl.sampling)
    records = write_problems(trained, TASK, run.workdir / "data")
    require_batches(records, config)
    task = replace(task, validation=validation)
    return Inputs(task, lambda run: directory, records, asked, lambda _: dict(rewards))


def require_batches(records: epath.Path, config: Any) -> None:
    """Raises UsageError where there are fewer problems than a step of RL asks: at the start, not when RL begins."""
    problem_batches(records, max(s.prompts_per_step for s in vars(config).values() if isinstance(s, RLConfig)), 0)


def require_room(task: Task, problems: Sequence[Problem], sampling: SamplingConfig) -> None:
    """Raises UsageError where a prompt is too long: at the start, not at the step that would draw it."""
    lengths = [len(task.tokenizer.encode(task.prompt(problem.question))) for problem in problems]
    most = sampling.max_prompt_tokens
    too_long = [problem.source for problem, length in zip(problems, lengths, strict=True) if length > most]
    if too_long:
        raise UsageError(
            f"{len(too_long)} of {len(lengths)} prompts, of {', '.join(sorted(set(too_long)))}, are longer than"
            f" SamplingConfig.max_prompt_tokens ({sampling.max_prompt_tokens}): set it to {max(lengths)}, or drop them"
        )


def make_rules(config: Any, stack: ExitStack) -> Callable[[float], dict[str, Reward]]:
    """The rewards of problems; the argument is the weight of language consistency."""
    extract = EXTRACT[config.prompt.answer]
    mathematics: Any = stack.enter_context(MathVerifier(extract=extract))
    verifiers = {source.name: mathematics for source in sources(config, config.train)}
    verifiers |= {name: countdown_reward for name in verifiers if name == "countdown"}
    if config.generated and config.generated.datasets:
        gym = stack.enter_context(ReasoningGymVerifier(extract=extract))
        verifiers |= dict.fromkeys((f"gym_{one.dataset}" for one in config.generated.datasets), gym)
    asked, tags = tuple(verifiers), config.rewards.format_weight
    knows_script = language_of(config) in SCRIPTS

    def rules(language: float) -> dict[str, Reward]:
        form = {"format": Reward(format_reward, tags, asked)} if tags else {}  # rejection sampling filters by it too
        consistent = {"language": Reward(script_consistency_reward(), language, asked)} if knows_script else {}
        return {"accuracy": by_source(verifiers, 1.0), **form, **consistent}

    return rules


def language_of(config: Any) -> str:
    return config.train.language if config.train else "en"  # generators write English


def r1_inputs(run: Run, config: Any, stack: ExitStack) -> Inputs:
    """R1's: `config` is a `r1.Config` with a base. Raises UsageError for a language whose script is not known."""
    if (language := language_of(config)) not in SCRIPTS:
        known = ", ".join(sorted(SCRIPTS))
        raise UsageError(
            f"R1 rewards language consistency: train/JsonlConfig.language is '{language}', expected {known}"
        )
    files, pairs = {"helpful": config.pairs_file, "safe": config.ratings_file}, config.pairs_file
    requests = JsonlConfig(pairs.path, question=pairs.question, answer=pairs.chosen)
    inputs = zero_inputs(run, config, stack)
    require_room(inputs.task, read_problems(requests, REQUESTS), config.final_rl.sampling)
    most = max(config.cold_start_data.num_prompts, config.rejection.num_prompts)
    distinct_problems(inputs.problems, most)  # raises now, not after the first RL
    mixture = (*sources(config, config.train), Source(REQUESTS, file=requests))
    scenarios = Records("scenarios", "train", config.final_rl.num_prompts, mixture)

    def written(run: Run, policies: Mapping[str, epath.Path]) -> dict[str, dict[str, epath.Path]]:
        kinds = {"helpful": ("preference_pairs", "pairwise"), "safe": ("ratings", "pointwise")}
        return {
            model: {stage: written_preferences(run.stage(stage), files[model], kind)}
            for model, (stage, kind) in kinds.items()
            if files[model] is not None
        }

    general = config.general_file
    return replace(
        inputs,
        general=None if general is None else lambda run: demonstrations(run.stage("general"), general),
        preferences=written,
        scenarios=ensure_records([scenarios], run.seed, run.workdir / "data")[0],
        requests=(REQUESTS,),
    )
