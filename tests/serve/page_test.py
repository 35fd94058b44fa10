"""The page in a real browser, with the weights that ship: draws, describes, edits.

    python -m tests.serve.page_test FOLDER

writes pictures of it at a desk's and at a phone's width.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.run import ROOT
from tests.serve.fake import wait_until_ready

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DESK = {"width": 960, "height": 720}
PHONE = {"width": 375, "height": 720}
SECONDS = 120_000  # milliseconds to wait: edits compile their programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
]


@contextlib.contextmanager
def emoji_service():
    """Address of the shipped weights' service, in a process of its own."""
    flags = ["--mode=serve", "--checkpoint=emoji", "--port=0"]
    # Optimised as for a user, where the tests' own programs are not.
    left_out = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    environ = {k: v for k, v in os.environ.items() if k not in left_out}
    with subprocess.Popen(
        [sys.executable, "-m", "flowtok_jax.main", *flags],
        cwd=ROOT,
        env=environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            address = process.stdout.readline().strip()
            wait_until_ready(address, 600)
            yield address
        finally:
            process.terminate()


@contextlib.contextmanager
def browser_of():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address():
    with emoji_service() as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with browser_of() as found:
        yield found


@pytest.fixture
def page(browser, address):
    """The page at a phone's width; nothing in it fails, and nothing sticks out."""
    found = browser.new_page(viewport=PHONE)
    found.set_default_timeout(SECONDS)
    faults = []
    found.on("pageerror", lambda error: faults.append(str(error)))
    found.on("console", lambda m: m.type == "error" and faults.append(m.text))
    found.goto(address)
    found.wait_for_selector("#state:has-text('Ready')")
    yield found
    assert faults == []
    assert found.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    found.close()


def draw(page, prompt: str) -> None:
    page.fill("#draw [name=prompt]", prompt)
    page.keyboard.press("Enter")
    page.wait_for_selector("#draw .progress:has-text('Done')")


def test_the_page_loads_in_a_second(page, address):
    page.goto(address, wait_until="load")
    milliseconds = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    assert page.evaluate(milliseconds) < 1000


def test_it_draws_by_the_keyboard_alone_and_remembers_the_seed(page):
    page.keyboard.type("octopus")  # the prompt has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("#draw .progress:has-text('Done')")
    images = page.locator("#draw figure img")
    assert images.count() == 4
    assert images.first.evaluate("image => image.naturalWidth") == 64
    seed = page.input_value("#draw [name=seed]")
    assert page.inner_text("#draw figcaption >> nth=0").startswith(f"seed {seed}")
    page.reload()
    page.wait_for_selector("#state:has-text('Ready')")
    assert page.input_value("#draw [name=prompt]") == "octopus"
    assert page.input_value("#draw [name=seed]") == seed


def test_tabs_follow_the_arrows(page):
    page.focus("#tab-draw")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#describe")
    assert not page.is_visible("#draw")
    page.keyboard.press("ArrowLeft")
    assert page.is_visible("#draw")


def test_a_mistake_is_said(page):
    page.click("#tab-describe")
    page.click("#describe .go")
    assert "no picture yet" in page.inner_text("#describe .error")


def test_what_it_drew_is_described_and_saved(page, tmp_path):
    page.click("#draw summary")
    page.select_option("#draw [name=source]", "mean")  # another seed may draw less well
    draw(page, "octopus")
    with page.expect_download() as saved:
        page.click("#draw figure >> nth=0 >> text=Save")
    path = tmp_path / saved.value.suggested_filename
    saved.value.save_as(path)
    page.click("#draw figure >> nth=0 >> text=Describe")
    page.wait_for_selector("#describe li")
    assert page.inner_text("#describe li") == "octopus"
    # The file itself, as a user would choose it.
    page.set_input_files("#describe [name=file]", path)
    page.click("#describe .go")
    page.wait_for_selector("#describe li >> nth=1")
    assert page.inner_text("#describe li >> nth=0") == "octopus"


@pytest.mark.parametrize("kind", ["interpolations", "variations", "edits"])
def test_it_edits(page, kind):
    draw(page, "duck")
    page.click("#draw figure >> nth=0 >> role=button[name='Edit']")
    page.check(f"#edit [value={kind}]")
    if kind == "interpolations":
        page.fill("#edit [name=from]", "duck")
        page.fill("#edit [name=to]", "swan")
    if kind == "edits":
        page.fill("#edit [name=after]", "swan")
    page.click("#edit .go")
    page.wait_for_selector("#edit .progress:has-text('Done')")
    wanted = {"interpolations": 8, "variations": 3, "edits": 1}[kind]
    assert page.locator("#edit figure img").count() == wanted


def take_pictures(folder: pathlib.Path) -> None:
    """Writes pictures of the page, of each tab at each width."""
    with emoji_service() as address, browser_of() as browser:
        for name, size in (("desk", DESK), ("phone", PHONE)):
            page = browser.new_page(viewport=size)
            page.set_default_timeout(SECONDS)
            page.goto(address)
            page.wait_for_selector("#state:has-text('Ready')")
            draw(page, "octopus")
            page.screenshot(path=folder / f"{name}_draw.png")
            page.click("#draw figure >> nth=0 >> text=Describe")
            page.wait_for_selector("#describe li")
            page.screenshot(path=folder / f"{name}_describe.png")
            page.click("#tab-edit")
            page.fill("#edit [name=from]", "duck")
            page.fill("#edit [name=to]", "swan")
            page.click("#edit .go")
            page.wait_for_selector("#edit .progress:has-text('Done')")
            page.screenshot(path=folder / f"{name}_edit.png")
            page.close()


if __name__ == "__main__":
    take_pictures(pathlib.Path(sys.argv[1]))
