"""Static cycles of our AArch64 kernels: llvm-mca's cycles of every basic block times how often a layer executes it.

    python benchmarks/kernels/mca.py --core cortex-a53 -o neon_layers_mca.csv --blocks neon_blocks_mca.csv

``cycles`` are those of the whole call; ``product_cycles`` the part in the kernel's own function (tiles and unpacking
of weights), without gathering, requantization and packing, which all widths share.

The kernels are compiled once per core with one compiler. Every basic block of the executed functions goes through
llvm-mca in steady state (200 iterations of the block alone); the layers of ``cases.py`` run under ``qemu-aarch64``
with a plugin that counts executions per instruction, every output checked against NumPy. What the sum does not see:
caches, branch prediction, overlap of neighbouring blocks, memory bandwidth. llvm-mca 19 has a model of its own for
Cortex-A53, A55, A57 and Neoverse N1; it takes A57's for Cortex-A72 and A76 is closest to N1.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from count import COLUMNS, kernels_of, row, trials

from ddq_search.export.c.kernels import Kernel
from ddq_search.export.c.targets import TARGETS, Target
from ddq_search.export.c.trials import Runner, Trial

MODELS = {
    "cortex-a53": "cortex-a53",
    "cortex-a72": "cortex-a57",
    "cortex-a55": "cortex-a55",
    "cortex-a76": "neoverse-n1",
}
"""Core → the model of llvm-mca that stands for it."""
FAMILIES = {"cortex-a53": "neon", "cortex-a72": "neon", "cortex-a55": "neon_dot", "cortex-a76": "neon_dot"}
OPTIMISATION = ("-O3",)
ITERATIONS = 200
_BRANCH = re.compile(r"^(b|bl|b\.\w+|cbz|cbnz|tbz|tbnz|ret|br|blr)\b")
_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(.*?)\s*$")
_CYCLES = re.compile(r"Code Region - (\S+)\n.*?Total Cycles:\s+(\d+)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Straight-line code.

    Attributes:
        function: where it lies.
        address: of its first instruction.
        text: its instructions as llvm-mca reads them.
    """

    function: str
    address: int
    text: tuple[str, ...]


def target(core: str, compiler: str) -> Target:
    """Returns AArch64 Linux with the core's code generation (``-mcpu``)."""
    base = TARGETS["aarch64"]
    emulator = ("qemu-aarch64", "-cpu", "cortex-a76" if FAMILIES[core] == "neon_dot" else "cortex-a53")
    base = replace(base, emulator=emulator)
    tune = f"-mcpu={core}"
    if compiler.startswith("clang"):
        return replace(
            base, compiler=compiler, flags=("-static",), compile_flags=("--target=aarch64-linux-gnu", tune),
        )  # fmt: skip
    return replace(base, compiler=compiler, flags=(tune, "-static"))


def blocks(dump: str, executed: set[int]) -> list[Block]:
    """Returns the executed basic blocks of a disassembled program."""
    found: list[Block] = []
    for part in re.split(r"\n(?=[0-9a-f]{16} <)", dump):
        header = re.match(r"([0-9a-f]{16}) <([^>]+)>:\n", part)
        if header is None:
            continue
        code = [(int(m[1], 16), m[2].replace("\t", " ")) for m in map(_LINE.match, part.splitlines()) if m]
        if any(address in executed for address, _ in code):
            found += [block for block in _split(header[2], code) if block.address in executed]
    return found


def disassembly(elf: Path) -> str:
    """Returns the program's instructions, function by function."""
    command = ["llvm-objdump-19", "-d", "--no-show-raw-insn", str(elf)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _split(function: str, code: Sequence[tuple[int, str]]) -> list[Block]:
    leaders = {code[0][0]}
    for (_, text), (following, _) in zip(code, [*code[1:], (-1, "")], strict=True):
        if _BRANCH.match(text):
            leaders.add(following)
            if goal := re.search(r"0x([0-9a-f]+) <", text):
                leaders.add(int(goal[1], 16))
    result: list[Block] = []
    for address, text in code:
        if address in leaders:
            result.append(Block(function, address, ()))
        plain = re.sub(r"0x[0-9a-f]+ <[^>]*>", "goal", text.split("//")[0].strip())
        result[-1] = replace(result[-1], text=(*result[-1].text, plain))
    return result


def cycles(listed: Sequence[Block], model: str) -> dict[int, float]:
    """Returns block address → cycles per execution in steady state."""
    source = "".join(
        f"# LLVM-MCA-BEGIN {block.address}\n" + "\n".join(block.text) + "\n# LLVM-MCA-END\n" for block in listed
    )
    command = ["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={model}", "-mattr=+dotprod", f"-iterations={ITERATIONS}"]
    command += ["-instruction-info=0", "-resource-pressure=0"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    found = {int(name): int(total) / ITERATIONS for name, total in _CYCLES.findall(done.stdout)}
    absent = [block for block in listed if block.address not in found]
    if absent:
        raise SystemExit(f"llvm-mca has no cycles for {absent[0]}: {done.stderr[:400]}")
    return found


class BlockRunner(Runner):
    """A runner whose plugin counts executions per instruction."""

    def __init__(self, used: Target, kernels: Sequence[Kernel], directory: Path) -> None:
        super().__init__(used, kernels, directory, count=True, flags=OPTIMISATION)
        library = directory / "libqemu_blocks.so"
        source = Path(__file__).with_name("qemu_blocks.c")
        subprocess.run(["cc", "-O2", "-fPIC", "-shared", str(source), "-o", str(library)], check=True)
        self._plugin = f"{library},{str(self._plugin).partition(',')[2]}"

    def executions(self, listed: Sequence[Trial]) -> list[dict[int, int]]:
        """Runs trials; returns for each how often every address was executed."""
        try:
            self.run(listed)
        except ValueError as error:  # the counts are not single numbers
            if "invalid literal" not in str(error):
                raise
        text = (self._directory / "counts.txt").read_text(encoding="ascii")
        parts = text.split("\n\n")[: len(listed)]
        return [{int(line.split()[0], 16): int(line.split()[1]) for line in part.splitlines()} for part in parts]


def measure(core: str, compiler: str, only: str) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Returns rows per layer (as ``count.py``, and ``cycles``) and rows per block."""
    kernels, used = kernels_of(FAMILIES[core]), target(core, compiler)
    layers: list[dict[str, object]] = []
    seen: dict[int, Block] = {}
    cost: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        runner = BlockRunner(used, kernels, Path(directory))
        dump = disassembly(runner.elf)
        for name, listed in trials(kernels, every_kernel=True).items():
            if not listed or only not in name:
                continue
            for trial, counts in zip(listed, runner.executions(listed), strict=True):
                if counts.keys() - seen.keys():
                    fresh = [b for b in blocks(dump, set(counts)) if b.address not in cost]
                    cost |= cycles(fresh, MODELS[core])
                    seen |= {block.address + 4 * i: block for block in fresh for i in range(len(block.text))}
                spent = {address: cost[address] * count for address, count in counts.items() if address in cost}
                own = sum(c for address, c in spent.items() if seen[address].function == trial.kernel.name)
                version = f"{Path(compiler).name} {' '.join((*used.compile_flags, *used.flags, *OPTIMISATION))}"
                line = row("aarch64", name, trial, sum(counts.values()))
                line |= {"core": core, "compiler": version.split()[0], "flags": version.partition(" ")[2]}
                total = round(sum(spent.values()), 1)
                layers.append(line | {"model": MODELS[core], "product_cycles": round(own, 1), "cycles": total})
            print(f"{core} {name}", file=sys.stderr)
    table = [
        {"core": core, "model": MODELS[core], "function": b.function, "block": f"{b.address:x}",
         "instructions": len(b.text), "cycles": cost[b.address]}
        for b in sorted(set(seen.values()), key=lambda block: block.address)
    ]  # fmt: skip
    return layers, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", action="append", required=True, choices=sorted(MODELS))
    parser.add_argument("--compiler", default="clang-19")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--blocks", type=Path)
    arguments = parser.parse_args()
    measured = [measure(core, arguments.compiler, arguments.only) for core in arguments.core]
    _write(
        arguments.out,
        [line for layers, _ in measured for line in layers],
        (*COLUMNS, "model", "product_cycles", "cycles"),
    )
    if arguments.blocks:
        columns = ("core", "model", "function", "block", "instructions", "cycles")
        _write(arguments.blocks, [line for _, table in measured for line in table], columns)


def _write(path: Path, rows: Sequence[dict[str, object]], columns: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
