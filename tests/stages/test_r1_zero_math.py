"""R1-Zero on GSM8K in DeepSeek's own tokens, from a published checkpoint to the report, through the command line.

The model is tiny and random, so nothing is right: what is tested is that all of the path is walked, and resumed.
"""

import json
import math
import re
from collections import defaultdict
from pathlib import Path

import pytest
import tokenizers
from etils import epath

from r1jax.cli.main import main
from r1jax.data.tasks import r1_zero_prompt
from r1jax.rewards.unicode_scripts import script_consistency_reward
from r1jax.runs.policy import load_policy
from r1jax.telemetry.metrics import read_metrics
from r1jax.types import Problem
from tests.shared.deepseek_tokens import GSM8K, TOKENS, VOCABULARY, needs_data, publish
from tests.shared.samples import make_sample
from tests.shared.small_run import r1jax

PROMPT, NEW, STEPS, ROWS = 128, 6, 3, 4
NUMBERS = {
    "RLConfig.steps": STEPS, "RLConfig.prompts_per_step": 2, "RLConfig.group_size": 2,
    "RLConfig.save_every": 2, "SamplingConfig.max_prompt_tokens": PROMPT, "SamplingConfig.max_new_tokens": NEW,
    "RLConfig.row_tokens": None, "RLConfig.microbatch_rows": ROWS, "RLConfig.log_samples_every": 1,
    "rl/OptimizerConfig.mtp": "'off'", "EngineConfig.slots": 4, "EngineConfig.prefill_rows": 2,
    "EvaluateConfig.num_prompts": 3, "EvaluateConfig.samples_per_prompt": 2, "EvaluateConfig.k": 2,
    "evaluate/SamplingConfig.max_prompt_tokens": PROMPT, "evaluate/SamplingConfig.max_new_tokens": NEW,
    "BaseConfig.dtype": "'float32'", "BaseConfig.experts": "'dense'",
}  # fmt: skip


def shortest(name: str, count: int, path: Path) -> list[str]:
    """Writes GSM8K's shortest problems, which are cheap."""
    lines = sorted((GSM8K / name).read_text().splitlines(), key=lambda line: len(json.loads(line)["question"]))[:count]
    path.write_text("\n".join(lines) + "\n")
    return [json.loads(line)["question"] for line in lines]


def arguments(home: Path, workdir: Path, **changes) -> list[str]:
    values = NUMBERS | {
        "BaseConfig.path": repr(str(home / "base")),
        "train/JsonlConfig.path": repr(str(home / "train.jsonl")),
        "held_out/JsonlConfig.path": repr(str(home / "test.jsonl")),
    }
    sets = [word for name, value in (values | changes).items() for word in ("--set", f"{name}={value}")]
    return ["run", "r1_zero_math", "--workdir", str(workdir), *sets]


@pytest.mark.slow
@needs_data
def test_gsm8k_in_deepseeks_tokens_from_import_to_report(tmp_path, model, one_device):
    published = publish(tmp_path, model)
    assert main(["import-hf", str(published), str(tmp_path / "base")]) == 0
    asked = shortest("train.jsonl", 8, tmp_path / "train.jsonl")
    held_out = shortest("test.jsonl", 3, tmp_path / "test.jsonl")

    run = tmp_path / "run"
    killed = r1jax(*arguments(tmp_path, run), kill_in="rl")
    assert killed.returncode == -9, killed.stderr
    assert [row["step"] for row in read_metrics(epath.Path(run / "rl" / "metrics.jsonl"))] == [1, 2]
    done = r1jax(*arguments(tmp_path, run))
    assert done.returncode == 0, done.stderr

    rows, samples = (read_metrics(epath.Path(run / "rl" / name)) for name in ("metrics.jsonl", "samples.jsonl"))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    tokenizer = tokenizers.Tokenizer.from_file(
        str(published / "tokenizer.json")
    )  # the library's own, to compare with ours
    begin = json.loads((published / "tokenizer_config.json").read_text())["bos_token"]["content"]
    by_step = defaultdict(list)
    for sample in samples:
        by_step[sample["step"]].append(sample)
    language = script_consistency_reward()
    for row in rows:
        assert all(math.isfinite(value) for value in row.values()), row
        drawn = by_step[row["step"]]
        assert len(drawn) == row["samples_trained"] == ROWS
        assert {s["problem"]["question"] for s in drawn} <= set(asked)
        for s in drawn:
            assert 0 < len(s["tokens"]) <= NEW and max(s["tokens"]) < TOKENS
            text = s["tokens"][:-1] if s["finished"] else s["tokens"]
            assert s["text"] == tokenizer.decode(text, skip_special_tokens=False)
            assert (s["rewards"]["accuracy"], s["rewards"]["format"], s["advantage"]) == (0, 0, 0)
            problem = Problem(**s["problem"])
            graded = make_sample(problem, s["text"], s["tokens"], finished=s["finished"])
            assert s["rewards"]["language"] == language(graded)
        prompts = [tokenizer.encode(begin + r1_zero_prompt(s["problem"]["question"])).ids for s in drawn]
        tokens = sum(len(p) + len(s["tokens"]) for p, s in zip(prompts, drawn, strict=True))
        # What was trained on, to the token.
        assert row["packing_efficiency"] == pytest.approx(tokens / (ROWS * (PROMPT + NEW)))
        assert row["rollout_tokens"] == sum(len(s["tokens"]) for s in drawn)
        assert row["logprob_gap_max"] < 1e-4  # over real ids only: padded ids would show here
        assert row["ratio_deviation_max"] == row["accuracy"] == row["format"] == row["groups_with_signal"] == 0
        assert 0 < row["entropy"] < math.log(TOKENS)
        assert row["accuracy_timeouts"] == row["accuracy_crashes"] == 0
    assert len({s["rewards"]["language"] for s in samples}) > 1

    policy = load_policy(epath.Path(run / "rl"), one_device)
    assert (policy.model.vocab_size, policy.model.tokenizer_size) == (VOCABULARY, TOKENS)
    assert policy.ask(asked[0]) == tokenizer.encode(begin + r1_zero_prompt(asked[0])).ids
    for name in ("evaluate_base", "evaluate_r1_zero"):
        figures = json.loads((run / name / "complete.json").read_text())
        assert figures["pass@1"] == figures["pass@2"] == figures["cons@2"] == figures["greedy_accuracy"] == 0
        assert 0 <= figures["truncated"] == 1 - figures["finished"] <= 1
        held = json.loads((run / name / "evaluation.json").read_text())
        assert (held["protocol"]["temperature"], held["protocol"]["top_p"]) == (0.6, 0.95)
        assert held["figures"].items() <= figures.items()
        first = [json.loads(line) for line in (run / name / "samples.jsonl").read_text().splitlines()]
        assert {s["problem"]["question"] for s in first} == set(held_out)
    page = (run / "report.html").read_text()
    drawn = set(re.findall(r'aria-label="(\w+) by step"', page))
    assert "DeepSeek-R1" in page and {"reward", "accuracy", "format", "language"} <= drawn
    assert len(re.findall(r'<svg[^>]*role="img"', page)) == 1 + len(drawn)  # the graph of the stages, and the curves


def test_a_missing_base_is_one_line_before_anything_is_written(tmp_path, capsys):
    status = main(arguments(tmp_path, tmp_path / "run"))
    err = capsys.readouterr().err
    assert (status, len(err.strip().splitlines())) == (2, 1)
    assert "BaseConfig" in err and "import-hf" in err
    assert main(["run", "r1_zero_math", "--dry_run"]) == 2
    assert "BaseConfig" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
