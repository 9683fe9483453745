import pytest
import torch
from composed import adapter_of, run, small_base
from helpers.commands import only_run, read_results
from helpers.runs import CLASSES, at, images, predictions

from lora_mnist.run_paths import RUN_FILES
from lora_mnist.training.results import write_table


def lines_of(folder, table, names):
    write_table(table, names, folder, CLASSES)
    return (folder / "predictions.csv").read_text().splitlines()


def test_a_row_an_image_for_anybody(tmp_path):
    """An image keeps its name in a part of the test set."""
    table = at(predictions(), torch.arange(3))
    test_set = images([f"{n},.png" for n in range(6)])
    lines = lines_of(tmp_path, table, test_set.subset(torch.arange(3, 6)).names)
    assert lines[0] == "file,label,before,before_probability,after,after_probability,outcome"
    assert lines[3] == '"5,.png",dog,cat,0.600000,dog,0.600000,repaired'


def test_no_name_is_a_formula(tmp_path):
    """A number is none."""
    names = ["=1+1/a.png", "+b.png", "-c.png", "@d.png", "-1.5", "e=.png"]
    lines = lines_of(tmp_path, predictions(), names)
    files = [line.partition(",")[0] for line in lines[1:]]
    assert files == ["'=1+1/a.png", "'+b.png", "'-c.png", "'@d.png", "-1.5", "e=.png"]


def test_a_base_alone_has_a_prediction(tmp_path):
    lines = lines_of(tmp_path, predictions(pair=False), range(6))
    assert lines[0] == "index,label,prediction,probability,outcome"
    assert lines[2] == "1,cat,dog,0.500000,wrong"


def test_a_run_leaves_what_is_listed(made):
    """Beside what its two loggers leave."""
    names = {path.name for path in only_run(made, "lora").iterdir()}
    assert names - {*RUN_FILES} == {"csv", "target=9,rank=1"}


def test_an_adapter_is_written_before_the_copy_of_its_base(tmp_path):
    """Which is much larger: here there is no place for it, as on a full disk."""
    base, bases = small_base(tmp_path), tmp_path / "bases"
    bases.touch()
    options = ("stage=lora", "target=9", f"base_ckpt={base}", f"paths.bases={bases}")
    with pytest.raises(FileExistsError, match="bases"):
        run(tmp_path / "outputs", *options)
    folder = only_run(tmp_path / "outputs", "lora")
    assert adapter_of(folder)
    assert read_results(folder)["adapter"] == "adapter"
    assert (folder / "predictions.csv").is_file()
