import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_mnist.show.document import code_in, document, drawing, facts, gallery, png, table

NASTY = "<script>alert('1')</script>"
SAFE = "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;"


def test_text_is_never_markup() -> None:
    parts = [
        facts([(NASTY, NASTY)]),
        table([NASTY], [[NASTY], [(NASTY, "bad")]], foot=[NASTY]),
        gallery([(np.zeros((2, 2, 3), dtype=np.uint8), NASTY)]),
        code_in(f"{NASTY} `{NASTY}`"),
    ]
    page = document(NASTY, parts)
    assert "<script" not in page
    assert page.count(SAFE) == 10


def test_needs_nothing_but_itself() -> None:
    page = document("a", [table(["a"], [["b"]], sortable=True)], sorts=True)
    assert "http" not in page
    assert page.count("<script>") == 1
    assert "<button>a</button>" in page


def test_code_stands_between_backticks() -> None:
    assert code_in("say `a=1` twice") == "say <code>a=1</code> twice"
    assert code_in("a ` alone") == "a ` alone"


def test_numbers_sort_by_value() -> None:
    cells = table(["", "n"], [["a", 1234], ["b", 0.5]], marked=[1])
    assert '<td data-value="1234">1,234</td>' in cells
    assert '<tr class=mark><td>b</td><td data-value="0.5">0.5000</td></tr>' in cells


def test_a_drawing_takes_the_pages_colour(tmp_path: Path) -> None:
    path = tmp_path / "errors.svg"
    path.write_text(
        '<?xml version="1.0"?><svg height="100pt" viewBox="0 0 2 1" width="200pt">'
        '<g id="p1" style="fill: #1b2733"/><use xlink:href="#p1" clip-path="url(#p1)"/></svg>'
    )
    shown = drawing(path, "errors", "#1b2733")
    assert shown.startswith('<figure><svg role="img" aria-label="errors"  viewBox="0 0 2 1" >')
    assert 'id="errors-p1" style="fill: currentColor"' in shown
    assert 'xlink:href="#errors-p1" clip-path="url(#errors-p1)"' in shown
    assert drawing(tmp_path / "none.svg", "", "") == ""


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (3, 50)])
def test_png(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = png(pixels)
    assert np.array_equal(np.asarray(Image.open(BytesIO(file))), pixels)
    assert len(file) <= len(zlib.compress(pixels.tobytes())) + size[0] + 80
