"""Reads the costs of a compiled program off its HLO text: FLOPs, collectives, memory traffic, estimated cycles.

XLA's own `cost_analysis` counts the body of a loop once. Layers are scanned, so that nearly every operation is in a
loop: here an operation counts as often as the loops around it run.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

BITS = {"pred": 8}  # the names of other types have their bits as their first number
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
NAME = re.compile(r"%([\w.\-]+)")
OPERATION = re.compile(r"^\s+(?:ROOT )?%(?P<name>[\w.\-]+) = ")
OPCODE = re.compile(r"\s*([\w\-]+)\(")
COMPUTATION = re.compile(r"^(ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
CALLED = re.compile(
    r"(?:calls|to_apply|body|branch_computations|true_computation|false_computation)=\{?((?:%[\w.\-]+(?:, )?)+)"
)
EXPECTED_ROWS = re.compile(r"\b(\d+)_of_(\d+)_rows\b")  # the name of a scope in parallel/expert_parallel.py
EXPECTED_GROUPS = re.compile(r"\b(\d+)_of_(\d+)_groups\b")  # in model/experts.py
PARENTHESES = re.compile(r"[()]")
VMEM = "S(1)"  # in the layout of an array that is in VMEM, not in HBM

# The bytes that each device of a group of n receives in a collective, as a multiple of its operand's bytes.
BYTES_IN = {
    "all-gather": lambda n: n - 1,  # (n - 1) / n of the result
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,  # a reduce-scatter, and an all-gather of its result
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,  # if the data sends equally many rows to each device
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
        bits = BITS.get(self.dtype) or int((re.findall(r"\d+", self.dtype) or ["0"])[0])  # token and opaque: 0
        return self.size * bits / 8


@dataclass(frozen=True)
class Operation:
    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # one, or those of a tuple's elements
    operands: tuple[str, ...]
    inside: str  # the text in parentheses: a constant's value, a parameter's number
    attributes: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        return [name for found in CALLED.findall(self.attributes) for name in NAME.findall(found)]

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)

    @property
    def bytes_in_hbm(self) -> float:
        return sum(shape.bytes for shape in self.shapes if shape.in_hbm)

    def attribute(self, pattern: str) -> str | None:
        """The first group of the pattern's first match in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None


@dataclass
class Computation:
    name: str
    operations: dict[str, Operation] = field(default_factory=dict)

    @functools.cached_property
    def root(self) -> Operation:
        return next(o for o in self.operations.values() if o.is_root)

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
    """The collectives of one kind: how often they run, and how many bytes each device receives in all of them."""

    count: float = 0
    bytes_in: float = 0


@dataclass
class Costs:
    """What one run of a program costs on each device."""

    flops: float = 0  # of matrix products, two per multiplication; elementwise operations are not counted
    hbm_bytes: float = 0  # read and written; values that stay in VMEM are not counted
    cycles: float = 0  # the compiler's estimate, which covers neither collectives nor Pallas kernels
    collectives: dict[str, Collective] = field(default_factory=dict)  # within a slice, by kind
    between_slices: dict[str, Collective] = field(default_factory=dict)  # over the data center's network, by kind
    kernels: int = 0  # Pallas calls that report no FLOPs
    unknown_loops: int = 0  # loops whose trip count depends on data; counted as one run


def parse(text: str) -> Module:
    """Parses `jax.stages.Compiled.as_text()`. Raises ValueError for a text that is not HLO."""
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
        raise ValueError(f"expected HLO, got {text[:80]!r}")
    devices = re.search(r"num_partitions=(\d+)", text)
    return Module(computations, entry, int(devices[1]) if devices else 1)


def parse_operation(line: str, match: re.Match) -> Operation:
    """Parses `%name = shape opcode(operands), attributes`. The shape of a tuple has parentheses of its own."""
    start = match.end()
    end = closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode = OPCODE.match(line, end)
    if opcode is None:
        raise ValueError(f"expected an HLO operation, got {line[:200]!r}")
    last = closing(line, opcode.end() - 1)
    inside = line[opcode.end() : last - 1]
    shapes = tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), VMEM not in layout)
        for dtype, dims, layout in SHAPE.findall(line[start:end])
    )
    is_root = line.lstrip().startswith("ROOT ")
    return Operation(match["name"], opcode[1], shapes, tuple(NAME.findall(inside)), inside, line[last:], is_root)


def closing(text: str, start: int) -> int:
    """The index after the parenthesis that closes the one at `start`."""
    depth = 0
    for parenthesis in PARENTHESES.finditer(text, start):
        depth += 1 if parenthesis[0] == "(" else -1
        if depth == 0:
            return parenthesis.end()
    raise ValueError(f"expected a closing parenthesis in {text[start : start + 200]!r}")


