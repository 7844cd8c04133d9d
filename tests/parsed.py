"""The modules of the package as syntax trees, parsed once for all tests that read them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import mapet

PACKAGE = Path(mapet.__file__).parent


@cache
def nodes_of_package() -> dict[Path, list[ast.AST]]:
    """All nodes of each module, in the order of `ast.walk`; the first is the module."""
    return {path: [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))] for path in sorted(PACKAGE.rglob("*.py"))}
