"""Reads a GGUF file, llama.cpp's format: its metadata as a published config.json, its tensors under published names.

The gguf library reads headers and dequantises. Tensors are read one at a time.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import gguf
import numpy as np
from etils import epath

from r1jax.checkpoint.published_config import from_published
from r1jax.checkpoint.safetensors_files import Entry
from r1jax.config import ModelConfig, RopeScalingConfig
from r1jax.errors import UsageError
from r1jax.model.layers import rope_frequencies
from r1jax.paths import in_bucket

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # of GGUF, and model_type of config.json
# Metadata below the architecture's name -> key of config.json.
KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
HEAD_DIM_TOO = ("rope.dimension_count", "attention.value_length")  # other sizes are not implemented
IGNORED = ("vocab_size", "rope.scaling.finetuned")  # the rows of the embedding decide; a remark
ROPE_SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.attn_factor": "attention_factor",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
# Names of tensors, without "blk.N." and ".weight" or ".bias" -> published names, without "model.layers.N.".
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"  # how far each frequency is slowed: Llama 3.1's scaling, without its parameters


@dataclass(frozen=True)
class GGUFFiles:
    """The tensors of one file, as `SafetensorsFiles` has those of a directory."""

    entries: dict[str, Entry]
    paired: int | None  # head_dim of a Llama, whose queries and keys llama.cpp reorders; else None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def read(self, name: str, dtype) -> np.ndarray:
        """A tensor in `dtype`, dequantised in float32."""
        values = dequantise(self.entries[name])
        if self.paired and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = halves(values, self.paired)
        return values.astype(dtype)

    def same(self, a: str, b: str) -> bool:
        return np.array_equal(self.read(a, np.float32), self.read(b, np.float32))


def dequantise(entry: Entry) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[entry.dtype]
    blocks = np.frombuffer(entry.read_bytes(), np.uint8)
    return gguf.dequantize(blocks.reshape(gguf.quant_shape_to_byte_shape(entry.shape, kind)), kind)


def halves(weights_OI: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of each head from llama.cpp's order, where neighbours rotate together, to the published: i and i + half."""
    heads = weights_OI.reshape(-1, head_dim // 2, 2, weights_OI.shape[-1])
    return heads.swapaxes(1, 2).reshape(weights_OI.shape)


def open_gguf(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any], GGUFFiles]:
    """(config.json, all metadata, tensors) of a file. Raises UsageError for one that is damaged or not supported."""
    metadata, entries = read_header(path)
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        expected = ", ".join(ARCHITECTURES)
        raise UsageError(f"{path}: general.architecture is {architecture!r}, expected one of {expected}")
    if (parts := metadata.get("split.count", 1)) != 1:
        raise UsageError(
            f"{path} is one of {parts} parts, expected a whole model: join them by llama-gguf-split --merge"
        )
    check_types(path, entries)
    config = published_config(path, architecture, metadata, entries)
    try:
        if factors := entries.pop(ROPE_FACTORS, None):
            config["rope_scaling"] = llama3_scaling(dequantise(factors), from_published(config, mtp=False))
        model = from_published(config, mtp=False)
    except UsageError as error:
        raise UsageError(f"{path}, read as {error}") from error
    return config, metadata, GGUFFiles(published_names(entries), model.head_dim if architecture == "llama" else None)


def read_header(path: epath.Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """(metadata, tensors). Raises UsageError unless the file is a whole GGUF."""
    if in_bucket(path):
        raise UsageError(f"{path} is in a bucket, expected a GGUF file on this machine: copy it here")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        is_native = reader.endianess == gguf.GGUFEndian.LITTLE
    except (OSError, ValueError, LookupError, OverflowError, TypeError) as error:
        reason = " ".join(str(error).split())[:120] if path.exists() else "no such file"
        raise UsageError(f"{path} is not GGUF, or it is truncated or damaged: {reason}") from error
    if not is_native:
        raise UsageError(f"{path} is big-endian, expected a little-endian GGUF")
    sizes = {t.name: (tuple(reversed(t.shape.tolist())), int(t.data_offset), int(t.n_bytes)) for t in reader.tensors}
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    return metadata, {name: Entry(path, types[name], *size) for name, size in sizes.items()}


def check_types(path: epath.Path, entries: dict[str, Entry]) -> None:
    """Raises UsageError for a tensor of a type that the gguf library can't dequantise."""
    for kind, name in {entry.dtype: name for name, entry in entries.items()}.items():
        number = gguf.GGMLQuantizationType[kind]
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[number][1]), np.uint8), number)
        except NotImplementedError as error:
            raise UsageError(f"{path}: {name} is of type {kind}, expected F32, F16, BF16, Q8_0, Q4_K, …") from error


def published_config(
    path: epath.Path, architecture: str, metadata: dict[str, Any], entries: dict[str, Entry]
) -> dict[str, Any]:
    """config.json for this metadata. Raises UsageError for a key that is not implemented."""
    prefix = architecture + "."
    given = {key.removeprefix(prefix): shortest(v) for key, v in metadata.items() if key.startswith(prefix)}
    config = {ours: given.pop(key) for key, ours in KEYS.items() if key in given}
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        config.setdefault("head_dim", width // heads)
    scaling = {ours: given.pop(key) for key, ours in ROPE_SCALING.items() if key in given}
    if scaling and scaling.get("rope_type") != "none":
        config["rope_scaling"] = {"rope_type": "linear"} | scaling  # linear: llama.cpp's default
    for key, value in given.items():
        if key not in IGNORED and not (key in HEAD_DIM_TOO and value == config.get("head_dim")):
            raise UsageError(f"{path}: {prefix}{key} is {value!r}, which is not implemented")
    embedding = entries.get("token_embd.weight")
    return config | {
        "model_type": architecture,
        "vocab_size": embedding.shape[0] if embedding else None,
        "tie_word_embeddings": "output.weight" not in entries,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }


def shortest(value: Any) -> Any:
    """A float as the shortest decimal of the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def llama3_scaling(factors_r: np.ndarray, plain: ModelConfig) -> dict[str, Any]:
    """The rope_scaling that slows the frequencies by these factors.

    Llama 3.1, 3.2 and 3.3 share three of its four parameters, and the largest factor is the fourth. Raises UsageError
    when the factors are not such a model's.
    """
    scaling = {"rope_type": "llama3", "factor": shortest(float(factors_r.max())), "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scaled = replace(plain, rope_scaling=RopeScalingConfig(**scaling))
    expected_r = rope_frequencies(plain) / rope_frequencies(scaled)
    same = factors_r.shape == expected_r.shape and np.allclose(factors_r, expected_r, rtol=1e-4)
    if plain.rope_scaling != RopeScalingConfig() or not same:
        raise UsageError(f"{ROPE_FACTORS}: the factors are not those of Llama 3.1 to 3.3, which alone are implemented")
    return scaling


def published_names(entries: dict[str, Entry]) -> dict[str, Entry]:
    """The tensors under published names, those without one under their own."""

    def published(name: str) -> str:
        match = re.fullmatch(r"(blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if match is None or match[3] not in NAMES:
            return name
        return (f"model.layers.{match[2]}." if match[1] else "") + f"{NAMES[match[3]]}.{match[4]}"

    return {published(name): entry for name, entry in entries.items()}
