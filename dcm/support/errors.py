"""Errors that are one sentence: what is wrong, and what is allowed or can be done."""


class _Sentence:
    """In a notebook only the sentence is shown, not a traceback: IPython asks for ``_render_traceback_``."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class InputError(_Sentence, ValueError):
    """Raised before any long work starts when a parameter, a file or a data source cannot be used."""


class TrainingError(_Sentence, RuntimeError):
    """Raised when training cannot go on (a loss that is not finite, say), naming the step and what to change."""


def last_good(checkpoint, update: int) -> str:
    """Where a training that failed can be looked into: its last good `checkpoint`, if one was written by `update`."""
    there = f"The last good checkpoint is {checkpoint} (update {update})."
    return there if update else "No checkpoint was written before."


def why(error: Exception) -> str:
    """What an exception says, on one line; of pydantic's the first thing that is wrong."""
    text = f"{type(error).__name__}: {error}"
    if hasattr(error, "errors"):
        first = error.errors(include_url=False, include_input=False)[0]
        text = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    return " ".join(text.split())[:200]
