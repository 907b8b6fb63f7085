"""The wheel holds all four packages with their data, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGES = ("ddq_search", "search_spaces", "hardware_models", "reports")
DATA = {".toml", ".csv", ".json", ".typed", ".html", ".js", ".css", ".c", ".h", ".S", ".fbs"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(repository)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("ddq_search-*.whl")
    return zipfile.ZipFile(path)


def test_all_sources_and_data_files_are_in(wheel: zipfile.ZipFile, repository: Path) -> None:
    wanted = {
        path.relative_to(repository).as_posix()
        for package in PACKAGES
        for path in (repository / package).rglob("*")
        if path.is_file() and (path.suffix == ".py" or path.suffix in DATA) and "__pycache__" not in path.parts
    }
    assert not wanted - set(wheel.namelist())


def test_nothing_else_is_in(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_command_and_licence(wheel: zipfile.ZipFile) -> None:
    names = {name.rpartition("/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "ddq-search = ddq_search.cli:main" in wheel.read(names["entry_points.txt"]).decode()
    assert b"Apache License" in wheel.read(names["LICENSE"])
