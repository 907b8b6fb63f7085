"""Where exported C runs: the host, bare-metal Cortex-M boards in QEMU, Linux on AArch64 in QEMU.

A target is a compiler with flags and, where this machine cannot execute the result, an emulator:

    gap = missing(TARGETS["cortex-m4"])             # None, or what is not installed
    elf = build(TARGETS["cortex-m4"], [Path("main.c"), Path("ddq_dsp.c")], Path("main.elf"))
    run(TARGETS["cortex-m4"], elf, cwd=directory, arguments=["cases.bin"]).stdout

Programs for the boards are ordinary hosted C: `main` gets its arguments, `printf`, `fopen` and the exit status reach
the host through semihosting (newlib's rdimon), relative to ``cwd``. `runtime/boards` holds start-up code and memory
map. Constants lie in the memory that holds at least 16 MB, variables and heap in the fast one.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddq_search.errors import ExportError

RUNTIME = Path(__file__).parent / "runtime"
"""The C sources; the directory every build includes from."""

OPTIMISATION = ("-O2",)
"""What the counts of our kernels are taken with, and what exported makefiles use."""

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Board:
    """A QEMU machine. Memory regions are ``(origin, bytes)``.

    Attributes:
        machine: its QEMU name.
        code: vectors and instructions.
        data: variables, heap and stack.
        constants: read-only data.
    """

    machine: str
    code: tuple[int, int]
    data: tuple[int, int]
    constants: tuple[int, int]


@dataclass(frozen=True)
class Target:
    """A compiler and what executes its programs.

    Attributes:
        name: what the user calls it.
        compiler: command that compiles.
        linker: command that links.
        symbols: command that lists the symbols of a program.
        flags: architecture flags of both.
        emulator: command that executes a program; empty on the host.
        board: the bare-metal machine, None where there is an operating system.
    """

    name: str
    compiler: str
    linker: str
    symbols: str
    flags: tuple[str, ...] = ()
    compile_flags: tuple[str, ...] = ()
    emulator: tuple[str, ...] = ()
    board: Board | None = None


def _cortex_m(name: str, cpu: str, fpu: tuple[str, ...], board: Board) -> Target:
    flags = (f"-mcpu={cpu}", "-mthumb", "-mfloat-abi=hard", *fpu)
    return Target(
        name, "arm-none-eabi-gcc", "arm-none-eabi-gcc", "arm-none-eabi-nm", flags, (), ("qemu-system-arm",), board
    )


_MB = 1 << 20
_AN386 = Board("mps2-an386", (0, 4 * _MB), (0x20000000, 4 * _MB), (0x21000000, 16 * _MB))
_AN500 = Board("mps2-an500", (0, 4 * _MB), (0x20000000, 4 * _MB), (0x60000000, 16 * _MB))
_AN505 = Board("mps2-an505", (0x10000000, 4 * _MB), (0x38000000, 4 * _MB), (0x80000000, 16 * _MB))
_AN547 = Board("mps3-an547", (0, _MB // 2), (0x31000000, 2 * _MB), (0x70000000, 64 * _MB))
_M55 = _cortex_m("cortex-m55", "cortex-m55", (), _AN547)
_AARCH64 = ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-nm")

TARGETS = {
    target.name: target
    for target in (
        Target("host", "cc", "cc", "nm"),
        _cortex_m("cortex-m4", "cortex-m4", ("-mfpu=fpv4-sp-d16",), _AN386),
        _cortex_m("cortex-m7", "cortex-m7", ("-mfpu=fpv5-d16",), _AN500),
        _cortex_m("cortex-m33", "cortex-m33", ("-mfpu=fpv5-sp-d16",), _AN505),
        _M55,
        Target(
            "cortex-m55-clang",
            "clang-19",
            _M55.linker,
            _M55.symbols,
            _M55.flags,
            ("--target=arm-none-eabi", "-isystem", "/usr/include/newlib"),
            _M55.emulator,
            _AN547,
        ),
        Target("aarch64", *_AARCH64, ("-march=armv8-a", "-static"), (), ("qemu-aarch64", "-cpu", "cortex-a53")),
        Target("aarch64-dot", *_AARCH64, ("-march=armv8.2-a+dotprod", "-static"), (), ("qemu-aarch64", "-cpu", "max")),
    )
}
"""Name → target. ``cortex-m55-clang`` exists because arm-none-eabi-gcc 12.2 turns the constant Helium predicate 0x0f0f
into 0xffffffff; emulation shows it."""


def missing(target: Target) -> str | None:
    """Returns what has to be installed before programs for ``target`` can be built and run, None if nothing."""
    commands = [target.compiler, target.linker, *target.emulator[:1]]
    absent = [command for command in dict.fromkeys(commands) if shutil.which(command) is None]
    return f"{target.name}: {', '.join(absent)} not found" if absent else None


def compiler_version(target: Target) -> str:
    """Returns the compiler's name and version, ``arm-none-eabi-gcc 12.2.1``."""
    found = subprocess.run([target.compiler, "-dumpversion"], capture_output=True, text=True, check=True)
    return f"{Path(target.compiler).name.split('-19')[0]} {found.stdout.strip()}"


