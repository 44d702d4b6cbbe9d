"""The documentation site: it builds without a warning, and a browser shows a page as it should be."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")
PHONE, DESKTOP = (390, 844), (1280, 800)
SWITCHES = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None,
    reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs-site` does."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    built = subprocess.run(
        [*command, "-b", "html", str(ROOT / "docs"), str(folder)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in SWITCHES.split():
        options.add_argument(switch)
    service = webdriver.ChromeService(CHROMEDRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


def open_page(browser: Any, page: Path, size: tuple[int, int], scheme: str) -> None:
    """Show a page in a window of a size, with a color scheme."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_reference_is_readable(site: Path, browser: Any, size: tuple[int, int]) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        open_page(browser, site / "api.html", size, scheme)
        # The page itself never scrolls sideways.
        assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
        color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        red, green, blue = (int(part) for part in color.strip("rgb()").split(",")[:3])
        brightness[scheme] = (red + green + blue) / 3
    assert brightness["light"] > 200
    assert brightness["dark"] < 60

    signature = browser.find_element("id", "tubelet.restore.job.upscale")
    assert "upscale" in signature.text
    assert "src" in signature.text
    # A drawing of a docstring keeps its lines.
    drawing = browser.find_element("css selector", "dl.py.class div.highlight-text pre")
    assert "\n" in drawing.text


def test_every_page_is_reached_from_the_first(site: Path, browser: Any) -> None:
    open_page(browser, site / "index.html", DESKTOP, "light")
    links = browser.find_elements("css selector", ".sidebar-tree a")
    shown = {Path(link.get_attribute("href").split("#")[0]).name for link in links}
    documents = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    assert documents - {"index.html"} <= shown
