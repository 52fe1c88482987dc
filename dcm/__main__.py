"""``python -m dcm provenance FILE ..`` says where figures came from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dcm.report import provenance
from dcm.support.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 when a figure is stale, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m dcm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("provenance", help="where figures came from, and whether they are stale")
    command.add_argument("files", nargs="+", metavar="FILE", help="a png or pdf figure, or a folder of them")
    chosen = parser.parse_args(arguments)
    try:
        fresh = True
        for name in map(Path, chosen.files):
            figures = sorted(p for p in name.iterdir() if p.suffix in (".png", ".pdf")) if name.is_dir() else [name]
            for path in figures:
                text, up_to_date = provenance.report(path)
                print(text)
                fresh &= up_to_date
        return 0 if fresh else 1
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
