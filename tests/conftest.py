"""What every test gets: a cache of its own, the same random start, two threads at most."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.threads import threads


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDQ_SEARCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _threads() -> Iterator[None]:
    with threads(min(torch.get_num_threads(), 2)):
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For small tensors: a second thread costs more than it brings on a busy machine, and sums in another order."""
    with threads(1):
        yield


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler of SIGINT: background jobs of some shells start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the source tree."""
    return Path(__file__).resolve().parent.parent
