"""`r1jax eval`: a checkpoint on a task's problems, as a table, one line of JSON and files."""

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from etils import epath
from rich.console import Console
from rich.table import Table

from r1jax.cli.gin_config import read_config
from r1jax.config import EvaluateConfig, JsonlConfig, MeshConfig, RolloutConfig
from r1jax.data.published_tokenizer import PublishedTokenizer
from r1jax.data.sources import Source
from r1jax.data.tasks import TASKS, Task, text_task
from r1jax.errors import UsageError
from r1jax.parallel.layout import make_layout
from r1jax.report.evaluation import table
from r1jax.rewards.countdown import countdown_reward
from r1jax.rewards.mathematics import MathVerifier
from r1jax.rewards.rules import Reward, accuracy_reward, format_reward, language_mix_reward
from r1jax.rewards.unicode_scripts import script_consistency_reward
from r1jax.runs.policy import Policy, load_policy
from r1jax.stages.evaluate import measure, write_files
from r1jax.types import Problem

GENERATED = ("countdown",)  # text tasks without a file
LONGEST = 32768  # tokens of an output (R1, section 3)
WORD_TASK_LONGEST = 44  # the demo's
SLOTS, WORD_TASK_SLOTS = 32, 256


@dataclass(frozen=True)
class FileConfig:
    """What a file of gin_configs/data/ is read into."""

    problems: JsonlConfig


def evaluate(args: argparse.Namespace, checkpoint: epath.Path, columns: Path, devices: Sequence) -> None:
    """Prints, and with --out writes, the figures of a checkpoint. `columns` holds a gin file for each kind of file.

    Raises UsageError for a task that the checkpoint, or what else was asked for, does not fit.
    """
    check(args, columns)
    layout = make_layout(MeshConfig(data=1), devices=devices)
    policy = load_policy(checkpoint, layout)
    task = find_task(args, policy, columns)
    problems = task.held_out(args.problems, args.seed)
    config = evaluate_config(args, policy, task, problems)
    with ExitStack() as stack:
        rewards = make_rewards(task, stack)
        figures, groups = measure(layout, policy, config, task, rewards, problems, args.seed)
    title = f"{args.checkpoint} on {task.name}, {len(problems)} problems"
    header, *rows = table(figures)
    shown = Table(*header, title=title)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
    if args.out is not None:
        out = epath.Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        write_files(out, title, config, figures, groups)
    print(json.dumps({"checkpoint": args.checkpoint, "task": task.name, **figures}))


def check(args: argparse.Namespace, columns: Path) -> None:
    """Raises UsageError for arguments that don't go together, before anything is loaded."""
    files = sorted(path.stem for path in columns.glob("*.gin"))
    if args.task not in (*TASKS, *GENERATED, *files):
        raise UsageError(f"no task '{args.task}': there are {', '.join([*TASKS, *GENERATED, *files])}")
    if args.task in files and args.file is None:
        raise UsageError(f"task '{args.task}' is a file of problems: say which with --file")
    if args.task not in files and args.file is not None:
        raise UsageError(f"task '{args.task}' makes its problems: --file is for {', '.join(files)}")
    if args.file is not None and not epath.Path(args.file).is_file():
        raise UsageError(f"--file {args.file}: there is no such file")
    if args.k is not None and args.samples is not None and args.k > args.samples:
        raise UsageError(f"--k {args.k} is more than --samples {args.samples}")
    if args.out is not None and Path(args.out).exists() and not Path(args.out).is_dir():
        raise UsageError(f"--out {args.out} is a file, expected a directory")


def find_task(args: argparse.Namespace, policy: Policy, columns: Path) -> Task:
    """The task with the checkpoint's own tokens. Raises UsageError where it has others, or none."""
    trained = f"was trained on task '{policy.task.name}'" if policy.task else "was imported with its own tokenizer"
    if args.task in TASKS:
        if policy.task is not TASKS[args.task]:
            raise UsageError(f"{args.checkpoint} {trained}, which task '{args.task}' doesn't share")
        return policy.task
    if policy.tokenizer is None:
        raise UsageError(f"{args.checkpoint} has no tokenizer, which task '{args.task}' needs: import it with one")
    if not isinstance(policy.tokenizer, PublishedTokenizer):
        raise UsageError(
            f"{args.checkpoint} {trained}, and knows its {policy.tokenizer.size} words only: task '{args.task}' needs"
            " a checkpoint with a published tokenizer (import-hf)"
        )
    source = Source(args.task)
    if args.file is not None:
        path = f"problems/JsonlConfig.path = {str(args.file)!r}"
        source = Source(args.task, file=read_config(FileConfig, [str(columns / f"{args.task}.gin")], [path]).problems)
    return text_task(args.task, policy.tokenizer.directory, source.problems)


def evaluate_config(args: argparse.Namespace, policy: Policy, task: Task, problems: list[Problem]) -> EvaluateConfig:
    """As asked for; what was not said follows from the task and from the room that the model has."""
    is_of_words = task.name in TASKS
    longest_prompt = max(len(task.tokenizer.encode(task.prompt(p.question))) for p in problems)
    room = policy.model.max_position_embeddings - longest_prompt
    if room < 1:
        raise UsageError(
            f"a prompt has {longest_prompt} tokens, and the model positions for"
            f" {policy.model.max_position_embeddings}: there is no room for an answer"
        )
    samples = args.samples or max(args.k or 0, 8)
    return EvaluateConfig(
        rollout=RolloutConfig(slots=args.slots or (WORD_TASK_SLOTS if is_of_words else SLOTS)),
        problems=len(problems),
        samples=samples,
        max_prompt_tokens=longest_prompt,
        max_new_tokens=args.max_tokens or min(WORD_TASK_LONGEST if is_of_words else LONGEST, room),
        temperature=args.temperature,
        top_p=args.top_p,
        k=args.k or min(8, samples),
    )


def make_rewards(task: Task, stack: ExitStack) -> dict[str, Reward]:
    """Accuracy, and what is watched. The verifier's processes end with `stack`."""
    if task.name in TASKS:
        watched = {"language_mix": Reward(language_mix_reward(task.lexicons), 0.0)}
        accuracy = Reward(accuracy_reward, 1.0)
    else:
        watched = {"language": Reward(script_consistency_reward(), 0.0)}
        accuracy = Reward(
            countdown_reward if task.name in GENERATED else stack.enter_context(MathVerifier()),
            1.0,
        )
    return {"accuracy": accuracy, "format": Reward(format_reward, 0.0), **watched}
