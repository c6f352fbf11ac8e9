"""The house keeps its shape: imports point left only, never in a circle, and each big dependency has one door."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ("spaces", "objectives", "search", "experiments")
DOORS = {
    "tensorflow": {"spaces/backend.py"},
    "tf_keras": {"spaces/backend.py"},
    "keras": {"spaces/backend.py"},
    "keras_tuner": {"spaces/hypermodel.py"},
    "tensorflow_model_optimization": {"objectives/training/prune.py"},
    "ai_edge_quantizer": {"objectives/deployment/quantize.py"},
    "ai_edge_litert": {"objectives/deployment/interpreter.py", "objectives/latency/meter.py"},
    "optuna": {
        "search/study.py",
        "search/opening.py",
        "search/owned.py",
        "search/samplers.py",
        "experiments/insight.py",
    },
    "mlflow": {"search/tracking.py"},
}


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name; the claims scripts stand outside the house."""
    found = {}
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if "claims" not in parts:
                found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, inside functions too, those for type checking left out."""
    for node in _executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _executed(child)


def test_imports_point_left_only() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in modules().items()
        for target in imports(path)
        if target.split(".")[0] in LAYERS and LAYERS.index(target.split(".")[0]) > LAYERS.index(name.split(".")[0])
    ]
    assert not wrong


def test_there_is_no_circle() -> None:
    known = modules()
    graph = {name: {t for t in imports(path) if t in known and t != name} for name, path in known.items()}
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    graph = {name: targets - packages for name, targets in graph.items()}  # a package's own file holds no code
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)  # CycleError names a circle


def test_each_big_dependency_has_one_door() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {target}"
        for path in modules().values()
        for target in imports(path)
        if (door := DOORS.get(target.split(".")[0])) and str(path.relative_to(ROOT)) not in door
    ]
    assert not wrong


def test_nothing_stands_at_the_top_that_was_not_agreed() -> None:
    agreed = {*LAYERS, "tests", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    leftovers = {"brisk-home", "brisk_rnn.egg-info", "build", "dist"}
    assert found - leftovers <= agreed
