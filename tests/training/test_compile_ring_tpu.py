"""Compiled for TPUs, the ring never holds the gathered keys, and its hops are under way during the kernels."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from plan.programs import compile_loss, topology_mesh

pytestmark = pytest.mark.usefixtures("tpu_compiler")


def largest_array(hlo: str) -> int:
    """Elements of the largest array named."""
    return max(np.prod([int(size) for size in shape.split(",") if size], initial=1)
               for shape in re.findall(r"\w\d+\[([\d,]*)\]", hlo))


def kernels_during_permutes(text: str, smallest: int) -> list[int]:
    """For each permute in a loop, of arrays of `smallest` elements at least: the kernels between its start and its end.

    The program is scheduled: what stands between the two runs while the bytes are under way.
    """
    kernels, kernels_before, counts = 0, {}, []
    for line in text.splitlines():
        name = line.strip().removeprefix("ROOT ").split(" = ")[0]
        if "tpu_custom_call" in line:
            kernels += 1
        elif " collective-permute-start(" in line and "/while/body/" in line and largest_array(line) >= smallest:
            kernels_before[name] = kernels
        elif " collective-permute-done(" in line:
            start = re.search(r"collective-permute-done\((%[\w.-]+)\)", line)[1]
            if start in kernels_before:
                counts.append(kernels - kernels_before[start])
    return counts


def test_ring_holds_no_gathered_keys():
    """So many keys that all of them would not fit in VMEM, which is not counted as temporary memory."""
    examples, width, num_devices = 4096, 768, 8
    mesh = topology_mesh("v5e:2x4")
    gathered, *rings = (
        compile_loss(mesh, jnp.bfloat16, examples=examples, width=width, key_exchange=exchange).compiled
        for exchange in ("all_gather", "ring", "bidirectional_ring")
    )
    gathered_keys = num_devices * examples * width
    own_keys_bytes = 2 * examples * width
    assert largest_array(gathered.as_text()) >= gathered_keys
    assert gathered.memory_analysis().temp_size_in_bytes > own_keys_bytes
    for ring, ways in zip(rings, (1, 2), strict=True):
        text = ring.as_text()
        assert largest_array(text) < gathered_keys
        assert ring.memory_analysis().temp_size_in_bytes < own_keys_bytes
        counts = kernels_during_permutes(text, smallest=examples * width // ways)
        assert len(counts) == 3 * ways and min(counts) >= 1, counts  # keys forward and backward, the keys' gradient
