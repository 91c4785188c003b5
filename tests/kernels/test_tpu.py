"""The backward of the TPU kernels in one pass, in groups of rows, on two cores and in two passes: one gradient."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.contrastive import tpu
from tests.kernels.oracle import answer, random_case
from tests.kernels.test_contrastive import SIZES, TOLERANCE, assert_close, run, value_and_gradients

MIB = 2**20
FORMS = {  # (groups of rows, cores); test_contrastive.py has the one pass on one core
    "two passes": (None, 1),
    "two groups": (2, 1),
    "two cores": (1, 2),
    "two groups on two cores": (2, 2),
}


@pytest.fixture
def backward_form(monkeypatch):
    """Sets what the kernels take the device for."""

    def set_form(groups, cores):
        monkeypatch.setattr(tpu, "num_groups", lambda *_: groups)
        monkeypatch.setattr(tpu, "_chip", lambda _: tpu.Chip(128 * MIB, cores))
        value_and_gradients.clear_cache()

    yield set_form
    value_and_gradients.clear_cache()


def cases():
    """Three row blocks in two groups, three key blocks on two cores; one way; a constant shift; no labels."""
    yield from ((form, "float32", (300, 280, 40), "empty", {}) for form in FORMS)
    for form in ("two passes", "two cores"):
        yield form, "bfloat16", (300, 280, 40), "duplicates", {"bound": 20.2}
        yield form, "float32", SIZES["aligned"], "none", {"columns": False}
    for sizes in ("one row", "N below the block"):
        yield "two cores", "float32", SIZES[sizes], "duplicates", {}


@pytest.mark.parametrize("form, dtype, sizes, labels, options", list(cases()))
def test_every_form_equals_the_oracle(backward_form, form, dtype, sizes, labels, options):
    backward_form(*FORMS[form])
    case = random_case(60, *sizes, dtype=dtype, labels=labels)
    if not options.get("columns", True):
        case = case._replace(column_cotangent=np.zeros(sizes[1]))
    result, expected = run(case, dtype, "tpu_interpret", **options), answer(case)
    if result.column_lse is None:
        result = result._replace(column_lse=jnp.asarray(expected.column_lse))
    assert_close(result, expected, TOLERANCE[dtype])


def test_groups_follow_from_vmem():
    at_width_768 = functools.partial(tpu.num_groups, blocks=(512, 512), width=768, itemsize=2)
    assert at_width_768(4096, vmem=128 * MIB) == at_width_768(4096, vmem=64 * MIB) == 1
    assert at_width_768(4096, vmem=16 * MIB) is None
    assert (at_width_768(31744, vmem=128 * MIB), at_width_768(31745, vmem=128 * MIB)) == (1, 2)
    for rows in (1, 4096, 65536):
        groups = at_width_768(rows, vmem=64 * MIB)
        rows_of_group = -(-rows // groups)
        assert tpu.one_pass_vmem_bytes(rows_of_group, (512, 512), 768, 2) <= tpu.usable_vmem(64 * MIB)
    assert tpu.num_groups(4096, (128, 128), 4096, 4, 64 * MIB) is None  # the groups would be too small
