"""Rejection sampling: right, readable and distinct responses of a policy become demonstrations (R1, section 2.3.3).

The demonstrations of the cold start (2.3.1) are made the same way, from R1-Zero or from a base with few-shot prompts.

The stage works in parts, and resumes after the last complete one. Each part is an ArrayRecord of the kept responses;
`index.json` lists the parts for Grain and seqio.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from etils import epath

from r1jax.config import RejectionConfig
from r1jax.data.feeds import distinct_problems, write_array_record
from r1jax.data.tasks import Task
from r1jax.errors import RunError, UsageError
from r1jax.parallel.hosts import broadcast_from_main
from r1jax.paths import read_json
from r1jax.rewards.filters import choose, make_filters
from r1jax.rewards.grading import grade_groups
from r1jax.rewards.rules import Reward, learned_inputs
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Stage, content_hash, write_index
from r1jax.telemetry.files import write_atomically
from r1jax.types import Sample

Shots = Sequence[tuple[str, str]]  # few-shot examples: (question, response)


def rejection(
    stage: Stage,
    config: RejectionConfig,
    policy: epath.Path,
    problems: epath.Path,
    rewards: Mapping[str, Reward],
    *,
    shots: Shots = (),
) -> epath.Path:
    """Samples responses to each of the first `config.num_prompts` problems, and keeps those that pass the filters.

    Returns the stage's directory; its result counts the drawn, kept and dropped responses, by filter. Raises RunError
    when nothing is kept, and UsageError when a filter lacks its reward.
    """
    require_rewards(config, rewards)
    run, name, task = stage.run, stage.name, stage.task
    inputs = {"policy": policy, "problems": problems} | learned_inputs(rewards)
    terms = {reward: r.settings for reward, r in rewards.items()}
    code = [reward.function for reward in rewards.values()]
    stage.open("rejection", inputs, code=code, rejection=config, task=task.name, shots=list(shots), rewards=terms)
    if stage.result() is not None:
        return stage.directory

    loaded = load_policy(policy, run.layout)
    asked = distinct_problems(problems, config.num_prompts)
    parts = [asked[i : i + config.shard_prompts] for i in range(0, len(asked), config.shard_prompts)]
    group_size = config.samples_per_prompt
    engine = RolloutEngine(
        run.layout, loaded.model, task.tokenizer, config.engine, config.sampling, group_size,
        environments=task.environments,
    )  # fmt: skip
    origin = {"stage": name, "policy": run.relative(policy), "policy_hash": content_hash(policy)}
    with run.progress.start(name, 0, len(parts)) as progress:
        marks = [part_paths(stage.directory, number)[1] for number in range(len(parts))]
        done = broadcast_from_main(f"{name}: parts", lambda: [mark.exists() for mark in marks])
        for number, part in enumerate(parts):
            if not done[number]:
                prompts = [(p, few_shot_prompt(task, shots, p.question)) for p in part]
                groups = engine.generate(loaded.weights, prompts, stage.key())
                grade_groups(rewards, groups)
                write_part(stage.directory, number, groups, config, origin)
            progress.step(number + 1, {})

    files, counts = broadcast_from_main(f"{name}: counts", lambda: add_up(stage.directory, len(parts)))
    if not counts["kept"]:
        raise RunError(f"{name}: no response was kept, expected at least 1: {json.dumps(counts)}")
    run.progress.say(f"{name}: " + "  ".join(f"{key} {value}" for key, value in counts.items() if value))
    stage.complete(counts, output=write_index(stage.directory, files))
    return stage.directory


def require_rewards(config: RejectionConfig, rewards: Mapping[str, Reward]) -> None:
    """Raises UsageError when the reward that a filter reads is missing."""
    wanted = {"accuracy", "language"} if config.language else {"accuracy"}
    for missing in sorted(wanted - rewards.keys()):
        hint = ", or set RejectionConfig.language to 0" if missing == "language" else ""
        raise UsageError(f"rejection sampling filters by the reward '{missing}', got {sorted(rewards)}: add it{hint}")


def few_shot_prompt(task: Task, shots: Shots, question: str) -> list[int]:
    """The token ids of the examples, each in the task's template with an end token, then of the question."""
    ids = []
    for asked, response in shots:
        ids += [*task.tokenizer.encode(f"{task.prompt(asked)} {response}"), task.tokenizer.eos_id]
    return ids + task.tokenizer.encode(task.prompt(question))


def part_paths(directory: epath.Path, number: int) -> tuple[epath.Path, epath.Path]:
    """A part's records, and its counts, which are written last: they mark the part as complete."""
    return directory / f"part-{number:05}.array_record", directory / f"part-{number:05}.json"


def write_part(
    directory: epath.Path, number: int, groups: list[list[Sample]], config: RejectionConfig, origin: dict
) -> None:
    """Writes the samples of each group that pass the filters, then the part's counts."""
    filters, counts, rows = make_filters(config), Counter[str](), []
    records_path, counts_path = part_paths(directory, number)
    for group in groups:
        kept, dropped = choose(group, filters, config)
        counts += Counter({"drawn": len(group), "kept": len(kept)}) + Counter(dropped)
        rows += [record(group[i], i, origin) for i in kept]
    write_array_record(records_path, rows)
    write_atomically(counts_path, json.dumps(counts))


def record(sample: Sample, number: int, origin: dict) -> dict:
    """A demonstration with its provenance."""
    problem = sample.problem
    return (
        {
            "question": problem.question,
            "response": sample.text,
            "source": problem.source,
            "language": problem.language,
            "problem": problem.id,
            "sample": number,
            "tokens": len(sample.response_tokens),
            "rewards": dict(sample.rewards),
        }
        | (episode(sample) if len(sample.turns) > 1 else {})
        | origin
    )


def episode(sample: Sample) -> dict:
    """Several turns as ids, so that what an environment wrote is neither tokenized again nor learnt."""
    start = sample.prompt_length
    return {"ids": sample.response_tokens, "loss_mask": sample.loss_mask[start:]}


def add_up(directory: epath.Path, parts: int) -> tuple[dict[str, int], dict[str, int]]:
    """(the files that are not empty with their numbers of records, the counts of all parts)."""
    counts, files = Counter[str]({"drawn": 0, "kept": 0}), {}
    for number in range(parts):
        records_path, counts_path = part_paths(directory, number)
        part = read_json(counts_path)
        counts.update(part)
        if part.get("kept"):
            files[records_path.name] = part["kept"]
    return files, dict(counts)
