"""Reading the compiler's report of buffers, and its refusal."""

from adalink_jax.tools.planning.memory import Buffer, largest_buffers, needed_bytes

REPORT = """\
Memory Space: default (color=0)
Total bytes: 14714368 (14.03MiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
    1.50GiB(  3%);    1.50GiB;      2146304;                1; f32[1024,256]
    2.00MiB( 70%);  512.0KiB;      1097728;                4; f32[1024,256], u32[2,1]
  The rest 233 values are less than 5% of the total size and not shown.

  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
     2.00GiB(100%);     2.00GiB;            0;                2; 2×f32[64,1024]

  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
       512B(100%);       512B;            0;                1; pred[]

Memory Space: color_6 (color=6)
Total bytes: 10240 (10.0KiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
     9.00GiB(100%);     9.00GiB;            0;                1; f32[]
"""


def test_the_largest_buffers_are_those_of_hbm_in_all_its_parts():
    assert largest_buffers(REPORT) == (
        Buffer(2 * 2**30, "2×f32[64,1024]"),
        Buffer(3 * 2**29, "f32[1024,256]"),
        Buffer(2**19, "f32[1024,256], u32[2,1]"),
    )
    assert largest_buffers("") == ()


def test_a_refusal_says_what_is_needed():
    old = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 26.50G of 15.75G hbm."
    new = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (104.73G) exceeds available HBM (15.75G)."
    )
    assert needed_bytes(old, "") == 26.5 * 2**30
    assert needed_bytes(new, "") == round(104.73 * 2**30)
    assert needed_bytes(new, REPORT) == 14714368
    assert needed_bytes("INTERNAL: a bug", REPORT) is None
    assert needed_bytes("RESOURCE_EXHAUSTED: of another kind", "") is None