def read_costs(text: str) -> Costs:
    """The costs of a program by its HLO text. All branches of a conditional are counted, as an upper bound."""
    module, found = parse(text), Costs()
    count_computation(module, module.entry, 1, found)
    return found


def count_computation(module: Module, computation: Computation, times: float, found: Costs) -> None:
    """Adds the costs of `times` runs of a computation to `found`."""
    for operation in computation.operations.values():
        if operation.opcode in ("while", "call", "conditional", "async-start"):
            trips = trip_count(module, computation, operation) if operation.opcode == "while" else 1
            found.unknown_loops += trips is None
            for name in operation.called:
                count_computation(module, module.computations[name], times * (1 if trips is None else trips), found)
            continue
        found.cycles += times * int(operation.attribute(r'"estimated_cycles":"(\d+)"') or 0)
        count_arithmetic(module, computation, operation, times, found)
        found.hbm_bytes += times * hbm_traffic(module, computation, operation)


def count_arithmetic(
    module: Module, computation: Computation, operation: Operation, times: float, found: Costs
) -> None:
    """Adds the FLOPs and collectives of an operation, or of the operations fused in it."""
    if operation.opcode == "fusion":
        for name in operation.called:
            fused = module.computations[name]
            for part in fused.operations.values():
                count_arithmetic(module, fused, part, times, found)
    elif operation.opcode == "dot":
        found.flops += times * expected_fraction(operation) * dot_flops(computation, operation)
    elif operation.opcode == "convolution":
        found.flops += times * expected_fraction(operation) * convolution_flops(computation, operation)
    elif operation.opcode == "custom-call" and "tpu_custom_call" in operation.attributes:
        flops = operation.attribute(r'"?flops"?: ?"?(\d+)')
        found.flops += times * expected_fraction(operation) * int(flops or 0)
        # A kernel that returns only integers, such as group sizes, has no matrix products.
        found.kernels += flops is None and any("f" in shape.dtype for shape in operation.shapes)
    elif operation.opcode == "recv" and "xla_megascale" in operation.attributes:
        add(found.between_slices, *bytes_in_between_slices(operation), times)
    elif operation.opcode.removesuffix("-start") in BYTES_IN and not is_continuation(computation, operation):
        add(found.collectives, *bytes_in(module, computation, operation), times)


def add(found: dict[str, Collective], kind: str, size: float, times: float) -> None:
    before = found.get(kind, Collective())
    found[kind] = Collective(before.count + times, before.bytes_in + times * size)


# Collectives.


def is_continuation(computation: Computation, operation: Operation) -> bool:
    """Whether an earlier fusion has started this collective, so that it is counted there.

    The TPU compiler fuses an asynchronous collective with operations that overlap it. The collective appears in the
    fusion that starts it, in those that continue it, and in the one that waits.
    """
    has_started = operation.attribute(r'"flag_start":"(-?\d+)"') not in (None, "-1")
    return has_started or any("AsyncCollectiveDone" in user.attributes for user in computation.users[operation.name])


def bytes_in(module: Module, computation: Computation, operation: Operation) -> tuple[str, float]:
    """(kind, bytes that each device receives), by `BYTES_IN`."""
    kind = operation.opcode.removesuffix("-start")
    if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
        kind = "reduce-scatter"  # each device keeps its part of the result
    operands = operation.operands[:1] if kind == "collective-permute" else operation.operands
    sizes = [computation.operations[name].bytes for name in operands]
    # Rows move from one buffer into another: the smaller buffer bounds their number.
    size = min(sizes[:2]) if kind == "ragged-all-to-all" else sum(sizes)
    return kind, size * BYTES_IN[kind](group_size(operation.attribute(r"replica_groups=(.*)") or "", module.devices))


def group_size(groups: str, devices: int) -> int:
    """The size of `replica_groups` in XLA's three forms: {{0,1},{2,3}}, [2,2]<=[4], mesh['a'=2,'b'=2] {'a'}."""
    if mesh := re.match(r"mesh\[(.*?)\].*?\{(.*?)\}", groups):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        # 'a':(1)2 is a part of an axis, of size 2.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if iota := re.match(r"\[(\d+),(\d+)\]<=", groups):
        return int(iota[2])
    first = re.match(r"\{\{([\d,]+)\}", groups)
    return len(first[1].split(",")) if first else devices


def bytes_in_between_slices(operation: Operation) -> tuple[str, float]:
    """(kind, bytes) of a collective over slices: a transfer between hosts that names the kind in its attributes."""
    kind = operation.attribute(r'_xla_megascale_transfer_type="(\w+)"') or "transfer"
    target = operation.attribute(r'_xla_megascale_target="\{([\d,:]+)\}') or "0:1"
    ends = [int(end) for end in re.findall(r"\d+", target)]
    slices = ends[1] - ends[0] + 1 if ":" in target else len(ends)
    name = kind.lower().replace("_", "-")
    share = BYTES_IN[name](slices) if name == "all-reduce" else 1
    return name, operation.shapes[0].bytes * share


