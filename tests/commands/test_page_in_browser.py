"""The page as a visitor has it: the command in a process of its own, and headless Chromium."""

import re

import pytest
from composed import SMALL, small_adapter, small_base
from readme_pictures import CHROMIUM, open_page


@pytest.mark.nightly
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install -y chromium")
def test_draw_and_move_the_slider(tmp_path):
    pytest.importorskip("gradio", reason="the extra demo is not installed")
    pytest.importorskip("playwright.sync_api", reason="the extra all is not installed")
    from playwright.sync_api import expect

    small_base(tmp_path)
    small_adapter(tmp_path, "lora/2026-01-01", std=0.2)
    overrides = [SMALL[0], f"paths.outputs={tmp_path}"]
    with open_page(overrides, viewport={"width": 1280, "height": 900}) as page:
        page.locator("#pad canvas").first.wait_for()
        page.wait_for_timeout(2_000)  # until the pad is ready to draw on
        page.get_by_label("Brush", exact=True).click()  # Gradio's pad asks its visitor for it
        box = page.locator("#pad canvas").first.bounding_box()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.3 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.48 * box["width"], box["y"] + 0.7 * box["height"], steps=10)
        page.mouse.up()
        probability = re.compile(r"\d+%")
        base, adapted = page.locator("#base"), page.locator("#adapted")
        expect(base).to_contain_text(probability)
        expect(base.locator("h2")).to_have_text("1")
        expect(adapted).to_contain_text(probability)
        first = base.inner_text().partition("\n")[2], adapted.inner_text().partition("\n")[2]
        assert first[0] != first[1]
        slider = page.locator("#scale input[type=range]")
        slider.focus()
        slider.press("Home")
        for line in first[0].splitlines():  # at 0 both sides are the base
            expect(adapted).to_contain_text(line)
        assert base.inner_text().partition("\n")[2] == first[0]
        page.get_by_role("button", name="A test image that the base gets wrong").click()
        expect(page.get_by_text(re.compile(r"Test image \d+, labeled \d"))).to_be_visible()
