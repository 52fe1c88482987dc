"""``python -m dcm provenance FILE ..`` says where figures came from, and whether they are stale."""

import argparse
import sys
from pathlib import Path

from dcm.report import provenance
from dcm.support.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 when a figure is stale, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m dcm", description=__doc__)
    parser.add_argument("command", choices=["provenance"])
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="a png figure, or a folder of them")
    fresh = True
    try:
        for name in parser.parse_args(arguments).files:
            for path in sorted(name.glob("*.png")) if name.is_dir() else [name]:
                text, changed = provenance.report(path)
                print(text)
                fresh &= not changed
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if fresh else 1


if __name__ == "__main__":
    sys.exit(main())
