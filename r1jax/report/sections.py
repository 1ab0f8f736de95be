"""The sections of a report: what each stage did and changed, its curves, and the graph of the stages."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from r1jax.report.curves import Panel, Rows, panel
from r1jax.report.figures import Figures, find_moves, number
from r1jax.report.graph import Graph, lay_out
from r1jax.report.metric_groups import group_metrics
from r1jax.report.pages import KINDS
from r1jax.runs import lineage
from r1jax.runs.lineage import StageRecord

TEMPERATURE = "temperature {sampling[temperature]:g}"
FACTS = {  # of a stage's config and result; a text with a field that the stage lacks is left out
    "pretrain": ("{steps:,} steps", "{documents:,} documents", "batches of {batch_size} × {sequence_length} tokens"),
    "sft": ("{steps:,} steps", "{used:,} demonstrations, {epochs} epochs", "{too_long:,} were too long"),
    "rl": ("{steps:,} steps", "{prompts_per_step} prompts × {group_size} samples per step", TEMPERATURE),
    "rejection": ("{num_prompts:,} prompts × {samples_per_prompt} samples", TEMPERATURE),
    "preferences": ("{num_prompts:,} prompts × {samples_per_prompt} samples of each policy", "{responses:,} finished",
                    "{kept:,} kept"),
    "demonstrations": ("{kept:,} demonstrations",),
    "reward_model": ("{kind}", "{steps:,} steps", "{accuracy:.1%} accuracy on {held_out:,} held-out preferences",
                     "margin {margin:.2f}"),
}  # fmt: skip
OUTCOMES = {  # shown in the graph for stages without an evaluation
    "sft": "{used:,} demonstrations",
    "rejection": "kept {kept:,} of {drawn:,}",
    "preferences": "kept {kept:,}",
    "demonstrations": "{kept:,} read",
    "reward_model": "{accuracy:.1%} held-out accuracy",
}
CURVES = {
    "pretrain": ("loss", "mtp_loss"),
    "sft": ("loss", "mtp_loss"),
    "reward_model": ("loss", "accuracy", "margin"),
    "rl": ("reward", "accuracy", "format", "language", "helpful", "safe", "response_tokens", "entropy", "kl",
           "changed_weights"),
}  # fmt: skip
ENDS = 20  # rows at both ends of a long run


def state(stage: StageRecord) -> str:
    """ "complete", "begun" or the latest step."""
    if stage.result is not None:
        return "complete"
    if not stage.metrics:
        return "begun"
    steps = stage.settings.get("steps")
    return f"at step {stage.metrics[-1].get('step', 0):,.0f}" + (f" of {steps:,}" if isinstance(steps, int) else "")


def fill(texts: Sequence[str], stage: StageRecord) -> list[str]:
    """The texts with the stage's numbers, without those that name a number it lacks."""
    numbers = {**stage.settings, **(stage.result or {})}
    texts_with_numbers = []
    for text in texts:
        with contextlib.suppress(KeyError, ValueError, TypeError):  # an unfinished stage, or a fork's config
            texts_with_numbers.append(text.format(**numbers))
    return texts_with_numbers


# ---- the graph


def draw_graph(made: Sequence[StageRecord], measured: Mapping[str, StageRecord]) -> tuple[Graph, list[dict[str, Any]]]:
    """The positions of boxes and lines, and the contents of the boxes."""
    graph = lay_out({stage.name: lineage.parents(stage, made) for stage in made})
    names = {stage.name for stage in made}
    boxes = []
    for stage in made:
        evaluation = measured.get(stage.name)
        figures = (evaluation and evaluation.result) or {}
        measures = [f"{name} {figures[name]:.2f}" for name in ("pass@1", "format") if name in figures]
        outcome = [" · ".join(measures)] if measures else fill([OUTCOMES.get(stage.kind, "")], stage)
        did = " · ".join([KINDS.get(stage.kind, stage.kind), *fill(["{steps:,} steps"], stage)])
        data = [i for i in stage.inputs if i.stage not in names]
        text = outcome[0] if stage.result is not None and outcome else state(stage)
        boxes.append({"stage": stage, "at": graph.boxes[stage.name], "data": data, "did": did, "outcome": text})
    return graph, boxes


