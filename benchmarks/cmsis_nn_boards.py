"""Boards of the CMSIS-NN profiles: what their data sheets say, and what was published for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_DSP = """\
The core multiplies 16-bit pairs (SMLAD); 4-bit weights are unpacked inside the loop. They halve the flash of the
weights and make every layer slower: about 1.3-2.0 x for convolutions, 1.3-1.9 x pointwise, 1.8-2.1 x depthwise,
1.4-2.5 x fully connected. A flash budget pulls bits down while a latency budget pulls them up.
Activations are 8 bits only, 2-bit weights are not executed; the int4 convolution takes no groups."""

_HELIUM = """\
Helium multiplies 16 bytes at once; 4-bit weights are unpacked inside the loop. They halve the flash of the weights and
cost time in every layer: 1.1-1.5 x for convolutions, 1.4-1.6 x pointwise, 1.1-1.3 x depthwise, 1.5-2.3 x fully
connected. A flash budget pulls bits down while a latency budget pulls them up.
Activations are 8 bits only, 2-bit weights are not executed; the int4 convolution takes no groups."""

_GCC = "arm-none-eabi-gcc 12.2.1 -Ofast"
_H743 = "STM32H743xI data sheet: 1 MB RAM (in several banks), 2 MB flash"


@dataclass(frozen=True)
class Board:
    """One profile to build.

    Attributes:
        name: of the profile.
        core_key: core as the counts name it.
        cycles: which published figures give cycles per instruction. "other board": those of the Cortex-M4 board, so
            that the board's own figures are all held out; "none": ``cycles_per_instruction`` is an estimate.
        device: name in ``mlperf_tiny_cmsis_nn.csv``.
        submission: whose software was measured.
        streams: why weights get a term of their own; empty: they get none.
        statement: what was not measured.
    """

    name: str
    core_key: str
    board: str
    core: str
    clock_hz: float
    clock_source: str
    ram_bytes: int
    flash_bytes: int
    memory_source: str
    statement: str
    not_monotone: str = _DSP
    compiler: str = _GCC
    alignment_bytes: int = 8
    cycles: Literal["layers", "networks", "other board", "none"] = "none"
    device: str = ""
    submission: str = ""
    streams: str = ""
    cycles_per_instruction: float = 1.0
    cycles_source: str = ""


BOARDS = (
    Board(
        name="cortex-m4-stm32l4r5-cmsis-nn", core_key="M4", board="NUCLEO-L4R5ZI (STM32L4R5)", core="Cortex-M4",
        clock_hz=120e6, clock_source="MLPerf Tiny results v1.0/v1.1, NUCLEO-L4R5ZI at 120 MHz",
        ram_bytes=655360, flash_bytes=2097152, memory_source="STM32L4R5xI data sheet: 640 KB RAM, 2 MB flash",
        cycles="networks", device="NUCLEO-L4R5ZI", submission="microTVM with CMSIS-NN, 8 bit, v1.0",
        streams="flash is read with wait states, and the autoencoder reads each weight once",
        statement="no 4-bit network was measured",
    ),
    Board(
        name="cortex-m7-stm32h743-cmsis-nn", core_key="M7", board="NUCLEO-H743ZI (STM32H743)", core="Cortex-M7",
        clock_hz=400e6,
        clock_source="measurements/h743_layers_insn.csv was measured at 400 MHz (the chip allows 480 MHz)",
        ram_bytes=1048576, flash_bytes=2097152, memory_source=_H743, cycles="layers",
        statement="no whole CMSIS-NN network and no 4-bit layer was measured on this board",
    ),
    Board(
        name="cortex-m7-stm32f746-cmsis-nn", core_key="M7", board="STM32F746G-DISCO (STM32F746)", core="Cortex-M7",
        clock_hz=216e6, clock_source="STM32F746xG data sheet: up to 216 MHz",
        ram_bytes=327680, flash_bytes=1048576, memory_source="STM32F746xG data sheet: 320 KB RAM, 1 MB flash",
        cycles_per_instruction=1.05,
        cycles_source="taken from the STM32H743: same core, other memories; nothing with CMSIS-NN was published here",
        statement="instructions are counted in emulation; no figure with CMSIS-NN was published for this board, so "
        "cycles per instruction are those of the STM32H743. Trust ratios between precisions, not milliseconds",
    ),
    Board(
        name="cortex-m33-ra6m4-cmsis-nn", core_key="M33", board="EK-RA6M4 (R7FA6M4AF)", core="Cortex-M33",
        clock_hz=200e6, clock_source="MLPerf Tiny results v0.7, EK-RA6M4 at 200 MHz",
        ram_bytes=262144, flash_bytes=1048576, memory_source="RA6M4 group data sheet: 256 KB RAM, 1 MB code flash",
        cycles="other board", device="EK-RA6M4", submission="TensorFlow Lite Micro with CMSIS-NN, 8 bit, v0.7",
        statement="the networks need 1.3 to 1.65 cycles per instruction, which three figures do not explain; "
        "no 4-bit network was measured",
    ),
    Board(
        name="cortex-m55-an547-cmsis-nn", core_key="M55", board="MPS3 with Corstone-300 (AN547)", core="Cortex-M55",
        clock_hz=32e6, clock_source="clock of QEMU's machine mps3-an547, which models the FPGA image AN547",
        ram_bytes=4194304, flash_bytes=8388608,
        memory_source="memory map of QEMU's machine mps3-an547: 4 MB SRAM beside 512 KB DTCM, 8 MB QSPI flash",
        not_monotone=_HELIUM, compiler="clang-19 -Ofast", alignment_bytes=16, cycles_per_instruction=1.0,
        cycles_source="lower bound: at least one cycle per instruction; a vector instruction of two beats can take two",
        statement="instructions are counted in emulation; no figure with CMSIS-NN was published for a Cortex-M55 "
        "board, and one cycle per instruction is a lower bound. Trust ratios between precisions, not milliseconds",
    ),
)  # fmt: skip
