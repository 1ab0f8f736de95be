"""Preference data for reward models: responses of policies, rated by a labeler (R1, supplement).

Pairs written by people are all alike and all well-formed. RL asks a reward model to score the outputs of a policy, so
most of its training data have to be outputs of policies.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, combinations

from etils import epath

from r1jax.config import PreferenceFileConfig, PreferencesConfig
from r1jax.data.feeds import distinct_problems, write_array_record
from r1jax.data.jsonl import read_preferences
from r1jax.errors import RunError
from r1jax.paths import absolute
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Stage, write_index
from r1jax.types import Problem, Sample

Labeler = Callable[[Problem, str], float]  # rates a response; for safety, a rating above 0 means safe


def preferences(
    stage: Stage,
    config: PreferencesConfig,
    kind: str,
    policies: Mapping[str, epath.Path],
    problems: epath.Path,
    labeler: Labeler,
) -> epath.Path:
    """Samples each of `policies` on `problems` (an ArrayRecord) and rates the responses; returns the stage's directory.

    `kind` is "pairwise" or "pointwise": the records it writes (data/preferences.py). Raises RunError when no pair of
    responses differs enough.
    """
    run, task = stage.run, stage.task
    labels = {"preference_kind": kind, "labeler": labeler.__qualname__}
    inputs = {"problems": problems, **policies}
    stage.open("preferences", inputs, code=[labeler], preferences=config, **labels, task=task.name)
    if stage.result() is not None:
        return stage.directory

    asked = distinct_problems(problems, config.num_prompts)
    by_policy = [rate_policy(stage, config, name, path, asked, labeler) for name, path in policies.items()]
    responses = [list(chain(*rated)) for _, *rated in zip(asked, *by_policy, strict=True)]  # of each problem
    make = make_pairs if kind == "pairwise" else make_ratings
    rows = [row for problem, rated in zip(asked, responses, strict=True) for row in make(problem, rated, config)]
    if not rows:
        raise RunError(
            f"{stage.name}: no two responses to a question differ by PreferencesConfig.min_difference"
            f" ({config.min_difference}): set it lower"
        )
    file = "preferences.array_record"
    write_array_record(stage.directory / file, rows)
    counts = {"responses": sum(map(len, responses)), "kept": len(rows)}
    run.progress.say(f"{stage.name}: {counts['kept']:,} records of {counts['responses']:,} responses")
    stage.complete(counts, output=write_index(stage.directory, {file: len(rows)}))
    return stage.directory


def written_preferences(stage: Stage, config: PreferenceFileConfig, kind: str) -> epath.Path:
    """Converts a file of written preferences to records; returns the stage's directory.

    Raises UsageError, naming the line and column, for a line that is no preference of `kind`.
    """
    rows = read_preferences(config, kind)
    stage.open("preferences", {"file": absolute(config.path)}, preferences=config, preference_kind=kind)
    if stage.result() is not None:
        return stage.directory
    file = "preferences.array_record"
    write_array_record(stage.directory / file, rows)
    stage.complete({"kept": len(rows)}, output=write_index(stage.directory, {file: len(rows)}))
    return stage.directory


def rate_policy(
    stage: Stage, config: PreferencesConfig, name: str, path: epath.Path, asked: Sequence[Problem], labeler: Labeler
) -> list[list[dict]]:
    """The finished responses of one policy to each problem, with their ratings."""
    task, loaded = stage.task, load_policy(path, stage.run.layout)
    group_size = config.samples_per_prompt
    engine = RolloutEngine(stage.run.layout, loaded.model, task.tokenizer, config.engine, config.sampling, group_size)
    prompts = [(p, task.tokenizer.encode(task.prompt(p.question))) for p in asked]

    def rate(s: Sample) -> dict:
        rating = labeler(s.problem, s.text)
        return {"text": s.text, "tokens": len(s.response_tokens), "rating": rating, "policy": name}

    groups = engine.generate(loaded.weights, prompts, stage.key())
    return [[rate(s) for s in samples if s.finished] for samples in groups]


def make_pairs(problem: Problem, responses: Sequence[dict], config: PreferencesConfig) -> list[dict]:
    """At most `config.pairs_per_prompt` pairs of responses whose ratings differ by at least `config.min_difference`.

    Pairs of similar length come first, so that the reward model does not learn to reward length.
    """
    found = [
        (a, b) if a["rating"] > b["rating"] else (b, a)
        for a, b in combinations(responses, 2)
        if abs(a["rating"] - b["rating"]) >= config.min_difference
    ]
    found.sort(key=lambda pair: abs(pair[0]["tokens"] - pair[1]["tokens"]))
    chosen: dict[tuple[str, str], dict] = {}
    for good, bad in found:
        row = {"question": problem.question, "chosen": good["text"], "rejected": bad["text"]}
        ratings = {"ratings": [good["rating"], bad["rating"]], "policies": [good["policy"], bad["policy"]]}
        chosen.setdefault((good["text"], bad["text"]), row | ratings)
    return list(chosen.values())[: config.pairs_per_prompt]


def make_ratings(problem: Problem, responses: Sequence[dict], config: PreferencesConfig) -> list[dict]:
    """One record for each distinct response: whether it is safe."""
    question = problem.question
    return [
        {"question": question, "response": text, "safe": r["rating"] > 0, "policy": r["policy"]}
        for text, r in {r["text"]: r for r in responses}.items()
    ]
