"""Small wrong versions of a module, made from its syntax tree."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

COMPARISON_SWAPS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATOR_SWAPS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAME_SWAPS = {
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "any": "all",
    "all": "any",
    "floor": "ceil",
    "ceil": "floor",
    "clamp_min": "clamp_max",
    "clamp_max": "clamp_min",
    "sum": "mean",
    "mean": "sum",
    "nanmean": "nansum",
    "argmin": "argmax",
    "argmax": "argmin",
}

Change = Callable[[ast.AST], ast.AST]


class Mutant(NamedTuple):
    """One wrong version.

    Attributes:
        line: Where it differs.
        what: How: the code before and after.
        source: The whole module.
    """

    line: int
    what: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines; one change each.

    Not changed: docstrings, annotations, strings and the messages of errors; what only type checkers read.
    """
    tree = ast.parse(source)
    quiet = _quiet(tree)
    changed = []
    for number, node in enumerate(ast.walk(tree)):
        if node in quiet:
            continue
        for change in _changes(node):
            wrong = copy.deepcopy(tree)
            old = _at(wrong, number)
            before = ast.unparse(old)
            new = ast.fix_missing_locations(ast.copy_location(change(old), old))
            text = ast.unparse(_Replace(old, new).visit(wrong))
            changed.append(Mutant(getattr(node, "lineno", 0), f"{before} -> {ast.unparse(new)}", text))
    unique = {mutant.source: mutant for mutant in changed}
    unique.pop(ast.unparse(tree), None)
    return sorted(unique.values(), key=lambda mutant: (mutant.line, mutant.what))


def _at(tree: ast.AST, index: int) -> ast.AST:
    return next(node for number, node in enumerate(ast.walk(tree)) if number == index)


class _Replace(ast.NodeTransformer):
    """Puts `new` in the place of `old`."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _changes(node: ast.AST) -> Iterator[Change]:
    """What can be wrong at one node."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISON_SWAPS:
        other = COMPARISON_SWAPS[type(node.ops[0])]
        yield lambda old: ast.Compare(old.left, [other()], old.comparators)  # type: ignore[attr-defined]
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATOR_SWAPS:
        operator = OPERATOR_SWAPS[type(node.op)]
        yield lambda old: ast.BinOp(old.left, operator(), old.right)  # type: ignore[attr-defined]
    elif isinstance(node, ast.BoolOp):
        joined = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield lambda old: ast.BoolOp(joined(), old.values)  # type: ignore[attr-defined]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield lambda old: old.operand  # type: ignore[attr-defined]
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        value = (not node.value) if isinstance(node.value, bool) else node.value + 1
        yield lambda old: ast.Constant(value)
    elif isinstance(node, ast.Attribute) and node.attr in NAME_SWAPS:
        yield lambda old: ast.Attribute(old.value, NAME_SWAPS[old.attr], old.ctx)  # type: ignore[attr-defined]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAME_SWAPS:
        yield lambda old: ast.Call(ast.Name(NAME_SWAPS[old.func.id]), old.args, old.keywords)  # type: ignore[attr-defined]
    elif isinstance(node, ast.Raise | ast.AugAssign | ast.Delete) or _is_call(node):
        yield lambda old: ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield lambda old: ast.Return(ast.Constant(None))


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _quiet(tree: ast.AST) -> set[ast.AST]:
    """Nodes whose changes no test should notice: messages of errors and declarations of types."""
    roots: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            roots.append(node)
        elif isinstance(node, ast.AnnAssign | ast.arg):
            roots.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            roots.append(node.returns)
    return {part for root in roots if root is not None for part in ast.walk(root)}
