"""The page at `/`: served whole, allowed to load nothing from elsewhere, and alive in a browser."""

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.runtime.server.background import Served
from tokc.runtime.server.page import PAGES

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.parametrize("path", PAGES)
def test_its_files_are_served_with_a_policy(served: Served, path: str) -> None:
    answer = httpx.get(served.url + path)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(PAGES[path][1])
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_nothing_is_named_that_is_not_here(served: Served) -> None:
    page = httpx.get(served.url + "/").text
    assert not re.findall(r"https?://", page)
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert name.startswith("data:") or httpx.get(f"{served.url}/{name}").status_code == 200
    assert not re.findall(r"\son\w+=|<script>|style=", page)  # the policy would stop what is inline


def test_every_figure_that_it_reads_is_a_metric(served: Served) -> None:
    script = httpx.get(served.url + "/page.js").text
    metrics = served.get("/metrics")
    for name in set(re.findall(r"\btokc_\w+", script)):
        assert re.search(rf"^{name}(_bucket)?\b", metrics, re.MULTILINE), name


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_model_and_its_figures(served: Served, tmp_path: Path) -> None:
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command = [BROWSER, *options, "--virtual-time-budget=5000", "--dump-dom", f"{served.url}/"]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert '<span id="model">hash</span>' in page
    assert re.search(r'id="status"[^>]*>ready<', page)
    assert "Output tokens/s" in page
    assert "polyline" in page