# FLOPs.


def expected_fraction(operation: Operation) -> float:
    """The fraction of an operation's rows that are occupied on average, where its scope states one."""
    rows = EXPECTED_ROWS.search(operation.attributes)
    return int(rows[1]) / int(rows[2]) if rows else 1


def dot_flops(computation: Computation, operation: Operation) -> float:
    contracted = operation.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    left = computation.operations[operation.operands[0]].shapes[0]
    return 2 * operation.shapes[0].size * math.prod(left.dims[int(d)] for d in contracted.split(",") if d)


def convolution_flops(computation: Computation, operation: Operation) -> float:
    """The TPU compiler writes batched matrix products as convolutions with padded and dilated windows.

    Multiplications by padding are not counted.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.attributes)
    if labels is None:
        raise ValueError(f"expected a convolution with dim_labels, got {operation.attributes[:200]}")
    shapes = [computation.operations[name].shapes[0] for name in operation.operands[:2]] + [operation.shapes[0]]
    labelled = zip(labels.groups(), shapes, strict=True)
    sizes = [dict(zip(label, shape.dims, strict=True)) for label, shape in labelled]
    window = operation.attribute(r"window=\{([^}]*)\}") or ""
    settings = {name: text.split("x") for name, text in re.findall(r"(\w+)=(\S+)", window)}
    pairs = 1
    for axis in (label for label in labels[3] if label.isdigit()):
        dims = tuple(size[axis] for size in sizes)
        # Of pad=0_0x3_3 the padding before the elements of each axis matters.
        texts = (settings[name][int(axis)] if name in settings else default for name, default in WINDOW.items())
        pairs *= window_pairs(*dims, *(int(text.split("_")[0]) for text in texts))
    return 2 * pairs * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"]


WINDOW = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}


@functools.cache
def window_pairs(left: int, kernel: int, out: int, stride: int, pad: int, left_step: int, kernel_step: int) -> int:
    """How many pairs (index in the output, index in the kernel) meet an element of the left side, not padding."""
    starts = np.arange(out) * stride - pad
    places = (starts + k * kernel_step for k in range(kernel))
    return sum(int(np.sum((p >= 0) & (p <= (left - 1) * left_step) & (p % left_step == 0))) for p in places)


# Loops.

PASSES_ON = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done")
CARRIED = "get-tuple-element"  # the opcode that reads a value that a loop carries
MIRRORED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE"}


def trip_count(module: Module, computation: Computation, loop: Operation) -> int | None:
    """An upper bound of how often a loop runs; None where that depends on data.

    The compiler states it, or the condition does: a counter that starts at a constant is compared with a constant.
    """
    if known := loop.attribute(r'known_trip_count"?:\{"n":"(\d+)"'):
        return int(known)
    condition, body = (
        module.computations[loop.attribute(rf"{part}=%([\w.\-]+)") or ""] for part in ("condition", "body")
    )
    first = computation.operations[loop.operands[0]]
    for direction, counter, bound in comparisons(module, condition):
        if counter.opcode != CARRIED:
            counter, bound, direction = bound, counter, MIRRORED.get(direction, direction)
        end = constant(computation, element(first, bound)) if bound.opcode == CARRIED else value(bound)
        if counter.opcode == CARRIED and end is not None and direction in MIRRORED:
            start = constant(computation, element(first, counter)) or 0  # 0 where an outer loop carries the counter
            end += {"LE": 1, "GE": -1}.get(direction, 0)
            return max(0, math.ceil((end - start) / step_of(body, counter)))
    return None


def comparisons(module: Module, condition: Computation) -> Iterator[tuple[str, Operation, Operation]]:
    """(direction, left, right) of every comparison in a condition and in its fusions.

    The condition may be a conjunction: decoding continues while a step is below a number and not all outputs are done.
    """
    for operation in condition.operations.values():
        fused = [module.computations[name] for name in operation.called] if operation.opcode == "fusion" else []
        for within, part in [(condition, operation), *((body, o) for body in fused for o in body.operations.values())]:
            if part.opcode == "compare":
                left, right = (side(condition, within, operation, name) for name in part.operands)
                yield part.attribute(r"direction=(\w+)") or "", left, right


def side(condition: Computation, within: Computation, fusion: Operation, name: str) -> Operation:
    """The origin of a side of a comparison. In a fusion of the condition, parameters are the fusion's operands."""
    found = trace(within, name)
    is_operand = within is not condition and found.opcode == "parameter"
    return trace(condition, fusion.operands[int(found.inside)]) if is_operand else found


