"""The house rules a linter cannot express, read from the syntax tree of every source file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
BANNED_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}
BLOCKS = ast.For | ast.AsyncFor | ast.While | ast.If | ast.With | ast.AsyncWith | ast.Try | ast.Match


def patched_names(tree: ast.Module) -> list[str]:
    """Return targets such as `module.attr = ...` where `module` was imported: a monkey patch."""
    imported = {(alias.asname or alias.name).split(".")[0] for node in ast.walk(tree)
                if isinstance(node, ast.Import) for alias in node.names}
    targets = [t for node in ast.walk(tree) if isinstance(node, ast.Assign) for t in node.targets
               if isinstance(t, ast.Attribute)]
    return [ast.unparse(t) for t in targets if ast.unparse(t).split(".")[0] in imported]


def depth(node: ast.AST, level: int = 0) -> int:
    """Return how deep blocks nest below `node`; an `elif` stays on the level of its `if`."""
    deepest = level
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child, level + (isinstance(child, BLOCKS) and not is_elif)))
    return deepest


def compares_stage(tree: ast.Module) -> list[int]:
    """Return the lines where something called `stage` is compared with a string."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Compare)
            and ast.unparse(node.left).split(".")[-1] == "stage"
            and any(isinstance(c, ast.Constant) and isinstance(c.value, str) for c in node.comparators)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_shape(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions
            if f.end_lineno and f.end_lineno - f.lineno + 1 > 60}
    nested = {f.name: depth(f) for f in functions if depth(f) > 3}
    assert path.name not in BANNED_NAMES, f"{path}: name the file after what it is about"
    assert text.count("\n") <= 400, f"{path}: split it; a file tells one story"
    assert not text.strip() or ast.get_docstring(tree), f"{path}: say in one line what this file is for"
    assert not long, f"{path}: functions over 60 lines: {long}"
    assert not nested, f"{path}: blocks nest deeper than 3: {nested}"
    assert not patched_names(tree), f"{path}: monkey patch of {patched_names(tree)}; wrap or subclass"
    assert not compares_stage(tree), f"{path}: a stage name is compared in lines {compares_stage(tree)}"
