"""What is read out of XLA's text."""

from tokc.targets.tpu.hlo import collectives, custom_calls

TEXT = """
  %all-reduce.7 = f32[16,64]{1,0:T(8,128)S(1)} all-reduce(%fusion.2), channel_id=1, replica_groups=[1,4]<=[4]
  %all-reduce.8 = f32[16,64]{1,0} all-reduce(%fusion.3), channel_id=2, to_apply=%add
  %ag = (f32[4,24]{1,0}, f32[16,24]{1,0}) all-gather-start(%x), dimensions={0}
  %done = f32[16,24]{1,0} all-gather-done(%ag)
  %fusion.9 = f32[8]{0} fusion(%all-reduce.7), calls=%fused
  %cc = bf16[8,4,128]{2,1,0} custom-call(%q), custom_call_target="tpu_custom_call", backend_config={}
"""


def test_collectives_are_counted_by_kind_and_shape() -> None:
    assert collectives(TEXT) == {"all-gather (f32[4,24], f32[16,24])": 1, "all-reduce f32[16,64]": 2}


def test_custom_calls_are_counted_by_target() -> None:
    assert custom_calls(TEXT) == {"tpu_custom_call": 1}
