"""Open notebooks 2 and 4 in JupyterLab in a real browser, run all cells from the menu, look at what appears, move sliders.

``make browser`` (needs Debian's chromium, or another one named in CHROMIUM) works on a copy of notebooks/ and leaves a
screenshot in docs/jupyterlab.png. Not part of CI.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
ADDRESS = "http://127.0.0.1:8899"


def start_server(folder: Path) -> subprocess.Popen:
    """JupyterLab on `folder`/notebooks, without cells that scroll out of existence (all are looked at), nor news."""
    for name, values in {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        path = folder / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "PYTHONPATH": str(ROOT),
    }
    options = ["--no-browser", "--allow-root", "--port=8899", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options, folder / "notebooks"], env=environment, stderr=subprocess.DEVNULL
    )
    for _ in range(60):
        try:
            urllib.request.urlopen(f"{ADDRESS}/api")
            break
        except OSError:
            time.sleep(1)
    return server


def menu(page: Page, name: str, entry: str) -> None:
    """Choose an entry of the menu bar."""
    page.locator(".lm-MenuBar-itemLabel", has_text=name).first.click()
    page.locator(".lm-Menu-itemLabel", has_text=entry).first.click()
    time.sleep(1)


def run_all(page: Page, name: str) -> None:
    """Clear a notebook's outputs, run it, and raise unless bars moved, figures appeared and nothing failed."""
    page.goto(f"{ADDRESS}/lab/tree/{name}.ipynb?reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
    time.sleep(5)
    menu(page, "Edit", "Clear Outputs of All Cells")
    assert page.locator(".jp-OutputArea-output").count() == 0
    menu(page, "Run", "Run All Cells")
    began, bars = time.time(), set()
    while time.time() - began < 600:
        bars |= {" ".join(text.split()) for text in page.locator(".widget-hbox").all_inner_texts()}
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
        if not any("*" in p or "[ ]" in p for p in prompts):
            break
        time.sleep(0.5)
    figures = page.locator(".jp-OutputArea-output img").count()
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    print(
        f"{name}: {time.time() - began:.0f} s, {figures} figures, {len(bars)} states of progress bars, errors: {errors}"
    )
    assert figures >= 1 and len(bars) >= 2 and any("100%" in b for b in bars) and not errors


def move_sliders(page: Page) -> None:
    """Move each slider of notebook 2 by a few steps; raise unless the figure beside it changes every time."""
    cell = page.locator(".jp-CodeCell", has=page.locator(".widget-slider"))
    figure, handles = cell.locator(".jp-OutputArea-output img"), cell.locator(".noUi-handle")
    assert (figure.count(), handles.count()) == (1, 2)
    seen = [figure.get_attribute("src")]
    for handle, keys in ((handles.nth(0), ["ArrowLeft"] * 4), (handles.nth(1), ["ArrowRight"] * 2)):
        handle.focus()
        for key in keys:
            handle.press(key)
        for _ in range(60):
            if figure.get_attribute("src") != seen[-1]:
                break
            time.sleep(0.5)
        time.sleep(2)  # the last of the steps
        seen.append(figure.get_attribute("src"))
    print(f"sliders at {cell.locator('.widget-readout').all_inner_texts()}, {len({*seen})} figures")
    assert len({*seen}) == 3 and cell.locator(".jp-OutputArea-output img").count() == 1


shutil.rmtree(ROOT / "runs/quick", ignore_errors=True)  # what was trained and measured before would show no bars
with tempfile.TemporaryDirectory() as place, sync_playwright() as p:
    server = start_server(Path(place))
    try:
        browser = p.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1500})
        run_all(page, "2_distill")
        move_sliders(page)
        assert page.locator(".Toastify__toast").count() == 0, "no pop-up is in the picture"
        page.locator(".widget-slider").first.scroll_into_view_if_needed()
        time.sleep(2)
        page.screenshot(path=ROOT / "docs/jupyterlab.png")
        run_all(page, "4_sample_quality")
        browser.close()
    finally:
        server.terminate()
        server.wait()
