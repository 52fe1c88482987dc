"""Nothing is executed that was only meant to be read, and foreign weights are the ones that we know."""

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dcm.data import images as image_data
from dcm.metrics import encoders
from dcm.support.errors import InputError
from dcm.support.files import read_tensors

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("dcm/**/*.py"), *ROOT.glob("workflow/*.py")]
# What turns a file into running code, or a Python object into a file that does.
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy", "imp"}
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "np.load",
    "np.save", "pd.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen",
    "importlib.import_module", "importlib.util.spec_from_file_location",
}  # fmt: skip


def executed(source: str) -> list[str]:
    """Names in `source` that are on the lists above, and calls of subprocess with a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in CALLS:
                found.append(ast.unparse(node.func))
            found += ["shell=True" for k in node.keywords if k.arg in ("shell", "allow_pickle")]
    return found


def test_no_file_is_ever_executed():
    assert len(SOURCES) > 25
    assert {path.name: executed(path.read_text()) for path in SOURCES if executed(path.read_text())} == {}
    assert executed("import pickle\nfrom joblib import load\ntorch.load(p)\nsubprocess.run(a, shell=True)") == [
        "pickle", "joblib", "torch.load", "shell=True"
    ]  # fmt: skip


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def test_a_pickle_in_place_of_weights_is_refused_unopened(tmp_path):
    bomb = Bomb(tmp_path / "exploded")
    for name, write in (
        ("a.safetensors", lambda p: p.write_bytes(pickle.dumps(bomb))),
        ("b.safetensors", lambda p: torch.save(bomb, p)),
    ):
        write(tmp_path / name)
        with pytest.raises(InputError, match=f"{name} is damaged"):
            read_tensors(tmp_path / name)
    assert not (tmp_path / "exploded").exists()
    save_file({"x": torch.ones(2)}, tmp_path / "c.safetensors")
    assert read_tensors(tmp_path / "c.safetensors")[0]["x"].sum() == 2  # anyone's safetensors are read


def test_foreign_weights_are_known_by_their_sha256(tmp_path, monkeypatch):
    fake = tmp_path / "inception-2015-12-05.pt"
    fake.write_bytes(b"not what it seems")
    monkeypatch.setattr(encoders, "INCEPTION_FILE", fake)
    with pytest.raises(InputError, match="inception-2015-12-05.pt is not the file it should be: its SHA-256 begins"):
        encoders.InceptionFeatures()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"neither")
    with pytest.raises(InputError, match="cifar-10-python.tar.gz is not the file it should be"):
        image_data.cifar10(tmp_path)
    monkeypatch.setattr(encoders, "EFFICIENTNET_SHA256", "0" * 64)
    with pytest.raises(InputError, match="efficientnet-lite0-57934424.pth is not the file it should be"):
        encoders.EfficientNetFeatures()


def test_the_guard_of_the_smoke_tests_sees_connections(tmp_path):
    """The smoke tests run behind tests/guard; here it is seen to block and to let local sockets through."""
    code = """
import socket, urllib.request
server = socket.create_server(("127.0.0.1", 0)); socket.create_connection(server.getsockname())
for attempt in (lambda: socket.create_connection(("192.0.2.1", 80), 2), lambda: urllib.request.urlopen("http://example.org")):
    try:
        attempt()
    except OSError as error:
        print(error)
"""
    log = tmp_path / "log"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/guard"), "DCM_NETWORK_LOG": str(log)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert out.stdout.count("the network is blocked in this test") == 2, out.stderr
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["started", "refused", "refused"]
