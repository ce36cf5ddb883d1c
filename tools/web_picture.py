"""Take the picture of the highlighter that computes in its page: `python -m tools.web_picture`, from the root.

It writes docs/browser.png from build/web, which `make web` fills. This takes a Chromium.
"""

import tempfile
from pathlib import Path

from deploy_rnn.examples.highlight import web_page
from tools.browser import Browser
from tools.page_pictures import write
from tools.static_site import StaticSite

FOLDER = Path("build/web")
SIZE = (1000, 480)
LATENCY = 'document.getElementById("latency").textContent'


def main() -> None:
    web_page.write(FOLDER, Path.cwd())
    site = StaticSite(FOLDER)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            browser.open(site.address)
            browser.until(LATENCY)
            write("browser.png", browser.screenshot(*SIZE))
        finally:
            browser.close()
            site.close()


if __name__ == "__main__":
    main()
