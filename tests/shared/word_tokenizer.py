"""A published tokenizer of the demo's words."""

import json

import tokenizers
from etils import epath

from r1jax.data.toy.running_sum import TOKENIZER


def publish_words(directory: epath.Path, *special: str) -> epath.Path:
    """The demo's words as a published tokenizer of any text, which begins with <bos>; other words are <pad>."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(TOKENIZER.ids, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"add_bos_token": True, "bos_token": "<bos>", "eos_token": "<eos>", "chat_template": "user"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
