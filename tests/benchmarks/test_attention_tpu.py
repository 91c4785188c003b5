"""The numbers of benchmarks/attention_tpu.py at a small size, and the counter of HBM traffic on a known program."""


import pytest

from benchmarks import attention_tpu
from plan.counts import hbm_bytes
from plan.programs import compile_attention

SMALL = attention_tpu.AttentionBenchmarkConfig(tokens=2048)

KNOWN = """HloModule known, is_scheduled=true

%fused_computation (param_0: f32[4,128], param_1: f32[8]) -> f32[128] {
  %param_0 = f32[4,128]{1,0:T(8,128)} parameter(0)
  %slice.1 = f32[1,128]{1,0:T(8,128)} slice(%param_0), slice={[1:2], [0:128]}
  %bitcast.1 = f32[128]{0:T(128)} bitcast(%slice.1)
  %param_1 = f32[8]{0:T(128)} parameter(1)
  %broadcast.1 = f32[128]{0:T(128)} broadcast(%param_1), dimensions={}
  ROOT %add.1 = f32[128]{0:T(128)} add(%bitcast.1, %broadcast.1)
}

ENTRY %main (a: f32[4,128], b: f32[8]) -> (f32[128], bf16[128]) {
  %a = f32[4,128]{1,0:T(8,128)} parameter(0)
  %b = f32[8]{0:T(128)} parameter(1)
  %copy-start = (f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%b)
  %copy-done = f32[8]{0:T(128)S(1)} copy-done(%copy-start)
  %fusion.1 = f32[128]{0:T(128)} fusion(%a, %copy-done), kind=kLoop, calls=%fused_computation
  %kernel = (bf16[128]{0:T(128)}, f32[128]{0:T(128)S(1)}) custom-call(%a, %a, /*index=2*/%fusion.1)
  %get-tuple-element = bf16[128]{0:T(128)} get-tuple-element(%kernel), index=0
  ROOT %tuple.1 = (f32[128]{0:T(128)}, bf16[128]{0:T(128)}) tuple(%fusion.1, %get-tuple-element)
}
"""


def test_hbm_traffic_of_a_known_program():
    transfer = 8 * 4
    fusion = 128 * 4 + 128 * 4  # the slice of a, and its result; b is on the chip
    kernel = 4 * 128 * 4 + 128 * 4 + 128 * 2  # a once, the fusion's result, and what it leaves in HBM
    assert hbm_bytes(KNOWN) == transfer + fusion + kernel


def test_traffic_of_a_loop_is_refused():
    with pytest.raises(ValueError, match="loop"):
        hbm_bytes(KNOWN.replace(" fusion(", " while("))


@pytest.mark.usefixtures("tpu_compiler")
def test_the_kernel_moves_its_operands_and_results_alone():
    target = attention_tpu.TARGETS["v5e"]
    pair = attention_tpu.measure(SMALL, target, "minilm", 128, compile_attention)
    once = SMALL.tokens * (2 * 384 * (3 + 1 + 3 + 1 + 3) + 4 * 2)  # and the segments twice
    assert once <= pair.hbm_bytes[1] < 1.01 * once
    assert pair.kernel.temp_bytes < 0.01 * once
    assert "HBM " in attention_tpu.describe(pair)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="--encoders=tiny: none of minilm, base, large"):
        attention_tpu.benchmark(attention_tpu.AttentionBenchmarkConfig(encoders=("tiny",)))
