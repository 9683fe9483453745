import base64
import re
import warnings
from io import BytesIO

import matplotlib as mpl
import pytest
import torch
from composed import logged
from helpers.runs import CLASSES, CURVE, images, make_table, predictions, results
from matplotlib.font_manager import findfont, get_font
from PIL import Image

from lora_mnist.data import Images
from lora_mnist.measure.counts import count_by_split
from lora_mnist.show import figures
from lora_mnist.show.report import make_report, select_pictures
from lora_mnist.show.run_results import RunResults


def write_report(folder, run, table=None, of=None):
    """The page on a run, and on these predictions for a set of images."""
    table = table or predictions("test_base" in run)
    make_report(folder, RunResults(run), table, of or images())
    return (folder / "report.html").read_text()


@pytest.mark.parametrize("stage", ["lora", "eval", "pretrain"])
def test_a_report_of_each_stage(tmp_path, stage):
    """It needs nothing from elsewhere, and runs nothing: a name and a configuration try to."""
    page = write_report(tmp_path, results(stage))
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"classes.png", "confusion.png"}
    for text in ("Each class", "onfusion matrix", "Where the images come from", "farm"):
        assert text in page
    kinds = re.findall(r'<section id="(\w+)">', page)
    assert kinds == (["wrong"] if stage == "pretrain" else ["broken", "wrong", "repaired"])
    assert ("base unchanged, bit for bit: SHA-256" in page) == (stage == "lora")
    assert page.count('<tr class="mark"><td>dog</td>') == (stage != "pretrain")
    has_no_say = "Test images decide nothing." in page
    assert has_no_say == (stage != "pretrain")  # of a base without validation images they do
    assert "<script" not in page
    assert "<b>cow" not in page
    assert ".py stage=lora &#39;notes=&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for tag in ("src=", "href="):
        assert {piece[:6] for piece in page.split(tag)[1:]} <= {'"data:'}


def test_the_report_says_which_scale_was_taken_and_why(tmp_path):
    reason = {"code": "set", "key": "lora.scale", "where": "command line"}
    point = {"value": {"scale": 1, "offset": 0}, "of": None, "images": 0, "reasons": [reason]}
    page = " ".join(
        write_report(tmp_path, results(scale_curve=CURVE, choices={"point": point})).split()
    )
    assert "advise scale 0.5 and offset 0," in page
    assert "<li>lora.scale=1 lora.offset=0: lora.scale is set on the command line</li>" in page


def test_long_names_of_files_lose_their_middle(tmp_path):
    names = [f"test/cat/a_very_long_name_of_a_picture_{n}.png" for n in range(6)]
    page = write_report(tmp_path, results(), of=images(names))
    assert f'<span title="{names[1]}">test/cat/…ture_1.png</span>' in page


@pytest.mark.parametrize("families", [["DejaVu Sans", "STIXGeneral"], ["DejaVu Sans"]])
def test_a_name_is_written_in_a_font_that_has_it_or_is_a_number(tmp_path, families):
    """In figures alone, and without a warning of Matplotlib for each letter."""
    usual, other = [get_font(findfont(name)) for name in ("DejaVu Sans", "STIXGeneral")]
    odd = next(chr(n) for n in other.get_charmap() if not usual.get_char_index(n))
    classes = ["cat", f"dog {odd}", "cow"]
    with (
        mpl.rc_context({"font.family": families}),
        logged("lora_mnist.show.figures") as text,
        warnings.catch_warnings(action="error"),
    ):
        page = write_report(tmp_path, results(classes=classes))
        is_drawn = figures.replace_undrawable_names(classes) == classes
    assert f">{classes[1]}<" in page
    assert is_drawn == (len(families) == 2) == ("figures have numbers" not in text.getvalue())


@pytest.mark.filterwarnings("error")
def test_a_report_of_many_classes_is_small(tmp_path):
    """It begins with what changed."""
    label = torch.arange(300)
    base, adapted = label.clone(), label.clone()
    base[:60], adapted[30:90] = 99, 98
    table = make_table(300, label, base, adapted)
    counts = count_by_split({"test": table}, [0])
    run = results(targets=[0], classes=[f"class number {n}" for n in range(300)], **counts)
    noise = torch.randint(0, 255, (300, 3, 64, 64), dtype=torch.uint8)
    page = write_report(tmp_path, run, table, Images(noise, label))
    assert len(page) < 5e6
    assert page.count("<tr") == 13
    assert '<tr class="mark"><td>class number 0</td>' in page


def test_first_pictures_are_the_surest_of_each_kind():
    """Of broken ones those of which the base was surest, here 1.0 and 0.8."""
    shown = select_pictures(predictions(), images(), CLASSES)
    names = {kind: [picture["name"] for picture in pictures] for kind, pictures in shown.items()}
    assert names == {"broken": ["4", "5"], "wrong": ["1"], "repaired": ["2"]}
    first = shown["broken"][0]
    assert first["label"] == CLASSES[2]
    assert first["predictions"] == [(CLASSES[2], 1.0), ("cat", 0.25)]
    png = base64.b64decode(first["address"].partition(",")[2])
    assert Image.open(BytesIO(png)).getcolors() == [(16, 40)]
