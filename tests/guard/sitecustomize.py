"""Every Python process that starts with this folder on PYTHONPATH refuses connections to other machines and logs them.

Python loads a module of this name by itself. Sockets of C libraries (ZeroMQ's, between papermill and its kernel) are
not seen.
"""

import os
import socket

LOG = os.environ.get("DCM_NETWORK_LOG")
LOCAL = ("127.", "::1", "localhost", "0.0.0.0", "::")


def note(text: str) -> None:
    with open(LOG, "a") as file:
        file.write(text + "\n")


def check(address) -> None:
    host = address[0] if isinstance(address, tuple) else address
    host = host.decode(errors="replace") if isinstance(host, bytes) else host
    # A path (str) is a socket of this machine; None and "" are this machine too.
    if isinstance(address, tuple) and host and not str(host).startswith(LOCAL) and host != socket.gethostname():
        note(f"refused {address}")
        raise OSError(f"the network is blocked in this test: {address}")


def guarded(method):
    def call(self, address, *rest):
        check(address)
        return method(self, address, *rest)

    return call


if LOG:
    note(f"started {os.getpid()}")
    socket.socket.connect = guarded(socket.socket.connect)
    socket.socket.connect_ex = guarded(socket.socket.connect_ex)
    look_up = socket.getaddrinfo

    def getaddrinfo(host, *rest, **options):
        check((host,))
        return look_up(host, *rest, **options)

    socket.getaddrinfo = getaddrinfo
