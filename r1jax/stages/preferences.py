"""Responses of policies, judged: what reward models learn from (R1, supplement).

Pairs that people wrote are all alike, and all well-formed. RL asks a reward model about what a policy says: so most of
what it learns from has to be of that kind.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from etils import epath

from r1jax.config import PreferencesConfig
from r1jax.data.feeds import distinct_problems, write_array_record
from r1jax.data.tasks import Task
from r1jax.errors import RunError
from r1jax.parallel.hosts import broadcast_from_main
from r1jax.rollout.engine import RolloutEngine
from r1jax.runs.policy import load_policy
from r1jax.runs.run import Run, shard, write_index
from r1jax.types import Problem

Judge = Callable[[Problem, str], float]  # a mark for a response; safety: above 0 is safe


def judged(
    run: Run,
    name: str,
    config: PreferencesConfig,
    kind: str,
    policies: Mapping[str, epath.Path],
    task: Task,
    problems: epath.Path,
    judge: Judge,
) -> epath.Path:
    """Records of kind "pairwise" or "pointwise" (data/preferences.py); returns the stage's directory."""
    inputs = {"problems": problems, **policies}
    stage = run.stage(name, "judged", inputs, judged=config, judgement=kind, judge=judge.__qualname__, task=task.name)
    if stage.result() is not None:
        return stage.directory

    asked = distinct_problems(problems, config.prompts)
    by_question: list[list[dict]] = [[] for _ in asked]
    for policy, path in policies.items():
        loaded = load_policy(path, run.layout)
        lengths = (config.max_prompt_tokens, config.max_new_tokens)
        engine = RolloutEngine(run.layout, loaded.model, task.tokenizer, config.rollout, config.samples, *lengths)
        prompts = [(p.id, task.tokenizer.encode(task.prompt(p.question))) for p in asked]
        outputs = engine.generate(loaded.params, loaded.router_bias, prompts, stage.key(), config.temperature)
        for problem, group, responses in zip(asked, outputs, by_question, strict=True):
            responses += [
                {"text": o.text, "tokens": len(o.tokens), "mark": judge(problem, o.text), "policy": policy}
                for o in group
                if o.finished
            ]
    make = pairs if kind == "pairwise" else single
    rows = [
        row for problem, responses in zip(asked, by_question, strict=True) for row in make(problem, responses, config)
    ]
    if not rows:
        raise RunError(f"{name}: no response differs from another of its question by PreferencesConfig.difference")
    path = stage.directory / "judged.array_record"
    write_array_record(path, rows)
    counts = {"responses": sum(map(len, by_question)), "kept": len(rows)}
    run.progress.say(f"{name}: {counts['kept']} of {counts['responses']} responses' judgements")
    shards = broadcast_from_main(f"{name}: what it holds", lambda: [shard(path, len(rows))])
    stage.complete(counts, output=write_index(stage.directory, shards))
    return stage.directory


def pairs(problem: Problem, responses: Sequence[dict], config: PreferencesConfig) -> list[dict]:
    """Responses whose marks differ enough, those of like length first: length alone should not please."""
    found = [
        (a, b) if a["mark"] > b["mark"] else (b, a)
        for a, b in combinations(responses, 2)
        if abs(a["mark"] - b["mark"]) >= config.difference
    ]
    found.sort(key=lambda pair: abs(pair[0]["tokens"] - pair[1]["tokens"]))
    chosen: dict[tuple[str, str], dict] = {}
    for good, bad in found:
        row = {"question": problem.question, "chosen": good["text"], "rejected": bad["text"]}
        marks = {"marks": [good["mark"], bad["mark"]], "policies": [good["policy"], bad["policy"]]}
        chosen.setdefault((good["text"], bad["text"]), row | marks)
    return list(chosen.values())[: config.pairs]


def single(problem: Problem, responses: Sequence[dict], config: PreferencesConfig) -> list[dict]:
    """Every different response, marked safe or not."""
    different = {r["text"]: r for r in responses}.values()
    return [
        {"question": problem.question, "response": r["text"], "safe": r["mark"] > 0, "policy": r["policy"]}
        for r in different
    ]
