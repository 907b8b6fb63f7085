"""The floors of the house, read from the imports: who may import whom, and which library stays behind which door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SATELLITES = ("search_spaces", "hardware_models", "reports")
PACKAGES = ("ddq_search", *SATELLITES)

FLOORS = (
    ("errors", "listing", "precision", "whole_files", "native", "method_names"),
    ("graph", "trace", "fusion", "fx_nodes", "space", "cost", "packing", "arithmetic", "discrete", "budget", "task",
     "layer_shape", "schedule", "contraction", "size_constraints"),
    ("quantizers", "supernet", "operators", "policy", "pareto", "front", "feasibility", "judgement", "projector",
     "planned_projector", "enumerated_projector", "lagrangian", "interchange", "quantizer_recipe", "training",
     "evaluation", "requantization", "record", "config", "integer", "problem", "gate_training", "mixture_training",
     "methods", "distributed", "batch_statistics", "batches", "compute", "compilation", "loss_scale",
     "distillation", "folding"),
    ("search", "stages", "solve", "ptq", "baselines", "relaxed", "strategy_guard", "finetune_shares", "joint", "api",
     "point_workers", "tune", "export", "verify"),
    ("cli", "__main__", "demo"),
)  # fmt: skip
"""Parts of the core by floor, lowest first; ``tune_study`` lives where ``tune`` does."""

DOORS = {
    "optuna": ("ddq_search.tune", "ddq_search.baselines.nsga2"),
    "plotly": ("reports",),
    "onnx": ("ddq_search.export", "ddq_search.verify"),
    "onnxruntime": ("ddq_search.export", "ddq_search.verify"),
    "ai_edge_litert": ("ddq_search.export",),
    "flatbuffers": ("ddq_search.export",),
    "tflite": ("ddq_search.export",),
    "typer": ("ddq_search.cli", "ddq_search.__main__"),
    "sklearn": ("search_spaces",),
    "torchvision": ("search_spaces",),
    "PIL": ("search_spaces",),
}
"""Heavy library → the modules (with everything below them) that may import it."""


def _modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(_modules())


def _imports(name: str) -> set[str]:
    """Returns the full names of everything a module imports, at its top or inside functions, types excepted."""
    found: set[str] = set()
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in _at_run_time(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in MODULES else base)
    return found


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _at_run_time(child)


def _below(name: str, root: str) -> bool:
    return name == root or name.startswith(root + ".")


def _part(name: str) -> str:
    """Returns the core's part that a module belongs to: ``ddq_search.export.onnx`` → ``export``."""
    return [*name.split("."), ""][1]


def _floor(name: str) -> int | None:
    floors = {part: level for level, parts in enumerate(FLOORS) for part in parts}
    return floors.get(_part(name), floors.get(_part(name).partition("_")[0]))


def _is_roof(name: str) -> bool:
    return _floor(name) == len(FLOORS) - 1


@pytest.mark.parametrize("name", [name for name in MODULES if _below(name, "ddq_search") and not _is_roof(name)])
def test_the_core_imports_no_satellite(name: str) -> None:
    assert not [found for found in _imports(name) if found.split(".")[0] in SATELLITES]


@pytest.mark.parametrize("name", [name for name in MODULES if not _below(name, "ddq_search")])
def test_satellites_do_not_import_one_another_nor_the_roof(name: str) -> None:
    own = name.split(".")[0]
    others = [found for found in _imports(name) if found.split(".")[0] in SATELLITES and not _below(found, own)]
    assert not others
    assert not [found for found in _imports(name) if _below(found, "ddq_search") and _is_roof(found)]


@pytest.mark.parametrize("name", [name for name in MODULES if _part(name) and _below(name, "ddq_search")])
def test_imports_run_downwards(name: str) -> None:
    own = _floor(name)
    assert own is not None, f"enter {_part(name)!r} in FLOORS of {Path(__file__).name}"
    above = [found for found in _imports(name) if _below(found, "ddq_search") and (_floor(found) or 0) > own]
    assert not above, f"{name} is on floor {own}"


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_stay_behind_their_doors(library: str) -> None:
    doors = DOORS[library]
    users = [name for name in MODULES if any(_below(found, library) for found in _imports(name))]
    outside = [name for name in users if not any(name.startswith(door) for door in doors)]
    assert not outside


@pytest.mark.parametrize("package", ["reports", "ddq_search"])
def test_importing_it_loads_no_torch(package: str) -> None:
    code = f"import sys, {package}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_library_code_does_not_print() -> None:
    calls = [
        f"{name}:{node.lineno}"
        for name, path in MODULES.items()
        if not _is_roof(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "exit")
    ]
    assert not calls


@pytest.mark.parametrize("name", list(MODULES))
def test_every_module_says_what_it_is_and_no_file_is_a_drawer(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name} has no docstring"
    assert name.split(".")[-1] not in {"utils", "helpers", "common", "misc", "manager", "factory", "handler"}


def test_the_package_root_and_the_record_of_errors_are_light() -> None:
    assert not _imports("ddq_search.errors") - {"__future__"}