def build(target: Target, sources: Sequence[Path], elf: Path, flags: Sequence[str] = OPTIMISATION) -> Path:
    """Compiles and links C sources into the program ``elf`` and returns its path.

    Raises:
        ExportError: a tool is missing, or refused the sources; the message is the tool's.
    """
    objects = [elf.with_name(f"{elf.stem}-{index}-{source.stem}.o") for index, source in enumerate(sources)]
    for source, output in zip(sources, objects, strict=True):
        compile_source(target, source, output, flags)
    return link(target, objects, elf, flags)


def compile_source(target: Target, source: Path, output: Path, flags: Sequence[str] = OPTIMISATION) -> Path:
    """Compiles one C source into the object ``output`` and returns its path; raises as `build`."""
    if gap := missing(target):
        raise ExportError(f"cannot build: {gap}; install it or choose another target than {target.name!r}")
    output.parent.mkdir(parents=True, exist_ok=True)
    compile_flags = (*WARNINGS, *target.flags, *target.compile_flags, *flags, "-I", str(RUNTIME))
    _call([target.compiler, *compile_flags, "-c", str(source), "-o", str(output)])
    return output


def link(target: Target, objects: Sequence[Path], elf: Path, flags: Sequence[str] = OPTIMISATION) -> Path:
    """Links objects, and start-up code for a board, into the program ``elf`` and returns it; raises as `build`."""
    link_flags: list[str] = []
    if target.board:
        start = compile_source(
            target, RUNTIME / "boards" / "cortex_m_start.c", elf.with_name(f"{elf.stem}-start.o"), flags
        )
        objects = [*objects, start]
        link_flags = ["-nostartfiles", "--specs=rdimon.specs", "-T", str(RUNTIME / "boards" / "cortex_m.ld")]
        for name in ("code", "data", "constants"):
            origin, length = getattr(target.board, name)
            link_flags.append(f"-Wl,--defsym={name.upper()}_ORIGIN={origin},--defsym={name.upper()}_LENGTH={length}")
    _call([target.linker, *target.flags, *flags, *map(str, objects), *link_flags, "-lm", "-o", str(elf)])
    return elf


def run(
    target: Target,
    elf: Path,
    cwd: Path,
    arguments: Sequence[str] = (),
    *,
    plugin: str | None = None,
    timeout_s: float = 600.0,
) -> subprocess.CompletedProcess[str]:
    """Executes a program, under its emulator where it needs one.

    Args:
        target: what it was built for.
        elf: the program.
        cwd: the directory its relative file names mean.
        arguments: of `main`, without blanks and commas.
        plugin: argument of the emulator's ``-plugin``.
        timeout_s: seconds after which it is killed.

    Raises:
        ExportError: it did not end in time.
    """
    command = list(target.emulator)
    if plugin is not None:
        command += ["-plugin", plugin]
    if target.board:
        line = "".join(f",arg={text}" for text in (elf.name, *arguments))
        command += ["-M", target.board.machine, "-nographic", "-monitor", "none", "-serial", "none"]
        command += ["-semihosting-config", f"enable=on,target=native{line}", "-kernel", str(elf.resolve())]
    else:
        command += [str(elf.resolve()), *arguments]
    try:
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{elf.name} on {target.name} did not end within {timeout_s:g} s") from error


def _call(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ExportError(f"{' '.join(command)}\n{result.stderr.strip()}")
