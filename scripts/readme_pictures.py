"""The README's pictures: a repair, and the page of demo.py in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lora_mnist.disk.files import atomic_write

PROJECT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def draw_repair(folder: Path, path: Path) -> None:
    """Draw a run as a PNG file: errors of each class, and some images repaired and broken."""
    import matplotlib.pyplot as plt
    from PIL import Image

    run = json.loads((folder / "results.json").read_text())
    figure = plt.figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplot_mosaic([["bars", "repaired"], ["bars", "broken"]], width_ratios=(1, 1.15))
    bars = axes["bars"]
    places = np.arange(len(run["classes"]))
    for shift, key, label, color in (
        (-0.2, "test_base", "base", "0.6"),
        (0.2, "test", "with the adapter", "tab:blue"),
    ):
        bars.barh(places + shift, run[key]["errors_per_class"], 0.4, color=color, label=label)
    bars.set_yticks(places, run["classes"])
    bars.invert_yaxis()
    bars.spines[["top", "right"]].set_visible(False)
    bars.set_xlabel("errors on test images")
    bars.legend(frameon=False)
    bars.set_title(f"{run['test_base']['errors']:,} errors -> {run['test']['errors']:,}")
    for kind in ("repaired", "broken"):
        axes[kind].axis("off")
        if (file := folder / "figures" / f"{kind}.png").exists():
            axes[kind].imshow(Image.open(file))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


@contextmanager
def open_page(overrides: Sequence[str], **settings: Any) -> Iterator[Any]:
    """The page of ``python demo.py`` with these overrides, in a headless Chromium.

    ``settings`` are the page's: size, scale.
    """
    from playwright.sync_api import sync_playwright

    command = [sys.executable, str(PROJECT / "demo.py"), *overrides]
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_proxy")}
    environment["PYTHONUNBUFFERED"] = "1"
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            line = server.stdout.readline()
            if not (address := re.search(r"http://\S+", line)):
                raise RuntimeError(f"python demo.py: {line}{server.stdout.read()}")
            with sync_playwright() as playwright:
                # The sandbox needs another user than root.
                flags = ["--no-sandbox", "--no-proxy-server"]
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
                page = browser.new_page(**settings)
                page.goto(address[0])
                yield page
                browser.close()
        finally:
            server.terminate()


def photograph(overrides: Sequence[str], path: Path) -> None:
    """Have the page of ``python demo.py`` show a nine that the adapter repairs, as a PNG file."""
    size = {"width": 1100, "height": 830}
    with open_page(overrides, viewport=size, device_scale_factor=1.6) as page:
        for _ in range(300):
            page.get_by_role("button", name="A test image that the base gets wrong").click()
            page.wait_for_timeout(1000)  # both predictions follow the image
            is_nine = re.search(r"Test image \d+, labelled 9", page.inner_text("body"))
            if is_nine and page.inner_text("#adapted h2").strip() == "9":
                with atomic_write(path) as temporary:
                    page.screenshot(path=temporary, type="png")
                return
    raise RuntimeError("the adapter repairs none of the nines that the page showed")
