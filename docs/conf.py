"""The static site (`make site`): README, docs, results and notebooks as they are stored, by Sphinx and MyST-NB.

The source folder is the repository's root. Nothing is executed, and nothing comes from another host: formulas become
MathML, which browsers draw themselves.
"""

import shutil
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "Direct consistency models"
author = "The Direct-CM study's authors"
extensions = ["myst_nb"]
root_doc = "README"
CHAPTERS = {  # the menu: caption -> pages
    "The study": ["docs/method", "docs/cifar10", "docs/interventions", "docs/regimes", "docs/emoji", "docs/sdxl"],
    "Notebooks": ["notebooks/[0-9]*"],
    "Results": ["results/*/README"],
    "Use it": ["docs/extend", "docs/colab", "docs/reproducibility", "benchmarks/README", "weights/README", "CONTRIBUTING", "CHANGELOG"],
}
listed = sum(CHAPTERS.values(), [])
CHAPTERS["Use it"] += [name for path in sorted(Path(__file__).parent.glob("*.md")) if (name := f"docs/{path.stem}") not in listed]
include_patterns = ["README.md", *(f"{page}.{end}" for pages in CHAPTERS.values() for page in pages for end in ("md", "ipynb"))]
exclude_patterns = [".*", "runs", "site", "results/local"]  # not even looked into
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # widgets are drawn by a running notebook; stored ones show their static output
nb_output_stderr = "remove"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "misc.highlighting_failure"]  # GitHub's pages may skip a heading level
html_theme = "sphinx_book_theme"
html_title = "Do consistency models work because they solve the ODE?"
html_static_path, html_css_files = ["site.css"], ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_use_index = False
html_show_sphinx = False
html_theme_options = {"use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2, "navbar_persistent": [], "home_page_in_toc": True}


def add_menu(app, docname, source):
    """The start page's menu; GitHub, which shows the same README, has none."""
    if docname == root_doc:
        for caption, pages in CHAPTERS.items():
            source[0] += f"\n\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n" + "\n".join(pages) + "\n```\n"


def formula(display):
    """A visitor that writes a formula as MathML, in a sentence or (``block``) on its own line."""

    def visit(translator, node):
        translator.body.append(convert(node.astext(), display=display))
        raise SkipNode  # its source is not shown beside it

    return visit, None


def start_page(app, error):
    """``index.html``, which servers look for, beside README.html, which links name."""
    if not error:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app):
    """Sphinx's hooks."""
    app.add_html_math_renderer("mathml", formula("inline"), formula("block"))
    app.connect("source-read", add_menu)
    app.connect("build-finished", start_page)
