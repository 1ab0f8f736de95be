"""`report.html`: one self-contained page of a run, made from what its stages wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

from r1jax.errors import UsageError
from r1jax.paths import absolute
from r1jax.report.curves import PANEL, Panel, panel, picture
from r1jax.report.evaluation import PLOT
from r1jax.report.figures import Figures, Move, better, figure_name, moved, number, shown, table
from r1jax.report.graph import HEIGHT, WIDTH, Graph, lay_out
from r1jax.runs.lineage import Input, StageRecord, find_stale, goes_on_from, parents, read_stages
from r1jax.telemetry.files import write_whole

KINDS = {
    "pretrain": "pretraining",
    "sft": "fine-tuning",
    "rl": "RL",
    "rejection": "rejection sampling",
    "judged": "judgements",
    "demonstrations": "demonstrations",
    "reward_model": "reward model",
    "evaluate": "evaluation",
}
FACTS = {  # how much a stage did, of its numbers and its result; what it doesn't have is left out
    "pretrain": ("{steps:,} steps", "{documents:,} documents", "batches of {batch_size} × {sequence_length} tokens"),
    "sft": ("{steps:,} steps", "{used:,} demonstrations, {epochs} times", "{too_long:,} were too long"),
    "rl": ("{steps:,} steps", "{questions} questions × {group_size} outputs a step", "temperature {temperature:g}"),
    "rejection": ("{prompts:,} questions × {samples} outputs", "temperature {temperature:g}"),
    "judged": ("{prompts:,} questions × {samples} outputs of each policy", "{responses:,} ended by themselves",
               "{kept:,} judgements kept"),
    "demonstrations": ("{kept:,} demonstrations",),
    "reward_model": ("{kind}", "{steps:,} steps", "of {held_out:,} judgements held out {accuracy:.1%} are right",
                     "margin {margin:.2f}"),
}  # fmt: skip
OUTCOMES = {  # in a box of the graph, where no evaluation says more
    "sft": "{used:,} demonstrations",
    "rejection": "kept {kept:,} of {drawn:,}",
    "judged": "{kept:,} judgements",
    "demonstrations": "{kept:,} read",
    "reward_model": "{accuracy:.1%} right, held out",
}
CURVES = {
    "pretrain": ("loss", "mtp_loss"),
    "sft": ("loss", "mtp_loss"),
    "reward_model": ("loss", "accuracy", "margin"),
    "rl": ("reward", "accuracy", "format", "language", "helpful", "safe", "response_tokens", "entropy", "kl"),
}
SAMPLES = 12


def write_report(workdir: epath.Path) -> epath.Path:
    """Writes and returns `workdir/report.html`. Raises UsageError when the directory holds no run."""
    workdir = absolute(workdir)
    if not (workdir / "run.json").exists():
        raise UsageError(f"{workdir} holds no run: expected the --workdir of `r1jax run`")
    stages = read_stages(workdir)
    stale = find_stale(stages)
    done = {stage.name: stage for stage in stages if stage.kind == "evaluate" and stage.result}
    measured = {i.stage: stage for stage in done.values() for i in stage.inputs}
    made = [stage for stage in stages if stage.kind != "evaluate"]
    results = [stage.result for stage in done.values() if stage.result]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("r1jax.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "figure": figure_name,
        "duration": duration,
        "number": number,
        "shown": shown,
        "short_number": short_number,
        "data": data_name,
    }
    page = environment.get_template("report.html.j2").render(
        run=json.loads((workdir / "run.json").read_text()),
        stages=stages,
        stale=stale,
        kinds=KINDS,
        states={stage.name: state(stage) for stage in stages},
        seconds=sum(stage.seconds or 0.0 for stage in stages),
        overall=moved(results[0], results[-1]) if len(results) > 1 else [],
        graph=draw_graph(made, measured),
        box=(WIDTH, HEIGHT),
        panel=PANEL,
        evaluations=list(done),
        of=[next((i.path for i in stage.inputs), "") for stage in done.values()],
        table=table(results),
        sections=[describe(stage, made, measured) for stage in made],
        plots={
            name: Markup(plot.read_text()) for name, s in measured.items() if (plot := workdir / s.name / PLOT).exists()
        },
        samples=same_problems({name: read_samples(workdir / name / "samples.jsonl") for name in done}),
    )
    path = workdir / "report.html"
    write_whole(path, page)
    base = results[0] if results else {}
    for stage in made:
        if stage.kind == "rl" and stage.metrics:
            write_whole(workdir / f"curves_{stage.name}.svg", picture(stage.metrics, base))
    return path


# ---- the words


def short_number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3g}"


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def data_name(i: Input) -> str:
    """Of a file, what was made into it, without its split, seed and number; of another run's stage, its name."""
    return i.path.rstrip("/").rsplit("/", 1)[-1].split("-")[0].split(".")[0]


def state(stage: StageRecord) -> str:
    """ "complete", or how far it is."""
    if stage.result is not None:
        return "complete"
    if not stage.metrics:
        return "begun"
    steps = stage.settings.get("steps")
    return f"at step {stage.metrics[-1]['step']:,.0f}" + (f" of {steps:,}" if isinstance(steps, int) else "")


def fill(texts: Sequence[str], stage: StageRecord) -> list[str]:
    """The texts that the stage has all numbers for."""
    known = {**stage.settings, **(stage.result or {})}
    filled = []
    for text in texts:
        try:
            filled.append(text.format(**known))
        except (KeyError, ValueError, TypeError):  # another version's config, or an unfinished stage
            continue
    return filled


# ---- the graph


