"""A notebook's parameters, judged by the source of its cells: a kernel also keeps what was deleted from them."""

import ast
from contextlib import suppress
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
        with suppress(SyntaxError, ValueError):  # of a cell that did not run, either
            values, only_literals = _assigned(ast.parse(source), namespace, model)
            injected = source.splitlines()[:1] == [INJECTED]
            if not injected and 2 * len(needed & set(values)) > len(needed):
                found = values
            elif injected or (found and only_literals and set(values) & set(model.model_fields)):
                found |= values
    if not found:
        raise InputError("the parameters cell has not been run in this session; run it before this one.")
    return found


def _assigned(cell: ast.Module, namespace: dict, model: type[P]) -> tuple[dict[str, Any], bool]:
    """Names that a cell assigns, with their values, and whether it does nothing but assign literals.

    Objects other than plain values count for parameters alone. A literal's value is taken from the source: a cell below
    may use its name for something else.
    """
    literals = []
    for statement in cell.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value:
            with suppress(ValueError):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                literals.append((targets, ast.literal_eval(statement.value)))
    names = [n.id for n in ast.walk(cell) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    there = [n for n in names if n in namespace and (n in model.model_fields or isinstance(namespace[n], PLAIN))]
    written = {t.id: v for targets, v in literals for t in targets if isinstance(t, ast.Name) and names.count(t.id) == 1}
    return {n: namespace[n] for n in there} | written, len(literals) == len(cell.body)
