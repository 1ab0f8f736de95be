"""Evaluates a checkpoint for `r1jax eval`: a table, one line of JSON and, with `--out`, files."""

import argparse
import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from etils import epath
from rich.console import Console
from rich.table import Table

from r1jax.cli.devices import load_checkpoint
from r1jax.cli.experiments import ROOT
from r1jax.cli.gin_config import read_config
from r1jax.config import EngineConfig, EvaluateConfig, JsonlConfig, PromptConfig, ReasoningGymConfig, SamplingConfig
from r1jax.data.published_tokenizer import PublishedTokenizer
from r1jax.data.sources import Source
from r1jax.data.tasks import TASKS, Task, text_task
from r1jax.errors import UsageError
from r1jax.report.evaluation import table, write_evaluation
from r1jax.rewards.countdown import countdown_reward
from r1jax.rewards.mathematics import EXTRACT, MathVerifier, last_number_reward
from r1jax.rewards.reasoning_gym import ReasoningGymVerifier
from r1jax.rewards.rules import Reward, accuracy_reward, format_reward, language_mix_reward
from r1jax.rewards.unicode_scripts import script_consistency_reward
from r1jax.runs.policy import Policy, load_environments
from r1jax.stages.evaluate import measure
from r1jax.telemetry.progress import Progress
from r1jax.types import Problem

COLUMNS = ROOT / "gin_configs" / "data"  # a gin file of column names for each kind of problem file
GENERATED = ("countdown",)  # text tasks that generate their problems
GYM = "reasoning_gym:"  # before the name of a dataset of reasoning-gym
LONGEST = 32768  # tokens of an output (R1, section 3)
WORD_TASK_LONGEST = 44  # as in the demo's RL
SLOTS, WORD_TASK_SLOTS = 32, 256


@dataclass(frozen=True)
class FileConfig:
    """What a file of gin_configs/data/ is read into."""

    problems: JsonlConfig


def evaluate(args: argparse.Namespace) -> None:
    """Prints and, with `--out`, writes the figures of `args.checkpoint`.

    Raises UsageError for a task that does not fit the checkpoint or the other arguments.
    """
    check(args)
    _, policy = load_checkpoint(args.checkpoint)
    task = find_task(args, policy)
    environments = load_environments(args.environment, policy, task.template)
    task = replace(task, environments=environments or task.environments)
    problems = task.held_out(args.problems, args.seed)
    config = evaluate_config(args, policy, task, problems)
    progress = Progress(Console(stderr=True)).start("problems", 0, 2 * len(problems))
    with ExitStack() as stack:
        rewards = make_rewards(task, stack)
        figures, groups = measure(policy, config, task, rewards, problems, args.seed, progress)
    title = f"{args.checkpoint} on {task.name}, {len(problems)} problems"
    header, *rows = table(figures)
    shown = Table(*header, title=title)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
    if args.out is not None:
        out = epath.Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        write_evaluation(out, title, config, figures, groups)
    print(json.dumps({"checkpoint": args.checkpoint, "task": task.name, **figures}))


def check(args: argparse.Namespace) -> None:
    """Raises UsageError for arguments that contradict each other, before anything is loaded."""
    files = sorted(path.stem for path in COLUMNS.glob("*.gin"))
    known = [*TASKS, *GENERATED, *files]
    if args.task.startswith(GYM):
        find_source(args).problems("test", args.seed)
    elif args.task not in known:
        raise UsageError(f"--task is '{args.task}', expected one of {', '.join(known)} or {GYM}DATASET")
    if args.task in files and args.file is None:
        raise UsageError(f"--task {args.task} reads its problems from a file: add --file")
    if args.task not in files and args.file is not None:
        raise UsageError(f"--task {args.task} generates its problems: --file is for {', '.join(files)}")
    if args.file is not None and not epath.Path(args.file).is_file():
        raise UsageError(f"--file is {args.file}, which is no file")
    if args.k is not None and args.samples is not None and args.k > args.samples:
        raise UsageError(f"--k is {args.k}, expected at most --samples ({args.samples})")
    if args.out is not None and Path(args.out).exists() and not Path(args.out).is_dir():
        raise UsageError(f"--out is {args.out}, a file, expected a directory")


