"""GGUF files of tiny models, written by the gguf library as llama.cpp's converter writes them."""

import json
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
SPECIAL = {"<|bos|>": CONTROL, "<|eos|>": CONTROL, "<think>": USER_DEFINED}
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
K_QUANTS = {"Q4_K": (0, 2), "Q6_K": (208,)}  # where a block's float16 scales are; the library doesn't quantise to these
ROW = 256  # a block of K-quants: every row is a multiple


def quantize(values: np.ndarray, kind: str) -> np.ndarray:
    """The values in blocks of a type; random blocks of K-quants."""
    number = gguf.GGMLQuantizationType[kind]
    if kind not in K_QUANTS:
        return gguf.quantize(values, number)
    size = gguf.GGML_QUANT_SIZES[number][1]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (*values.shape[:-1], values.shape[-1] // ROW, size), dtype=np.uint8)
    for start in K_QUANTS[kind]:
        scales = rng.uniform(1e-4, 1e-3, blocks.shape[:-1]).astype(np.float16)
        blocks[..., start : start + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*values.shape[:-1], -1)


def rotary_order(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp's Llama has them: the pairs that rotate together are neighbours."""
    return weights.reshape(heads, 2, -1, weights.shape[-1]).swapaxes(1, 2).reshape(weights.shape)


def write_gguf(path: Path, reference, kind: str, vocabulary: dict, *, drop: str = "", **metadata) -> Path:
    """Writes a transformers model, its matrices as `kind`; `metadata` overrides keys, None leaves one out."""
    config = reference.config
    writer = gguf.GGUFWriter(path, config.model_type)
    keys = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    keys = {f"{config.model_type}.{key}": value for key, value in keys.items()}
    for key, value in (keys | vocabulary | metadata).items():
        add_value(writer, key, value)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    for name, weight in reference.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values, renamed = weight.float().numpy(), names.get_name(name, (".weight", ".bias"))
        for suffix, count in heads.items():
            if config.model_type == "llama" and name.endswith(suffix):
                values = rotary_order(values, count)
        its_kind = kind if values.ndim == 2 else "F32"
        if renamed != drop:
            writer.add_tensor(renamed, quantize(values, its_kind), raw_dtype=gguf.GGMLQuantizationType[its_kind])
    finish(writer)
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value) -> None:
    if isinstance(value, np.ndarray):
        writer.add_tensor(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None and key != "general.architecture":
        kinds = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string"}
        getattr(writer, kinds[type(value)])(key, value)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level_vocabulary(texts: list[str], pre: str, split: tokenizers.pre_tokenizers.PreTokenizer, size: int) -> dict:
    """Metadata of a byte-level tokenizer that was trained on `texts`."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = split
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), *SPECIAL]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [SPECIAL.get(text, NORMAL) for text in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": tokens.index("<|bos|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|eos|>"),
        "tokenizer.chat_template": TEMPLATE,
    }


def sentencepiece_vocabulary(model: sentencepiece.SentencePieceProcessor) -> dict:
    """Metadata of a SentencePiece model."""
    ids = range(model.get_piece_size())
    kinds = [
        UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i) else 6 if model.is_byte(i) else NORMAL
        for i in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }
