"""C sources that the machine's compiler builds on first use into the user's cache, called through ctypes.

Whoever has one has plain torch that does the same, for machines without a compiler. ``DDQ_SEARCH_FUSED=0`` in the
environment switches all of it off. What a compiler refuses is remembered beside the libraries and not tried again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from ddq_search.whole_files import write_whole

_FLAGS = (
    "-O3", "-fPIC", "-std=c11", "-fopenmp", "-ffp-contract=off",
    "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno",
)  # fmt: skip
"""Sums may be reordered; a NaN must not get lost, so not all of ``-ffast-math``."""
_NATIVE = {"x86_64": "-march=native", "AMD64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
_SECONDS = 60
_REASON = 200
"""Characters of a compiler's complaint that are repeated."""
_failures: dict[str, str] = {}


def failures() -> list[str]:
    """Returns a line for every C file that this process wanted and could not have, with the remedy."""
    return [
        f"{name} is left out, plain torch computes the same more slowly: {reason}" for name, reason in _failures.items()
    ]


def load(source: Path) -> ctypes.CDLL | None:
    """Returns the library of a C file; None where it cannot be built (`failures` says why) or is not wanted."""
    _failures.pop(source.name, None)
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or os.environ.get("DDQ_SEARCH_FUSED") == "0":
        return None
    try:
        return ctypes.CDLL(str(_built(source, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        _failures[source.name] = " ".join(str(error).split())
        return None


def _built(source: Path, compiler: str) -> Path:
    """Returns the compiled library, building it unless the cache has one of this source, compiler and processor.

    Raises:
        OSError: the compiler refuses the source, now or earlier; or files cannot be written.
        SubprocessError: the compiler took too long.
    """
    flags = [*_FLAGS, _NATIVE.get(platform.machine(), "-O3")]
    digest = hashlib.sha256(source.read_bytes())
    for fact in (*flags, compiler, str(Path(compiler).stat().st_mtime), _processor()):
        digest.update(fact.encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddq-search"
    target = folder / f"{source.stem}-{digest.hexdigest()[:16]}.so"
    refusal = target.with_suffix(".failed")
    if target.exists():
        return target
    if refusal.exists():
        raise OSError(refusal.read_text(encoding="utf-8"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(dir=folder)
    except OSError:
        target = Path(tempfile.mkdtemp()) / target.name
        scratch = str(target.parent)
    try:
        unlinked, linked = Path(scratch, "unlinked.o"), Path(scratch, "linked.so")
        # OpenMP stays unresolved on purpose: torch has loaded its own, and two thread pools would fight.
        for command in (
            [compiler, *flags, "-c", str(source), "-o", str(unlinked)],
            [compiler, "-shared", str(unlinked), "-o", str(linked)],
        ):
            done = subprocess.run(command, capture_output=True, timeout=_SECONDS)
            if done.returncode:
                raise OSError(_refused(compiler, done, refusal))
        linked.replace(target)
    finally:
        if Path(scratch) != target.parent:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _refused(compiler: str, done: subprocess.CompletedProcess[bytes], refusal: Path) -> str:
    """Returns why there is no library; remembers it, unless the compiler was killed and may do better next time."""
    said = " ".join(done.stderr.decode(errors="replace").split())[:_REASON]
    reason = f"{compiler} ended with {done.returncode} ({said or 'no message'})"
    if done.returncode > 0:
        reason += f"; mend it or set CC, or delete {refusal} to have it tried again"
        with contextlib.suppress(OSError):
            write_whole(refusal, reason.encode())
    return reason


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
