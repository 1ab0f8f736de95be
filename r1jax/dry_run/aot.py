"""Compiles one program ahead of time: its memory, costs and largest buffers, cached on disk.

They are read from the compiler's own reports, which it also writes for a program that it refuses.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from r1jax.dry_run import hlo
from r1jax.dry_run.topology import without_stderr
from r1jax.parallel import expert_parallel

LARGEST = 16  # buffers listed per program
SMALL = 2**20  # bytes; smaller buffers are not listed


@dataclass(frozen=True)
class Memory:
    """Bytes on each device by the compiler's buffer assignment, by which it also refuses programs that do not fit."""

    arguments: int
    results: int  # without those that reuse a donated argument's buffer
    temporaries: int
    code: int

    @property
    def all(self) -> int:
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Buffer:
    size: int
    shape: str
    kind: str  # argument, result, temporary
    origin: str  # the operation that writes it, by its name in JAX


@dataclass(frozen=True)
class Compilation:
    """The result of compiling a program, or of the compiler's refusal."""

    memory: Memory | None  # None: refused before buffers were assigned
    costs: hlo.Costs | None
    buffers: tuple[Buffer, ...]  # the largest first
    refusal: str | None  # the compiler's message; None: compiled
    seconds: float


def read_cached(path: Path) -> Compilation | None:
    """The result that `compile_and_cache` wrote to `path`, if any."""
    if not path.exists():
        return None
    value = json.loads(path.read_text())
    if costs := value["costs"]:
        for name in ("collectives", "between_slices"):
            costs[name] = {kind: hlo.Collective(**one) for kind, one in costs[name].items()}
        value["costs"] = hlo.Costs(**costs)
    if value["memory"]:
        value["memory"] = Memory(**value["memory"])
    return Compilation(**value | {"buffers": tuple(Buffer(**buffer) for buffer in value["buffers"])})


def compile_and_cache(lowered: Any, path: Path) -> Compilation:
    """Compiles a `jax.stages.Lowered` and writes the result to `path`."""
    compilation = compile_ahead(lowered)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(compilation)))
    partial.replace(path)
    return compilation


def fingerprint(lowered: Any, devices: list[jax.Device]) -> str:
    """A hash of everything that a result depends on: StableHLO without source locations, devices, compiler, readers."""
    places = [(d.device_kind, d.id, getattr(d, "coords", None)) for d in devices]
    # The modules that read compiled programs, and the one that names the scopes they read.
    readers = [Path(file).read_text() for file in (hlo.__file__, __file__, expert_parallel.__file__)]
    compiler = [jax.__version__, importlib.metadata.version("libtpu"), os.environ.get("LIBTPU_INIT_ARGS", "")]
    level = jax.config.values["jax_optimization_level"]
    parts = [lowered.as_text(), str(places), *compiler, str(level), *readers]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def compile_ahead(lowered: Any) -> Compilation:
    """Compiles a program for the devices that it was lowered for. A refusal is returned, not raised."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="r1jax-") as directory:
        reports, code, refusal = Path(directory), 0, None
        try:
            with without_stderr(), without_jax_cache():
                compiled = lowered.compile(compiler_options={"xla_dump_to": directory})
            code, text = compiled.memory_analysis().generated_code_size_in_bytes, compiled.as_text()
        except jax.errors.JaxRuntimeError as error:
            refusal, text = str(error).strip().splitlines()[0], read_report(reports, "after_optimizations")
        assignment = read_report(reports, "buffer-assignment")
    found = list(allocations(assignment))
    memory = assigned_memory(found, code) if assignment else None
    costs = hlo.read_costs(text) if text else None
    return Compilation(memory, costs, largest_buffers(found, text), refusal, time.perf_counter() - start)


@contextlib.contextmanager
def without_jax_cache() -> Iterator[None]:
    """Turns off JAX's compilation cache, which can't read back programs for devices that this machine lacks."""
    least = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def read_report(reports: Path, name: str) -> str:
    """A report of the compiler, "" if there is none. Of several modules' reports, the last is the program's."""
    found = sorted(reports.glob(f"*{name}.txt"))
    return found[-1].read_text() if found else ""


@dataclass(frozen=True)
class Allocation:
    size: int
    kind: str  # argument, result, temporary
    values: tuple[tuple[str, int, int, str], ...]  # (name, size, offset, shape), which may share memory


ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*):$")
VALUE = re.compile(r"^ value: <\d+ (\S+?)(?:\{[\d,]*\})?(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)$")


def allocations(assignment: str) -> Iterator[Allocation]:
    """The allocations in HBM of a buffer-assignment report; those in other memories have a color."""
    size, kind, values = 0, None, list[tuple[str, int, int, str]]()
    for line in [*assignment.splitlines(), "allocation 0: size 0, constant:"]:
        if match := ALLOCATION.match(line):
            if kind:
                yield Allocation(size, kind, tuple(values))
            size, kind, values = int(match[1]), kind_of(match[2]), []
        elif match := VALUE.match(line):
            values.append((match[1], int(match[2]), int(match[3]), re.sub(r"\{[^}]*\}", "", match[4])))


def kind_of(attributes: str) -> str | None:
    if "color" in attributes or "thread-local" in attributes:
        return None
    kinds = {"parameter": "argument", "maybe-live-out": "result", "preallocated-temp": "temporary"}
    return next((kind for word, kind in kinds.items() if word in attributes), None)


def assigned_memory(found: Sequence[Allocation], code: int) -> Memory:
    """The memory of a program. `memory_analysis().peak_memory_in_bytes` would count donated arguments twice."""
    arguments, results, temporaries = (
        sum(allocation.size for allocation in found if allocation.kind == kind)
        for kind in ("argument", "result", "temporary")
    )
    return Memory(arguments, results, temporaries, code)


def largest_buffers(allocated: Sequence[Allocation], text: str) -> tuple[Buffer, ...]:
    """The largest values; of values that reuse the same memory in turn, only the largest."""
    found: list[tuple[int, str, str, str]] = []
    for allocation in allocated:
        by_size = sorted(reversed(allocation.values), key=lambda value: value[1])
        places = {offset: (size, shape, allocation.kind, name) for name, size, offset, shape in by_size}
        found += places.values()
    largest = sorted((one for one in found if one[0] >= SMALL), reverse=True)[:LARGEST]
    return tuple(Buffer(size, shape, kind, origin(text, name)) for size, shape, kind, name in largest)


def origin(text: str, name: str) -> str:
    """The JAX name of an operation; its XLA name where XLA has introduced it."""
    found = re.search(rf"^\s+(?:ROOT )?%{re.escape(name)} = .*?op_name=\"([^\"]*)\"", text, re.MULTILINE)
    return found[1].replace("\\'", "'") if found else name
