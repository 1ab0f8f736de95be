"""Writes `report.html`, one self-contained page of a run, from the files of its stages."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from etils import epath
from markupsafe import Markup

from r1jax.errors import UsageError
from r1jax.paths import absolute, read_json
from r1jax.report.curves import PANEL, Panel, panel, picture
from r1jax.report.evaluation import PLOT
from r1jax.report.figures import Figures, better, figure_name, find_moves, format_figure, number, table
from r1jax.report.graph import HEIGHT, WIDTH, Graph, lay_out
from r1jax.runs import lineage
from r1jax.runs.lineage import Input, StageRecord
from r1jax.telemetry.files import write_atomically
from r1jax.telemetry.metrics import read_metrics

KINDS = {
    "pretrain": "pretraining", "sft": "fine-tuning", "rl": "RL", "rejection": "rejection sampling",
    "preferences": "preferences", "demonstrations": "demonstrations", "reward_model": "reward model",
    "evaluate": "evaluation",
}  # fmt: skip
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
SAMPLES = 12  # problems whose answers are shown


def write_report(workdir: epath.Path) -> epath.Path:
    """Writes `workdir/report.html` and a picture of each RL stage's curves; returns the page's path.

    Raises UsageError where the directory holds no run, or one of another format.
    """
    workdir = absolute(workdir)
    if not (workdir / "run.json").exists():
        raise UsageError(f"{workdir} holds no run: expected the --workdir of `r1jax run`")
    run = read_json(workdir / "run.json")
    lineage.require_current_format(run, workdir)
    stages = lineage.read_stages(workdir)
    done = {stage.name: stage for stage in stages if stage.kind == "evaluate" and stage.result}
    measured = {i.stage: stage for stage in done.values() for i in stage.inputs}
    made = [stage for stage in stages if stage.kind != "evaluate"]
    results = [stage.result for stage in done.values() if stage.result]
    plots = {name: workdir / stage.name / PLOT for name, stage in measured.items()}
    loader = jinja2.PackageLoader("r1jax.report", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    filters = (figure_name, duration, number, format_figure, short_number, data_name)
    environment.filters |= {function.__name__: function for function in filters}
    page = environment.get_template("report.html.j2").render(
        run=run,
        stages=stages,
        stale=lineage.find_stale(stages),
        kinds=KINDS,
        states={stage.name: state(stage) for stage in stages},
        seconds=sum(stage.seconds or 0.0 for stage in stages),
        overall=find_moves(results[0], results[-1]) if len(results) > 1 else [],
        graph=draw_graph(made, measured),
        box=(WIDTH, HEIGHT),
        panel=PANEL,
        evaluations=list(done),
        of=[next((i.path for i in stage.inputs), "") for stage in done.values()],
        table=table(results),
        sections=[describe(stage, made, measured) for stage in made],
        plots={name: Markup(plot.read_text()) for name, plot in plots.items() if plot.exists()},
        samples=same_problems({name: read_metrics(workdir / name / "samples.jsonl") for name in done}),
    )
    path = workdir / "report.html"
    write_atomically(path, page)
    base = results[0] if results else {}
    for stage in made:
        if stage.kind == "rl" and stage.metrics:
            write_atomically(workdir / f"curves_{stage.name}.svg", picture(stage.metrics, base))
    return path


# ---- texts


def short_number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3g}"


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def data_name(i: Input) -> str:
    """A short name of an input: a file's without split, seed and number, or that of another run's stage."""
    return i.path.rstrip("/").rsplit("/", 1)[-1].split("-")[0].split(".")[0]


def state(stage: StageRecord) -> str:
    """ "complete", "begun" or the latest step."""
    if stage.result is not None:
        return "complete"
    if not stage.metrics:
        return "begun"
    steps = stage.settings.get("steps")
    return f"at step {stage.metrics[-1]['step']:,.0f}" + (f" of {steps:,}" if isinstance(steps, int) else "")


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


def panels(stage: StageRecord, before: Figures) -> list[Panel]:
    """The curves of a stage; of an unknown kind of stage, the first four metrics that it logged."""
    rows = stage.metrics
    rewarded = list(stage.config.get("rewards", {}))
    logged = [name for name in (rows[-1] if rows else {}) if name != "step"]
    names = dict.fromkeys([*CURVES[stage.kind], *rewarded] if stage.kind in CURVES else logged[:4])
    bases = {name: before.get("pass@1" if name == "accuracy" else name) for name in names if stage.kind == "rl"}
    return [found for name in names if (found := panel(rows, name, bases.get(name)))]


# ---- samples


def same_problems(samples: Mapping[str, Sequence[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """For some problems of each source, the answer at every evaluation, with its rewards."""
    by_source: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, rows in samples.items():
        for row in rows:
            problem = row["problem"]
            answers = by_source.setdefault(problem.get("source", ""), {}).setdefault(problem["question"], [])
            scores = [(reward, v, verdict(reward, v)) for reward, v in row["rewards"].items() if v is not None]
            if not answers or answers[-1]["stage"] != name:  # a question may occur twice
                answers.append(row | {"stage": name, "rewards": scores} | split_text(row["text"]))
    each = SAMPLES // max(len(by_source), 1)
    return [answers for questions in by_source.values() for answers in list(questions.values())[: max(each, 1)]]


def verdict(reward: str, value: float) -> str:
    """The CSS class of a reward: "good" or "bad" for the extremes, "" between them and for learned scores."""
    direction = 1 if reward == "accuracy" else better(reward)
    return {1: "good", -1: "bad"}.get(direction if value == 1 else -direction if value == 0 else 0, "")


def split_text(text: str) -> dict[str, str]:
    """The reasoning and the answer after it."""
    thinking, tag, rest = text.partition("</think>")
    return {"thinking": thinking + tag, "answer": rest} if tag else {"thinking": "", "answer": text}
