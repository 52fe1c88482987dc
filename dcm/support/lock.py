"""One study at a time in a run's folder: a lock that the system releases when its process ends, however it ends."""

import fcntl
import os
import time
from pathlib import Path

from dcm.support.errors import InputError

HELD = "DCM_HELD"  # in the environment: folders that this process, or one that started it, holds


def held() -> list[str]:
    """Folders that a study holds to which this process belongs."""
    return [folder for folder in os.environ.get(HELD, "").split(os.pathsep) if folder]


def locked(file: int, kind: int) -> bool:
    """Whether the lock could be had at once; also where the file system has none, after a word of warning."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        print(f"Nothing can be locked here ({error.strerror}): see to it that one study at a time runs in a folder.")
    return True


def _in_use(folder: Path) -> InputError:
    holder, _, since = (folder / ".lock").read_text().partition(" ")
    who = f"process {holder} has been running a study there since {since}"
    return InputError(f"{folder} is in use: {who}; wait until it ends, or choose another run_dir.")


def hold(folder: Path) -> None:
    """Hold `folder` until this process ends, also after ``exec``; raises :class:`InputError` that names who has it."""
    if str(folder.resolve()) in held():
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    end = time.monotonic() + 2  # whoever only looks holds it for a moment
    while not locked(file, fcntl.LOCK_EX):
        if time.monotonic() > end:
            os.close(file)
            raise _in_use(folder)
        time.sleep(0.1)
    os.ftruncate(file, 0)
    os.write(file, f"{os.getpid()} {time.strftime('%H:%M:%S')}".encode())
    os.set_inheritable(file, True)
    os.environ[HELD] = os.pathsep.join([*held(), str(folder.resolve())])


def check_free(folder: Path) -> None:
    """Raise :class:`InputError` when a study that did not start this process runs in `folder`."""
    if str(folder.resolve()) in held() or not (folder / ".lock").exists():
        return
    with open(folder / ".lock") as file:
        if not locked(file.fileno(), fcntl.LOCK_SH):
            raise _in_use(folder)
