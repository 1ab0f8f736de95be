"""What a compiled program does, read off its HLO text: products, collectives, memory traffic, the compiler's cycles.

XLA's own `cost_analysis` counts what is in a loop once. Here every operation counts as often as the
loops around it run: layers are scanned, so that nearly everything is in one.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "tf32": 32, "c64": 64, "c128": 128}
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")
OPERATION = re.compile(r"^\s+(?:ROOT )?%(?P<name>[\w.\-]+) = ")
OPCODE = re.compile(r"\s*([\w\-]+)\(")
COMPUTATION = re.compile(r"^(ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=\{?((?:%[\w.\-]+(?:, )?)+)"
)
ROWS_THERE = re.compile(r"\b(\d+)_of_(\d+)_rows\b")  # a scope's name: model/experts.py
PARENTHESES = re.compile(r"[()]")
VMEM = "S(1)"  # in a layout: not in HBM

# A device receives so much of its operand's bytes, in a group of n devices.
RECEIVED = {
    "all-gather": lambda n: n - 1,  # (n - 1) / n of the result
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,  # a reduce-scatter, and an all-gather of what it gives
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,  # where all send as much to each; how much is the data's
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}


@dataclass(frozen=True)
class Shape:
    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        bits = BITS.get(self.dtype) if self.dtype in BITS else int((re.findall(r"\d+", self.dtype) or ["0"])[0])
        return self.size * (bits or 0) / 8


@dataclass(frozen=True)
class Operation:
    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of a tuple, each part's
    operands: tuple[str, ...]
    inside: str  # the parentheses' text: a constant's value, a parameter's number
    attributes: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        return [name for found in CALLED.findall(self.attributes) for name in NAME.findall(found)]


@dataclass
class Computation:
    name: str
    operations: dict[str, Operation] = field(default_factory=dict)

    @functools.cached_property
    def root(self) -> Operation:
        return next(o for o in self.operations.values() if o.is_root)

    @functools.cached_property
    def parameters(self) -> dict[str, int]:
        """Their places."""
        return {o.name: int(o.inside) for o in self.operations.values() if o.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Operation]]:
        found = collections.defaultdict(list)
        for o in self.operations.values():
            for operand in o.operands:
                found[operand].append(o)
        return found


@dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: Computation
    devices: int


@dataclass(frozen=True)
class Collective:
    """All of a kind: how often they run, and the bytes that each device receives in them."""

    count: float = 0
    bytes: float = 0


@dataclass
class Costs:
    """Of one run of a program, on each device."""

    flops: float = 0  # of products of rows that are there, two a multiplication; what is elementwise is not counted
    hbm_bytes: float = 0  # read and written by operations, but for what stays in VMEM
    cycles: float = 0  # the compiler's estimates; it makes none of collectives and Pallas kernels
    collectives: dict[str, Collective] = field(default_factory=dict)  # within a slice, by kind
    between_slices: dict[str, Collective] = field(default_factory=dict)  # over the data center's network, by kind
    kernels: int = 0  # Pallas calls that say nothing of their FLOPs
    unknown_loops: int = 0  # whose number of runs is the data's; counted as one


def parse(text: str) -> Module:
    """Of `jax.stages.Compiled.as_text()`. Raises ValueError where it is no HLO."""
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in text.splitlines():
        if current is not None and (match := OPERATION.match(line)):
            operation = parse_operation(line, match)
            current.operations[operation.name] = operation
        elif line.endswith("{") and (match := COMPUTATION.match(line)):
            current = computations[match["name"]] = Computation(match["name"])
            entry = current if line.startswith("ENTRY") else entry
    if entry is None:
        raise ValueError(f"no HLO: {text[:80]!r}")
    devices = re.search(r"num_partitions=(\d+)", text)
    return Module(computations, entry, int(devices[1]) if devices else 1)


def parse_operation(line: str, match: re.Match) -> Operation:
    """`%name = shape opcode(operands), attributes`, where a tuple's shape has parentheses of its own."""
    start = match.end()
    end = closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode = OPCODE.match(line, end)
    if opcode is None:
        raise ValueError(f"no HLO operation: {line[:200]!r}")
    last = closing(line, opcode.end() - 1)
    inside = line[opcode.end() : last - 1]
    shapes = tuple(parse_shapes(line[start:end]))
    is_root = line.lstrip().startswith("ROOT ")
    return Operation(match["name"], opcode[1], shapes, tuple(NAME.findall(inside)), inside, line[last:], is_root)


def parse_shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in SHAPE.findall(text):
        yield Shape(dtype, tuple(int(d) for d in dims.split(",") if d), VMEM not in layout)


