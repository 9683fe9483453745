import base64
import io
import re

import pytest
import torch
from helpers.commands import ROOT
from PIL import Image

from lora_mnist.show.page import Sheet, bars, picture_bytes, picture_url, seen, words

CLASSES = ["cat", "<dog>"]


def test_bars_say_what_they_show_in_full_precision() -> None:
    html = bars(CLASSES, Sheet(base=[1 / 3, 2 / 3], adapted=[0.1, 0.9]))
    rows = re.findall(r'data-class="(\d)" data-base="(\S+)" data-adapted="(\S+)"', html)
    assert [(int(c), float(b), float(a)) for c, b, a in rows] == [(0, 1 / 3, 0.1), (1, 2 / 3, 0.9)]
    assert "width:33.333%" in html
    assert "66.7%" in html
    assert "&lt;dog&gt;" in html
    assert "<dog>" not in html


def test_bars_of_nothing() -> None:
    html = bars(CLASSES, Sheet())
    assert html.count("&ndash;") == 4
    assert "%<" not in html


def test_of_many_classes_the_likeliest_are_shown() -> None:
    base, adapted = [0.0] * 100, [0.0] * 100
    base[70], adapted[30] = 1.0, 1.0
    html = bars([str(number) for number in range(100)], Sheet(base=base, adapted=adapted))
    assert html.count('class="row"') == 10
    assert html.index('data-class="30"') < html.index('data-class="70"')


def test_words_are_escaped() -> None:
    html = words(Sheet(text="a < b", problem="<script>"))
    assert "a &lt; b" in html
    assert "<b>Problem:</b> &lt;script&gt;" in html
    assert "Problem" not in words(Sheet(text="all is well"))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_seen_image_is_shown_as_it_is(channels: int) -> None:
    image = torch.randint(256, (channels, 28, 20), dtype=torch.uint8)
    url = picture_url(image)
    picture = Image.open(io.BytesIO(picture_bytes(url) or b""))
    assert picture.size == (20, 28)
    pixels = torch.tensor([*picture.tobytes()], dtype=torch.uint8)
    assert torch.equal(pixels, image.permute(1, 2, 0).flatten())
    assert url in seen(Sheet(image))
    assert "28 x 20 pixels" in seen(Sheet(image))
    assert "<img" not in seen(Sheet())


@pytest.mark.parametrize(
    "url",
    [
        None,
        3,
        "",
        "data:image/svg+xml;base64,AAAA",
        "data:image/png;base64,@",
        "http://example.org",
    ],
)
def test_whatever_a_browser_sends_is_no_picture(url: object) -> None:
    assert picture_bytes(url) is None


def test_a_picture_is_of_bearable_size() -> None:
    start = "data:image/png;base64,"
    assert picture_bytes(start + base64.b64encode(b"x" * 1000).decode()) == b"x" * 1000
    assert picture_bytes(start + "AAAA" * 500_000) is None


def test_the_package_brings_what_the_page_needs() -> None:
    folder = ROOT / "src" / "lora_mnist" / "show"
    for name in ("page.js", "page.css"):
        assert not re.search(r"https?:|//\w+\.\w|@import|url\(", (folder / name).read_text())
