"""Builds the files of a published tokenizer from a GGUF file's metadata, which has no tokenizer.json."""

import json
from typing import Any

from etils import epath
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from r1jax.errors import UsageError

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5  # of tokenizer.ggml.token_type
# How text is split before bytes are merged, by tokenizer.ggml.pre: as in the models' own tokenizer.json.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
QWEN2 = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS % ""), "isolated"), BYTES])
LLAMA3 = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS % "{1,3}"), "isolated"), BYTES])
SMOLLM = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
SPLITS = {"gpt-2": GPT2, "smollm": SMOLLM, "llama-bpe": LLAMA3, "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2}


def tokenizer_files(metadata: dict[str, Any], path: epath.Path) -> dict[str, str]:
    """Names and contents of the tokenizer's files; none for a file without a vocabulary.

    Raises UsageError for a kind of tokenizer that is not supported.
    """
    given = {k.removeprefix("tokenizer.ggml."): v for k, v in metadata.items() if k.startswith("tokenizer.ggml.")}
    kind, pre = given.get("model"), given.get("pre")
    if kind in (None, "none"):
        return {}
    if kind not in ("gpt2", "llama"):
        raise UsageError(f"{path}: tokenizer.ggml.model is {kind!r}, expected 'gpt2' or 'llama'")
    if kind == "gpt2" and pre not in SPLITS:
        raise UsageError(f"{path}: tokenizer.ggml.pre is {pre!r}, expected one of {', '.join(SPLITS)}")
    try:
        tokenizer = byte_level(given) if kind == "gpt2" else sentencepiece(given)
        add_special_tokens(tokenizer, given)
        special = {name: token(given, name) for name in ("bos", "eos", "eot", "eom", "unknown", "padding")}
    except Exception as error:  # the tokenizers library raises Exception itself
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UsageError(f"{path}: its tokenizer can't be built, its metadata is damaged: {reason}") from error
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Files without the key are of the kinds to whose prompts llama.cpp adds the begin token.
        "add_bos_token": given.get("add_bos_token", kind == "llama" or pre == "llama-bpe"),
        "clean_up_tokenization_spaces": False,
        "bos_token": special["bos"], "eos_token": special["eos"], "unk_token": special["unknown"],
        "pad_token": special["padding"], "chat_template": metadata.get("tokenizer.chat_template"),
    }  # fmt: skip
    ends = {given[f"{name}_token_id"]: None for name in ("eos", "eot", "eom") if special[name]}  # in order, once each
    generation = {"bos_token_id": given.get("bos_token_id"), "eos_token_id": list(ends)}
    return {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps({key: value for key, value in config.items() if value is not None}),
        "generation_config.json": json.dumps(generation),
    }


def token(given: dict[str, Any], name: str) -> str | None:
    number = given.get(f"{name}_token_id")
    return None if number is None else given["tokens"][number]


def vocabulary(given: dict[str, Any]) -> dict[str, int]:
    """Token -> id, without the names of padding ids that the published tokenizer lacks."""
    return {text: n for n, text in enumerate(given["tokens"]) if types(given)[n] != UNUSED}


def types(given: dict[str, Any]) -> list[int]:
    return given.get("token_type") or [0] * len(given["tokens"])


def byte_level(given: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE, as of GPT-2."""
    merges = [tuple(merge.split(" ")) for merge in given["merges"]]
    pre = given["pre"]
    tokenizer = Tokenizer(models.BPE(vocabulary(given), merges, ignore_merges=pre == "llama-bpe"))
    if SPLITS[pre] is QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer, tokenizer.decoder = SPLITS[pre], decoders.ByteLevel()
    return tokenizer


def sentencepiece(given: dict[str, Any]) -> Tokenizer:
    """SentencePiece's BPE, as of Llama 2 and Mistral: pairs that make a token are merged by its score."""
    vocab, scores = vocabulary(given), given["scores"]
    found = []
    for text, n in vocab.items():
        pairs = [(text[:i], text[i:]) for i in range(1, len(text))]
        found += [(-scores[n], len(a), len(b), vocab[a], (a, b)) for a, b in pairs if a in vocab and b in vocab]
    merges = [entry[-1] for entry in sorted(found)]
    unknown = next((given["tokens"][n] for n, kind in enumerate(types(given)) if kind == UNKNOWN), None)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    with_space = given.get("add_space_prefix", True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first" if with_space else "never", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if with_space else [])])
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer, given: dict[str, Any]) -> None:
    """Marks the tokens that are never split: control tokens are special, the publisher's own are not."""
    for text, kind in zip(given["tokens"], types(given), strict=True):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            add = tokenizer.add_tokens if kind == USER_DEFINED else tokenizer.add_special_tokens
            add([AddedToken(text, normalized=False, special=kind != USER_DEFINED)])
