"""The numbers of benchmarks/compile_tpu.py on a small topology, and the counters behind them on known programs."""


import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding

from benchmarks import compile_tpu
from plan.counts import collectives, matrix_flops
from plan.programs import compile_program, topology_mesh
from sharding.layout import DEVICES, SPLIT, WHOLE, ring_order
from sharding.ring import ring_scan

needs_libtpu = pytest.mark.usefixtures("tpu_compiler")
SMALL = compile_tpu.CompileBenchmarkConfig(local_batch=4096, global_batch=16384, width=256, step_batch=16, layers=1)


@needs_libtpu
def test_the_loss_takes_a_twentieth_of_the_materialised_forms_memory():
    result = compile_tpu.measure_loss(SMALL, compile_tpu.TARGETS["v5e"])
    assert not result.naive_failure
    assert result.naive_bytes >= 4 * SMALL.local_batch * SMALL.global_batch  # it does hold the scores
    assert result.temp_bytes <= result.naive_bytes / compile_tpu.MEMORY_TARGET
    assert result.flops == compile_tpu.FLOOR


@needs_libtpu
def test_a_materialised_form_that_does_not_fit_is_a_result():
    config = compile_tpu.CompileBenchmarkConfig(local_batch=8192, global_batch=2**20, width=128)  # 34 GB of scores
    result = compile_tpu.measure_loss(config, compile_tpu.TARGETS["v5e"])
    assert "memory" in result.naive_failure and "does not compile" in compile_tpu.describe_loss(result)
    assert result.naive_bytes == 4 * 2**33 and result.temp_bytes < result.naive_bytes / compile_tpu.MEMORY_TARGET


@needs_libtpu
def test_the_step_reduces_its_gradients_once():
    result = compile_tpu.measure_step(SMALL, "v5e:2x4", jnp.bfloat16)
    assert result.gradient_reductions == 1, result.collectives
    assert "gradient reductions: 1.0; " in compile_tpu.describe_step(result)


@needs_libtpu
def test_collectives_are_found_in_loops_too():
    mesh = topology_mesh("v5e:2x4")

    def on_each_device(x):  # [4, 256]
        gathered = jax.lax.all_gather(x, DEVICES, tiled=True)  # [32, 256]

        def hop(carry, _):
            ring = [(device, (device + 1) % 8) for device in range(8)]
            return jnp.tanh(jax.lax.ppermute(carry, DEVICES, ring)), None

        moved, _ = jax.lax.scan(hop, x, length=100)
        return moved, jax.lax.psum(jnp.sum(jnp.sin(gathered), axis=0), DEVICES)

    program = compile_program(
        jax.shard_map(on_each_device, mesh=mesh, in_specs=SPLIT, out_specs=(SPLIT, WHOLE), check_vma=False),
        jax.ShapeDtypeStruct((32, 256), jnp.float32, sharding=NamedSharding(mesh, SPLIT)),
    )
    hlo = program.compiled.as_text()
    assert " while(" in hlo
    found = {each.kind: each for each in collectives(hlo)}
    assert set(found) == {"all-gather", "all-reduce", "collective-permute"}
    assert found["all-gather"][1:5] == (32 * 256 * 4, 32 * 256, 8, 1)
    assert found["all-gather"].bytes_sent == 7 * 4 * 256 * 4
    assert found["all-reduce"][1:5] == (256 * 4, 256, 8, 1)
    assert found["all-reduce"].bytes_sent == 2 * 7 * 32 * 4
    assert found["collective-permute"][1:3] == (4 * 256 * 4, 4 * 256)
    assert found["collective-permute"].times == 100


@pytest.mark.parametrize("groups, size", [
    ("{{0,1,2,3},{4,5,6,7}}", 4), ("[2,8]<=[16]", 8), ("mesh['axis_0'=16] {'axis_0'}", 16),
    ("mesh['axis_0'=1,'axis_1'=16,'axis_2'=4], device_ids=([16,4]T(1,0)) {'axis_2'}", 4)])
def test_the_devices_of_one_group(groups, size):
    instruction = f"  ROOT %r = f32[8]{{0}} all-reduce(%x), replica_groups={groups}"
    [found] = collectives("ENTRY %main (x: f32[8]) -> f32[8] {\n" + instruction)
    assert (found.group, found.bytes_sent) == (size, 2 * 32 * (size - 1) // size)


@needs_libtpu
def test_hops_of_the_ring_are_asynchronous_on_many_chips():
    mesh = topology_mesh("v5e:8x8")

    def on_each_device(rows):  # [256, 256]
        def step(_, hop, state, block, total):
            return state + rows @ block.T, total + 1

        return ring_scan(step, jnp.zeros_like(rows), [rows], [jnp.zeros_like(rows)], DEVICES, ring_order(mesh))

    program = compile_program(
        jax.shard_map(on_each_device, mesh=mesh, in_specs=SPLIT, out_specs=SPLIT, check_vma=False),
        jax.ShapeDtypeStruct((64 * 256, 256), jnp.float32, sharding=NamedSharding(mesh, SPLIT)),
    )
    loop = program.compiled.as_text().split("ENTRY")[0]
    assert " collective-permute-start(" in loop and " collective-permute(" not in loop


def test_flops_in_loops_and_kernel_grids_are_multiplied_out():
    def kernel(a, b, out):
        out[...] = a[...] @ b[...]

    def product(a, b):  # [64, 32] times [32, 16] in tiles of 16 rows
        return pl.pallas_call(
            kernel, grid=(4,), out_shape=jax.ShapeDtypeStruct((64, 16), jnp.float32),
            in_specs=[pl.BlockSpec((16, 32), lambda i: (i, 0)), pl.BlockSpec((32, 16), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((16, 16), lambda i: (i, 0)),
        )(a, b)

    def program(a, b):
        total, _ = jax.lax.scan(lambda carry, _: (carry + product(a, b), None), jnp.zeros((64, 16)), length=5)
        return jax.lax.cond(total[0, 0] > 0, lambda: total @ b.T @ b, lambda: total)

    jaxpr = jax.make_jaxpr(program)(jnp.zeros((64, 32)), jnp.zeros((32, 16)))
    assert matrix_flops(jaxpr) == (5 + 2) * 2 * 64 * 32 * 16


def test_flops_in_a_loop_of_unknown_length_are_refused():
    def squared(x):
        return jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ y, x)

    with pytest.raises(ValueError, match="while loop"):
        matrix_flops(jax.make_jaxpr(squared)(jnp.eye(4)))


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match=r"--targets=v9: none of v3, v4"):
        compile_tpu.benchmark(compile_tpu.CompileBenchmarkConfig(targets=("v9",)))
