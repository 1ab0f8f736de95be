"""A tiny published model with a tokenizer of bytes, which reads and writes any text, and a chat template."""

import dataclasses
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from r1jax.config import ModelConfig
from tests.shared.checkpoints import export, make_checkpoint

BOS, EOS = "<s>", "</s>"
CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def publish_bytes(home: Path, model: ModelConfig) -> Path:
    """Random weights in DeepSeek-V3's published form, with config.json and tokenizer; returns the directory."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS])
    make_checkpoint(home / "ours", dataclasses.replace(model, vocab_size=264))
    export(home / "ours", home / "published")
    tokenizer.save(str(home / "published" / "tokenizer.json"))
    config = {"add_bos_token": True, "bos_token": BOS, "eos_token": EOS, "chat_template": CHAT}
    (home / "published" / "tokenizer_config.json").write_text(json.dumps(config))
    return home / "published"
