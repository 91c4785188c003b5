"""What a program does, counted: FLOPs of the matrix products in its jaxpr, collectives in its scheduled HLO.

XLA's cost_analysis is no help with FLOPs: it counts the body of a loop once, and of a Mosaic kernel what its author
declared as cost_estimate, nothing in ours.
"""

import math
import re
from typing import Any, NamedTuple

import jax

COLLECTIVE = re.compile(r" (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(-start)?\(")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLED = re.compile(r"\b(?:calls|to_apply|body|called_computations|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")


REDUCE_SCATTER = "all-reduce-scatter"  # how libtpu names a fusion of an all-reduce with the slice that is kept of it


class Collective(NamedTuple):
    kind: str  # "all-gather", "all-reduce", "reduce-scatter", "collective-permute" or "all-to-all"
    bytes: int  # of the arrays that it leaves on this device, all together
    largest: int  # elements of the largest of these arrays


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
    """The collectives in a scheduled HLO module; those in a loop once, as it does not say how often that runs."""
    computations, entry = _computations(hlo)
    found = []

    def visit(name: str) -> None:
        if name.startswith(REDUCE_SCATTER):
            result = next(line for line in computations[name] if line.lstrip().startswith("ROOT"))
            found.append(_collective("reduce-scatter", result[:result.index("(%")]))
            return
        for line in computations[name]:
            if match := COLLECTIVE.search(line):
                found.append(_collective(match[1], line[:match.end()]))
            for several, one in CALLED.findall(line):
                for called in several.split(", ") if several else [one]:
                    visit(called.lstrip("%"))

    visit(entry)
    return found


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


def _collective(kind: str, instruction: str) -> Collective:
    """The instruction is "%name = its results opcode("."""
    arrays = [(math.prod(int(size) for size in sizes.split(",") if size), int(bits or 8) // 8)
              for _, bits, sizes in ARRAY.findall(instruction)]
    if instruction.endswith(("all-gather-start(", "collective-permute-start(")):  # (operands, results, scalars)
        arrays = [(elements, size) for elements, size in arrays if elements > 1]
        arrays = arrays[len(arrays) // 2:]
    return Collective(kind, sum(elements * size for elements, size in arrays),
                      max(elements for elements, _ in arrays))
