"""A run's directory with files as runs write them, for tests of what reads them."""

import json
from collections.abc import Sequence
from pathlib import Path

from r1jax.runs import lineage
from r1jax.runs.lineage import FORMAT

FIGURES = {"greedy_accuracy": 0.125, "pass@1": 0.5, "pass@1_low": 0.4, "pass@1_high": 0.6, "response_tokens": 18.0}
BETTER = FIGURES | {"pass@1": 0.75, "greedy_accuracy": 0.875}
ROWS = [{"step": s, "reward": 0.1, "accuracy": 0.2, "format": 0.3, "response_tokens": 9.0} for s in (1, 2)]


def write_run(workdir: Path, sessions: Sequence[dict] = ()) -> None:
    about = {"format": FORMAT, "experiment": "x", "summary": "<b>bold</b>", "note": "a note", "sessions": sessions}
    (workdir / "run.json").write_text(json.dumps(about))


def write_stage(
    workdir: Path, name: str, kind: str, inputs: dict[str, str], result: dict | None = None, **more
) -> None:
    """A stage's directory as runs/run.py writes it; an input's content is what it holds now."""
    directory = workdir / name
    directory.mkdir()
    entries = {
        key: {"path": path, "content": lineage.content_now(workdir / path) or "was"} for key, path in inputs.items()
    }
    (directory / "config.json").write_text(json.dumps({"kind": kind, "inputs": entries} | more.get("config", {})))
    if "began" in more:
        sessions = [{"git": "abc", "began": more["began"], "ended": "2026-01-01T01:00:00Z"}]
        (directory / "sessions.json").write_text(json.dumps(sessions))
    if "metrics" in more:
        (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, more["metrics"])))
    if "samples" in more:
        (directory / "samples.jsonl").write_text("\n".join(map(json.dumps, more["samples"])))
    if result is not None:
        (directory / "complete.json").write_text(json.dumps(result | {"content": f"of {name}"}))


def sample(question: str, source: str, **rewards: float | None) -> dict:
    problem = {"question": question, "answer": "1", "source": source}
    text = f"<think> hm {question} </think> <answer> 1 </answer>"
    return {"problem": problem, "text": text, "finished": True, "rewards": rewards}


SUMS = [sample(f"{i} + 1", "sums", accuracy=1.0, refused=None) for i in range(20)]
REQUESTS = [sample(f"make {i}", "requests", accuracy=None, helpful=0.25) for i in range(20)]


def write_small_run(workdir: Path) -> None:
    """base -> rl -> kept -> tuned, which is made of base too; base and rl were evaluated. Written in another order."""
    write_run(workdir)
    (workdir / "data").mkdir()
    (workdir / "data" / "sums-train-seed0.array_record").write_text("1 + 1")
    write_stage(workdir, "zz_base", "pretrain", {"corpus": "data/sums-train-seed0.array_record"}, {"steps": 2})
    write_stage(workdir, "evaluate_before", "evaluate", {"checkpoint": "zz_base"}, FIGURES, samples=SUMS + REQUESTS)
    config = {"rl": {"steps": 2}, "rewards": {"format": {"weight": 0.2, "sources": ["sums"]}}}
    write_stage(workdir, "rl", "rl", {"base": "zz_base"}, {"steps": 2}, metrics=ROWS, config=config)
    write_stage(workdir, "evaluate_after", "evaluate", {"checkpoint": "rl"}, BETTER, samples=SUMS + REQUESTS)
    write_stage(workdir, "kept", "rejection", {"policy": "rl"}, {"drawn": 8, "kept": 2, "wrong": 5, "unfinished": 1})
    write_stage(workdir, "aa_tuned", "sft", {"base": "zz_base", "kept": "kept"}, {"steps": 2, "used": 2})
