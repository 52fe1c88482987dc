"""Fill the README's findings from the results folders: ``python -m dcm.readme``; no number there is typed by hand."""

from __future__ import annotations

import json
import re

from dcm.artifacts import ROOT, write_text


def block(study: str) -> str:
    """The verdict lines and tab1 of a study, as its results folder states them."""
    folder = ROOT / "results" / study
    page = (folder / "README.md").read_text().splitlines()
    verdicts = [line for line in page if line.startswith("- ")]
    return "\n".join([*verdicts, "", (folder / "tab1.md").read_text().strip()])


def dry_run_block() -> str:
    """The SDXL dry run's table, or that there is none yet."""
    from dcm.sdxl_dry_run import RESULT, readable

    if not RESULT.exists():
        return "*The dry run has not been run on a GPU yet.*"
    return readable(json.loads(RESULT.read_text()))


def filled(text: str) -> str:
    """`text` with every ``<!-- results:STUDY -->`` and ``<!-- sdxl dry run -->`` block, up to ``<!-- end -->``, made anew."""
    pattern = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    text = pattern.sub(lambda m: f"{m[1]}{block(m[2])}\n{m[3]}", text)
    pattern = re.compile(r"(<!-- sdxl dry run -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{dry_run_block()}\n{m[2]}", text)


def write() -> None:
    """Fill the README in place."""
    readme = ROOT / "README.md"
    write_text(readme, filled(readme.read_text()))


if __name__ == "__main__":
    write()
