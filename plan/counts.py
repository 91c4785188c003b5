"""What a program does, counted: FLOPs of the matrix products in its jaxpr, collectives and HBM traffic in its HLO.

XLA's cost_analysis is no help with FLOPs: it counts the body of a loop once, and of a Mosaic kernel what its author
declared as cost_estimate, nothing in ours.
"""

import math
import re
from typing import Any, NamedTuple

import jax

COLLECTIVE = re.compile(r" (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(-start)?\(")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
INSTRUCTION = re.compile(r"%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLED = re.compile(r"\b(?:calls|to_apply|body|called_computations|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")


ON_CHIP = "S("  # of a layout: the memory space is not HBM
NO_TRAFFIC = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")

SEMAPHORE = re.compile(r"\bu32\[\]\{:S\(\d+\)\}")
"""What the fusions hand on that libtpu splits an asynchronous collective into: a start, work beside it, an end."""

REDUCE_SCATTER = "all-reduce-scatter"  # how libtpu names a fusion of an all-reduce with the slice that is kept of it


class Instruction(NamedTuple):
    type: str
    operation: str
    arguments: str
    operands: tuple[str, ...]
    called: str  # the computation of a fusion


class Collective(NamedTuple):
    kind: str  # "all-gather", "all-reduce", "reduce-scatter", "collective-permute" or "all-to-all"
    bytes: int  # of the arrays that it leaves on this device, all together
    largest: int  # elements of the largest of these arrays
    group: int  # devices that take part
    times: int  # how often it runs: the steps of the loops around it
    is_asynchronous: bool  # it has a start and a done, or parts in the fusions between them: work can hide it

    @property
    def bytes_sent(self) -> int:
        """Bytes that this device sends, at least, each time: along a ring, for all but the permute and the exchange."""
        others = self.group - 1
        return {"all-gather": self.bytes * others // self.group, "all-reduce": 2 * self.bytes * others // self.group,
                "reduce-scatter": self.bytes * others, "all-to-all": self.bytes * others // self.group,
                "collective-permute": self.bytes}[self.kind]


def matrix_flops(jaxpr: Any) -> int:
    """2 m n k for each matrix product that a device executes, times the steps of the loops and kernel grids around it.

    Of the branches of a condition the costliest counts. A float32 product counts once, though the matrix unit takes
    several passes for it.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = [matrix_flops(value) for value in jax.tree.leaves(list(parameters.values())) if hasattr(value, "eqns")]
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif name == "scan":
            total += parameters["length"] * sum(inner)
        elif name == "pallas_call":
            total += math.prod(parameters["grid_mapping"].grid) * sum(inner)
        elif name == "cond":
            total += max(inner)
        elif name == "while" and any(inner):
            raise ValueError("a matrix product stands in a while loop, whose number of steps is not known")
        else:
            total += sum(inner)
    return total


def collectives(hlo: str) -> list[Collective]:
    """The collectives in a scheduled HLO module. Raises ValueError for one in a loop of an unknown number of steps."""
    computations, entry = _computations(hlo)
    found: list[Collective] = []

    def visit(name: str, times: int | None) -> None:
        if name.startswith(REDUCE_SCATTER):
            result = next(line for line in computations[name] if line.lstrip().startswith("ROOT"))
            reduction = next(line for line in computations[name] if COLLECTIVE.search(line))
            found.append(_collective("reduce-scatter", result[:result.index("(%")], reduction, times))
            return
        for line in computations[name]:
            if match := COLLECTIVE.search(line):
                if any(SEMAPHORE.search(each) and " parameter(" in each for each in computations[name]):
                    continue  # a collective that another fusion has started
                starts = any(each.lstrip().startswith("ROOT") and SEMAPHORE.search(each) for each in computations[name])
                found.append(_collective(match[1], line[:match.end()], line, times, starts))
            steps = _steps(line, computations)
            for several, one in CALLED.findall(line):
                for called in several.split(", ") if several else [one]:
                    visit(called.lstrip("%"), None if times is None or steps is None else times * steps)

    visit(entry, 1)
    if any(each.times is None for each in found):
        raise ValueError("a collective stands in a loop whose condition does not say how often it runs")
    return found


def _steps(line: str, computations: dict[str, list[str]]) -> int | None:
    """How often an instruction runs what it calls: the bound that a loop's condition compares with, 1 for others."""
    if not (condition := re.search(r" while\(.*condition=%?([\w.\-]+)", line)):
        return 1
    bounds = [int(bound) for each in computations[condition[1]]
              for bound in re.findall(r"s32\[\]\S* constant\((\d+)\)", each)]
    return bounds[0] if len(bounds) == 1 else None


def hbm_bytes(hlo: str) -> int:
    """Bytes that a scheduled HLO module of one TPU reads from HBM and writes to it, and not what lies on the chip.

    Each instruction (a fusion is one) reads its operands once, or the slices that it takes of them; so does a Mosaic
    kernel, which must not read anything twice. The padding of tiles is left out.
    """
    if " while(" in hlo:
        raise ValueError("the program has a loop, and its HLO does not say how often it runs")
    computations, entry = _computations(hlo)
    program = {name: _instructions(lines) for name, lines in computations.items()}
    total = 0
    for name, instruction in program[entry].items():
        if instruction.operation.endswith("-done"):  # of a transfer: from or to HBM, or both
            total += _size(instruction.type) * (1 if ON_CHIP in program[entry][instruction.operands[0]].type else 2)
        elif instruction.operation not in NO_TRAFFIC and not instruction.operation.endswith("-start"):
            in_hbm = [operand for operand in set(instruction.operands) if ON_CHIP not in program[entry][operand].type]
            total += sum(_bytes_read(program, entry, name, operand) for operand in in_hbm)
            total += sum(count * size for count, size, layout in _arrays(instruction.type) if ON_CHIP not in layout)
    return total


def _bytes_read(program: dict[str, dict[str, Instruction]], computation: str, name: str, operand: str) -> int:
    """Bytes of the operand that the instruction of that name reads."""
    instructions = program[computation]
    instruction, whole = instructions[name], _size(instructions[operand].type)
    if instruction.operation in ("slice", "dynamic-slice"):
        return _size(instruction.type)
    if instruction.operation == "bitcast":
        inner, arrays = computation, [name]
    elif instruction.operation == "fusion":
        inner = instruction.called
        arrays = [each for each, parameter in program[inner].items() if parameter.operation == "parameter"
                  and instruction.operands[int(parameter.arguments)] == operand]
    else:
        return whole
    readers = [(reader, array) for array in arrays for reader, reading in program[inner].items()
               if array in reading.operands]
    return min(whole, sum(_bytes_read(program, inner, *each) for each in readers)) if readers else whole


def _instructions(lines: list[str]) -> dict[str, Instruction]:
    found = {}
    for match in filter(None, map(INSTRUCTION.search, lines)):
        called = CALLED.search(match.string)
        found[match[1]] = Instruction(match[2], match[3], match[4], tuple(re.findall(r"%([\w.\-]+)", match[4])),
                                      (called[1] or called[2]).lstrip("%") if called else "")
    return found


def _size(arrays: str) -> int:
    return sum(count * size for count, size, _ in _arrays(arrays))


def _arrays(text: str) -> list[tuple[int, int, str]]:
    """(elements, bytes of one, layout) of each array that the text names."""
    return [(math.prod(int(size) for size in sizes.split(",") if size), int(bits or 8) // 8, layout)
            for _, bits, sizes, layout in ARRAY.findall(text)]


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the one that is run."""
    computations, entry, name = {}, "", ""
    for line in hlo.splitlines():
        if match := COMPUTATION.match(line):
            name = match[2]
            computations[name] = []
            entry = name if match[1] else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _collective(kind: str, results: str, instruction: str, times: int | None, starts: bool = False) -> Collective:
    """`results` is the instruction up to its operands: "%name = its results opcode("."""
    arrays = [(elements, size) for elements, size, _ in _arrays(results)]
    if results.endswith(("all-gather-start(", "collective-permute-start(")):  # (operands, results, scalars)
        arrays = [(elements, size) for elements, size in arrays if elements > 1]
        arrays = arrays[len(arrays) // 2:]
    return Collective(kind, sum(elements * size for elements, size in arrays),
                      max(elements for elements, _ in arrays), _group(instruction), times,
                      starts or results.endswith("-start("))


def _group(instruction: str) -> int:
    """Devices of one group of a collective."""
    if groups := re.search(r"replica_groups=\{\{([\d,]+)\}", instruction):
        return groups[1].count(",") + 1
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]", instruction):
        return int(groups[1])
    if groups := re.search(r"replica_groups=mesh\[(.*?)\][^{]*\{([^}]*)\}", instruction):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", groups[2]))
    return 2  # a permute: one sends, one receives
