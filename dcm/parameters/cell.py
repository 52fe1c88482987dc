"""A notebook's parameters, judged by the source of its cells: a kernel also keeps what was deleted from them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from dcm.parameters.check import P, validate
from dcm.support.errors import InputError

PLAIN = (bool, int, float, str, list, dict, tuple, type(None))
INJECTED = "# Parameters"  # the first line of the cell that papermill puts below the parameters cell


def check(model: type[P], namespace: dict) -> P:
    """The parameters in a notebook's `namespace` (its ``globals()``), checked; raises :class:`InputError`.

    In IPython's session they are what its parameters cell, as it was last run, and papermill's assign. Elsewhere, and in
    a session that keeps no history (nbval's), every plain value in `namespace` is one.
    """
    history = namespace.get("In")
    if isinstance(history, list) and any(history):
        return validate(model, _of_session(model, namespace))
    own, hidden = ("__", ()) if history is None else ("_", ("In", "Out"))  # IPython's names
    plain = {n: v for n, v in namespace.items() if n not in hidden and not n.startswith(own) and isinstance(v, PLAIN)}
    return validate(model, plain)


def _of_session(model: type[P], namespace: dict) -> dict[str, Any]:
    """What the last parameters cell assigns, and after it papermill's cell and cells of a few values of parameters."""
    needed = {name for name, field in model.model_fields.items() if field.is_required()}
    found: dict[str, Any] = {}
    for source in namespace["In"]:
        try:
            values = dict(_assigned(ast.parse(source), namespace, model))
        except (SyntaxError, ValueError):  # it did not run, either
            continue
        injected = source.splitlines()[:1] == [INJECTED]
        if not injected and 2 * len(needed & set(values)) > len(needed):
            found = values
        elif injected or (found and _only_values(source) and set(values) & set(model.model_fields)):
            found |= values
    if not found:
        raise InputError("the parameters cell has not been run in this session; run it before this one.")
    return found


def _assigned(cell: ast.Module, namespace: dict, model: type[P]) -> Iterator[tuple[str, Any]]:
    """Names that a cell assigns, with their values; objects other than plain values count for parameters alone.

    A literal's value is taken from the source: a cell below may use its name for something else.
    """
    names = [n.id for n in ast.walk(cell) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    for name in names:
        if name in namespace and (name in model.model_fields or isinstance(namespace[name], PLAIN)):
            yield name, namespace[name]
    for statement in cell.body:
        targets, value = _parts(statement)
        for target in targets:
            if isinstance(target, ast.Name) and names.count(target.id) == 1 and (literal := _literal(value)):
                yield target.id, literal[0]


def _parts(statement: ast.stmt) -> tuple[list, Any]:
    """Targets and value of an assignment."""
    if isinstance(statement, ast.AnnAssign):
        return [statement.target], statement.value
    return (statement.targets, statement.value) if isinstance(statement, ast.Assign) else ([], None)


def _literal(value: ast.expr | None) -> list:
    """The value of a literal, in a list; an empty one for other expressions."""
    try:
        return [ast.literal_eval(value)] if value else []
    except ValueError:
        return []


def _only_values(source: str) -> bool:
    """Whether a cell does nothing but give names literal values."""
    return all(_literal(_parts(statement)[1]) for statement in ast.parse(source).body)
