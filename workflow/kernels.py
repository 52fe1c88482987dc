"""Kernels that begin with everything imported: one process of a study imports it, and forks for every notebook.

`python kernels.py SOCKET [diffusers]` is that process; it ends with the one that started it. `python kernels.py -f FILE` is
what Jupyter starts as a kernel: it asks that process for one, and they end together.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

# papermill's nbformat would import it for checks that a notebook does not need, and that takes two seconds.
sys.modules.setdefault("rfc3987_syntax", None)
SERVER = "DCM_KERNELS"  # in the environment: the server's socket
# glibc hands a network's buffers back to the system after a layer and takes them anew, page by page, for the next.
# Kernels keep up to a gigabyte instead, and buffers of more than 32 MB (the most that it allows) go back as ever. A C
# library reads this when a process starts; others than glibc do not.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def start(diffusers: bool, threads: int) -> None:
    """Start the server for this process, and for what it becomes by ``exec``; kernels have so many `threads`, and `diffusers` imported where that is asked for."""
    path = os.path.join(tempfile.mkdtemp(prefix="dcm-"), "kernels")
    # What libraries read when they are imported: the backend of every kernel, and what Snakemake tells every rule.
    own = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    environment = KEEP_MEMORY | own | os.environ
    server = subprocess.Popen([sys.executable, __file__, path, *["diffusers"] * diffusers], stdin=subprocess.PIPE, env=environment)
    os.set_inheritable(server.stdin.fileno(), True)  # it closes when this process ends
    os.environ[SERVER] = path


def serve(path: str, diffusers: bool) -> None:
    """Import what notebooks do, then fork for whoever connects, until the standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the kernels
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        import ipykernel.kernelapp  # noqa: F401

        import dcm.notebook
        import dcm.report.study  # noqa: F401

        with suppress(ImportError):  # the notebook that needs it says so
            if diffusers:
                from diffusers.models.unets import unet_2d  # noqa: F401
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                become_kernel(connection)
            connection.close()
    shutil.rmtree(Path(path).parent)
    os._exit(0)


def become_kernel(connection: socket.socket) -> None:
    """What a fork does for the process that connected: its arguments, environment and streams."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        arguments, folder, environment = json.loads(connection.makefile().readline())
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        threading.Thread(target=lambda: (connection.recv(1), os._exit(1)), daemon=True).start()
        from ipykernel.kernelapp import launch_new_instance

        launch_new_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])
    finally:
        os._exit(0)


def ask(arguments: list[str]) -> None:
    """Have the server fork a kernel, and live as long as it and the one that asked do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SERVER])
        socket.send_fds(connection, [b"-"], [0, 1, 2])
        connection.sendall(json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode() + b"\n")
        while os.getppid() == parent and not select.select([connection], [], [], 1)[0]:
            pass


if __name__ == "__main__":
    if sys.argv[1] == "-f":
        ask(sys.argv[1:])
    else:
        sys.path[0] = str(Path(__file__).parents[1])
        serve(sys.argv[1], len(sys.argv) > 2)
