"""What the report says about GPU kernels, on short pieces of code written by hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_code import cuda_launches, launch, ptx, report, run, sass
from benchmarks.gpu_code.cards import CARDS

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
#: A thread reads every n-th of `rows` rows, where n is the number of blocks: a wide load in each,
#: and one more in the first three columns of each row. What it reads lets it skip a product.
PTX = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .align 8 .b8 kernel_param_1[16]
)
.reqntid 128
{
	.reg .pred 	%p<5>;
	mov.u32 	%r1, %ctaid.x;
	mov.u32 	%r2, %nctaid.x;
	ld.param.b32 	%r3, [kernel_param_1+8];
	setp.ge.s32 	%p1, %r1, %r3;
	@%p1 bra 	$L__BB0_5;
$L__BB0_1:                              // =>This Loop Header: Depth=1
	.loc	1 85 53                         // kernels.py:85:53
	// begin inline asm
	@%p3 ld.global.v4.b32 { %r5, %r6, %r7, %r8 }, [ %rd1 + 0 ];
	// end inline asm
	mov.b32 	%r9, 0;
$L__BB0_2:                              //   Parent Loop BB0_1 Depth=1
	ld.global.b32 	%f1, [%rd1];
	setp.gt.f32 	%p4, %f1, 0f00000000;
	@%p4 bra 	$L__BB0_3;
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r5 }, { %r6 }, { %r7 }, { %r8 };
$L__BB0_3:
	add.s32 	%r9, %r9, 1;
	setp.ne.b32 	%p2, %r9, 3;
	@%p2 bra 	$L__BB0_2;
	add.s32 	%r1, %r1, %r2;
	setp.lt.s32 	%p1, %r1, %r3;
	@%p1 bra 	$L__BB0_1;
$L__BB0_5:
	ret;
}
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
    iterations = {None: 1, 0x30: 10, 0x50: 100}
    assert code.executed(iterations) == 7 + 7 * 10 + 4 * 100
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
    # Worked out by hand from the published limits.
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


def arguments(rows):
    return [bytes(8), bytes(8) + rows.to_bytes(8, 'little')]


def positions(blocks):
    return [ptx.Position((block, 0, 0), 0, (blocks, 1, 1), 128) for block in range(blocks)]


def test_a_thread_runs_its_loops():
    kernel = ptx.parse(PTX)['kernel']
    assert kernel.parameters == {'kernel_param_0': 8, 'kernel_param_1': 16}
    (outer,) = kernel.code.loops
    (inner,) = outer.inner
    # Blocks 0 to 3 of four read 2, 2, 1 and 1 of six rows.
    runs = ptx.iterations(kernel, arguments(6), positions(4))
    assert runs[None] == 1
    assert runs[outer.header] == 6 / 4
    assert runs[inner.header] == 3 * 6 / 4
    # None of one row for the last three.
    assert ptx.iterations(kernel, arguments(1), positions(4))[outer.header] == 1 / 4


def test_a_loop_that_memory_ends_is_unknown():
    text = PTX.replace('setp.ne.b32 	%p2, %r9, 3', 'setp.ne.b32 	%p2, %r5, 3')
    with pytest.raises(ptx.UnknownBranchError, match='kernel'):
        ptx.iterations(ptx.parse(text)['kernel'], arguments(6), positions(4))


@pytest.mark.parametrize(
    ('instruction', 'value'),
    [
        ('add.s32 %r9, 4294967295, 3', 2),
        ('mul.wide.s32 %r9, -2, 3', 2**64 - 6),
        ('mul.hi.u32 %r9, 0x80000000, 6', 3),
        ('mad.lo.s32 %r9, 2, 3, 4', 10),
        ('div.s32 %r9, -7, 2', 2**32 - 3),
        ('rem.s32 %r9, -7, 2', 2**32 - 1),
        ('div.u32 %r9, 1, 0', None),
        ('shr.s32 %r9, -8, 1', 2**32 - 4),
        ('shr.u32 %r9, -8, 1', 2**31 - 4),
        ('cvt.s64.s32 %r9, -1', 2**64 - 1),
        ('cvt.u16.u32 %r9, 65537', 1),
        ('cvt.rn.f32.s32 %r9, 1', None),
        ('setp.lt.s32 %r9, -1, 1', 1),
        ('setp.lt.u32 %r9, -1, 1', 0),
        ('not.pred %r9, 0', 1),
        ('selp.b32 %r9, %unknown, 5, 0', 5),
        ('min.s32 %r9, -1, 1', 2**32 - 1),
        ('mov.b64 %r9, {%r1, %r2}', None),
        ('mov.b32 %r9, 0f3F800000', None),
        ('ld.shared.b32 %r9, [%r1]', None),
    ],
)
def test_integers_are_computed(instruction, value):
    kernel = ptx.parse('.entry kernel()\n{\n' + instruction + ';\n ret;\n}')['kernel']
    registers = {'%r9': 77}
    ptx._compute(ptx.Step.of(kernel.code.instructions[0]), registers, [])
    assert registers['%r9'] == value


def test_loops_are_told_by_their_nest(code):
    kernel = ptx.parse(PTX)['kernel']
    launched = launch.iterations(code, kernel, arguments(6), (1, 1, 1), 128)
    assert launched == {None: 1, 0x30: 6, 0x50: 18}


LOAD = '        /*0050*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;    /* 0x00 */\n'
PRODUCT = '        /*0058*/                   HMMA.16816.F32.BF16 R4, R8, R6, R4 ; /* 0x00 */\n'


def test_an_unrolled_loop_has_fewer_iterations():
    kernel = ptx.parse(PTX)['kernel']
    (unrolled,) = sass.parse(SASS.replace(LOAD, LOAD + PRODUCT + LOAD), RESOURCES)
    found = launch.iterations(unrolled, kernel, arguments(6), (1, 1, 1), 128)
    assert found == {None: 1, 0x30: 6, 0x50: 9}


def test_a_short_loop_may_be_missing():
    kernel = ptx.parse(PTX)['kernel']
    text = SASS.replace('@!P1 BRA 0x50', '@!P1 NOP 0x50')
    (flat,) = sass.parse(text.replace(LOAD, 3 * LOAD + 2 * PRODUCT), RESOURCES)
    assert launch.iterations(flat, kernel, arguments(6), (1, 1, 1), 128) == {None: 1, 0x30: 6}
    # Without copies of its body the loop has become something else.
    (other,) = sass.parse(text, RESOURCES)
    assert launch.iterations(other, kernel, arguments(6), (1, 1, 1), 128) is None


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
    assert '| bfloat16 | NCHW | triton | forward | 130 (x 70) |' in report.summary([derived])
    assert '| forward | not derived |' in report.summary([derived, kernel])
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

    (found,) = launches(90, call)
    assert (found.code.name, found.blocks, found.threads) == ('row_sums', 7, 128)
    # Blocks 0 to 6 read 30 rows in steps of 7.
    outside, in_loop = found.iterations.values()
    assert 0 < outside <= 1
    assert in_loop == pytest.approx(30 / 7, rel=0.05)  # from a sample of the blocks
    assert sum(found.code.load_widths().values()) > 0


#: In a process of its own, because the runtime without a device stays loaded.
RECORD = """
import ctypes
import json
import sys
from pathlib import Path