# ---- what a stage changed


def describe(stage: StageRecord, made: Sequence[StageRecord], measured: Mapping[str, StageRecord]) -> dict[str, Any]:
    """A stage's section, which compares its evaluation with that of its nearest ancestor that has one."""
    by_name = {other.name: other for other in made}
    above = lineage.policy_parent(stage)
    for _ in made:  # the longest chain of ancestors
        if above not in measured and above in by_name:
            above = lineage.policy_parent(by_name[above])
    before, after = measured.get(above), measured.get(stage.name)
    figures = (before and before.result) or {}
    facts = [fact for fact in fill(FACTS.get(stage.kind, ()), stage) if not fact.startswith("0 ")]
    if stage.kind not in FACTS:
        facts = [f"{name.replace('_', ' ')} {number(value)}" for name, value in (stage.result or {}).items()]
    return {
        "stage": stage,
        "facts": facts,
        "counts": counts(stage),
        "panels": panels(stage, figures),
        "folds": folds(stage, [[stage.metrics]]),
        "rewards": rewards(stage),
        "before": before and before.name,  # the evaluations before and after the stage
        "after": after and after.name,
        "moves": find_moves(figures, after.result) if before and after and after.result else [],
    }


def rewards(stage: StageRecord) -> list[tuple[str, str]]:
    """(sources, rewards given on them) of an RL stage; rewards with weight 0 are only logged."""
    by_source: dict[str, list[str]] = {}
    terms = stage.config.get("rewards", {})
    for name, term in terms.items() if all(isinstance(term, dict) for term in terms.values()) else ():
        words = f"{name.replace('_', ' ')}\u00a0×\u00a0{term['weight']:g}" if term["weight"] else f"{name} logged"
        by_source.setdefault(", ".join(term.get("sources") or ()), []).append(words)
    return [(source.replace("_", " "), ", ".join(words)) for source, words in by_source.items()]


def counts(stage: StageRecord) -> list[tuple[str, int, float]]:
    """(outcome, number, fraction) of rejection sampling's samples: kept, then why others were dropped, by number."""
    result = stage.result or {}
    if stage.kind != "rejection" or not result.get("drawn"):
        return []
    dropped = sorted(result.keys() - {"drawn", "kept"}, key=lambda name: -result[name])
    return [(name.replace("_", " "), result[name], result[name] / result["drawn"]) for name in ["kept", *dropped]]


def main_curves(stage: StageRecord) -> list[str]:
    """The metrics that are always shown; of an unknown kind of stage, the first four that it logged."""
    logged = [name for name in (stage.metrics[-1] if stage.metrics else {}) if name != "step"]
    rewarded = list(stage.config.get("rewards", {}))
    return list(dict.fromkeys([*CURVES[stage.kind], *rewarded] if stage.kind in CURVES else logged[:4]))


def panels(stage: StageRecord, before: Figures) -> list[Panel]:
    """The main curves, those of RL with the evaluation before the stage."""
    names = main_curves(stage)
    bases = {name: before.get("pass@1" if name == "accuracy" else name) for name in names if stage.kind == "rl"}
    return [found for name in names if (found := panel([[stage.metrics]], name, bases.get(name)))]


def folds(stage: StageRecord, groups: Sequence[Sequence[Rows]]) -> dict[str, list[Panel]]:
    """All other metrics that `groups` of runs of the stage have logged, by what they are about."""
    logged = dict.fromkeys(name for group in groups for rows in group for row in rows for name in row)
    others = [name for name in logged if name not in (*main_curves(stage), "step")]
    grouped = group_metrics(others, list(stage.config.get("rewards", {})))
    ends = [[[*rows[:ENDS], *rows[-ENDS:]] if len(rows) > 2 * ENDS else rows for rows in group] for group in groups]

    def drawn(name: str) -> Panel | None:
        return panel(ends, name) or panel(groups, name)  # a table needs both ends; a rare metric may have none there

    tables = {title: [p for p in map(drawn, names) if p] for title, names in grouped.items()}
    return {title: table for title, table in tables.items() if table}
