"""Bytes moved, read from a compiled program's text: what is stored where, what a fusion reads, and how often."""

import pytest

from brainldm.planning.hlo_text import array_sizes, stored_sizes
from brainldm.planning.memory_traffic import memory_traffic

# A loop of three turns that takes a slice of a table, writes a row of its result in place, and calls a library.
HLO = """HloModule jit_f, is_scheduled=true

%sliced (table: f32[10,100], number: s32[]) -> f32[1,100] {
  %table = f32[10,100]{1,0} parameter(0)
  %number = s32[] parameter(1)
  %renamed = f32[10,100]{1,0} bitcast(%table)
  ROOT %row = f32[1,100]{1,0} dynamic-slice(%renamed, %number, %number), dynamic_slice_sizes={1,100}
}

%updated (rows: f32[10,100], row.1: f32[1,100], number.1: s32[]) -> f32[10,100] {
  %rows = f32[10,100]{1,0} parameter(0)
  %row.1 = f32[1,100]{1,0} parameter(1)
  %number.1 = s32[] parameter(2)
  ROOT %new = f32[10,100]{1,0} dynamic-update-slice(%rows, %row.1, %number.1, %number.1)
}

%body (p: (s32[], f32[10,100])) -> (s32[], f32[10,100]) {
  %p = (s32[], f32[10,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[10,100]{1,0} get-tuple-element(%p), index=1
  %one = f32[1,100]{1,0} fusion(%x, %i), kind=kLoop, calls=%sliced
  %all = f32[10,100]{1,0} fusion(%x, %one, %i), kind=kLoop, calls=%updated
  %conv = (f32[10,100]{1,0}, u8[999]{0}) custom-call(%all, %one), custom_call_target="__cudnn$convForward"
  %y = f32[10,100]{1,0} get-tuple-element(%conv), index=0
  ROOT %out = (s32[], f32[10,100]{1,0}) tuple(%i, %y)
}

%condition (p.1: (s32[], f32[10,100])) -> pred[] {
  %p.1 = (s32[], f32[10,100]{1,0}) parameter(0)
  %three = s32[] constant(3)
  %j = s32[] get-tuple-element(%p.1), index=0
  ROOT %less = pred[] compare(%j, %three), direction=LT
}

ENTRY %main (a: f32[10,100]) -> f32[10,100] {
  %a = f32[10,100]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[10,100]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[10,100]{1,0}) while(%start), condition=%condition, body=%body
  %last = f32[10,100]{1,0} get-tuple-element(%loop), index=1
  ROOT %turned = f32[100,10]{1,0} transpose(%last), dimensions={1,0}
}
"""


def test_slices_updates_and_loops_are_counted_as_they_move_bytes():
    found = memory_traffic(HLO)
    table, row, number = 4000, 400, 4
    sliced, updated = 2 * row + number, 2 * row + row + number
    library, compared = 2 * table + row, 4 + 4 + 1
    assert found.bytes == 3 * (sliced + updated + library + compared) + 2 * table
    assert found.largest_convolution == library  # without the room to work in
    assert found.product_cycles == 0 and found.other_bytes == found.bytes


def test_cycles_are_those_of_convolutions_and_products():
    text = """HloModule m

%inside (a.1: f32[8,128], b.1: f32[128,128]) -> f32[8,128] {
  %a.1 = f32[8,128]{1,0} parameter(0)
  %b.1 = f32[128,128]{1,0} parameter(1)
  ROOT %product = f32[8,128]{1,0} convolution(%a.1, %b.1), dim_labels=bf_io->bf
}

ENTRY %main (a: f32[8,128], b: f32[128,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = f32[128,128]{1,0:T(8,128)} parameter(1)
  %c = f32[8,128]{1,0:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%inside, \
backend_config={"window_config":{"estimated_cycles":"700"}}
  ROOT %d = f32[8,128]{1,0:T(8,128)} copy(%c), backend_config={"window_config":{"estimated_cycles":"30"}}
}
"""
    found = memory_traffic(text)
    assert found.product_cycles == 700
    assert found.other_bytes == 2 * 4 * 8 * 128
    assert found.bytes == found.other_bytes + 4 * (2 * 8 * 128 + 128 * 128)


@pytest.mark.parametrize(
    ("shape", "plain", "stored"),
    [
        ("bf16[4,100]{1,0}", 800, 800),
        ("f32[5,100]{1,0:T(8,128)}", 2000, 4 * 8 * 128),
        ("bf16[64,3,20]{0,2,1:T(8,128)(2,1)}", 7680, 2 * 128 * 3 * 24),
        ("f32[8,128]{1,0:T(8,128)S(1)}", 4096, 0),  # on the chip
        ("f32[7]{0:T(128)}", 28, 512),
        ("f32[]", 4, 4),
    ],
)
def test_tiles_are_padded_and_what_is_on_the_chip_takes_no_memory(shape, plain, stored):
    assert sum(array_sizes(shape)) == plain
    assert sum(stored_sizes(shape)) == stored
