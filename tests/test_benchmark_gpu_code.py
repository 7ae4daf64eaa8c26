"""What the report says about GPU kernels, on short pieces of code written by hand."""

import importlib.util
import json

import pytest

from benchmarks.gpu_code import ptx, report, sass, triton_ir
from benchmarks.gpu_code.cards import CARDS
from benchmarks.gpu_code.triton_ir import attributed

RESOURCES = """
Resource usage:
 Common:
  GLOBAL:0
 Function kernel:
  REG:40 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
#: Two nested loops, the outer one left from its middle, a branch without a loop, and code after
#: the end, which jumps back but is no loop.
SASS = """
	code for sm_90
		Function : kernel
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED"
        /*0000*/                   MOV R1, c[0x0][0x28] ;              /* 0x00 */
                                                                       /* 0x00 */
        /*0010*/               @P3 BRA 0x100 ;                         /* 0x00 */
        /*0020*/                   STL [R1], R5 ;                      /* 0x00 */
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;    /* 0x00 */
        /*0040*/               @P0 EXIT ;                              /* 0x00 */
        /*0050*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;    /* 0x00 */
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R6, R4 &req={0} ?trans1; /* 0x00 */
        /*0070*/                   IADD3 R0, R0, 0x1, RZ ;             /* 0x00 */
        /*0080*/              @!P1 BRA 0x50                &req={0} ?trans1;   /* 0x00 */
        /*0090*/                   BSSY.RECONVERGENT B0, 0xc0 ;        /* 0x00 */
        /*00a0*/               @P2 BRA 0xb0 ;                          /* 0x00 */
        /*00b0*/                   BSYNC.RECONVERGENT B0 ;             /* 0x00 */
        /*00c0*/                   LDL R5, [R1] ;                      /* 0x00 */
        /*00d0*/                   BRA.U UP0, 0x30 ;                   /* 0x00 */
        /*00e0*/              @!P4 CALL.REL.NOINC 0x120 ;              /* 0x00 */
        /*00f0*/                   EXIT ;                              /* 0x00 */
        /*0100*/                   BRA 0x20 ;                          /* 0x00 */
        /*0110*/                   BRA 0x110;                          /* 0x00 */
        /*0120*/                   EXIT ;                              /* 0x00 */
"""
PTX = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0
)
{
	ld.param.u64 	%rd1, [kernel_param_0];
$L__BB0_1:                              // =>This Inner Loop Header: Depth=1
	.loc	1 85 53                         // kernels.py:85:53
	// begin inline asm
	@%p3 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
	// end inline asm
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r5 }, { %r6 }, { %r7 }, { %r8 };
	@%p1 bra 	$L__BB0_1;
	ret;
}
"""
#: Rows of a program's own number, and three columns of each.
IR = """
  tt.func public @kernel(%x: !tt.ptr<bf16> loc("x"(#loc)), %rows: i32 loc("rows"(#loc))) {
    %c0_i32 = arith.constant 0 : i32 loc(#loc)
    %c1_i32 = arith.constant 1 : i32 loc(#loc)
    %c-1_i32 = arith.constant -1 : i32 loc(#loc)
    %c4_i32 = arith.constant 4 : i32 loc(#loc)
    %zero = arith.constant dense<0.0> : tensor<16xf32, #blocked> loc(#loc)
    %program = tt.get_program_id x : i32 loc("program"(#loc))
    %last = arith.addi %rows, %c-1_i32 : i32 loc(#loc)
    %is_last = arith.cmpi eq, %program, %last : i32 loc(#loc)
    %count = arith.select %is_last, %c4_i32, %program : i32 loc(#loc)
    %sum:2 = scf.for %row = %c0_i32 to %count step %c1_i32 iter_args(%a = %zero) -> (f32)  : i32 {
      %maximum = "tt.reduce"(%a) <{axis = 0 : i32}> ({
      ^bb0(%left: f32 loc(#loc), %right: f32 loc(#loc)):
        tt.reduce.return %left : f32 loc(#loc)
      }) : (tensor<16xf32, #blocked>) -> f32 loc(#loc)
      %stop = arith.minsi %row, %c1_i32 : i32 loc(#loc)
      %inner = scf.for %i = %c0_i32 to %stop step %c1_i32 iter_args(%b = %a) -> (f32)  : i32 {
        scf.yield %b : f32 loc(#loc)
      } loc(#loc)
      scf.yield %inner : f32 loc(#loc)
    } loc(#loc)
    tt.return loc(#loc)
  } loc(#loc)
"""


