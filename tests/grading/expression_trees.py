"""Expression trees from Python's notation, independent of the reader of answers."""

import ast
from fractions import Fraction

from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol

_NAMES = {ast.Add: "add", ast.Sub: "add", ast.Mult: "multiply", ast.Div: "divide", ast.Pow: "power"}


def tree(text: str) -> Expression:
    """Return the tree of a Python expression; calls are operations: ``max(2**10 - 24, 0)``.

    Operands of sums and products without brackets stand side by side, as the reader of answers returns them.
    """
    return _tree(ast.parse(text.strip(), mode="eval").body)


def _tree(node: ast.expr) -> Expression:
    match node:
        case ast.Constant(value=int() | float()):
            return Number(Fraction(str(node.value)), len(str(node.value)) if isinstance(node.value, float) else None)
        case ast.Name(id=name):
            return Symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return Operation("negate", (_tree(operand),))
        case ast.Call(func=ast.Name(id=name), args=operands):
            return Operation(name, tuple(_tree(operand) for operand in operands))
        case ast.BinOp(left=left, op=operator, right=right):
            name = _NAMES[type(operator)]
            first, second = _tree(left), _tree(right)
            if isinstance(operator, ast.Sub):
                second = Operation("negate", (second,))
            in_brackets = left.col_offset > node.col_offset
            if name in ("add", "multiply") and isinstance(first, Operation) and first.name == name and not in_brackets:
                return Operation(name, (*first.operands, second))
            return Operation(name, (first, second))
    raise ValueError(ast.dump(node))
