"""Rejection sampling: what a policy says right, readably and once, as demonstrations (R1, section 2.3.3).

The cold start's are made alike: from R1-Zero's readable outputs, or from a base that is shown examples (2.3.1).

The stage writes parts, ArrayRecords of what was kept and where it is from, and `index.json`, which Grain and seqio find
them by.
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
from r1jax.rewards.filters import choose, make_filters
from r1jax.rewards.grading import grade_outputs
from r1jax.rewards.rules import Reward, learned_inputs
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Run, content, shard, write_index
from r1jax.telemetry.files import write_whole
from r1jax.types import Problem, Sample

Shots = Sequence[tuple[str, str]]  # questions and responses that are shown before the question that is asked


def rejection(
    run: Run,
    name: str,
    config: RejectionConfig,
    policy: epath.Path,
    task: Task,
    problems: epath.Path,
    rewards: Mapping[str, Reward],
    *,
    shots: Shots = (),
) -> epath.Path:
    """Draws `config.samples` outputs for each of the first `config.prompts` problems; returns the stage's directory.

    Its result has how many were drawn, kept, and dropped by what. Raises RunError when nothing is kept.
    """
    require_verdicts(config, rewards)
    inputs = {"policy": policy, "problems": problems} | learned_inputs(rewards)
    terms = {reward: r.terms_of for reward, r in rewards.items()}
    stage = run.stage(name, "rejection", inputs, rejection=config, task=task.name, shots=list(shots), rewards=terms)
    if stage.result() is not None:
        return stage.directory

    loaded = load_policy(policy, run.layout)
    asked = distinct_problems(problems, config.prompts)
    parts = [asked[i : i + config.part] for i in range(0, len(asked), config.part)]
    lengths = (config.max_prompt_tokens, config.max_new_tokens)
    engine = RolloutEngine(run.layout, loaded.model, task.tokenizer, config.rollout, config.samples, *lengths)
    origin = {"stage": name, "policy": run.relative(policy), "policy_hash": content(policy)}
    with run.progress.start(name, 0, len(parts)) as progress:
        done = broadcast_from_main(f"{name}: parts", lambda: parts_done(stage.directory, len(parts)))
        for number, part in enumerate(parts):
            if number not in done:
                prompts = [(p.id, few_shot_prompt(task, shots, p.question)) for p in part]
                outputs = engine.generate(loaded.params, loaded.router_bias, prompts, stage.key(), config.temperature)
                write_part(stage.directory, number, grade_outputs(part, outputs, rewards), config, origin)
            progress.step(number + 1, {})

    shards, counts = broadcast_from_main(f"{name}: counts", lambda: add_up(stage.directory, len(parts)))
    if not counts["kept"]:
        raise RunError(f"{name}: none of {counts['drawn']} outputs was kept: {json.dumps(counts)}")
    run.progress.say(f"{name}: " + "  ".join(f"{key} {value}" for key, value in counts.items() if value))
    stage.complete(counts, output=write_index(stage.directory, shards))
    return stage.directory


def require_verdicts(config: RejectionConfig, rewards: Mapping[str, Reward]) -> None:
    """Raises UsageError when a filter would have nothing to read."""
    wanted = ["accuracy"] + (["language"] if config.language else [])
    for missing in (name for name in wanted if name not in rewards):
        hint = ", or set RejectionConfig.language to 0" if missing == "language" else ""
        raise UsageError(f"rejection sampling goes by a reward named '{missing}': give one{hint}")


def few_shot_prompt(task: Task, shots: Shots, question: str) -> list[int]:
    """The ids of the examples, each in the dialogue template and ended, and of the question."""
    ids = []
    for asked, response in shots:
        ids += [*task.tokenizer.encode(f"{task.prompt(asked)} {response}"), task.tokenizer.eos_id]
    return ids + task.tokenizer.encode(task.prompt(question))


def part_path(directory: epath.Path, number: int) -> epath.Path:
    return directory / f"part-{number:05}.array_record"


def count_path(directory: epath.Path, number: int) -> epath.Path:
    """What was kept and dropped of a part: the mark that it is whole."""
    return directory / f"part-{number:05}.json"


def parts_done(directory: epath.Path, parts: int) -> list[int]:
    """Those that an earlier session wrote."""
    return [number for number in range(parts) if count_path(directory, number).exists()]


def write_part(
    directory: epath.Path, number: int, groups: list[list[Sample]], config: RejectionConfig, origin: dict
) -> None:
    """The kept samples of each group as records."""
    filters, counts, rows = make_filters(config), Counter[str](), []
    for group in groups:
        kept, dropped = choose(group, filters, config)
        counts += Counter({"drawn": len(group), "kept": len(kept)}) + Counter(dropped)
        rows += [record(group[i], i, origin) for i in kept]
    write_array_record(part_path(directory, number), rows)
    write_whole(count_path(directory, number), json.dumps(counts))


def record(sample: Sample, number: int, origin: dict) -> dict:
    """A demonstration, and where it is from."""
    problem: Problem = sample.problem
    return {
        "question": problem.question,
        "response": sample.text,
        "source": problem.source,
        "language": problem.language,
        "problem": problem.id,
        "sample": number,
        "tokens": len(sample.tokens),
        "rewards": dict(sample.rewards),
    } | origin


def add_up(directory: epath.Path, parts: int) -> tuple[list[dict], dict[str, int]]:
    """The parts that hold something, with what they hold; and all counts."""
    counts, shards = Counter[str]({"drawn": 0, "kept": 0}), []
    for number in range(parts):
        part = json.loads(count_path(directory, number).read_text())
        counts.update(part)
        if part.get("kept"):
            shards.append(shard(part_path(directory, number), part["kept"]))
    return shards, dict(counts)
