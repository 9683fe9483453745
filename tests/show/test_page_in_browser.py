"""The page as a visitor has it: the command in a process of its own, and headless Chromium."""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from composed import SMALL, small_base
from helpers.commands import ROOT
from PIL import Image

from lora_mnist import MLP, add_lora, lora_parameters, save_adapter
from lora_mnist.show.page import picture_bytes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install -y chromium"),
]
GOOD, SECOND, BROKEN = "lora/2026-01-03", "lora/2026-01-02", "lora/2026-01-01"
#: One stroke, in parts of the pad.
SEVEN = [(0.3, 0.25), (0.72, 0.25), (0.45, 0.82)]


class Site(NamedTuple):
    address: str
    browser: Any


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The command as a user starts it, and a browser."""
    reason = "the extras demo and dev are not installed"
    pytest.importorskip("gradio", reason=reason)
    driver = pytest.importorskip("playwright.sync_api", reason=reason)
    outputs = tmp_path_factory.mktemp("outputs")
    for run, std in ((GOOD, 0.2), (SECOND, 0.1)):
        net = MLP(hidden_sizes=[16])
        net.load_state_dict(torch.load(small_base(outputs), weights_only=True)["state_dict"])
        torch.manual_seed(0)
        for parameter in lora_parameters(add_lora(net)):
            torch.nn.init.normal_(parameter, std=std)
        save_adapter(net, outputs / run / "adapter")
    (outputs / BROKEN / "adapter").mkdir(parents=True)
    (outputs / BROKEN / "adapter" / "adapter_config.json").write_text("{}")
    command = ["demo.py", SMALL[0], "server.port=0", f"paths.outputs={outputs}"]
    server = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr
        found = re.match(r"page: (http://127\.0\.0\.1:\d+) ", line := server.stderr.readline())
        assert found, line + server.stderr.read()
        with driver.sync_playwright() as playwright:
            arguments = ["--no-sandbox", "--no-proxy-server"]  # the sandbox needs another user
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
            yield Site(found[1], browser)
            browser.close()
    finally:
        server.send_signal(2)
        assert server.wait(timeout=60) == 130


class Visit:
    """A visitor of the page: what he does, and what he reads."""

    def __init__(self, site: Site, width: int, height: int, touch: bool = False) -> None:
        self.context = site.browser.new_context(
            viewport={"width": width, "height": height}, has_touch=touch, is_mobile=touch
        )
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(site.address)
        self.page.wait_for_selector("#adapters .token")

    def points(self, stroke: list[tuple[float, float]]) -> list[tuple[float, float]]:
        self.page.locator(".pad canvas").scroll_into_view_if_needed()
        box = self.page.locator(".pad canvas").bounding_box()
        return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]

    def draw(self, stroke: list[tuple[float, float]]) -> None:
        first, *rest = self.points(stroke)
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for point in rest:
            self.page.mouse.move(*point, steps=5)
        self.page.mouse.up()

    def draw_with_a_finger(self, stroke: list[tuple[float, float]]) -> None:
        session = self.context.new_cdp_session(self.page)
        points = [[{"x": x, "y": y}] for x, y in self.points(stroke)]
        kinds = ["touchStart", *["touchMove"] * (len(points) - 1), "touchEnd"]
        for kind, point in zip(kinds, [*points, []], strict=True):
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": point})

    def set_scale(self, value: float) -> None:
        """Move the slider with the keyboard, as a user without a mouse would."""
        slider = self.page.locator("#scale input[type=range]")
        slider.focus()
        slider.press("Home")
        for _ in range(round(value / 0.05)):
            slider.press("ArrowRight")
        assert float(slider.input_value()) == pytest.approx(value)

    def choose(self, adapter: str) -> None:
        self.page.locator("#adapters input").click()
        self.page.get_by_role("option", name=adapter).click()
        self.page.locator("h3").click()  # closes the menu

    def until(self, condition: str) -> None:
        """Wait until ``condition`` holds: of ``rows``, [base, adapted] a class, and ``said``."""
        self.page.wait_for_function(
            f"""() => {{
                const rows = [...document.querySelectorAll("#answers .row")]
                    .map((row) => [row.dataset.base, row.dataset.adapted]);
                const said = document.querySelector("#said [role=status]").textContent;
                return {condition};
            }}""",
            timeout=20_000,
        )

    def until_alike(self) -> None:
        self.until("rows.every(([b, a]) => b === a) && rows.some(([b]) => b > 0)")

    def until_other(self) -> None:
        self.until("rows.some(([b, a]) => b !== a)")

    def rows(self) -> list[list[str]]:
        found: list[list[str]] = self.page.eval_on_selector_all(
            "#answers .row", "rows => rows.map(row => [row.dataset.base, row.dataset.adapted])"
        )
        return found

    def drawn_bars(self) -> list[list[float]]:
        """How wide the bars are on the screen, as parts of their row."""
        found: list[list[float]] = self.page.eval_on_selector_all(
            "#answers .row",
            """rows => rows.map(row => [...row.querySelectorAll("i")].map(bar =>
                bar.getBoundingClientRect().width / bar.parentElement.clientWidth))""",
        )
        return found

    def said(self) -> str:
        return str(self.page.locator("#said [role=status]").text_content())

    def seen(self) -> str:
        return str(self.page.locator("#seen img").get_attribute("src"))


@pytest.fixture
def visit(site: Site) -> Iterator[Visit]:
    visit = Visit(site, 1280, 900)
    yield visit
    visit.context.close()


def test_draw_and_move_the_slider(visit: Visit, site: Site) -> None:
    visit.draw(SEVEN)
    visit.until_other()
    assert visit.said().startswith("The base says 7 (")
    first = visit.rows()
    for row, (base, adapted) in zip(first, visit.drawn_bars(), strict=True):
        assert base == pytest.approx(float(row[0]), abs=0.01)
        assert adapted == pytest.approx(float(row[1]), abs=0.01)
    visit.set_scale(0)
    visit.until_alike()
    assert all(base == adapted for base, adapted in visit.drawn_bars())
    assert [row[0] for row in visit.rows()] == [row[0] for row in first]
    visit.set_scale(2)
    visit.until_other()
    visit.page.locator("#enabled input").click()
    visit.until_alike()
    visit.page.locator("#enabled input").click()
    visit.set_scale(1)
    visit.until(f"rows.join() === {first!r}.join()")
    elsewhere = [u for u in visit.requests if not u.startswith((site.address, "data:", "blob:"))]
    assert elsewhere == []
    assert visit.complaints == []


def test_the_network_sees_28_pixels_of_what_is_drawn(visit: Visit) -> None:
    visit.draw(SEVEN)
    visit.until("rows.some(([b]) => b > 0)")
    image = Image.open(io.BytesIO(picture_bytes(visit.seen()) or b""))
    assert image.size == (28, 28)
    box = image.getbbox()
    assert box
    assert max(box[2] - box[0], box[3] - box[1]) == 20
    one_stroke = visit.seen()
    visit.draw([(0.35, 0.5), (0.7, 0.5)])  # a second stroke adds to the first
    visit.page.wait_for_function(
        "before => document.querySelector('#seen img').src !== before", arg=one_stroke
    )
    visit.page.locator(".pad button").click()
    visit.until("rows.every(([b, a]) => b === '0.0' && a === '0.0')")
    visit.page.wait_for_selector("#seen img", state="detached")


def test_a_test_image_that_the_base_gets_wrong(visit: Visit) -> None:
    visit.page.locator("#mistake").click()
    visit.until("said.startsWith('Test image ')")
    found = re.match(r"Test image (\d+) is a (\d)\. The base says (\d) ", visit.said())
    assert found
    assert found[2] != found[3]
    first, seen_first = visit.said(), visit.seen()
    visit.page.locator("#mistake").click()
    visit.until(f"said.startsWith('Test image ') && said !== {first!r}")
    assert visit.seen() != seen_first
    visit.draw([(0.1, 0.1), (0.2, 0.9)])  # on top of it: a drawing from here on
    visit.until("said.startsWith('The base says ')")


def test_a_menu_of_adapters(visit: Visit) -> None:
    visit.draw(SEVEN)
    visit.until_other()
    alone = visit.rows()
    visit.choose(SECOND)
    visit.until(f"rows.join() !== {alone!r}.join()")
    visit.choose(BROKEN)
    visit.until("said.includes('Problem:')")
    assert "expected peft_type LORA" in visit.said()
    visit.until_alike()
    visit.choose(BROKEN)
    visit.until("!said.includes('Problem:')")
    visit.until_other()
    visit.choose(SECOND)
    visit.until(f"rows.join() === {alone!r}.join()")


def test_on_a_phone(site: Site) -> None:
    visit = Visit(site, 390, 844, touch=True)
    visit.draw_with_a_finger(SEVEN)
    visit.until_other()
    assert visit.said().startswith("The base says 7 (")
    assert visit.page.evaluate("[scrollX, scrollY]") == [0, 0]  # the finger drew, and did no more
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    bottom = visit.page.locator("#answers").bounding_box()
    assert bottom["y"] + bottom["height"] <= 844  # pad and answers on one screen
    visit.context.close()