def closing(text: str, start: int) -> int:
    """Behind the parenthesis that closes the one at `start`."""
    depth = 0
    for parenthesis in PARENTHESES.finditer(text, start):
        depth += 1 if parenthesis[0] == "(" else -1
        if depth == 0:
            return parenthesis.end()
    raise ValueError(f"a parenthesis is not closed: {text[start : start + 200]!r}")


def costs(text: str) -> Costs:
    """Of a program's HLO text. Of a conditional every branch is counted: it is the most that can run."""
    module, found = parse(text), Costs()
    count(module, module.entry, 1, found)
    return found


def count(module: Module, computation: Computation, times: float, found: Costs) -> None:
    """Adds what a sequence of operations does in `times` runs."""
    for operation in computation.operations.values():
        if operation.opcode in ("while", "call", "conditional", "async-start"):
            trips = trip_count(module, computation, operation) if operation.opcode == "while" else 1
            found.unknown_loops += trips is None
            for name in operation.called:
                count(module, module.computations[name], times * (1 if trips is None else trips), found)
            continue
        cycles = re.search(r'"estimated_cycles":"(\d+)"', operation.attributes)
        found.cycles += times * int(cycles[1]) if cycles else 0
        count_arithmetic(module, computation, operation, times, found)
        found.hbm_bytes += times * traffic(module, computation, operation)


def count_arithmetic(
    module: Module, computation: Computation, operation: Operation, times: float, found: Costs
) -> None:
    """Adds products and collectives of an operation, or of all that is fused in it."""
    if operation.opcode == "fusion":
        for name in operation.called:
            fused = module.computations[name]
            for part in fused.operations.values():
                count_arithmetic(module, fused, part, times, found)
    elif operation.opcode == "dot":
        found.flops += times * part_there(operation) * dot_flops(computation, operation)
    elif operation.opcode == "convolution":
        found.flops += times * part_there(operation) * convolution_flops(computation, operation)
    elif operation.opcode == "custom-call" and "tpu_custom_call" in operation.attributes:
        flops = re.search(r'"?flops"?: ?"?(\d+)', operation.attributes)
        found.flops += times * part_there(operation) * int(flops[1]) if flops else 0
        # A kernel that gives whole numbers alone, such as the sizes of groups, has no products.
        found.kernels += flops is None and any("f" in shape.dtype for shape in operation.shapes)
    elif operation.opcode == "recv" and "xla_megascale" in operation.attributes:
        add(found.between_slices, *received_between_slices(operation), times)
    elif operation.opcode.removesuffix("-start") in RECEIVED and not goes_on(computation, operation):
        add(found.collectives, *received(module, computation, operation), times)


def add(found: dict[str, Collective], kind: str, size: float, times: float) -> None:
    before = found.get(kind, Collective())
    found[kind] = Collective(before.count + times, before.bytes + times * size)


# Collectives.


def goes_on(computation: Computation, operation: Operation) -> bool:
    """Whether this is a collective that a fusion before it has begun.

    The TPU compiler fuses an asynchronous collective with what runs meanwhile: it stands in the fusion that starts it,
    in those that go on with it, and in the one that waits for it.
    """
    steps = re.search(r'"flag_start":"(-?\d+)"', operation.attributes)
    if steps and steps[1] != "-1":
        return True
    return any("AsyncCollectiveDone" in user.attributes for user in computation.users[operation.name])


def received(module: Module, computation: Computation, operation: Operation) -> tuple[str, float]:
    """(kind, bytes that each device receives): `RECEIVED`."""
    kind = operation.opcode.removesuffix("-start")
    if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
        kind = "reduce-scatter"  # of which each device keeps its part
    operands = operation.operands[:1] if kind == "collective-permute" else operation.operands
    sizes = [sum(shape.bytes for shape in computation.operations[name].shapes) for name in operands]
    # Rows move from one buffer into another, and are no more than the smaller one holds.
    size = min(sizes[:2]) if kind == "ragged-all-to-all" else sum(sizes)
    return kind, size * RECEIVED[kind](group_size(operation.attributes, module.devices))


def group_size(attributes: str, devices: int) -> int:
    """Of `replica_groups` in any of XLA's three forms: {{0,1},{2,3}}, [2,2]<=[4], mesh['a'=2,'b'=2] {'a'}."""
    text = re.search(r"replica_groups=(.*)", attributes)
    if text is None:
        return devices
    if mesh := re.match(r"mesh\[(.*?)\].*?\{(.*?)\}", text[1]):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        # A part of an axis is 'a':(1)2, of size 2.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if iota := re.match(r"\[(\d+),(\d+)\]<=", text[1]):
        return int(iota[2])
    first = re.match(r"\{\{([\d,]+)\}", text[1])
    return len(first[1].split(",")) if first else devices


