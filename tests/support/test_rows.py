"""Rows on disk: what is not as it was written counts as not measured."""

import json

from dcm.support.files import RowStore


def store(path, **options):
    return RowStore(path / "rows.jsonl", ("a",), **options)


def test_rows_come_back_and_damaged_or_edited_ones_do_not(tmp_path, capsys):
    for a in range(5):
        store(tmp_path).add({"a": a, "value": a / 3, "nothing": float("nan")})
    path = tmp_path / "rows.jsonl"
    assert store(tmp_path).done[(2,)]["value"] == 2 / 3 and capsys.readouterr().out == ""
    lines = path.read_text().splitlines(keepends=True)
    assert '"value": 0.3333333333333333,' in lines[1]
    lines[1] = lines[1].replace("0.3333333333333333", "0.3433333333333333")  # edited
    lines[2] = lines[2][: len(lines[2]) // 2] + "\n"
    lines[3] = json.dumps({"a": 3, "value": 1.0}) + "\n"  # of a version that kept no checksums
    path.write_text("".join(lines) + "5\n\x00\n[]\n" + lines[0].rstrip("\n"))
    assert list(store(tmp_path).done) == [(0,), (4,)]
    assert "rows.jsonl: 7 damaged rows are dropped and will be measured again." in capsys.readouterr().out
    assert path.read_text() == lines[0] + lines[4], "and they are gone from the file"


def test_a_row_without_a_column_that_is_asked_for_is_missing(tmp_path):
    old = store(tmp_path)
    old.add({"a": 1, "error": 2.0})
    old.add({"a": 2, "error": 2.0, "added": None})
    rows = store(tmp_path, columns=["error", "added"])
    assert {"a": 1} not in rows and {"a": 2} in rows and {"a": 3} not in rows
    rows.add({"a": 1, "error": 2.0, "added": 7})
    again = store(tmp_path, columns=["error", "added"])
    assert {"a": 1} in again and again[{"a": 1}] == {"a": 1, "error": 2.0, "added": 7} and len(again.done) == 2
