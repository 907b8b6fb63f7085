"""The bench itself: it runs programs where it says, finds wrong codes and overruns, and counts what is executed."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from ddq_search.errors import ExportError, VerificationError
from ddq_search.export.c import targets, trials
from ddq_search.export.c.dsp import KERNELS
from ddq_search.export.c.targets import TARGETS, Target
from ddq_search.export.c.trials import Layer, Runner, Trial, accumulators, expected
from ddq_search.layer_shape import LayerShape

CONV = KERNELS[0]
SHAPE = LayerShape("conv", (4, 5, 4), (4, 5, 3), (3, 3), (1, 1), (1, 1))


def needs(name: str) -> Target:
    gap = targets.missing(TARGETS[name])
    if gap:
        pytest.skip(gap)
    return TARGETS[name]


def layer(shape: LayerShape, codes, x, *, bias=0, in_zero=0, out_zero=0, **trial) -> Layer:
    rows = len(codes)
    return Layer(
        Trial(CONV, shape, **trial), np.asarray(codes, np.int8), None, None, np.zeros(rows, int),
        np.full(rows, bias), np.full(rows, 2**30),
        np.full(rows, 0), np.asarray(x, np.uint8), in_zero, out_zero, 0, 255,
    )  # fmt: skip


def test_accumulators_by_hand():
    """A 2 x 2 window over a 2 x 2 image padded above and left: border positions contribute nothing."""
    shape = LayerShape("conv", (2, 2, 1), (2, 2, 1), (2, 2), (1, 1), (1, 1))
    found = accumulators(layer(shape, [[1, 2, 3, 4]], [[[5], [6]], [[7], [8]]], bias=100, in_zero=5))
    # centred image [[0, 1], [2, 3]]; weights [[1, 2], [3, 4]]
    assert found[:, :, 0].tolist() == [[100, 104], [108, 100 + 1 * 0 + 2 * 1 + 3 * 2 + 4 * 3]]


def test_groups_and_dilation_by_hand():
    shape = LayerShape("grouped", (1, 3, 2), (1, 1, 2), (1, 2), (1, 1), (0, 0), (1, 2), groups=2)
    x = [[[1, 10], [2, 20], [3, 30]]]
    assert accumulators(layer(shape, [[1, 2], [3, 4]], x))[0, 0].tolist() == [1 + 2 * 3, 3 * 10 + 4 * 30]


def test_expected_codes_are_requantized_and_clamped():
    shape = LayerShape("linear", (1, 1, 1), (1, 1, 1))
    assert expected(layer(shape, [[3]], [[[5]]], out_zero=7)).item() == 15  # 15 / 2 rounds to 8
    assert expected(layer(shape, [[127]], [[[255]]])).item() == 255


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_programs_run_there_with_arguments_files_and_exit_status(name, tmp_path):
    target = needs(name)
    source = tmp_path / "hello.c"
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\nstatic const char text[] = \"read\";\nstatic int zero[4];\n"
        "int main(int argc, char **argv) {\n"
        "    FILE *file = fopen(\"note.txt\", \"w\");\n    char *block = malloc(1000);\n"
        "    if (file == NULL || block == NULL || zero[3]) return 1;\n"
        "    fprintf(file, \"%s %d %s\", argv[1], argc, text);\n    printf(\"%.2f\\n\", (double)argc / 2);\n"
        "    return fclose(file) ? 2 : 3;\n}\n",
        encoding="ascii",
    )  # fmt: skip
    elf = targets.build(target, [source], tmp_path / "hello.elf")
    done = targets.run(target, elf, tmp_path, ["first", "second"])
    assert (done.returncode, done.stdout) == (3, "1.50\n")
    assert (tmp_path / "note.txt").read_text(encoding="ascii") == "first 3 read"


def test_a_missing_tool_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda command: None)
    assert targets.missing(TARGETS["cortex-m4"]) == "cortex-m4: arm-none-eabi-gcc, qemu-system-arm not found"
    with pytest.raises(
        ExportError, match=r"qemu-aarch64 not found; install it or choose another target than 'aarch64'"
    ):
        targets.build(TARGETS["aarch64"], [tmp_path / "x.c"], tmp_path / "x.elf")


def test_the_compiler_s_words_are_the_error(tmp_path):
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return nothing; }\n", encoding="ascii")
    with pytest.raises(ExportError, match="nothing"):
        targets.build(needs("host"), [source], tmp_path / "broken.elf")


def test_wrong_codes_are_found(tmp_path):
    wrong = dataclasses.replace(CONV, layout=lambda codes, bits, shape: CONV.layout(-codes, bits, shape))
    runner = Runner(needs("host"), [wrong], tmp_path)
    with pytest.raises(VerificationError, match=r"codes differ, first at .* instead of .* ddq_dsp_conv_w8 w8 x8 y8"):
        runner.run([Trial(wrong, SHAPE)])


def test_overruns_are_found(tmp_path):
    narrow = dataclasses.replace(CONV, scratch_bytes=lambda shape, weights, inputs: 4 * 36 - 4)
    with pytest.raises(VerificationError, match="wrote past buffer 's'"):
        Runner(needs("host"), [narrow], tmp_path / "guard").run([Trial(narrow, SHAPE)])
    with pytest.raises(ExportError, match="heap-buffer-overflow"):
        Runner(needs("host"), [narrow], tmp_path / "asan", flags=trials.SANITIZERS).run([Trial(narrow, SHAPE)])


def test_a_layout_of_the_wrong_length_is_found(tmp_path):
    longer = dataclasses.replace(CONV, layout=lambda codes, bits, shape: CONV.layout(codes, bits, shape) + b"\0")
    with pytest.raises(VerificationError, match="the layout has 109 bytes"):
        Runner(needs("host"), [longer], tmp_path).run([Trial(longer, SHAPE)])


@pytest.mark.parametrize("name", ["cortex-m4", "aarch64"])
def test_counts_repeat_and_grow_by_the_work(name, tmp_path):
    """Twice the positions cost twice the instructions but for the fixed part; equal calls cost the same."""
    runner = Runner(needs(name), [CONV], tmp_path, count=True)
    one, again, two, four = runner.run(
        [Trial(CONV, LayerShape("pointwise", (height, 8, 16), (height, 8, 8))) for height in (1, 1, 2, 4)]
    )
    assert one == again
    assert four - two == 2 * (two - one)
    assert two - one > 8 * 16 * 8 / 4  # at most 4 multiplications per instruction are possible
