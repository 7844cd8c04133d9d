"""Modules import one another in no circle; imports inside functions do not count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mapet

SOURCE = Path(mapet.__file__).parent


def module_of(path: Path, root: Path) -> str:
    return ".".join([root.name, *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, and those under TYPE_CHECKING."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body)


def imported(path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that `path` imports at module level; `from package import name` is of the module it comes from."""
    names: set[str] = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & modules or {node.module}
    return names & modules


def circles(root: Path) -> list[list[str]]:
    """Groups of modules in which each imports every other, directly or through others."""
    files = {module_of(path, root): path for path in sorted(root.rglob("*.py"))}
    direct = {name: imported(path, set(files)) for name, path in files.items()}
    reached: dict[str, set[str]] = {}
    for name in files:
        seen: set[str] = set()
        waiting = [*direct[name]]
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                waiting += direct[other]
        reached[name] = seen
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in files if name in reached[name]}
    return sorted(sorted(group) for group in groups)


def test_no_modules_import_one_another() -> None:
    assert circles(SOURCE) == []


@pytest.mark.parametrize(
    "text",
    [
        "from tree.first import x",
        "import tree.first",
        "from tree import first",
        "try:\n    import tree.first\nexcept ImportError:\n    pass",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tree.first import x",
        "class C:\n    from tree.first import x",
    ],
)
def test_a_circle_is_found(tmp_path: Path, text: str) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "__init__.py").touch()
    (root / "first.py").write_text("from tree.second import y\n")
    (root / "second.py").write_text(text + "\n")
    assert circles(root) == [["tree.first", "tree.second"]]
    (root / "second.py").write_text("def f():\n    from tree.first import x\n")
    assert circles(root) == []