@pytest.fixture
def code():
    (found,) = sass.parse(SASS, RESOURCES)
    return found


def test_resources_and_instructions(code):
    assert (code.name, code.registers, code.stack, code.static_shared) == ('kernel', 40, 8, 1024)
    assert code.load_widths() == {128: 1, 16: 1}
    assert code.matrix_instructions() == {'HMMA.16816': 1}
    assert code.opcodes()['STL'] == code.opcodes()['LDL'] == 1


def test_loops_are_those_that_their_header_dominates(code):
    (outer,) = code.loops
    (inner,) = outer.inner
    assert (outer.header, inner.header, inner.inner) == (0x30, 0x50, [])
    assert inner.blocks == {0x50}


def test_executed_instructions(code):
    # The loop after the end is not reached.
    iterations = {0x30: 10, 0x50: 100}
    assert code.executed(iterations) == 7 + 7 * 10 + 4 * 100
    assert code.executed(iterations, lambda i: i.load_bits > 0) == 10 + 100
    assert code.in_innermost_loops(iterations) == 4 * 100


@pytest.mark.parametrize(
    ('opcode', 'bits'),
    [
        ('LDG.E', 32),
        ('LDG.E.CONSTANT', 32),
        ('LDG.E.U8', 8),
        ('LDG.E.U16.CONSTANT', 16),
        ('LDG.E.64', 64),
        ('LDG.E.LTC128B.128', 128),
        ('LDGSTS.E.BYPASS.128', 128),
        ('LDGDEPBAR', 0),
        ('LDS.128', 0),
        ('STG.E.128', 0),
    ],
)
def test_width_of_loads(opcode, bits):
    assert sass.Instruction(0, '', opcode, '').load_bits == bits


@pytest.mark.parametrize(
    ('opcode', 'is_matrix'),
    [
        ('HMMA.1688.F32.TF32', True),
        ('HGMMA.64x16x16.F32.BF16', True),
        ('UTCHMMA', True),
        ('IMMA.16832.S8.S8', True),
        ('HFMA2.MMA', False),
        ('FFMA', False),
    ],
)
def test_matrix_instructions(opcode, is_matrix):
    assert sass.Instruction(0, '', opcode, '').is_matrix == is_matrix


@pytest.mark.parametrize(
    ('capability', 'threads', 'registers', 'shared', 'blocks'),
    # As NVIDIA's occupancy calculator gives them.
    [
        (80, 256, 32, 0, 8),  # threads
        (80, 32, 32, 0, 32),  # blocks
        (80, 256, 128, 0, 2),  # registers
        (80, 256, 129, 0, 1),  # registers come in units of 256 for a warp
        (80, 128, 32, 48 * 1024, 3),  # 49 KiB of 164
        (80, 128, 32, 163 * 1024, 1),
        (80, 128, 32, 164 * 1024, 0),  # does not fit
        (90, 128, 168, 0, 3),
        (90, 128, 72, 0, 7),
        (90, 1024, 64, 0, 1),
        (100, 128, 32, 227 * 1024, 1),
        (120, 256, 32, 0, 6),  # 48 warps
        (120, 32, 32, 0, 24),
        (120, 128, 32, 32 * 1024, 3),  # 33 KiB of 100
    ],
)
def test_resident_blocks(capability, threads, registers, shared, blocks):
    assert CARDS[capability].resident_blocks(threads, registers, shared) == blocks


def test_issue_time():
    # 132 multiprocessors with 4 schedulers at 1.98 GHz.
    assert CARDS[90].issue_seconds(132 * 4 * 1.98e9) == pytest.approx(1)


def test_source_has_the_same_loops():
    source = ptx.parse(PTX)
    (loop,) = source.loops
    assert source.executed({loop.header: 10}, lambda i: i.load_bits > 0) == 10
    assert source.matrix_instructions() == {'HMMA': 1}


def loop(header, *inner):
    return sass.Loop(header, {header}, list(inner))