def draw_graph(made: Sequence[StageRecord], measured: Mapping[str, StageRecord]) -> tuple[Graph, list[dict[str, Any]]]:
    """Its lines, and the boxes: what stands in each."""
    graph = lay_out({stage.name: parents(stage, made) for stage in made})
    names = {stage.name for stage in made}
    boxes = []
    for stage in made:
        evaluation = measured.get(stage.name)
        figures = evaluation.result if evaluation and evaluation.result else {}
        shown = [f"{name} {figures[name]:.2f}" for name in ("pass@1", "format") if name in figures]
        outcome = [" · ".join(shown)] if shown else fill([OUTCOMES.get(stage.kind, "")], stage)
        did = [KINDS.get(stage.kind, stage.kind), *fill(["{steps:,} steps"], stage)]
        boxes.append(
            {
                "stage": stage,
                "at": graph.boxes[stage.name],
                "data": [i for i in stage.inputs if i.stage not in names],
                "did": " · ".join(did),
                "outcome": outcome[0] if stage.result is not None and outcome else state(stage),
            }
        )
    return graph, boxes


# ---- what a stage changed


@dataclass(frozen=True)
class Section:
    stage: StageRecord
    facts: list[str]
    counts: list[tuple[str, int, float]]  # what became of what was drawn: number and share
    panels: list[Panel]
    rewards: list[tuple[str, str]]  # a source, and what is rewarded there
    before: str
    after: str
    moves: list[Move]


def describe(stage: StageRecord, made: Sequence[StageRecord], measured: Mapping[str, StageRecord]) -> Section:
    """Between the evaluation of what the stage goes on from, or of what that did, and its own."""
    by_name = {other.name: other for other in made}
    above = goes_on_from(stage)
    for _ in made:  # as many steps up as there can be
        if above not in measured and above in by_name:
            above = goes_on_from(by_name[above])
    before, after = measured.get(above), measured.get(stage.name)
    figures = before.result if before and before.result else {}
    facts = [fact for fact in fill(FACTS.get(stage.kind, ()), stage) if not fact.startswith("0 ")]
    if stage.kind not in FACTS:
        facts = [f"{name.replace('_', ' ')} {number(value)}" for name, value in (stage.result or {}).items()]
    return Section(
        stage=stage,
        facts=facts,
        counts=counts(stage),
        panels=panels(stage, figures),
        rewards=rewards(stage),
        before=before.name if before else "",
        after=after.name if after else "",
        moves=moved(figures, after.result) if before and after and after.result else [],
    )


def rewards(stage: StageRecord) -> list[tuple[str, str]]:
    """What RL rewards, by what it is asked; a weight of 0 only watches."""
    by_source: dict[str, list[str]] = {}
    terms = stage.config.get("rewards", {})
    for name, term in terms.items() if all(isinstance(term, dict) for term in terms.values()) else ():
        words = f"{name.replace('_', ' ')}\u00a0×\u00a0{term['weight']:g}" if term["weight"] else f"{name} watched"
        by_source.setdefault(", ".join(term.get("sources") or ()), []).append(words)
    return [(source.replace("_", " "), ", ".join(words)) for source, words in by_source.items()]


def counts(stage: StageRecord) -> list[tuple[str, int, float]]:
    """Rejection sampling's: what was kept, then why the rest was not, most frequent first."""
    result = stage.result or {}
    if stage.kind != "rejection" or not result.get("drawn"):
        return []
    dropped = sorted(result.keys() - {"drawn", "kept"}, key=lambda name: -result[name])
    return [(name.replace("_", " "), result[name], result[name] / result["drawn"]) for name in ["kept", *dropped]]


def panels(stage: StageRecord, before: Figures) -> list[Panel]:
    """Of an unknown kind of stage, the first few metrics that it logged."""
    rows = stage.metrics
    rewarded = list(stage.config.get("rewards", {}))
    logged = [name for name in (rows[-1] if rows else {}) if name != "step"]
    names = dict.fromkeys([*CURVES[stage.kind], *rewarded] if stage.kind in CURVES else logged[:4])
    bases = {name: before.get("pass@1" if name == "accuracy" else name) for name in names if stage.kind == "rl"}
    return [found for name in names if (found := panel(rows, name, bases.get(name)))]


# ---- samples


def read_samples(path: epath.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def same_problems(samples: Mapping[str, Sequence[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """For some problems of each source, what was answered at every evaluation, with the rewards that apply."""
    by_source: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, rows in samples.items():
        for row in rows:
            problem = row["problem"]
            answers = by_source.setdefault(problem.get("source", ""), {}).setdefault(problem["question"], [])
            given = [(reward, v, verdict(reward, v)) for reward, v in row["rewards"].items() if v is not None]
            if not answers or answers[-1]["stage"] != name:  # a question may be asked twice
                answers.append(row | {"stage": name, "rewards": given} | split_text(row["text"]))
    each = SAMPLES // max(len(by_source), 1)
    return [answers for questions in by_source.values() for answers in list(questions.values())[: max(each, 1)]]


def verdict(reward: str, value: float) -> str:
    """A reward's colour: what is all right or all wrong has one, what lies between and learned scores have none."""
    direction = 1 if reward == "accuracy" else better(reward)
    return {1: "good", -1: "bad"}.get(direction if value == 1 else -direction if value == 0 else 0, "")


def split_text(text: str) -> dict[str, str]:
    """The thinking, and what comes after it."""
    thinking, tag, rest = text.partition("</think>")
    return {"thinking": thinking + tag, "answer": rest} if tag else {"thinking": "", "answer": text}
