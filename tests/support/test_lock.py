"""One study at a time in a folder, shown with real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcm.support import lock
from dcm.support.errors import InputError

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != lock.HELD} | {"PYTHONPATH": f"{ROOT}:{ROOT}/workflow"}
HOLD = "import sys, pathlib, time; from dcm.support import lock; lock.hold(pathlib.Path(sys.argv[1])); {then}"


def start(code: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, folder], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder and has a child, which ends when the holder does."""
    child = "import time, run_notebook; run_notebook.end_with_the_study(); print('up', flush=True); time.sleep(60)"
    then = f"import subprocess; subprocess.run([sys.executable, '-c', {child!r}])"
    process = start(HOLD.format(then=then), tmp_path)
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_is_refused_until_the_first_is_killed(tmp_path, holder):
    for attempt in (lock.hold, lock.check_free):
        with pytest.raises(
            InputError, match=f"{tmp_path} is in use: process {holder.pid} has been running a study there since"
        ):
            attempt(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert holder.stdout.read() == "", "the child is gone too: it held the other end"
    lock.check_free(tmp_path)
    second = start(HOLD.format(then="print('held')"), tmp_path)
    assert second.communicate(timeout=60)[0] == "held\n"


def test_what_a_study_starts_is_let_in(tmp_path, monkeypatch):
    monkeypatch.setenv(lock.HELD, "")
    lock.check_free(tmp_path)
    assert not list(tmp_path.iterdir()), "who only looks leaves nothing"
    code = HOLD.format(
        then="lock.check_free(pathlib.Path(sys.argv[1])); lock.hold(pathlib.Path(sys.argv[1])); print('in')"
    )
    begin = time.time()
    assert start(code, tmp_path / "run").communicate(timeout=60)[0] == "in\n" and time.time() - begin < 50