def trace(computation: Computation, name: str) -> Operation:
    """The operation that computes a value, before copies and conversions."""
    operation = computation.operations[name]
    return trace(computation, operation.operands[0]) if operation.opcode in PASSES_ON else operation


def value(operation: Operation) -> int | None:
    return int(operation.inside) if operation.opcode == "constant" and operation.inside.lstrip("-").isdigit() else None


def constant(computation: Computation, name: str | None) -> int | None:
    return None if name is None else value(trace(computation, name))


def element(carried: Operation, access: Operation) -> str | None:
    """The name of the element of a tuple that a get-tuple-element reads; None where `carried` is no tuple."""
    return carried.operands[int(access.attribute(r"index=(\d+)") or 0)] if carried.opcode == "tuple" else None


def step_of(body: Computation, counter: Operation) -> int:
    """What a loop adds to its counter; 1 where that can't be read."""
    name = element(body.root, counter)
    added = trace(body, name) if name else None
    if added is None or added.opcode != "add":
        return 1
    return next((v for v in (constant(body, name) for name in added.operands) if v), 1)


# Memory.

FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "copy-done", "partition-id")


def hbm_traffic(module: Module, computation: Computation, operation: Operation) -> float:
    """Bytes that an operation reads from and writes to HBM. Of slices and updates in place, only the slice counts."""
    if operation.opcode in FREE or operation.opcode.endswith("-done") or "AllocateBuffer" in operation.attributes:
        return 0
    if operation.opcode.endswith("-start"):  # a copy or a slice; its operand is among its shapes
        moved = [shape for shape in operation.shapes if shape.size > 1]
        return min(s.bytes for s in moved) * sum(s.in_hbm for s in moved) if moved else 0
    total = 0.0
    groups = EXPECTED_GROUPS.search(operation.attributes) if operation.opcode == "custom-call" else None
    for index, name in enumerate(operation.operands):
        operand, part = computation.operations[name], part_read(module, computation, operation, index)
        whole = operand.bytes_in_hbm
        if groups and operand.shapes[0].dims[:1] == (int(groups[2]),):
            whole *= int(groups[1]) / int(groups[2])
        total += whole if part is None else min(whole, part)
    written, origin = operation.bytes_in_hbm, operation
    if operation.opcode == "fusion":
        computation = module.computations[operation.called[0]]
        origin = trace(computation, computation.root.name)
    in_place = operation.opcode != "fusion" or not updates_a_copy(module, computation, origin)
    if origin.opcode == "dynamic-update-slice" and in_place:
        written = min(written, computation.operations[origin.operands[1]].bytes)
    # A kernel may read parts of its operands, such as one layer of a cache; it says how much.
    accessed = operation.attribute(r'"bytes_accessed":"?(\d+)') if "tpu_custom_call" in operation.attributes else None
    return min(total + written, int(accessed)) if accessed else total + written


def part_read(module: Module, computation: Computation, operation: Operation, index: int) -> float | None:
    """Bytes that an operation reads of one of its operands; None: all of them. Fusions can be nested."""
    if operation.opcode == "fusion":
        body = module.computations[operation.called[0]]
        parameters = (o for o in body.operations.values() if o.opcode == "parameter")
        return part_used(module, body, next(o.name for o in parameters if int(o.inside) == index))
    if index == 0 and operation.opcode in ("dynamic-slice", "slice", "gather"):
        return operation.bytes
    return 0 if index == 0 and operation.opcode == "dynamic-update-slice" else None


def part_used(module: Module, fused: Computation, name: str) -> float | None:
    """Bytes that the users of a value in a fusion read of it; None: all of them."""
    total = 0.0
    for user in fused.users[name]:
        if only_moves(module, user) and not user.is_root:
            read = part_used(module, fused, user.name)
            read = None if read == 0 and user.opcode != "bitcast" else read  # a copy is not updated in place
        else:
            read = part_read(module, fused, user, list(user.operands).index(name))
        if read is None:
            return None
        total += read
    return total


def updates_a_copy(module: Module, fused: Computation, root: Operation) -> bool:
    """Whether a fusion updates a copy that it makes, not its operand in place."""
    updated = fused.operations[root.operands[0]] if root.operands else root
    return updated.opcode != "bitcast" and only_moves(module, updated)


def only_moves(module: Module, operation: Operation) -> bool:
    """Whether an operation in a fusion only changes its operand's layout: no more of it is computed than is used."""
    if operation.opcode == "fusion":
        body = module.computations[operation.called[0]].operations.values()
        return all(part.opcode == "parameter" or only_moves(module, part) for part in body)
    return operation.opcode in ("bitcast", "copy")
