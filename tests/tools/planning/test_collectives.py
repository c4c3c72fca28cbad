"""Counting what a program sends, on small texts of the compiler's form."""
# ruff: noqa: E501 (lines as the compiler writes them)

import textwrap

import pytest

from adalink_jax.tools.planning.collectives import Traffic, traffic


def module(text: str) -> str:
    return "HloModule jit_step, is_scheduled=true\n\n" + textwrap.dedent(text)


def test_what_a_ring_of_chips_sends_by_kind():
    found = traffic(
        module("""\
        ENTRY %main (p: f32[4,8]) -> f32[4,8] {
          %p = f32[4,8]{1,0:T(8,128)} parameter(0)
          %g = f32[16,8]{1,0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
          %r = bf16[16,8]{1,0} all-reduce(%g), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add
          %s = (f32[1,8]{1,0}, f32[1]{0}) reduce-scatter(%g, %h), channel_id=3, replica_groups={{0,1,2,3}}
          %t = f32[4,8]{1,0} all-to-all(%p), channel_id=4, replica_groups={{0,1},{2,3}}
          %m = f32[16,8]{1,0} all-gather(%p), channel_id=6, replica_groups=mesh['x'=2,'y'=4] {'y'}
          ROOT %c = f32[4,8]{1,0} collective-permute(%p), channel_id=5, source_target_pairs={{0,1},{1,0}}
        }
        """)
    )
    assert found == {
        "all-gather": Traffic(2, 2 * (16 * 8 * 4) * 3 // 4),
        "all-reduce": Traffic(1, 2 * (16 * 8 * 2) * 3 // 4),
        "reduce-scatter": Traffic(1, (8 + 1) * 4 * 3),
        "all-to-all": Traffic(1, 4 * 8 * 4 // 2),
        "collective-permute": Traffic(1, 4 * 8 * 4),
    }


LOOPS = """\
%inner_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8]{0} get-tuple-element(%p), index=1
  ROOT %c = f32[8]{0} collective-permute(%x), channel_id=7, source_target_pairs={{0,1},{1,0}}
}

%compare_fusion (a: s32[]) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%a, %three), direction=LT
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %f = pred[] fusion(%i), kind=kLoop, calls=%compare_fusion
}

%outer_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]{0}) while(%p), condition=%inner_condition, body=%inner_body
  ROOT %g = f32[16]{0} all-gather(%x), channel_id=1, replica_groups={{0,1}}, dimensions={0}
}

%outer_condition (p: (s32[], f32[8])) -> pred[] {
  %layers = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[] compare(%i, %layers), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]{0}) while(%t), condition=%outer_condition, body=%outer_body
}
"""


def test_loops_multiply_what_is_in_them():
    assert traffic(module(LOOPS)) == {
        "all-gather": Traffic(24, 24 * 32),
        "collective-permute": Traffic(3 * 24, 3 * 24 * 32),
    }


def test_a_loop_says_its_rounds_itself_where_it_can():
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    text = LOOPS.replace("body=%outer_body", f"body=%outer_body{known}")
    assert traffic(module(text))["all-gather"] == Traffic(5, 5 * 32)


def test_a_loop_of_unknown_length_is_not_guessed():
    text = LOOPS.replace("constant(24)", "parameter(1)")
    with pytest.raises(ValueError, match="unknown length"):
        traffic(module(text))


def test_both_halves_of_an_asynchronous_collective_are_one_and_other_loops_others():
    halves = """\
    %fused.NUMBER (p: f32[8]) -> f32[16] {
      ROOT %g.NUMBER = f32[16]{0} all-gather(%p), channel_id=1, replica_groups={{0,1}}, dimensions={0}
    }
    """
    bodies = """\
    %bodyNUMBER (p: f32[8]) -> f32[16] {
      %s = f32[16]{0} fusion(%p), kind=kCustom, calls=%fused.NUMBER0
      ROOT %d = f32[16]{0} fusion(%s), kind=kCustom, calls=%fused.NUMBER1
    }
    %conditionNUMBER (p: f32[8]) -> pred[] {
      %n = s32[] constant(2)
    }
    """
    text = "".join(
        textwrap.dedent(halves).replace("NUMBER", f"{loop}{half}")
        for loop in (1, 2)
        for half in (0, 1)
    )
    text += "".join(textwrap.dedent(bodies).replace("NUMBER", str(loop)) for loop in (1, 2))
    text += "ENTRY %main (p: f32[8]) -> f32[8] {\n"
    for loop in (1, 2):
        text += (
            f"  %w{loop} = f32[8]{{0}} while(%p), condition=%condition{loop}, body=%body{loop}\n"
        )
    assert traffic(module(text + "}\n")) == {"all-gather": Traffic(4, 4 * 32)}


def test_start_tuples_hold_what_goes_in_before_what_comes_out():
    found = traffic(
        module("""\
        ENTRY %main (p: f32[8]) -> f32[8] {
          %s = (f32[8]{0}, f32[32]{0}) all-gather-start(%p), channel_id=1, replica_groups={{0,1,2,3}}
          %d = f32[32]{0} all-gather-done(%s)
          %q = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), channel_id=2, source_target_pairs={{0,1}}
          %e = f32[8]{0} collective-permute-done(%q)
        }
        """)
    )
    assert found == {
        "all-gather": Traffic(1, 96),
        "collective-permute": Traffic(1, 32),
    }


def test_a_sum_of_which_a_part_is_kept_is_a_reduce_scatter():
    found = traffic(
        module("""\
        %all-reduce-scatter.1 (p: bf16[64]) -> bf16[16] {
          %r = bf16[64]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
          ROOT %k = bf16[16]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={16}
        }

        ENTRY %main (p: bf16[64]) -> bf16[16] {
          ROOT %f = bf16[16]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
        }
        """)
    )
    assert found == {"reduce-scatter": Traffic(1, 64 * 2 * 3 // 4)}


def test_a_program_of_one_chip_sends_nothing():
    assert (
        traffic(module("ENTRY %main (p: f32[8]) -> f32[8] {\n  %p = f32[8] parameter(0)\n}")) == {}
    )
