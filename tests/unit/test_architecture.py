"""Imports point down: a module imports from its own layer's folder or from lower layers, and Ray is in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT

# From the lowest to the highest layer. A name is a module of `embedding`, or a folder with all its modules. Modules of
# one layer do not import each other, except within a folder.
LAYERS: list[set[str]] = [
    {"redact", "text"},
    {"errors"},
    {"extras", "quiet", "stopping", "timeline"},
    {"schema"},
    {"storage"},
    {"config", "config_file", "counters"},
    {"decoding"},
    {"listing", "encoding"},
    {"output"},
    {"planning", "where"},
    {"cli", "lazy_tables"},
    {"ray_runtime", "job"},
    {"pipeline", "request", "derived"},
    {"announce", "target_run"},
    {"driver", "labelling", "pooling", "search", "overview"},
    {"exporting", "probing"},
    {"clustering", "detecting", "evaluating"},
    {"api"},
    {"jobs"},
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules() -> list[Path]:
    return sorted([*(ROOT / "embedding").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


def part_of(dotted: str) -> str | None:
    """Return the name in LAYERS of a dotted module; None outside of this project."""
    names = dotted.split(".")
    if names[0] == "jobs":
        return "jobs"
    return names[1] if names[0] == "embedding" and len(names) > 1 else None


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_every_module_has_its_layer() -> None:
    parts = {part_of(dotted_name(path)) for path in modules()} - {"__init__"}
    assert parts == set(LEVELS)


@pytest.mark.parametrize("path", modules(), ids=dotted_name)
def test_imports_point_down(path: Path) -> None:
    own = part_of(dotted_name(path))
    if own == "__init__":  # the public surface of the package
        return
    assert own is not None
    for name in imports(path):
        part = part_of(name)
        if part is not None and part != own:
            assert LEVELS[part] < LEVELS[own], f"{dotted_name(path)} imports {name}, which is not below it"


@pytest.mark.parametrize("path", modules(), ids=dotted_name)
def test_ray_is_imported_by_the_pipeline_and_the_ray_runtime_alone(path: Path) -> None:
    uses_ray = any(name.split(".")[0] == "ray" for name in imports(path))
    if uses_ray:
        assert part_of(dotted_name(path)) in ("pipeline", "ray_runtime")


@pytest.mark.parametrize("path", modules(), ids=dotted_name)
def test_sets_of_targets_are_packed_into_bits_by_one_module_alone(path: Path) -> None:
    packs = any(
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift | ast.RShift) and "target" in ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
    )
    assert packs == (dotted_name(path) == "embedding.schema.targets")


def test_no_test_file_imports_another() -> None:
    """Builders that several test files need are in ``tests/support``."""
    for path in (ROOT / "tests").rglob("*.py"):
        of_tests = [name for name in imports(path) if name.split(".")[0] == "tests"]
        assert all(name.startswith("tests.support") for name in of_tests), f"{dotted_name(path)}: {of_tests}"
