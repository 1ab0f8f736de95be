"""Reads a directory of safetensors shards, after all headers have been checked.

The safetensors library reads neither bfloat16 nor FP8 into NumPy, and does not name the missing tensor of a truncated
file. The format is a JSON header followed by raw bytes.
"""

import json
import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from etils import epath

from r1jax.errors import UsageError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}
FP8_BLOCK = 128  # each block of 128 x 128 weights has one scale (V3, section 3.3.2)
SCALE = "_scale_inv"  # the suffix of the tensor that holds the scales of another


@dataclass(frozen=True)
class Entry:
    file: epath.Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the file's beginning
    size: int

    def read_bytes(self) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


@dataclass(frozen=True)
class SafetensorsFiles:
    entries: dict[str, Entry]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, without the scales of FP8 weights."""
        return {name: e.shape for name, e in self.entries.items() if not name.endswith(SCALE)}

    def read(self, name: str, dtype) -> np.ndarray:
        """A tensor in `dtype`. FP8 weights are scaled in float32 and rounded once."""
        values = self._raw(name)
        if values.dtype != ml_dtypes.float8_e4m3fn:
            return values.astype(dtype)
        return dequantise(values, self._raw(name + SCALE)).astype(dtype)

    def same(self, a: str, b: str) -> bool:
        """Whether two tensors hold the same values."""
        if self.entries[a].dtype == self.entries[b].dtype:
            return np.array_equal(self._raw(a).view(np.uint8), self._raw(b).view(np.uint8))
        return np.array_equal(self.read(a, np.float32), self.read(b, np.float32))

    def _raw(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        return np.frombuffer(entry.read_bytes(), DTYPES[entry.dtype]).reshape(entry.shape)


def dequantise(weights_OI: np.ndarray, scales_oi: np.ndarray) -> np.ndarray:
    """float32 weights [O, I] from FP8 ones and the scales of their 128 x 128 blocks (V3, section 3.3.2)."""
    O, I = weights_OI.shape  # noqa: E741 - outputs and inputs
    scales_OI = np.repeat(np.repeat(scales_oi, FP8_BLOCK, axis=0)[:O], FP8_BLOCK, axis=1)[:, :I]
    return weights_OI.astype(np.float32) * scales_OI


def open_safetensors(source: epath.Path) -> SafetensorsFiles:
    """Indexes the tensors of `source`. Raises UsageError for a missing or damaged file, or a truncated tensor."""
    entries: dict[str, Entry] = {}
    weight_map = read_index(source)
    if not weight_map and not (source / SINGLE).exists():
        raise UsageError(f"{source}: expected {INDEX} or {SINGLE}, found neither")
    for file in sorted(set(weight_map.values())) or [SINGLE]:
        if not (source / file).exists() or (source / file).is_dir():
            raise UsageError(f"{source / INDEX} names {file}, which is missing")
        entries |= read_header(source / file)
    for name, file in weight_map.items():
        if name not in entries or entries[name].file.name != file:
            raise UsageError(f"{source / INDEX} says that {name} is in {file}, which has no such tensor")
    check_scales(entries)
    return SafetensorsFiles(entries)


def read_index(source: epath.Path) -> dict[str, str]:
    """Name of tensor -> name of file; empty when there is no index."""
    path = source / INDEX
    if not path.exists():
        return {}
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is not an index of safetensors: {type(error).__name__}: {error}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise UsageError(f"{path} is not an index of safetensors: its weight_map names no tensors")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or "/" in file:
            raise UsageError(f"{path} says that {name} is in {file!r}, expected the name of a file in its directory")
    return weight_map


def read_header(path: epath.Path) -> dict[str, Entry]:
    try:
        length = path.stat().length
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            text = file.read(header_size) if header_size <= length else b""
        header = {name: value for name, value in json.loads(text).items() if name != "__metadata__"}
        entries = {name: entry(path, 8 + header_size, value) for name, value in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is not a safetensors file: its header can't be read") from error
    for name, e in entries.items():
        if e.dtype not in DTYPES:
            raise UsageError(f"{path}: {name} is of type {e.dtype}, expected one of {', '.join(DTYPES)}")
        if e.size != math.prod(e.shape) * np.dtype(DTYPES[e.dtype]).itemsize:
            raise UsageError(f"{path}: {name} has {e.size} bytes, which is not {e.dtype} of shape {e.shape}")
        if e.start + e.size > length:
            raise UsageError(f"{path}: {name} is truncated: it ends at byte {e.start + e.size} of {length}")
    return entries


def entry(path: epath.Path, base: int, header: dict) -> Entry:
    """The entry of one tensor; `base` is where data begin. Raises ValueError for negative or non-integer numbers."""
    begin, end = header["data_offsets"]
    numbers = [begin, end, *header["shape"]]
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or not isinstance(header["dtype"], str):
        raise ValueError(f"{header} does not describe a tensor")
    return Entry(path, header["dtype"], tuple(header["shape"]), base + begin, end - begin)


def check_scales(entries: dict[str, Entry]) -> None:
    """Raises UsageError for an FP8 weight without scales of the right shape, or scales without an FP8 weight."""
    for name, e in entries.items():
        if e.dtype == "F8_E4M3":
            scales = entries.get(name + SCALE)
            expected = tuple(-(-size // FP8_BLOCK) for size in e.shape)
            if scales is None or len(e.shape) != 2:
                wrong = f"without {name + SCALE}" if scales is None else f"of shape {e.shape}, expected a matrix"
                raise UsageError(f"{e.file}: {name} is FP8 {wrong}")
            if scales.shape != expected or scales.dtype != "F32":
                found = f"{scales.dtype} {scales.shape}"
                raise UsageError(f"{scales.file}: {name + SCALE} is {found}, expected F32 {expected}")
        weight = entries.get(name.removesuffix(SCALE))
        if name.endswith(SCALE) and (weight is None or weight.dtype != "F8_E4M3"):
            raise UsageError(f"{e.file}: {name} has no FP8 tensor {name.removesuffix(SCALE)} to scale")
