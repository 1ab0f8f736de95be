"""Writes `report.html`, one self-contained page of a run, from the files of its stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from markupsafe import Markup

from r1jax.paths import absolute
from r1jax.report.curves import picture
from r1jax.report.embedded import columns, read_samples, thinning
from r1jax.report.evaluation import PLOT
from r1jax.report.figures import better, conclude, find_moves, table
from r1jax.report.graph import HEIGHT, WIDTH
from r1jax.report.pages import render
from r1jax.report.record import figures_of, read_run
from r1jax.report.sections import describe, draw_graph, state
from r1jax.runs import lineage
from r1jax.telemetry.files import write_atomically
from r1jax.telemetry.metrics import read_metrics

SAMPLES = 12  # problems whose answers are shown


def write_report(workdir: epath.Path, output: epath.Path | None = None) -> epath.Path:
    """Writes a run's page, by default to `workdir/report.html`, and a picture of each RL stage's curves.

    Returns the page's path. Raises UsageError where the directory holds no run, or one of another format.
    """
    workdir = absolute(workdir)
    run = read_run(workdir)
    stages, made, done = run.stages, run.made, run.evaluations
    measured = {i.stage: stage for stage in done.values() for i in stage.inputs}
    results = [stage.result for stage in done.values() if stage.result]
    plots = {name: workdir / stage.name / PLOT for name, stage in measured.items()}
    every = thinning([stage.metrics for stage in made])
    samples, total = read_samples([workdir / stage.name for stage in stages])
    page = render(
        "report.html.j2",
        {
            "groups": [workdir.name],
            "stages": {s.name: [{"run": workdir.name, "group": 0} | columns(s.metrics, every)] for s in made},
            "figures": figures_of(run, workdir.name),
            "samples": samples,
        },
        run=run.about,
        unreadable=run.unreadable,
        stages=stages,
        stale=lineage.find_stale(stages),
        states={stage.name: state(stage) for stage in stages},
        seconds=sum(stage.seconds or 0.0 for stage in stages),
        overall=find_moves(results[0], results[-1]) if len(results) > 1 else [],
        conclusions=conclude(results[0], results[-1]) if len(results) > 1 else [],
        graph=draw_graph(made, measured),
        box=(WIDTH, HEIGHT),
        evaluations=list(done),
        of=[next((i.path for i in stage.inputs), "") for stage in done.values()],
        table=table(results),
        sections=[describe(stage, made, measured) for stage in made],
        every=every,
        plots={name: Markup(plot.read_text()) for name, plot in plots.items() if plot.exists()},
        embedded=(len(samples), total),
        samples=same_problems({name: read_metrics(workdir / name / "samples.jsonl") for name in done}),
    )
    path = absolute(output or workdir / "report.html")
    write_atomically(path, page)
    base = results[0] if results else {}
    for stage in made:
        if stage.kind == "rl" and stage.metrics:
            write_atomically(workdir / f"curves_{stage.name}.svg", picture(stage.metrics, base))
    return path


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
