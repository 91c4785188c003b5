"""The Hopper kernels in Mosaic GPU's interpret mode against the oracle; lowered for CUDA; compiled for an H200 unseen.

Interpreting takes seconds a thread block: few cases, each for several things at once.
"""

import functools
import importlib.util
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import implementation as choice
from kernels.contrastive import hopper
from kernels.contrastive.api import similarity_logsumexp
from kernels.contrastive.labels import PairLabels
from sharding.layout import make_mesh
from tests.kernels.oracle import answer, random_case
from tests.kernels.test_contrastive import TOLERANCE, assert_close, run

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 device_memory_size: 150000000000
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200"
"""


@pytest.mark.parametrize("sizes, labels, bound", [
    ((70, 40, 64), "none", 20.2),  # one block, no fields of the rows in the forward pass
    ((1, 100, 40), "duplicates", 20.2),
    ((140, 37, 64), "none", None),
    ((70, 100, 128), "empty", None),
], ids=str)
def test_equals_the_oracle(sizes, labels, bound):
    case = random_case(60 + len(labels), *sizes, dtype="bfloat16", labels=labels)
    assert_close(run(case, "bfloat16", "hopper_interpret", bound=bound, block=None), answer(case),
                 TOLERANCE["bfloat16"])


def test_several_tiles_a_block_and_several_strips(monkeypatch):
    """Three row tiles of two pieces go round the ring of four stages; keys in three strips, the last one ragged."""
    monkeypatch.setattr(hopper, "row_splits", lambda *_: 1)
    monkeypatch.setattr(hopper, "STRIP_BYTES", 2 * 300 * 64)
    assert hopper.strips_of_keys(300, 130) == (3, 64)
    case = random_case(70, 300, 130, 72, dtype="bfloat16", labels="empty")
    assert_close(run(case, "bfloat16", "hopper_interpret", bound=20.2, block=None), answer(case),
                 TOLERANCE["bfloat16"])


@pytest.mark.skipif(not hasattr(plgpu, "force_gpu_interpret_mode"),
                    reason="jax 0.10 interprets neither TMA beyond an array's end nor a transposed view; 0.12 does")
@pytest.mark.parametrize("bound", [20.2, None])
def test_the_program_that_is_compiled(monkeypatch, bound):
    """Not the form for the interpreter: nothing is padded to whole blocks, and the keys are not transposed."""
    monkeypatch.setattr(choice, "device_kind", lambda: "NVIDIA H200")
    case = random_case(73, 70, 100, 72, dtype="bfloat16", labels="empty")
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        assert_close(run(case, "bfloat16", "hopper", bound=bound, block=None), answer(case), TOLERANCE["bfloat16"])


def test_rows_alone():
    case = random_case(71, 70, 40, 64, dtype="bfloat16", labels="duplicates")
    case = case._replace(column_cotangent=np.zeros(40))
    result, expected = run(case, "bfloat16", "hopper_interpret", columns=False, block=None), answer(case)
    assert result.column_lse is None
    assert_close(result._replace(column_lse=jnp.asarray(expected.column_lse)), expected, TOLERANCE["bfloat16"])


@pytest.mark.parametrize("width", [384, 768, 1024])
def test_blocks_fit(width):
    """Shared memory, and as many stages as blocks of other kernels have: three or four."""
    for gradient, most_keys in ((False, hopper.MOST_KEYS), (False, hopper.MOST_KEYS_UNBOUNDED), (True, 128)):
        blocks = hopper.default_blocks(width, gradient=gradient, most_keys=most_keys)
        assert blocks.stages >= 3 and blocks.keys >= 64
        assert hopper.shared_bytes(blocks, width, gradient=gradient) <= 232448


def test_splits_fill_the_processors():
    assert hopper.row_splits(43, 64, 132) == 3  # 129 blocks at once
    assert hopper.row_splits(512, 1, 132) == 1  # there is no tile to split


@pytest.mark.parametrize("shift", [0.0, None], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("sizes", [(8192, 65536, 768), (1000, 3001, 384), (4096, 8192, 1024)], ids=str)
def test_lowers_for_cuda(sizes, shift):
    """Layouts, transforms and shared memory of the kernels are settled in Python, where no GPU is needed."""
    (b, N, D), of = sizes, jax.ShapeDtypeStruct
    queries, keys, scalar = of((b, D), jnp.bfloat16), of((N, D), jnp.bfloat16), of((), jnp.float32)
    labels = PairLabels(of((b, 3), jnp.int32), of((N, 2), jnp.int32))
    values = [(of((n,), jnp.float32),) * (2 if shift is None else 1) for n in (b, N)]
    forward = functools.partial(hopper.forward, columns=True, shift=shift)
    for function, arguments in ((forward, (queries, keys, scalar, labels)),
                                (functools.partial(hopper.backward, shift=shift, key_gradient_dtype=jnp.bfloat16),
                                 (queries, keys, scalar, labels, scalar, *values))):
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
        assert "mosaic_gpu" in lowered.as_text()


@pytest.mark.skipif(not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
                    reason="no CUDA compiler: pip install 'jax[cuda13]' of this jax's version (no GPU is needed)")
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_for_an_h200(masked):
    """XLA and ptxas compile loss and gradient; beside arguments and results they take a twentieth of the scores."""
    from plan.programs import compile_similarity

    target = topologies.get_topology_desc("h200", platform="cuda", target_config=H200, topology="1x1x1")
    mesh = make_mesh(target.devices)
    program = compile_similarity(mesh, jnp.bfloat16, rows=8192, columns=65536, width=768, masked=masked, bound=20.2,
                                 implementation="hopper")
    assert program.compiled.as_text().count("mosaic_gpu") >= 2  # forward and gradient of scores
    assert program.temp_bytes < 8192 * 65536 * 4 / 20


def test_it_must_be_named(monkeypatch, caplog):
    """Until a GPU has run it."""
    monkeypatch.setattr(choice, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    choose = functools.partial(choice.choose_implementation, "kernel", allowed=("auto", "xla", "hopper"))
    float32 = jnp.dtype("float32")
    choice._log_choice.cache_clear()
    with caplog.at_level(logging.INFO, logger="absl"):
        assert choose("auto", dtype=jnp.bfloat16) == choose("auto", dtype=jnp.bfloat16) == "xla"
    assert [record.getMessage() for record in caplog.records] == [
        "kernel: implementation=xla on NVIDIA H100 80GB HBM3"]
    assert choose("hopper", dtype=jnp.bfloat16) == "hopper"
    with pytest.raises(ValueError, match="'hopper': it takes bfloat16, not float32"):
        choose("hopper", dtype=float32, unsupported=lambda name: hopper.refusal(768, float32))
    choice._log_choice.cache_clear()


@pytest.mark.parametrize("kind, expected", [
    ("NVIDIA H200", True), ("NVIDIA GH200 480GB", True), ("NVIDIA H20", True), ("NVIDIA A100-SXM4-80GB", False),
    ("NVIDIA B200", False), ("cpu", False), ("TPU v5e", False)])
def test_hopper_kinds(kind, expected):
    assert bool(choice.HOPPER.search(kind)) == expected


@pytest.mark.parametrize("arguments, message", [
    ({"implementation": "hopper"}, "cannot run on 'cpu'"),
    ({"dtype": jnp.float32}, "takes bfloat16, not float32"),
    ({"width": 4096}, r"width 4096 needs \d+ bytes of shared memory"),
    ({"row_block": 64}, "row_block=64: .* tiles of 128 rows"),
    ({"column_block": 100}, "100 is not a multiple of 32"),
    ({"width": 1024, "column_block": 128}, r"needs \d+ bytes .* more than 232448"),
])
def test_bad_input(arguments, message):
    arguments = {"implementation": "hopper_interpret", "dtype": jnp.bfloat16, "width": 64} | arguments
    width, dtype = arguments.pop("width"), arguments.pop("dtype")
    with pytest.raises(ValueError, match=message):
        similarity_logsumexp(jnp.ones((2, width), dtype), jnp.ones((3, width), dtype), 1.0, **arguments)
