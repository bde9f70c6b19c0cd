"""What a stage's code depends on, read from its imports without running it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"


def first_party_files(script: Path) -> set[str]:
    """The script and every file of src/ that it imports, directly or not, relative to the repository.

    Imports inside functions count. Empty `__init__.py` files are left out: they hold nothing that changes a result.
    """
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            waiting += _beside(path, node)
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting += [file for name in names for file in _files(name)]
    # Files that a module reads from beside itself (templates) shape its output as its code does.
    found |= {
        data
        for path in found
        if path.is_relative_to(SOURCE / "sqlora")
        for data in path.parent.iterdir()
        if data.is_file() and data.suffix != ".py"
    }
    return {path.relative_to(ROOT).as_posix() for path in found}


def _beside(path: Path, node: ast.AST) -> list[Path]:
    """The script that a module runs as a process: Path(__file__).with_name("NAME.py")."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "with_name":
        names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        return [path.with_name(str(name)) for name in names if str(name).endswith(".py")]
    return []


def _files(module: str) -> list[Path]:
    if module.split(".")[0] != "sqlora":
        return []
    parts = module.split(".")
    candidates = [SOURCE.joinpath(*parts).with_suffix(".py")]
    candidates += [SOURCE.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    return [path for path in candidates if path.is_file() and path.stat().st_size]
