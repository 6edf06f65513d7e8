"""The report of a finished run, page by page in a browser: whole, readable on a telephone, and fetched from nowhere."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import BrowserContext, Page, sync_playwright

from hyperdapo import plan
from hyperdapo.cli import main
from hyperdapo.params import load
from hyperdapo.report import site
from smoke import Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 1280)
ASSETS = load("smoke").assets
_PATIENCE_MS = 180_000  # of a machine whose cores are all taken
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "video": "src"}


@pytest.fixture
def place(smoke: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the run of `smoke` shows, which a test may damage."""
    _at(tmp_path, monkeypatch)
    shutil.copytree(smoke.kept.outputs, tmp_path / "outputs")
    return tmp_path / "outputs/smoke"


def _at(place: Path, patch: pytest.MonkeyPatch) -> None:
    for variable, folder in (("HYPERDAPO_DATA", "data"), ("HYPERDAPO_OUTPUTS", "outputs")):
        patch.setenv(variable, str(place / folder))
    patch.setattr(site, "folder_of", lambda _: place / "report")


@pytest.fixture(scope="module")
def report(smoke: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the run of `smoke`, beside which lies another world."""
    place = tmp_path_factory.mktemp("report")
    shutil.copytree(smoke.kept.outputs / "smoke", place / "outputs/smoke")
    (place / "outputs/null/notebooks").mkdir(parents=True)
    last = f"notebooks/{plan.STAGES[-1]}.ipynb"
    shutil.copy(place / "outputs/smoke" / last, place / "outputs/null" / last)
    with pytest.MonkeyPatch.context() as patch:
        _at(place, patch)
        assert main(["report", "--profile", "smoke"]) == 0
    return place / "report"


@pytest.fixture(scope="module")
def pages(report: Path) -> dict[str, BeautifulSoup]:
    made = sorted(path.relative_to(report) for path in report.rglob("*.html"))
    return {str(name): _parsed(report / name) for name in made if name.parts[0] != "_static"}


def _parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    """A browser without a network."""
    if BROWSER is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium.new_context(offline=True)
        chromium.close()


@pytest.fixture
def seen(browser: BrowserContext) -> Iterator[tuple[Page, list[str]]]:
    """An empty page, and what goes wrong on it: errors of scripts, what is not there, what lies in the network."""
    page, faults = browser.new_page(), list[str]()
    page.set_default_timeout(_PATIENCE_MS)
    page.on("console", lambda message: message.type == "error" and faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(f"not there: {request.url}"))
    page.on(
        "request",
        lambda request: request.url.startswith(("file:", "data:", "blob:")) or faults.append(request.url),
    )
    yield page, faults
    page.close()


@pytest.mark.slow
class TestSite:
    def test_there_is_a_page_a_notebook_and_asset(self, pages: dict[str, BeautifulSoup]) -> None:
        across = {f"across/{stage}.html" for stage in plan.ACROSS_ASSETS}
        of_assets = {
            f"{asset}/{stage}.html" for asset in ASSETS for stage in plan.STAGES if stage not in plan.ACROSS_ASSETS
        }
        more = {"index.html", "search.html", "dashboard.html", "across/dashboard.html", "worlds/null.html"}
        openings = {f"{section}/index.html" for section in ("across", "worlds", *ASSETS)}
        assert set(pages) == across | of_assets | more | openings

    def test_the_front_page_has_findings_and_the_main_table(self, pages: dict[str, BeautifulSoup]) -> None:
        front = pages["index.html"]
        assert "Every strategy executed the same orders" in front.find(id="findings").text
        rows = front.find("table").find_all("tr")
        heads = [cell.text for cell in rows[0].find_all("th")]
        assert heads == ["total cost (bps)", *ASSETS, "all assets"]
        best = [row.find_all("td")[0].text for row in rows[1:] if row.find("strong")]
        assert best and "Oracle" not in best and "DAPO" in [row.find("td").text for row in rows[1:]]

    def test_code_is_folded_and_figures_are_told(self, pages: dict[str, BeautifulSoup]) -> None:
        for name, page in pages.items():
            if re.search(r"/\d\d_", name):
                assert all(
                    code.find_parent("details", class_="hide") for code in page.find_all(class_="highlight-ipython3")
                )
                assert not page.find_all("details", open=True)
                assert page.find("figcaption"), name
            for picture in page.find_all("img"):
                assert picture.get("alt", "").strip(), f"{name}: {picture}"
                assert (picture.find_parent("figure") or picture).find("figcaption"), f"{name}: {picture}"

    def test_pages_follow_each_other(self, pages: dict[str, BeautifulSoup]) -> None:
        name, order = "index.html", []
        while link := pages[name].find("a", class_="right-next"):
            order.append(name)
            name = _target(name, link["href"])[0]
        assert {*order, name} == set(pages) - {"search.html", "dashboard.html"}

    def test_links_lead_somewhere(self, pages: dict[str, BeautifulSoup], report: Path) -> None:
        for name, page in pages.items():
            for link in page.find_all("a", href=True):
                if not re.match(r"\w+:", link["href"]):
                    target, part = _target(name, link["href"])
                    assert (report / target).exists(), f"{name}: {link['href']}"
                    assert not part or target not in pages or pages[target].find(id=part), f"{name}: {link['href']}"

    def test_nothing_comes_from_a_network(self, pages: dict[str, BeautifulSoup], report: Path) -> None:
        for name, page in pages.items():
            sources = [tag.get(LOADED[tag.name], "") for tag in page.find_all(list(LOADED))]
            assert not [source for source in sources if re.match(r"(\w+:)?//", source)], name
        for sheet in report.rglob("*.css"):
            assert not re.search(r"""(url\(\s*|@import\s+)["']?(\w+:)?//""", sheet.read_text(encoding="utf-8")), sheet

    def test_no_page_names_this_machine(self, report: Path, smoke: Run) -> None:
        for path in report.rglob("*.html"):
            assert str(smoke.place) not in path.read_text(encoding="utf-8"), path

    @pytest.mark.parametrize("width", WIDTHS)
    def test_every_page_is_readable(self, pages: dict[str, BeautifulSoup], report: Path, seen, width: int) -> None:
        page, faults = seen
        page.set_viewport_size({"width": width, "height": 844})
        for name in pages:
            page.goto((report / name).as_uri())
            assert not faults, name
            for frame in page.frames:
                across = frame.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert across <= 0, f"{name}, {width} px: {across} px too wide"

    def test_a_figure_opens_in_full(self, report: Path, seen) -> None:
        page, faults = seen
        page.goto((report / "across/06_convergence.html").as_uri())
        page.locator("a.image-reference").first.click()
        shown = page.locator("dialog.zoom img")
        assert shown.is_visible() and shown.evaluate("image => image.width >= image.naturalWidth")
        page.keyboard.press("Escape")
        shown.wait_for(state="detached")
        assert page.url.endswith("06_convergence.html") and not faults

    def test_code_unfolds(self, report: Path, seen) -> None:
        page, _ = seen
        page.goto((report / "BTC/03_features.html").as_uri())
        code = page.locator("details.hide").first
        assert not code.locator(".highlight").is_visible()
        code.locator("summary").click()
        assert code.locator(".highlight").is_visible()

    def test_words_are_searched(self, report: Path, seen) -> None:
        page, faults = seen
        page.goto((report / "search.html").as_uri() + "?q=entropy")
        page.locator("#search-results li a").first.wait_for()
        assert any("Train" in text for text in page.locator("#search-results li a").all_inner_texts()) and not faults

    def test_the_dashboard_shows_another_measure(self, report: Path, seen) -> None:
        page, faults = seen
        page.goto((report / "dashboard.html").as_uri())
        page.locator(".updatemenu-header").wait_for()  # the library is unpacked first
        assert page.locator(".xyplot .subplot, .cartesianlayer .subplot").count() == len(ASSETS)
        page.locator(".updatemenu-header").click()
        page.locator(".updatemenu-dropdown-button").filter(has_text="Entropy").click()
        assert page.locator(".ytitle").first.text_content() == "entropy (nats)" and not faults


def _target(name: str, link: str) -> tuple[str, str]:
    """The page and the part of it that a link on a page leads to."""
    path, part = urldefrag(link)
    target = (Path("/") / name).parent / unquote(path) if path else Path("/") / name
    return str(Path(*[*_folded(target)])), unquote(part)


def _folded(path: Path) -> list[str]:
    """The parts of an absolute path without `..`."""
    parts: list[str] = []
    for part in path.parts[1:]:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return parts


@pytest.mark.slow
class TestBadInput:
    def test_no_outputs(self, place: Path, capsys) -> None:
        shutil.rmtree(place)
        assert f"{place}/notebooks/09_significance.ipynb is not there" in _fails(capsys)
        assert "Run: hyperdapo run --profile smoke --until 09" in _fails(capsys)

    def test_no_such_run(self, place: Path, capsys) -> None:
        assert "there is no run 'smkoe' (did you mean 'smoke'?)" in _fails(capsys, "smkoe")

    @pytest.mark.parametrize(
        ("name", "stage"),
        [("notebooks/03_features_ETH.ipynb", "03"), ("dashboard.html", "06"), ("tables/main.csv", "09")],
    )
    def test_a_file_is_lost(self, place: Path, capsys, name: str, stage: str) -> None:
        (place / name).unlink()
        told = _fails(capsys)
        assert f"{place / name} is not there" in told and f"--until {stage}" in told

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 1}', '{"nbformat": 4, "cells": [{}]}'])
    def test_a_notebook_is_damaged(self, place: Path, capsys, content: str) -> None:
        render = place / "notebooks/03_features_ETH.ipynb"
        render.write_text(content)
        told = _fails(capsys)
        assert f"{render} is damaged" in told and "--force 03" in told

    def test_a_notebook_was_not_executed(self, place: Path, capsys) -> None:
        render = place / "notebooks/08_backtest_BTC.ipynb"
        notebook = nbformat.read(render, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        nbformat.write(notebook, render)
        assert f"{render} was not executed. Run: hyperdapo run --profile smoke --force 08" in _fails(capsys)

    def test_a_picture_is_damaged(self, place: Path, capsys) -> None:
        render = place / "notebooks/08_backtest_BTC.ipynb"
        text = re.sub(r'"image/png": "[^"]{9}', '"image/png": "?', render.read_text())
        render.write_text(text)
        assert "08_backtest" in _fails(capsys)

    @pytest.mark.parametrize("content", ["", "asset,cost\nBTC,1\n"])
    def test_the_main_table_is_damaged(self, place: Path, capsys, content: str) -> None:
        (place / "tables/main.csv").write_text(content)
        assert f"{place}/tables/main.csv is damaged" in _fails(capsys)

    def test_packages_are_missing(self, place: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(site, "find_spec", lambda name: None if name == "myst_nb" else name)
        assert "the report needs myst_nb, which this environment lacks. Run: make setup" in _fails(capsys)


def _fails(capsys: pytest.CaptureFixture[str], run: str = "smoke") -> str:
    """What a report that cannot be made says, in one line; a site that stood before would stay."""
    assert main(["report", "--profile", run]) == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("hyperdapo: ") and len(told.splitlines()) == 1, told
    return told
