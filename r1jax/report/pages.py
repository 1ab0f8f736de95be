"""Renders a page with everything that it needs inside: style, script, plotting library (uPlot 1.6.32, MIT) and data."""

from typing import Any

import jinja2
from markupsafe import Markup

from r1jax.report.curves import PANEL
from r1jax.report.embedded import to_script
from r1jax.report.figures import figure_name, format_figure, number
from r1jax.runs.lineage import Input

KINDS = {
    "pretrain": "pretraining", "sft": "fine-tuning", "rl": "RL", "rejection": "rejection sampling",
    "preferences": "preferences", "demonstrations": "demonstrations", "reward_model": "reward model",
    "evaluate": "evaluation",
}  # fmt: skip


def render(template: str, data: Any, **values: Any) -> str:
    """The page of a template, which extends layout.html.j2. `data` is what report.js reads."""
    loader = jinja2.PackageLoader("r1jax.report", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    filters = (figure_name, duration, number, format_figure, short_number, data_name)
    environment.filters |= {function.__name__: function for function in filters}

    def asset(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])

    environment.globals |= {"asset": asset, "kinds": KINDS, "panel_size": PANEL}
    return environment.get_template(template).render(data=to_script(data), **values)


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