def received_between_slices(operation: Operation) -> tuple[str, float]:
    """(kind, bytes): a collective over slices is a transfer by the hosts, with its kind in the attributes."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', operation.attributes)
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', operation.attributes)
    slices = 2
    if target:
        ends = [int(end) for end in re.findall(r"\d+", target[1])]
        slices = ends[1] - ends[0] + 1 if ":" in target[1] else len(ends)
    name = kind[1].lower().replace("_", "-") if kind else "transfer"
    share = 2 * (slices - 1) / slices if name == "all-reduce" else 1
    return name, operation.shapes[0].bytes * share


# Products.


def part_there(operation: Operation) -> float:
    """Of the rows that an operation has room for: the part that comes to a device on average."""
    rows = ROWS_THERE.search(operation.attributes)
    return int(rows[1]) / int(rows[2]) if rows else 1


def shape_of(computation: Computation, name: str) -> Shape:
    return computation.operations[name].shapes[0]


def dot_flops(computation: Computation, operation: Operation) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.attributes)
    left = shape_of(computation, operation.operands[0])
    inner = [left.dims[int(d)] for d in contracted[1].split(",") if d] if contracted else []
    return 2 * operation.shapes[0].size * math.prod(inner)


def convolution_flops(computation: Computation, operation: Operation) -> float:
    """The TPU compiler writes a batch of matrix products as a convolution, whose window is padded and dilated.

    Multiplications by what was put in count nothing.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.attributes)
    if labels is None:
        raise ValueError(f"a convolution without dim_labels: {operation.attributes[:200]}")
    left, kernel = (shape_of(computation, name) for name in operation.operands[:2])
    out = operation.shapes[0]
    sizes = [
        dict(zip(label, s.dims, strict=True)) for label, s in zip(labels.groups(), (left, kernel, out), strict=True)
    ]
    window = re.search(r"window=\{([^}]*)\}", operation.attributes)
    settings = dict(part.split("=") for part in window[1].split()) if window else {}
    pairs = 1
    for axis in (label for label in labels[3] if label.isdigit()):
        dims = tuple(size[axis] for size in sizes)
        pairs *= window_pairs(*dims, *(axis_setting(settings, name, int(axis)) for name in WINDOW))
    return 2 * pairs * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"]


WINDOW = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}


def axis_setting(settings: dict[str, str], name: str, axis: int) -> int:
    """An axis' part of stride=1x2, or of pad=0_0x3_3 what is before."""
    parts = settings[name].split("x") if name in settings else []
    return int((parts[axis] if parts else WINDOW[name]).split("_")[0])


@functools.cache
def window_pairs(left: int, kernel: int, out: int, stride: int, pad: int, left_step: int, kernel_step: int) -> int:
    """How many (place of the result, place of the kernel) meet a number of the left side."""
    starts = np.arange(out) * stride - pad
    places = (starts + k * kernel_step for k in range(kernel))
    return sum(int(np.sum((p >= 0) & (p <= (left - 1) * left_step) & (p % left_step == 0))) for p in places)


# Loops.

PASSES_ON = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}


@dataclass(frozen=True)
class Carried:
    """A part of what a loop hands from one run to the next."""

    place: int


Side = int | Carried | None  # of a comparison; None: neither a constant nor carried


def trip_count(module: Module, computation: Computation, loop: Operation) -> int | None:
    """How often a loop runs, at most; None where that is the data's.

    Known to the compiler, or read off the condition: a counter, which starts at a constant, against a constant.
    """
    if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition, body = (
        module.computations[re.search(rf"{part}=%([\w.\-]+)", loop.attributes)[1]]  # type: ignore[index]
        for part in ("condition", "body")
    )
    first = computation.operations[loop.operands[0]]
    for direction, counter, bound in comparisons(module, condition):
        if not isinstance(counter, Carried):
            counter, bound, direction = bound, counter, MIRRORED.get(direction, direction)
        end = constant(computation, part_of(first, bound.place)) if isinstance(bound, Carried) else bound
        if not isinstance(counter, Carried) or end is None or direction not in MIRRORED:
            continue
        start = constant(computation, part_of(first, counter.place)) or 0  # one that an outer loop carries: 0
        step = step_of(body, counter.place)
        end += {"LE": 1, "GE": -1}.get(direction, 0)
        return max(0, math.ceil((end - start) / step))
    return None


