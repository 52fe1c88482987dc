"""The website that `make site` builds: whole, and without anything from another host."""

import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BROWSERS = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
for package in ("sphinx", "myst_nb", "sphinx_book_theme", "latex2mathml"):
    pytest.importorskip(package, reason="the site's packages are not installed: pip install -e '.[site]'")


class Page(HTMLParser):
    """What a page links to, loads, and can be linked to by."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.ids = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids.add(a.get("id"))
        if tag == "a" and a.get("href"):
            self.links.add(a["href"])
        elif a.get("src") or (tag == "link" and a.get("href")):
            self.loads.add(a.get("src") or a["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built with every warning an error: an unknown link or page, for example."""
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs", "-d", folder / "cache", ".", folder / "site"]
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    return {str(p.relative_to(site)): Page(p.read_text()) for p in site.rglob("*.html") if "_static" not in p.parts}


def is_outside(link: str) -> bool:
    return re.match(r"(?i)[a-z]+:|//", link) is not None


def test_every_page_of_the_repository_is_there(pages):
    written = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"]
    written += [str(p.relative_to(ROOT)) for p in (*(ROOT / "docs").glob("*.md"), *NOTEBOOKS)]
    written += [f"results/{name}/README.md" for name in ("gmm", "digits", "cifar10", "regimes_all")]
    wanted = {"index.html", *(re.sub(r"\.(md|ipynb)$", ".html", name) for name in written)}
    assert wanted <= set(pages) and len(NOTEBOOKS) >= 6


def test_every_internal_link_leads_somewhere(site, pages):
    broken = []
    for name, page in pages.items():
        for link in page.links | page.loads:
            path, anchor = urldefrag(unquote(urljoin(name, link.split("?")[0] if "#" not in link else link)))
            if is_outside(link):
                continue
            if not (site / path).is_file() or (anchor and path in pages and anchor not in pages[path].ids):
                broken.append((name, link))
    assert broken == [] and sum(len(page.links) for page in pages.values()) > 200


def test_nothing_is_loaded_from_another_host(site, pages):
    assert [(n, u) for n, page in pages.items() for u in page.loads if is_outside(u) and not u.startswith("data:")] == []
    styles = [p for p in site.rglob("*.css")]
    assert styles and [p for p in styles if re.search(r"(?:url\(['\"]?|@import ['\"])(?:https?:)?//", p.read_text())] == []


def test_a_page_says_what_its_notebook_stores(site):
    """Its figures are there, and its formulas are drawn."""
    for path in NOTEBOOKS:
        html = (site / f"notebooks/{path.stem}.html").read_text()
        outputs = [o for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])]
        figures = sum("image/png" in o.get("data", {}) for o in outputs)
        assert len(re.findall(r"<img[^>]*_images/", html)) == figures, path.name
        written = "".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
        assert ("<math" in html) == ("$" in written) and "$$" not in html, path.name


@pytest.fixture
def address(site):
    """The site, served."""
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.skipif(not CHROMIUM, reason="no chromium: apt-get install chromium, or name one in CHROMIUM")
def test_a_browser_can_walk_through_it(address, pages):
    """From the start page by every internal link: each page loads whole, draws its images, and asks no other host."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, asked, failed = browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda response: response.status >= 400 and failed.append(response.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        todo, seen, images, formulas = ["index.html"], set(), {}, {}
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            page.goto(f"{address}/{name}", wait_until="load")
            page.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
            page.wait_for_function("[...document.images].every(i => i.complete)")
            images[name] = page.evaluate("[...document.querySelectorAll('article img')].map(i => i.naturalWidth)")
            formulas[name] = page.evaluate("[...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().height)")
            hrefs = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
            inside = (urldefrag(h)[0].removeprefix(f"{address}/") for h in hrefs if h.startswith(f"{address}/"))
            todo += [h for h in inside if h.endswith(".html")]
        browser.close()
    assert failed == [] and [url for url in asked if not url.startswith((address, "data:"))] == []
    assert seen >= {name for name in pages if name not in ("README.html", "search.html")}
    assert all(min(widths, default=1) > 0 for widths in images.values()) and all(min(h, default=9) > 3 for h in formulas.values())
    assert len(images["index.html"]) >= 2 and sum(len(v) for k, v in images.items() if k.startswith("notebooks/")) > 0
    assert len(formulas["notebooks/2_distill.html"]) > 5
