"""Fill the README's findings from the results folders: ``python -m dcm.readme``; no number there is typed by hand."""

from __future__ import annotations

import re

from dcm.artifacts import ROOT, write_text


def block(study: str) -> str:
    """The verdict lines and tab1 of a study, as its results folder states them."""
    folder = ROOT / "results" / study
    page = (folder / "README.md").read_text().splitlines()
    verdicts = [line for line in page if line.startswith("- ")]
    return "\n".join([*verdicts, "", (folder / "tab1.md").read_text().strip()])


def filled(text: str) -> str:
    """`text` with every ``<!-- results:STUDY -->`` .. ``<!-- end -->`` block made anew."""
    pattern = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{block(m[2])}\n{m[3]}", text)


def write() -> None:
    """Fill the README in place."""
    readme = ROOT / "README.md"
    write_text(readme, filled(readme.read_text()))


if __name__ == "__main__":
    write()