def comparisons(module: Module, condition: Computation) -> Iterator[tuple[str, Side, Side]]:
    """(direction, left, right) of every comparison in a condition, and in what is fused in it.

    Of a conjunction the counter's: decoding goes on while a step is below a number, and not all outputs are done.
    """
    for operation in condition.operations.values():
        fused = [module.computations[name] for name in operation.called] if operation.opcode == "fusion" else []
        for within, part in [(condition, operation), *((body, o) for body in fused for o in body.operations.values())]:
            if part.opcode == "compare":
                direction = re.search(r"direction=(\w+)", part.attributes)
                left, right = (side(condition, within, operation, name) for name in part.operands)
                yield direction[1] if direction else "", left, right


def side(condition: Computation, within: Computation, fusion: Operation, name: str) -> Side:
    """Of a comparison in a condition, or in one of its fusions, whose parameters are its operands."""
    found = trace(within, name)
    if within is not condition and found.opcode == "parameter":
        found = trace(condition, fusion.operands[int(found.inside)])
    return Carried(place_of(found)) if found.opcode == "get-tuple-element" else value(found)


def trace(computation: Computation, name: str) -> Operation:
    """The operation that a value comes from, behind copies and the like."""
    operation = computation.operations[name]
    return trace(computation, operation.operands[0]) if operation.opcode in PASSES_ON else operation


def value(operation: Operation) -> int | None:
    return int(operation.inside) if operation.opcode == "constant" and operation.inside.lstrip("-").isdigit() else None


def constant(computation: Computation, name: str | None) -> int | None:
    return None if name is None else value(trace(computation, name))


def place_of(operation: Operation) -> int:
    """Of a get-tuple-element."""
    return int(re.search(r"index=(\d+)", operation.attributes)[1])  # type: ignore[index]


def part_of(operation: Operation, place: int) -> str | None:
    """The name of a tuple's part."""
    return operation.operands[place] if operation.opcode == "tuple" else None


def step_of(body: Computation, place: int) -> int:
    """What a loop adds to its counter; 1 where that can't be read."""
    name = part_of(body.root, place)
    added = trace(body, name) if name else None
    if added is None or added.opcode != "add":
        return 1
    return next((v for v in (constant(body, name) for name in added.operands) if v), 1)


# Memory.

FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "copy-done", "partition-id")


def traffic(module: Module, computation: Computation, operation: Operation) -> float:
    """Bytes that an operation reads from HBM and writes to it. A slice is read, and an update written, alone."""
    if operation.opcode in FREE or operation.opcode.endswith("-done") or "AllocateBuffer" in operation.attributes:
        return 0
    if operation.opcode.endswith("-start"):  # a copy, or a slice, with its operand among its shapes
        moved = [shape for shape in operation.shapes if shape.size > 1]
        return min(s.bytes for s in moved) * sum(s.in_hbm for s in moved) if moved else 0
    total = 0.0
    for place, name in enumerate(operation.operands):
        whole = sum(shape.bytes for shape in computation.operations[name].shapes if shape.in_hbm)
        part = part_read(module, computation, operation, place)
        total += whole if part is None else min(whole, part)
    is_fusion = operation.opcode == "fusion"
    update = updated(module.computations[operation.called[0]]) if is_fusion else direct_update(computation, operation)
    written = sum(shape.bytes for shape in operation.shapes if shape.in_hbm)
    return total + (written if update is None else min(written, update))


def part_read(module: Module, computation: Computation, operation: Operation, place: int) -> float | None:
    """Bytes of an operand that an operation looks at; None: all. Fusions lie in fusions."""
    if operation.opcode == "fusion":
        body = module.computations[operation.called[0]]
        return part_used(module, body, next(name for name, number in body.parameters.items() if number == place))
    if operation.opcode == "bitcast" and not operation.is_root:
        return part_used(module, computation, operation.name)
    if place == 0 and operation.opcode in ("dynamic-slice", "slice", "gather"):
        return sum(shape.bytes for shape in operation.shapes)
    return 0 if place == 0 and operation.opcode == "dynamic-update-slice" else None


def part_used(module: Module, computation: Computation, name: str) -> float | None:
    """Bytes of a value that its users look at; None: all."""
    users = computation.users[name]
    reads = [part_read(module, computation, user, list(user.operands).index(name)) for user in users]
    return None if any(read is None for read in reads) else sum(read for read in reads if read is not None)


def updated(body: Computation) -> float | None:
    """Bytes that a fusion writes into one of its operands; None: it writes a result of its own."""
    return direct_update(body, trace(body, body.root.name))


def direct_update(computation: Computation, operation: Operation) -> float | None:
    if operation.opcode != "dynamic-update-slice":
        return None
    return sum(shape.bytes for shape in computation.operations[operation.operands[1]].shapes)