def ir_loop(iterations, *inner, stop='rows', longest=3):
    return triton_ir.IRLoop('i', ('a', stop, 'b'), list(inner), iterations, longest)


def test_loops_are_told_by_their_nest():
    assert attributed([loop(1, loop(2)), loop(3)], [ir_loop(5, ir_loop(10)), ir_loop(4)]) == {
        1: 5,
        2: 10,
        3: 4,
    }
    assert attributed([loop(1), loop(2)], [ir_loop(5, ir_loop(10))]) is None
    assert attributed([loop(1)], [ir_loop(None)]) is None


def test_a_short_loop_may_be_missing():
    short = ir_loop(15, stop='c3_i32')
    assert attributed([loop(1)], [ir_loop(5, short)]) == {1: 5}
    # Which of them has been unrolled?
    assert attributed([loop(1)], [short, short]) is None
    # A loop of an unknown or large number of iterations is never missing.
    assert attributed([loop(1)], [ir_loop(5, ir_loop(15))]) is None
    assert attributed([loop(1)], [ir_loop(5, ir_loop(99, stop='c99_i32', longest=99))]) is None


def test_iterations_follow_from_the_bounds():
    (outer,) = triton_ir.loops(IR, {'rows': 5}, grid=(5,))
    (inner,) = outer.inner
    # Rows of programs 0 to 4: 0, 1, 2, 3, and 4; row 0 of each has no column, the others have one.
    assert outer.iterations == (0 + 1 + 2 + 3 + 4) / 5
    assert inner.iterations == (0 + 0 + 1 + 2 + 3) / 5


def test_iterations_are_unknown_where_a_bound_is():
    (outer,) = triton_ir.loops(IR, {}, grid=(5,))
    assert outer.iterations is None
    assert outer.inner[0].iterations is None


def test_page_says_what_is_not_derived(tmp_path):
    kernel = {
        'backend': 'triton',
        'case': 'contmix',
        'part': 'forward',
        'dtype': 'bfloat16',
        'layout': 'NCHW',
        'capability': 90,
        'kernel': 'forward_kernel',
        'blocks': 2000,
        'threads': 128,
        'registers': 148,
        'local_bytes': 8,
        'local_stores': 1,
        'local_loads': 2,
        'shared_bytes': 20480,
        'resident_blocks': 3,
        'occupancy': 0.1875,
        'waves': 5.05,
        'barriers': 2,
        'matrix_instructions': {'HMMA.1688': 16},
        'load_bits': {'16': 76, '32': 32},
        'floor_us': 1.86,
    }
    derived = kernel | {
        'instructions_per_tap': 402.0,
        'inner_instructions_per_tap': 380.0,
        'issue_us': 130.0,
    }
    page = report.tables([derived])
    assert '| 8 (1 + 2) | 20 | 2000 | 3 (19%) | 5.05 | 16 HMMA.1688 | 0 / 0 / 32 / 76 |' in page
    assert '| 402 (380) | 130 |' in page
    assert '| not derived | not derived |' in report.tables([kernel])

    stored = tmp_path / 'kernels-gpu.json'
    stored.write_text(json.dumps({'date': '', 'versions': {}, 'kernels': [kernel]}))
    written = report.write(stored, tmp_path / 'page.md').read_text()
    assert 'nothing on this page is measured' in written
    assert report.tables([kernel]) in written


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='Triton is not installed.')
def test_a_launch_is_compiled_with_its_own_arguments(tmp_path, monkeypatch):
    import torch
    import triton

    from tests import tiny_triton_kernel

    if triton.knobs.runtime.interpret:
        pytest.skip('Under TRITON_INTERPRET=1 Triton compiles nothing.')
    from benchmarks.gpu_code.triton_launches import launches

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    x = torch.empty(1000, device='meta')

    def call():
        tiny_triton_kernel.row_sums[(7,)](x, x, 30, BLOCK=64)

    (launch,) = launches(call, 90)
    assert (launch.code.name, launch.blocks, launch.threads) == ('row_sums', 7, 128)
    # Programs 0 to 6 of 30 rows in steps of 7.
    assert list(launch.iterations.values()) == [pytest.approx(30 / 7)]
    assert sum(launch.code.load_widths().values()) > 0
