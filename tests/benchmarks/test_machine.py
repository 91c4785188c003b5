"""What is read of the CPU, and the FLOPs that shares of its product rate are counted by."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import machine
from benchmarks import train_vs_sentence_transformers as train
from benchmarks.compile_tpu import bert
from data.packing import pack_blocks
from model import pooling
from model.parameters import abstract, declare
from plan.counts import matrix_flops

CPUS = {  # what /proc/cpuinfo says: vectors, bfloat16
    "flags\t\t: fpu sse2 avx avx2 fma": ("AVX2", False),
    "flags\t\t: avx avx2 avx512f avx512bw": ("AVX-512", False),
    "flags\t\t: avx avx2 avx512f avx512_bf16": ("AVX-512", True),
    "flags\t\t: avx avx2 avx512f amx_bf16 amx_tile": ("AVX-512", True),
    "Features\t: fp asimd bf16": ("NEON", True),
    "": ("vector width unknown", False),
}


@pytest.fixture(params=CPUS)
def cpu(request, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    if request.param:
        machine.CPU_INFO.write_text(f"processor\t: 0\nmodel name\t: A CPU\n{request.param}\n\nprocessor\t: 1\n")
    return CPUS[request.param]


def test_the_header_names_vectors_and_bfloat16(cpu):
    vectors, bfloat16 = cpu
    assert f"{vectors}, {'with' if bfloat16 else 'without'} bfloat16 instructions, 2 of" in machine.describe_machine(2)
    assert machine.resolved_dtype("auto") == ("bfloat16" if bfloat16 else "float32")
    assert machine.resolved_dtype("bfloat16") == "bfloat16"
    kept, left_out = machine.without_unsupported({"a": "float32", "b": "bfloat16"})
    assert list(kept) == (["a", "b"] if bfloat16 else ["a"])
    assert left_out == ([] if bfloat16 else ["b: this CPU has no bfloat16 instructions"])


def test_flops_of_the_formula_are_those_of_the_encoder():
    """One text per row, all rows full: then the program computes nothing but what the formula counts."""
    model = dataclasses.replace(bert(128, 3), max_length=64)
    lengths = np.full((1, 5), 64)
    packed, _ = pack_blocks(np.ones(5 * 64, np.int32), lengths, np.ones((1, 5), np.uint64), 64, 0, num_rows=5)
    np.testing.assert_array_equal(machine.segment_lengths(packed.segments), lengths[0])
    jaxpr = jax.make_jaxpr(lambda parameters: pooling.embed(
        parameters, model, jax.tree.map(lambda array: array, packed), dtype=jax.numpy.float32))(
        abstract(declare(model))).jaxpr
    executed, counted = matrix_flops(jaxpr), machine.flops_of_texts(model.encoder, lengths[0])
    assert counted <= executed <= 1.02 * counted  # pooling is a product too


def test_lengths_of_packed_texts():
    segments = np.array([[[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3]], [[0] * 6, [1, 1, 1, 1, 1, 1]]])
    assert sorted(machine.segment_lengths(segments)) == [1, 1, 2, 3, 4, 6]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_product_rate(dtype, monkeypatch):
    monkeypatch.setattr(machine, "PRODUCT_SECONDS", 0.01)
    rate = machine.ProductRate([machine.Product(64, 32, 16), machine.Product(64, 16, 32)], dtype)
    assert rate.measure() == max(values[0] for values in rate.rates.values()) > 0
    assert set(rate.rates) == ({"numpy", "XLA"} if dtype == "float32" else {"XLA"})
    assert dtype in str(rate) and "XLA" in str(rate)


@pytest.mark.parametrize("rate, share, met", [(1.0, 0.8, True), (0.99, 0.9, False), (2.0, 0.79, False)])
@pytest.mark.parametrize("with_bfloat16", [False, True])
def test_the_last_line_of_training_says_what_is_left_out(capsys, rate, share, met, with_bfloat16):
    measured = {"ours float32": train.Measured([10 * rate] * 3, [share] * 3, [0.9] * 3, 50.0, 0.97),
                "peer float32": train.Measured([10.0] * 3, [0.5] * 3, [], 50.0, 0.5)}
    left_out = ["ours bfloat16: no", "peer bf16 autocast: no"]
    if with_bfloat16:
        measured |= {"ours bfloat16": measured["ours float32"], "peer bf16 autocast": measured["peer float32"]}
        left_out = []
    train.report(measured, left_out)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["met"] is met and result["left_out"] == left_out and result["ratio"] == pytest.approx(rate)
    assert result["bfloat16_ratio"] == (pytest.approx(rate) if with_bfloat16 else None)
    assert result["product_shares"]["ours float32"] == share
