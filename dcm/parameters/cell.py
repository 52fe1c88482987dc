"""A notebook's parameters cell."""

from __future__ import annotations

from dcm.parameters.check import P, validate


def check(model: type[P], namespace: dict) -> P:
    """The parameters in a notebook's `namespace` (its ``globals()``), checked.

    Every plain value that the parameters cell or papermill set counts; a name that `model` does not know is refused.
    When the cell is run again in the same session, other variables of the notebook are left alone.

    Raises :class:`InputError`.
    """
    first_time = "_parameters_checked" not in namespace
    plain = (bool, int, float, str, list, dict, tuple, type(None))
    jupyter = {"In", "Out"}
    values = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in jupyter
        and (name in model.model_fields or (first_time and isinstance(value, plain)))
    }
    parameters = validate(model, values)
    namespace["_parameters_checked"] = True
    return parameters
