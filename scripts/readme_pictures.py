"""The README's pictures of the page of demo.py, and of a report, in a browser."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_mnist.files import atomic_write

PROJECT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def open_page(overrides: Sequence[str], **settings: Any) -> Iterator[Any]:
    """Open the page of ``python demo.py`` with these overrides in a headless Chromium.

    ``settings`` are the page's: size, scale.
    """
    command = [sys.executable, str(PROJECT / "demo.py"), *overrides]
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_proxy")}
    environment["PYTHONUNBUFFERED"] = "1"
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            line = server.stdout.readline()
            if not (address := re.search(r"http://\S+", line)):
                raise RuntimeError(f"python demo.py: {line}{server.stdout.read()}")
            with open_address(address[0], **settings) as page:
                yield page
        finally:
            server.terminate()


@contextmanager
def open_address(address: str, **settings: Any) -> Iterator[Any]:
    """Open a page in a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox needs another user than root.
        flags = ["--no-sandbox", "--no-proxy-server"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(**settings)
        page.goto(address)
        yield page
        browser.close()


def photograph_report(report: Path, part: str, path: Path) -> None:
    """Write the part of a report that a selector of CSS names as a PNG file."""
    size = {"width": 800, "height": 800}
    with (
        open_address(report.as_uri(), viewport=size, device_scale_factor=1.6) as page,
        atomic_write(path) as temporary,
    ):
        page.locator(part).screenshot(path=temporary, type="png")


def photograph(overrides: Sequence[str], path: Path) -> None:
    """Have the page of ``python demo.py`` show a nine that the adapter repairs, as a PNG file."""
    size = {"width": 1100, "height": 830}
    with open_page(overrides, viewport=size, device_scale_factor=1.6) as page:
        for _ in range(300):
            page.get_by_role("button", name="A test image that the base gets wrong").click()
            page.wait_for_timeout(1000)  # both predictions follow the image
            is_nine = re.search(r"Test image \d+, labeled 9", page.inner_text("body"))
            if is_nine and page.inner_text("#adapted h2").strip() == "9":
                with atomic_write(path) as temporary:
                    page.screenshot(path=temporary, type="png")
                return
    raise RuntimeError("the adapter repairs none of the nines that the page showed")
