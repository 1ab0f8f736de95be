"""Compiling ahead of time for devices that are not there: what a program holds and does, kept by its hash.

What the compiler makes of a program is read from its own reports, which it writes also of a program that it refuses.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from r1jax.dry_run import hlo
from r1jax.dry_run.topology import without_stderr
from r1jax.model import experts

LARGEST = 16  # buffers that are kept of each program
SMALL = 2**20  # bytes; what is smaller is not kept


@dataclass(frozen=True)
class Memory:
    """Bytes on each device, as the compiler assigns buffers, by which it also refuses what does not fit."""

    arguments: int
    results: int  # but for those that take over an argument's place
    temporaries: int
    code: int

    @property
    def all(self) -> int:
        return self.arguments + self.results + self.temporaries + self.code


@dataclass(frozen=True)
class Buffer:
    size: int
    shape: str
    kind: str  # argument, result, temporary
    origin: str  # the operation that makes it, as JAX names it


@dataclass(frozen=True)
class Compilation:
    memory: Memory | None  # None: the compiler gave up before it knew
    costs: hlo.Costs | None
    buffers: tuple[Buffer, ...]  # the largest first
    refusal: str | None  # what the compiler says; None: it compiled
    seconds: float


def known(path: Path) -> Compilation | None:
    """What `compile_and_keep` has written there."""
    return from_json(json.loads(path.read_text())) if path.exists() else None


def compile_and_keep(lowered: Any, path: Path) -> Compilation:
    """Of a `jax.stages.Lowered`; what is found goes to `path`."""
    made = compile_ahead(lowered)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(made)))
    partial.replace(path)
    return made


def fingerprint(lowered: Any, devices: list[jax.Device]) -> str:
    """Of all that the result depends on: StableHLO without places in our files, devices, compiler, our reading."""
    places = [(d.device_kind, d.id, getattr(d, "coords", None)) for d in devices]
    # What reads the program, and what gives scopes in it names to read.
    readers = [Path(file).read_text() for file in (hlo.__file__, __file__, experts.__file__)]
    compiler = [jax.__version__, importlib.metadata.version("libtpu"), os.environ.get("LIBTPU_INIT_ARGS", "")]
    compiler.append(str(jax.config.values["jax_optimization_level"]))
    parts = [lowered.as_text(), str(places), *compiler, *readers]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def from_json(value: dict[str, Any]) -> Compilation:
    memory = Memory(**value["memory"]) if value["memory"] else None
    costs = value["costs"]
    if costs:
        moved = {
            name: {kind: hlo.Collective(**one) for kind, one in costs[name].items()}
            for name in ("collectives", "between_slices")
        }
        costs = hlo.Costs(**costs | moved)
    buffers = tuple(Buffer(**buffer) for buffer in value["buffers"])
    return Compilation(memory, costs, buffers, value["refusal"], value["seconds"])


def compile_ahead(lowered: Any) -> Compilation:
    """Compiles for the devices that a program was lowered for. A refusal is a result; nothing is raised for it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="r1jax-") as reports:
        try:
            with without_stderr(), not_kept():
                compiled = lowered.compile(compiler_options={"xla_dump_to": reports})
        except jax.errors.JaxRuntimeError as error:
            return refused(str(error), Path(reports), time.perf_counter() - start)
        text, assignment = compiled.as_text(), read(Path(reports), "buffer-assignment")
        memory = assigned_memory(assignment, compiled.memory_analysis().generated_code_size_in_bytes)
        return Compilation(
            memory, hlo.costs(text), largest_buffers(assignment, text), None, time.perf_counter() - start
        )


@contextlib.contextmanager
def not_kept() -> Iterator[None]:
    """JAX's own cache is for devices that are there: it can't read back what is compiled for others."""
    least = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def refused(message: str, reports: Path, seconds: float) -> Compilation:
    """Of a program that the compiler refused, by the reports that it wrote before."""
    assignment, text = read(reports, "buffer-assignment"), read(reports, "after_optimizations")
    memory = assigned_memory(assignment, 0) if assignment else None
    costs = hlo.costs(text) if text else None
    return Compilation(memory, costs, largest_buffers(assignment, text), message.strip().splitlines()[0], seconds)


def read(reports: Path, name: str) -> str:
    """A report of the compiler's; of several modules the last, which is the program."""
    found = sorted(reports.glob(f"*{name}.txt"))
    return found[-1].read_text() if found else ""


@dataclass(frozen=True)
class Allocation:
    size: int
    kind: str  # argument, result, temporary
    values: tuple[tuple[str, int, int, str], ...]  # (name, size, offset, shape) of what lies in it, one after another


ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*):$")
VALUE = re.compile(r"^ value: <\d+ (\S+?)(?:\{[\d,]*\})?(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)$")


def allocations(assignment: str) -> Iterator[Allocation]:
    """What a report of buffers says of HBM; other memories have a color."""
    size, about, values = 0, "", list[tuple[str, int, int, str]]()
    for line in [*assignment.splitlines(), "allocation 0: size 0, constant:"]:
        if match := ALLOCATION.match(line):
            kind = kind_of(about)
            if kind:
                yield Allocation(size, kind, tuple(values))
            size, about, values = int(match[1]), match[2], []
        elif match := VALUE.match(line):
            values.append((match[1], int(match[2]), int(match[3]), re.sub(r"\{[^}]*\}", "", match[4])))


def kind_of(about: str) -> str | None:
    if "color" in about or "thread-local" in about:
        return None
    kinds = {"parameter": "argument", "maybe-live-out": "result", "preallocated-temp": "temporary"}
    return next((kind for word, kind in kinds.items() if word in about), None)


def assigned_memory(assignment: str, code: int) -> Memory:
    """From a report of buffers.

    Not from `memory_analysis()`, whose `peak_memory_in_bytes` has arguments twice that results take over.
    """
    sums = dict.fromkeys(("argument", "result", "temporary"), 0)
    for allocation in allocations(assignment):
        sums[allocation.kind] += allocation.size
    return Memory(sums["argument"], sums["result"], sums["temporary"], code)


def largest_buffers(assignment: str, text: str) -> tuple[Buffer, ...]:
    """The largest values; of those that lie in one place one after another, the largest."""
    found = []
    for allocation in allocations(assignment):
        places: dict[int, tuple[str, int, int, str]] = {}
        for value in allocation.values:
            if value[1] > places.get(value[2], ("", -1))[1]:
                places[value[2]] = value
        found += [(size, shape, allocation.kind, name) for name, size, _, shape in places.values()]
    found = sorted((one for one in found if one[0] >= SMALL), reverse=True)
    return tuple(Buffer(size, shape, kind, origin(text, name)) for size, shape, kind, name in found[:LARGEST])


def origin(text: str, name: str) -> str:
    """How JAX names the operation; XLA's name, where it is XLA's own."""
    found = re.search(rf"^\s+(?:ROOT )?%{re.escape(name)} = .*?op_name=\"([^\"]*)\"", text, re.MULTILINE)
    return found[1].replace("\\'", "'") if found else name
