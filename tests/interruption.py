"""A training run that is interrupted at a chosen update, for the tests of resuming."""

from contextlib import contextmanager

import pytest

from dcm.training import run


@contextmanager
def interrupted_at(update: int):
    """``train_group`` in this block is interrupted when `update` is done, before anything of it is kept."""
    real = run.distill

    def dies(*a, **k):
        for state in real(*a, **k):
            if state.update == update:
                raise KeyboardInterrupt
            yield state

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "distill", dies)
        yield