from benchmarks.gpu_code import cuda_launches

library, cuda_launches.RUNTIME = map(Path, sys.argv[1:])
ctypes.CDLL(str(cuda_launches.RUNTIME), ctypes.RTLD_GLOBAL)
launch = ctypes.CDLL(str(library)).launch_row_sums
(found,) = cuda_launches.Recorder(library, 80).launches(lambda: launch(7, 30))
numbers = [found.blocks, found.threads, found.shared, *found.iterations.values()]
print(json.dumps([found.code.name, *numbers]))
"""


@pytest.mark.slow
@pytest.mark.skipif(cuda_launches.find_nvcc() is None, reason='nvcc was not found.')
@pytest.mark.skipif(importlib.util.find_spec('triton') is None, reason='Triton is not installed.')
def test_a_launch_without_a_device(tmp_path):
    library, runtime = tmp_path / 'kernel.so', tmp_path / 'runtime.so'
    cuda_launches.build_runtime(runtime)
    options = ['-shared', '-cudart', 'none', '-Xcompiler', '-fPIC']
    options += ['-gencode', 'arch=compute_80,code=[sm_80,compute_80]']
    source = Path(__file__).with_name('tiny_cuda_kernel.cu')
    subprocess.run([cuda_launches.find_nvcc(), *options, '-o', library, source], check=True)
    output = subprocess.run(
        [sys.executable, '-c', RECORD, library, runtime],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    name, *numbers, outside, in_loop = json.loads(output)
    assert run.short_name(name) == 'row_sums<64>'
    assert numbers == [7, 64, 1000]
    assert 0 < outside <= 1
    assert in_loop == pytest.approx(30 / 7, rel=0.1)  # from a sample of the warps


@pytest.mark.parametrize(
    ('symbol', 'name'),
    [
        ('forward_kernel', 'forward_kernel'),
        ('_ZN8overlock12_GLOBAL__N_114forward_kernelILi16ELi13EN3c108BFloat16EEEvPf', None),
        ('_ZN8overlock12_GLOBAL__N_116aggregate_kernelIN3c108BFloat16EEEvPf', 'aggregate_kernel'),
    ],
)
def test_short_names(symbol, name):
    assert run.short_name(symbol) == (name or 'forward_kernel<16, 13>')
