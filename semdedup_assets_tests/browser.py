"""Dagster's UI in a headless Chromium, used as a person uses it: what is seen is clicked."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_MILLISECONDS = 60_000


class BrowserNotFoundError(RuntimeError):
    """There is no Chromium, neither the system's nor Playwright's."""


@dataclass(frozen=True)
class DagsterUI:
    """A page of the browser, and the webserver it looks at."""

    page: "Page"
    url: str

    def open(self, path: str) -> None:
        """Go to a page of the UI."""
        self.page.goto(f"{self.url}{path}")

    def open_graph(self, location: str, group: str) -> None:
        """The lineage of a group of assets."""
        self.open(f"/locations/{location}/asset-groups/{group}/lineage")

    def open_group(self, location: str, group: str) -> None:
        """The list of a group's assets."""
        self.open(f"/locations/{location}/asset-groups/{group}/list")

    def open_partition(self, key: list[str], partition: str) -> None:
        """The page of one partition of an asset, loaded."""
        self.open_asset(key, "partitions", more=f"&partition={partition}")
        self.page.get_by_text("Latest materialization").first.wait_for()

    def open_asset(self, key: list[str], view: str, *, more: str = "") -> None:
        """One of an asset's tabs."""
        self.open(f"/assets/{'/'.join(key)}?view={view}{more}")

    def launch_selected_partition(self) -> None:
        """Materialise the partition whose page is open through the dialog, as it offers it."""
        self.page.get_by_role("button", name="Materialize…").click()
        self.dialog.get_by_text("1 partition", exact=True).wait_for()
        self.dialog.get_by_role("button", name="Launch 1 run").click()

    def materialise_group(self) -> str:
        """Press *Materialize all* on the graph of a group that is open, with all partitions that its dialog offers.

        Returns:
            What its preview says of each asset.
        """
        from playwright.sync_api import expect

        self.page.get_by_role("button", name="Materialize all").click()
        # While the dialog is loading, it may offer the two dimensions of another asset.
        every = self.dialog.get_by_role("button", name="All", exact=True)
        expect(every).to_have_count(1, timeout=60_000)
        every.click()
        self.dialog.get_by_role("button", name="Preview").click()
        preview = self.page.get_by_role("dialog").last
        preview.get_by_role("button", name="OK").wait_for()
        preview.get_by_text("Backfills all partitions").first.wait_for()
        text = preview.inner_text()
        preview.get_by_role("button", name="OK").click()
        self.dialog.get_by_role("button", name="Launch backfill").click()
        self.dialog.wait_for(state="hidden")
        return text

    def open_launchpad(self) -> None:
        """The launchpad of the asset whose page is open, the cursor among its settings."""
        self.page.locator("button:has([aria-label=arrow_drop_down])").first.click()
        self.page.get_by_text("Open launchpad").click()
        # The panel beside the editor describes what stands where the cursor is.
        self.dialog.locator(".CodeMirror").get_by_text("device", exact=True).click()

    def metadata(self, name: str) -> "Locator":
        """The cell with the value of an entry of the metadata."""
        row = self.page.locator("tr").filter(has=self.page.locator("td:first-child").get_by_text(name, exact=True))
        return row.locator("td").nth(1)

    def show_picture(self, name: str) -> "Locator":
        """Unfold a picture of the metadata, which opens a dialog."""
        self.metadata(name).get_by_text("Show Markdown").click()
        picture = self.dialog.locator("img")
        picture.wait_for()
        picture.evaluate("image => image.decode()")
        return picture

    def close_dialog(self) -> None:
        """Close the dialog that is open."""
        self.dialog.get_by_role("button", name="Close").click()
        self.dialog.wait_for(state="hidden")

    @property
    def dialog(self) -> "Locator":
        """The dialog that is open, or will be."""
        return self.page.get_by_role("dialog")


@contextmanager
def browsing(url: str, *, width: int = 1400, height: int = 1000) -> Iterator[DagsterUI]:
    """A browser on Dagster's UI, until the block ends.

    Args:
        url: of the webserver.
        width: of the window, in pixels.
        height: of the window, in pixels.

    Raises:
        BrowserNotFoundError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(playwright), args=list(_ARGUMENTS))
        try:
            context = browser.new_context(viewport={"width": width, "height": height}, timezone_id="UTC")
            # A first visit is greeted by a dialog. From top to bottom assets are large enough to show what they hold.
            for setting, value in (("communityNux", "1"), ("asset-graph-direction", "vertical")):
                context.add_init_script(f"localStorage.setItem('{setting}', '\"{value}\"')")
            page = context.new_page()
            page.set_default_timeout(_MILLISECONDS)
            yield DagsterUI(page, url)
        finally:
            browser.close()


@contextmanager
def offline_page(path: Path) -> "Iterator[Page]":
    """A local file in a browser without a network, until the block ends; what goes wrong in it is raised then.

    Args:
        path: of an HTML file.

    Raises:
        BrowserNotFoundError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(playwright), args=list(_ARGUMENTS))
        try:
            context = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
            page, problems = context.new_page(), list[str]()
            page.set_default_timeout(_MILLISECONDS)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on("dialog", lambda dialog: problems.append(dialog.message))
            page.goto(path.as_uri())
            yield page
            assert not problems, problems
        finally:
            browser.close()


def _chromium(playwright: "Playwright") -> str:
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    own = playwright.chromium.executable_path
    if found is None and not Path(own).exists():
        message = (
            f"no browser: none of {', '.join(_NAMES)} is on PATH, and Playwright has none of its own; "
            "run `apt-get install chromium` or `.venv/bin/playwright install chromium`"
        )
        raise BrowserNotFoundError(message)
    return found or own
