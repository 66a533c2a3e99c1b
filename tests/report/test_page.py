"""The report in a browser: two widths, dark and light, every link and point, nothing from elsewhere."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tests.report.browser import CHROMIUM, Page, opened
from tests.report.sample import PROFILE, write_artifact, write_bench
from tests.report.test_load_html import write_load
from tokc.cost import records
from tokc.cost.energy import Carbon
from tokc.cost.grid import Grid, GridCell
from tokc.cost.prices import parse_price
from tokc.report.collect import collect, manifest_sha256
from tokc.report.html import render
from tokc.report.prediction import grid_path

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PHONE, DESK = 390, 1280
LEAST_CONTRAST = 4.5  # of text; WCAG 2.2, success criterion 1.4.3, level AA

CONTRASTS = """
(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = (text) => {
    const linear = parts(text).slice(0, 3).map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || element.tagName === "title" || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const [one, other] = [luminance(colour), luminance(behind(element))].sort((a, b) => b - a);
    found.push([(one + 0.05) / (other + 0.05), `${element.tagName}: ${element.textContent.slice(0, 40)}`]);
  }
  return found;
})()
"""
POINTS = """
[...document.querySelectorAll(".chart circle, .roofline circle[fill-opacity]")].map((circle) => {
  circle.scrollIntoView({block: "center", inline: "center"});
  const {x, y, width, height} = circle.getBoundingClientRect();
  const hit = document.elementFromPoint(x + width / 2, y + height / 2);
  return [hit.tagName, hit.querySelector("title")?.textContent ?? ""];
})
"""
LINK = """
((index) => {
  const link = document.querySelectorAll("nav a")[index];
  link.scrollIntoView({block: "nearest", inline: "center"});
  const {x, y, width, height} = link.getBoundingClientRect();
  return [x + width / 2, y + height / 2, link.hash];
})(%d)
"""
HEADING = """
new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
  const heading = document.querySelector(`${location.hash} h2`).getBoundingClientRect();
  const nav = document.querySelector("nav").getBoundingClientRect();
  done([location.hash, heading.top, heading.bottom, nav.bottom, innerHeight]);
})))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report with every section that one may have."""
    folder = tmp_path_factory.mktemp("page")
    artifact = write_artifact(folder)
    write_bench(artifact)
    write_load(artifact, manifest_sha256(artifact))
    cells = tuple(GridCell(batch, context, 4e-3, 5e-3, 9) for batch in (1, 8) for context in (128, 1024))
    sha256 = manifest_sha256(artifact)
    records.write(grid_path(artifact), Grid(artifact.name, sha256, "2026-11-25T10:00:00+00:00", 2, cells))
    carbon = replace(Carbon(400.0, 1.2), watts=60.0)
    report = collect(artifact, parse_price("0.20/h"), date(2026, 11, 25), carbon=carbon)
    path = folder / "report.html"
    path.write_text(render(replace(report, profile=PROFILE)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(params=[(PHONE, "light"), (PHONE, "dark"), (DESK, "light"), (DESK, "dark")])
def shown(request: pytest.FixtureRequest, page: Page, file: Path) -> Page:
    page.show(file, *request.param)
    return page


def test_every_link_leads_to_its_section_below_the_links(shown: Page) -> None:
    count = shown.ask('document.querySelectorAll("nav a").length')
    assert count == shown.ask('document.querySelectorAll("section").length') >= 8
    assert count == shown.ask('new Set([...document.querySelectorAll("nav a")].map((one) => one.hash)).size')
    for index in range(count):
        x, y, wanted = shown.ask(LINK % index)
        shown.click(x, y)
        at, top, bottom, below, height = shown.ask(HEADING)
        assert at == wanted
        assert below - 1 <= top < bottom <= height, f"{wanted}: the heading is not in sight"


def test_every_point_of_a_chart_says_what_it_is(shown: Page) -> None:
    points = shown.ask(POINTS)
    assert len(points) > 20
    assert all(name == "circle" and text for name, text in points)


def test_every_text_is_read_easily(shown: Page) -> None:
    found = shown.ask(CONTRASTS)
    assert len(found) > 200
    assert [text for ratio, text in found if ratio < LEAST_CONTRAST] == []


def test_nothing_is_wider_than_the_window(shown: Page) -> None:
    assert shown.ask("document.documentElement.scrollWidth") <= shown.width


def test_the_colours_are_those_that_were_asked_for(page: Page, file: Path) -> None:
    papers = []
    for scheme in ("light", "dark"):
        page.show(file, DESK, scheme)
        papers.append(page.ask("getComputedStyle(document.body).backgroundColor"))
    assert papers == ["rgb(255, 255, 255)", "rgb(18, 21, 26)"]


def test_nothing_is_fetched_and_nothing_goes_wrong(shown: Page, file: Path) -> None:
    shown.ask(POINTS)
    asked = {
        event["params"]["request"]["url"]
        for event in shown.events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert asked == {file.resolve().as_uri()}
    wrong = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
    assert [event for event in shown.events if event["method"] in wrong] == []
