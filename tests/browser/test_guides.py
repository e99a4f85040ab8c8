"""What README.md and docs/gui.md show for a GUI works as it stands there, except for ports, in Chromium."""

from __future__ import annotations

from pathlib import Path

from tests.support.appliance import Appliance
from tests.support.browser import Page, expect
from tests.support.daemon import Daemon
from tests.support.mariadb import Database
from tests.support.markdown import blocks
from tests.support.pages import pages

NAME = "unified-live-failover-pgtest2-1758553933"
ICON = '<link rel="icon" href="data:,">'  # else a browser asks the page's server for one


def shown(document: str, section: str, language: str, port: int) -> str:
    """The block of a document, with the port of a daemon of the test."""
    (text,) = (b.text for b in blocks(document) if (b.section, b.language) == (section, language))
    return text.replace("127.0.0.1:8686", f"127.0.0.1:{port}")


async def test_the_snippet_of_the_readme_says_at_each_origin_what_is_missing_until_nothing_is(
    page: Page, database: Database, appliance: Appliance, tmp_path: Path
):
    daemon = Daemon(tmp_path, database__url=database.url)
    html = ICON + shown("README.md", "Asking for a job", "html", daemon.port)
    file = tmp_path / "page.html"
    file.write_text(html)
    job_id = await appliance.job(NAME)
    await appliance.step(job_id, 1, "final-sync")
    says = page.locator("correlator-progress").get_by_role("status")
    async with pages({"/page.html": html}) as origin, daemon:
        await page.goto(f"{origin}/page.html")
        await expect(says).to_have_text(f"Refused: pages of {origin} are not allowed: add it to http.allowed_origins")
        await page.goto(file.as_uri())
        web_server = "open the page from a web server, and add its origin to http.allowed_origins"
        await expect(says).to_have_text(f"Refused: a file has no origin: {web_server}")
        await daemon.stop()
        token = tmp_path / "token"
        token.write_text("a-token-of-this-test")
        token.chmod(0o600)
        daemon.becomes({"CORRELATOR_HTTP__ALLOWED_ORIGINS": origin, "CORRELATOR_HTTP__TOKENS_FILE": str(token)})
        await daemon.start()
        await page.goto(f"{origin}/page.html")
        await expect(says).to_have_text("Refused: a token is needed: set the attribute token")
        await page.evaluate(
            "document.querySelector('correlator-progress').setAttribute('token', 'a-token-of-this-test')"
        )
        await expect(says).to_have_text("Running")
        await expect(page.locator("correlator-progress")).to_contain_text("final-sync")
