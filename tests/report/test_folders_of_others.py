"""Figures and results that come from others: refused in one sentence, and never obeyed."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import pandas as pd
import pytest

from dcm.__main__ import main
from dcm.analysis import runs
from dcm.report import provenance
from dcm.support.errors import InputError

ROOT = Path(__file__).parents[2]
SOURCE = {"file": "a.csv", "fingerprint": "0" * 16}
RECORD = {
    "study": "gmm", "figure": "fig1", "caption": "c", "commit": "abc", "drawn_from": [SOURCE],
    "parameters": SOURCE | {"file": "provenance.json", "notebooks": ["5_figures"]},
}  # fmt: skip


def png(path: Path, text: bytes, size: int = 1, kind: bytes = b"tEXt") -> Path:
    """A png whose text chunk ``dcm`` holds `text`, as any program could write it."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    head = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    body = (
        chunk(b"IHDR", head)
        + chunk(kind, b"dcm\0" + text)
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def told(path: Path, capsys) -> str:
    """What the command says of a file that it refuses: one line, without anything that steers a terminal."""
    assert main(["provenance", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.rstrip("\n").isprintable() and len(err) < 2200
    return err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({k: v for k, v in RECORD.items() if k != "caption"}), "KeyError: 'caption'"),
        (json.dumps(RECORD | {"drawn_from": [{"file": 3, "fingerprint": ""}]}), "TypeError"),
        (json.dumps(RECORD | {"drawn_from": {"file": "a.csv"}}), "TypeError"),
        (json.dumps(RECORD | {"drawn_from": [SOURCE] * 101}), "allowed: at most 100"),
        (json.dumps(RECORD | {"parameters": None}), "TypeError"),
        ("[" * 100_000 + "]" * 100_000, "RecursionError"),
        ("[]", "TypeError"),
        ("\x1b]0;owned\x07{", "JSONDecodeError"),
        ("x" * (1 << 21), "JSONDecodeError"),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path, capsys, text, message):
    said = told(png(tmp_path / "a.png", text.encode()), capsys)
    assert "cannot be read as a figure" in said and message in said


def test_what_would_fill_the_memory_or_wait_for_ever_is_refused(tmp_path, capsys):
    bomb = b"\0" + zlib.compress(b"x" * (1 << 28))  # 256 MB in 256 KB
    assert "cannot be read as a figure" in told(png(tmp_path / "bomb.png", bomb, kind=b"zTXt"), capsys)
    assert "cannot be read as a figure" in told(png(tmp_path / "wide.png", b"{}", size=1 << 20), capsys)
    os.mkfifo(tmp_path / "pipe.png")
    assert "is no figure" in told(tmp_path / "pipe.png", capsys)
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert "is no figure" in told(tmp_path / "zero.png", capsys)
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(1 << 27)  # a hole
    assert "cannot be read as a figure" in told(tmp_path / "large.png", capsys)


def test_the_files_that_a_record_names_are_only_compared(tmp_path, capsys):
    """Whatever they are: a device or a pipe is not read, and deep or foreign JSON is just another content."""
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "deep.json").write_text('{"notebooks":' * 50_000)
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "foreign.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "a.csv").write_text("a\n1\n")
    with open(tmp_path / "endless.csv", "wb") as file:
        file.truncate(1 << 40)  # a hole
    names = ["/dev/zero", "pipe.csv", "foreign.safetensors", "endless.csv"]
    entries = [SOURCE | {"file": name} for name in names]
    entries += [SOURCE, SOURCE | {"count": 10**400}]
    entries += [SOURCE | {"file": name, "notebooks": []} for name in ("deep.json", "list.json")]
    none = [SOURCE | {"file": name} for name in ("x" * 300, "nul\0.csv")]
    path = png(tmp_path / "a.png", json.dumps(RECORD | {"drawn_from": entries + none}).encode())
    assert main(["provenance", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.count(": changed\n") == len(entries) and out.count(": not here\n") == 1 + len(none)


def test_a_terminal_is_not_steered(tmp_path, capsys):
    record = RECORD | {"caption": "\x1b[2J\x1b]0;owned\x07 and\na new line\u202e", "drawn_from": []}
    main(["provenance", str(png(tmp_path / "a.png", json.dumps(record).encode()))])
    out = capsys.readouterr().out
    assert "and" in out and all(line.isprintable() for line in out.splitlines()) and len(out.splitlines()) == 6


@pytest.fixture
def results(tmp_path) -> Path:
    """A copy of a results folder of notebook 7."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("metrics.csv", "provenance.json", "studies.json"):
        shutil.copy(ROOT / "results/regimes" / name, folder)
    return folder


def load(folder: Path) -> list[runs.Results]:
    return runs.load(str(folder))


def test_a_copied_results_folder_is_read(results):
    assert [run.name for run in load(results)][0] == "gmm"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"x/../../../pwned": s["gmm"]}, "should match pattern"),
        (lambda s: s | {"..": s["gmm"]}, "should match pattern"),
        (lambda s: s | {"gmm": "../../pwned"}, "gmm: "),
        (lambda s: s | {"gmm": "digits"}, "are of other studies"),
        (lambda s: s | {"gmm": {}}, "gmm: "),
        (lambda s: s | {"another": s["gmm"]}, "do not fit together"),
        (lambda s: [], "Input should be an object"),
    ],
)
def test_what_a_results_folder_says_of_its_studies_is_checked(results, change, message):
    studies = json.loads((results / "studies.json").read_text())
    (results / "studies.json").write_text(json.dumps(change(studies)))
    with pytest.raises(InputError, match="is no whole results folder of notebook 5 or 7") as refused:
        load(results)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("studies.json", "[" * 100_000),
        ("provenance.json", "[" * 100_000),
        ("provenance.json", '{"notebooks": []}'),
        ("provenance.json", "{}"),
        ("metrics.csv", ""),
        ("metrics.csv", "a\n1\n"),
    ],
)
def test_a_damaged_results_folder_is_refused(results, name, text):
    (results / name).write_text(text)
    with pytest.raises(InputError, match="is no whole results folder of notebook 5 or 7"):
        load(results)


def test_a_group_that_is_no_name_is_refused(results):
    """A group's name stands in tables and titles."""
    about = json.loads((results / "provenance.json").read_text())
    record = about["notebooks"].pop("gmm/2_distill-main")
    about["notebooks"]["gmm/2_distill-<img src=x>"] = record
    (results / "provenance.json").write_text(json.dumps(about))
    rows = pd.read_csv(results / "metrics.csv")
    rows.loc[(rows.run == "gmm") & (rows.group == "main"), "group"] = "<img src=x>"
    rows.to_csv(results / "metrics.csv", index=False)
    with pytest.raises(InputError, match="do not fit together"):
        load(results)


def test_a_number_of_figures_in_a_folder_is_read_in_turn(tmp_path, capsys):
    for name in ("a", "b"):
        png(tmp_path / f"{name}.png", json.dumps(RECORD).encode())
    assert main(["provenance", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    assert provenance.report(tmp_path / "a.png")[1] == []
