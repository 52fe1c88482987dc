"""One kind of error for bad input: a single sentence that says what is wrong and what is allowed."""

from __future__ import annotations


class InputError(ValueError):
    """Raised before any long work starts when a parameter, a file or a data source cannot be used.

    In a notebook only the sentence is shown, not a traceback (IPython asks for ``_render_traceback_``).
    """

    def _render_traceback_(self) -> list[str]:
        return [f"InputError: {self}"]


def last_good(checkpoint, update: int) -> str:
    """Where a training that failed can be looked into: its last good `checkpoint`, if one was written by `update`."""
    return (
        f"The last good checkpoint is {checkpoint} (update {update})."
        if update
        else "No checkpoint was written before."
    )


class TrainingError(RuntimeError):
    """Raised when training cannot go on (a loss that is not finite, say), naming the step and what to change."""

    def _render_traceback_(self) -> list[str]:
        return [f"TrainingError: {self}"]


def why(error: Exception) -> str:
    """What an exception says, on one line; of pydantic's the first thing that is wrong."""
    text = f"{type(error).__name__}: {error}"
    if hasattr(error, "errors"):
        first = error.errors(include_url=False, include_input=False)[0]
        text = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    return " ".join(text.split())[:200]