def find_task(args: argparse.Namespace, policy: Policy) -> Task:
    """The task, with the checkpoint's tokenizer. Raises UsageError where the checkpoint has another one, or none."""
    trained = f"was trained on task '{policy.task.name}'" if policy.task else "was imported with its own tokenizer"
    if args.task in TASKS:
        if policy.task is not TASKS[args.task]:
            raise UsageError(f"--task {args.task} needs a checkpoint with its tokenizer: {args.checkpoint} {trained}")
        return policy.task
    if policy.tokenizer is None:
        raise UsageError(f"--task {args.task} needs a tokenizer, which {args.checkpoint} has not: import it with one")
    if not isinstance(policy.tokenizer, PublishedTokenizer):
        raise UsageError(f"--task {args.task} needs a tokenizer of all text (import-hf): {args.checkpoint} {trained}")
    return text_task(args.task, policy.tokenizer.directory, find_source(args).problems, find_template(args, policy))


def find_source(args: argparse.Namespace) -> Source:
    """The problems of a task in plain text; a dataset of reasoning-gym has its default settings."""
    if args.task.startswith(GYM):
        dataset = args.task.removeprefix(GYM)
        return Source("reasoning_gym", gym=ReasoningGymConfig(dataset))
    if args.file is None:
        return Source(args.task)
    path = f"problems/JsonlConfig.path = {str(args.file)!r}"
    return Source(args.task, file=read_config(FileConfig, [str(COLUMNS / f"{args.task}.gin")], [path]).problems)


def find_template(args: argparse.Namespace, policy: Policy) -> PromptConfig:
    """As the arguments say; else as the policy was trained; else an imported one's chat template, if it has one."""
    if policy.task and policy.task.template:
        template = policy.task.template
    else:
        template = PromptConfig("chat" if policy.keeps_turns else "dialogue")
    if args.prompt is not None and args.prompt != template.template:
        template = replace(template, template=args.prompt, system="")
    return replace(template, answer=args.answer or template.answer)


def evaluate_config(args: argparse.Namespace, policy: Policy, task: Task, problems: list[Problem]) -> EvaluateConfig:
    """The arguments; what they leave open follows from the task and from the model's number of positions."""
    is_of_words = task.name in TASKS
    prompt_tokens = max(len(task.tokenizer.encode(task.prompt(p.question))) for p in problems)
    positions = policy.model.max_position_embeddings
    room = positions - prompt_tokens
    if room < 1:
        raise UsageError(f"a prompt has {prompt_tokens} tokens, expected less than max_position_embeddings {positions}")
    samples = args.samples or max(args.k or 0, 8)
    max_new_tokens = args.max_tokens or min(WORD_TASK_LONGEST if is_of_words else LONGEST, room)
    numbers = {"temperature": args.temperature, "top_p": args.top_p, "max_turns": args.max_turns}
    sampling = SamplingConfig(prompt_tokens, max_new_tokens, **numbers, stop=tuple(args.stop))
    engine = EngineConfig(slots=args.slots or (WORD_TASK_SLOTS if is_of_words else SLOTS))
    return EvaluateConfig(sampling, engine, len(problems), samples, k=args.k or min(8, samples))


def make_rewards(task: Task, stack: ExitStack) -> dict[str, Reward]:
    """Accuracy, and with weight 0 what is only measured. The verifier's processes end with `stack`."""
    if task.name in TASKS:
        accuracy = Reward(accuracy_reward, 1.0)
        language = {
            "language_mix": Reward(language_mix_reward(task.lexicons), 0.0),
            "last_number": Reward(last_number_reward, 0.0),
        }
    else:
        assert task.template  # tasks in plain text have one
        extract = EXTRACT[task.template.answer]
        if task.name in GENERATED:
            accuracy = Reward(countdown_reward, 1.0)
        elif task.name.startswith(GYM):
            accuracy = Reward(stack.enter_context(ReasoningGymVerifier(extract=extract)), 1.0)
        else:
            accuracy = Reward(stack.enter_context(MathVerifier(extract=extract)), 1.0)
        language = {"language": Reward(script_consistency_reward(), 0.0)}
    return {"accuracy": accuracy, "format": Reward(format_reward, 0.0), **language}
