"""One kind of error for bad input: a single sentence that says what is wrong and what is allowed."""


class InputError(ValueError):
    """Raised before any long work starts when a parameter, a file or a data source cannot be used.

    In a notebook only the sentence is shown, not a traceback (IPython asks for ``_render_traceback_``).
    """

    def _render_traceback_(self) -> list[str]:
        return [f"InputError: {self}"]


class TrainingError(RuntimeError):
    """Raised when training cannot go on (a loss that is not finite, say), naming the step and what to change."""

    def _render_traceback_(self) -> list[str]:
        return [f"TrainingError: {self}"]
