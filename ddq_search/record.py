"""The run directory: the interface between stages, in open formats, written atomically.

``config.toml`` resolved configuration · ``environment.json`` · ``graph.json`` · ``space.json`` · ``history.jsonl`` ·
``checkpoints/*.safetensors`` · ``policies/*.json`` · ``front.json`` · ``export/<policy>/`` · ``report.html``

Where several processes share a run, the first one reads and writes for all of them (`ddq_search.distributed`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ddq_search.distributed import from_first, world_size
from ddq_search.errors import RunError
from ddq_search.whole_files import write_whole


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that it is either the old or the new one, never half of it.

    Raises:
        RunError: the disk is full, the folder is read-only, …
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose a writable place. "
            "Nothing written before is lost: --resume goes on with a search"
        ) from error


class RunDirectory:
    """One run's files.

    Args:
        path: the directory.
        fingerprint: identifies configuration, model and data; checkpoints carry it.
    """

    def __init__(self, path: Path, fingerprint: str = "") -> None:
        self.path = path
        self.fingerprint = fingerprint

    # -- small files ------------------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file atomically."""
        from_first(lambda: write_atomically(self.path / name, text.encode()))

    def write_json(self, name: str, document: Any) -> None:
        """Writes a JSON file atomically; non-finite numbers become null."""
        self.write_text(name, json.dumps(_finite(document), indent=1, ensure_ascii=False))

    def read_json(self, name: str) -> Any:
        """Returns a JSON document.

        Raises:
            RunError: the file is missing or broken.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}; is {self.path} a finished run?") from error
        except ValueError as error:
            raise RunError(f"{path} is broken: {error}; restore it or run the search again") from error

    # -- history ----------------------------------------------------------------------------------------------

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Adds one line to history.jsonl."""
        from_first(lambda: self._append_history(row))

    def _append_history(self, row: Mapping[str, Any]) -> None:
        try:
            with _in_turn(self.path), (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(dict(row))) + "\n")
        except OSError as error:
            remedy = "free some space" if error.errno == errno.ENOSPC else "mend that"
            raise RunError(
                f"cannot write {self.path / 'history.jsonl'}: {error.strerror or error}; {remedy}, then go on with "
                "--resume"
            ) from error

    def history(self) -> list[dict[str, Any]]:
        """Returns all complete lines of history.jsonl; a last line cut short by a crash is dropped."""
        path = self.path / "history.jsonl"
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def drop_history(self, kind: str, point: str | None, epoch: int) -> None:
        """Removes the rows of one phase from ``epoch`` on: they are about to be written again."""
        from_first(lambda: self._drop_history(kind, point, epoch))

    def _drop_history(self, kind: str, point: str | None, epoch: int) -> None:
        if not (self.path / "history.jsonl").exists():
            return
        with _in_turn(self.path):
            rows = self.history()
            kept = [r for r in rows if (r["phase"], r.get("point")) != (kind, point) or r["epoch"] < epoch]
            self.write_text("history.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    # -- checkpoints ------------------------------------------------------------------------------------------

    def save_checkpoint(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Writes ``checkpoints/<name>.safetensors`` with the run's fingerprint and plain facts."""
        from_first(lambda: self._save_checkpoint(name, tensors, facts))

    def _save_checkpoint(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        metadata = {"fingerprint": self.fingerprint, "name": name, "facts": json.dumps(facts)}
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_atomically(self._checkpoint(name), save(plain, metadata))

    def load_checkpoint(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Returns a checkpoint's tensors and facts, or None when there is none.

        Raises:
            RunError: the file is broken, or belongs to another configuration, model, data or task.
        """
        return from_first(lambda: self._load_checkpoint(name))

    def _load_checkpoint(self, name: str, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        path = self._checkpoint(name)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                found = {key: file.get_tensor(key) for key in (file.keys() if tensors else ())}
            facts = json.loads(metadata["facts"])
            fingerprint, phase = metadata["fingerprint"], metadata.get("name", name)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunError(f"checkpoint {path} is broken ({error}); delete it to repeat its phase") from error
        if self.fingerprint and fingerprint != self.fingerprint:
            raise RunError(
                f"checkpoint {path} belongs to another configuration, model, data or task; "
                "use another --out, or delete the run to start over"
            )
        if phase != name:
            raise RunError(f"checkpoint {path} is a copy of {phase!r}; delete it to repeat its phase")
        return found, facts

    def checkpoint_facts(self, name: str) -> dict[str, Any] | None:
        """Returns a checkpoint's facts without its tensors; None and errors as `load_checkpoint`."""
        return from_first(lambda: found[1] if (found := self._load_checkpoint(name, tensors=False)) else None)

    def restore(self, name: str, module: nn.Module, tensors: Mapping[str, Tensor], *, strict: bool = True) -> None:
        """Copies a checkpoint's tensors into a module.

        Raises:
            RunError: they are of another module: the checkpoint was written by other code.
        """
        try:
            module.load_state_dict(tensors, strict=strict)
        except RuntimeError as error:
            raise RunError(
                f"checkpoint {self._checkpoint(name)} was written by another version of ddq-search, or changed: its "
                "tensors do not fit; use that version, or search again with another --out"
            ) from error

    def remove_checkpoint(self, name: str) -> None:
        """Deletes a checkpoint that a later one replaced."""
        from_first(lambda: self._checkpoint(name).unlink(missing_ok=True))

    def _checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.safetensors"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a run directory for one process.

    Raises:
        RunError: another living process holds it, or the directory cannot be written.
    """
    with contextlib.ExitStack() as stack:
        from_first(lambda: stack.enter_context(_locked(path)))
        yield


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("w")
    except OSError as error:
        raise RunError(f"cannot write to {path}: {error.strerror}; choose another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"{path} is in use by another process; wait for it or choose another --out") from error
        for left in path.rglob(".*.tmp"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """Lets one process at a time change what several write to: those that train the points of a front."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def environment(processor: str = "cpu") -> dict[str, Any]:
    """Returns what a reader needs to repeat a run: versions, platform, processor, threads, date, commit."""
    from ddq_search import __version__

    return {
        "ddq_search": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _commit(),
    }


def _commit() -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
