"""The page of demo.py as headless Chromium shows it, with a nine that the adapter repairs."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lora_mnist.disk.files import atomic_write
from lora_mnist.errors import UserError, missing_extra
from lora_mnist.project import PROJECT

_MOST_CLICKS = 200


def photograph(adapter: Path, outputs: Path, settings: Sequence[str], path: Path) -> None:
    """Start the page, have it show a test image that the adapter repairs, and take its picture.

    Args:
        adapter: folder of the run whose adapter the page opens with.
        outputs: where the runs are.
        settings: further overrides of demo.py.
        path: the PNG file to write.

    Raises:
        UserError: if there is no Chromium, or an extra is missing.
        RuntimeError: if the page does not start, or no nine is repaired.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        raise UserError("--only=demo: no Chromium here; expected it, as from apt install chromium")
    try:
        driver = import_module("playwright.sync_api")
    except ImportError as error:
        raise missing_extra("scripts/readme.py", "dev", error) from error
    given = [f"adapter={adapter}", f"paths.outputs={outputs}", "server.port=0", *settings]
    command = [sys.executable, str(PROJECT / "demo.py"), *given]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        try:
            line = server.stderr.readline()
            if not (found := re.match(r"page: (\S+) ", line)):
                raise RuntimeError(f"python demo.py: {line}{server.stderr.read()}")
            with driver.sync_playwright() as playwright, atomic_write(path) as temporary:
                # The sandbox needs another user than root.
                arguments = ["--no-sandbox", "--no-proxy-server"]
                browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
                look = {"width": 1100, "height": 830}
                page = browser.new_page(viewport=look, device_scale_factor=1.6)
                page.goto(found[1])
                _show_a_repair(page)
                page.screenshot(path=temporary, type="png")
                browser.close()
        finally:
            server.terminate()


def _show_a_repair(page: Any) -> None:
    """Go through the nines that the base gets wrong, until the adapted network gets one right."""
    page.wait_for_selector("#adapters .token")
    page.get_by_label("Class of the test image").click()
    page.get_by_role("option", name="9", exact=True).click()
    page.get_by_role("listbox").wait_for(state="detached")  # it fades away
    said = ""
    for _ in range(_MOST_CLICKS):
        page.locator("#mistake").click()
        page.wait_for_function(
            "before => { const said = document.querySelector('#said [role=status]').textContent;"
            " return said.startsWith('Test image ') && said !== before; }",
            arg=said,
        )
        said = page.locator("#said [role=status]").text_content()
        if re.search(r"the adapted network 9 \(\d+%\)", said):
            return
    raise RuntimeError(f"{said} Expected a nine that the adapter repairs")
