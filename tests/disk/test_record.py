"""A record is data: what it names is not run because a file names it."""

import pytest
from composed import FEW, SMALL, composed, small_net
from helpers.commands import refused

from lora_mnist import add_lora, save_adapter
from lora_mnist.disk.record import fill, foreign_code, inherited, upgraded
from lora_mnist.evaluate import evaluate
from lora_mnist.predict import predict

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
TIMM = {"_target_": "timm.create_model", "model_name": "vit"}


@pytest.mark.parametrize(
    ("settings", "foreign"),
    [
        ({"_target_": "lora_mnist.MLP", "hidden_sizes": [16]}, None),
        ({**TIMM, "in_chans": 1, "pretrained": False}, None),
        ({"_target_": "my_nets.Net"}, "net._target_=my_nets.Net"),
        ({"_target_": "lora_mnist.cli.os.system"}, "net._target_=lora_mnist.cli.os.system"),
        ({**TIMM, "checkpoint_path": "gift.pth"}, "net.checkpoint_path=gift.pth"),
        ({**TIMM, "pretrained": True}, "net.pretrained=True"),
        ({**TIMM, "model_name": "local-dir:/tmp/gift"}, "net.model_name=local-dir:/tmp/gift"),
        (
            {"_target_": "lora_mnist.MLP", "sizes": [{"_target_": "os.system"}]},
            "net.sizes._target_=os.system",
        ),
        ({"sizes": "${oc.env:HOME}"}, "net.sizes=${oc.env:HOME}"),
    ],
)
def test_what_runs_code_is_found(settings, foreign):
    assert foreign_code(settings, "net") == foreign


def test_an_argument_for_a_function_that_is_typed_is_checked_too():
    own, stored = TIMM, {**TIMM, "checkpoint_path": "gift.pth"}
    taken = inherited(own, stored)
    assert foreign_code(taken, "net", own["_target_"]) == "net.checkpoint_path=gift.pth"


@pytest.mark.parametrize(
    ("own", "stored", "taken"),
    [
        ({"_target_": None, "x": 2}, {"_target_": "a", "x": 1}, {"_target_": "a"}),
        ({"_target_": "a", "x": None}, {"_target_": "a", "x": 1, "y": [2]}, {"x": 1, "y": [2]}),
        # Of other images only the preprocessing is taken.
        ({"_target_": "b", "mean": None}, {"_target_": "a", "x": 1, "mean": 0.5}, {"mean": 0.5}),
        # Arguments of a transform, one by one; a transform replaces the rest.
        (
            {"_target_": None, "transform": {"crop": 5}},
            {"_target_": "a", "mean": 0.5, "transform": {"_target_": "t", "crop": 4, "size": 8}},
            {"_target_": "a", "transform": {"_target_": "t", "crop": 5, "size": 8}},
        ),
    ],
)
def test_what_is_typed_goes_before_the_file(own, stored, taken):
    assert inherited(own, stored) == taken


def test_keys_that_older_records_have_are_left_out_or_refused():
    usual = {"color_order": "rgb", "antialias": True, "in_memory": False, "labels": "/a.csv"}
    assert upgraded({"mean": 0.5, **usual}) == {"mean": 0.5}
    for key, value in (("color_order", "bgr"), ("antialias", False)):
        changed = {"mean": 0.5, **usual, key: value}
        with pytest.raises(ValueError, match=f"data.{key}={value}, .* expected data.transform"):
            upgraded(changed)
        assert upgraded(changed, {"_target_": "t"}) == {"mean": 0.5}


def test_a_record_fills_what_is_not_typed():
    """Former names of classes are read as today's; the keys say what came from the file."""
    typed = {"net": {"hidden_sizes": None}, "data": {"_target_": None, "mean": 0.5, "std": None}}
    record = {
        "net": {"_target_": "lora_mnist.MLP", "hidden_sizes": [16]},
        "data": {"_target_": "lora_mnist.data.MNISTDataModule", "mean": 0.1, "std": 0.3},
    }
    filled, keys = fill(typed, record, "adapter=nine")
    assert filled == {
        "net": record["net"],
        "data": {"_target_": "lora_mnist.data.MNIST", "mean": 0.5, "std": 0.3},
    }
    assert keys == ["net", "std"]
    assert fill(filled, {}) == (filled, [])
    record["data"]["_target_"] = "lora_mnist.data.FolderDataModule"
    assert fill(typed, record)[0]["data"]["_target_"] == "lora_mnist.data.Folder"


def evil_adapter(outputs, folder, **record):
    return save_adapter(add_lora(small_net(outputs)), folder / "evil", metadata=record)


def test_code_that_a_file_names_is_run_only_where_it_is_trusted(outputs, tmp_path):
    (tmp_path / "evil_net.py").write_text(EVIL + "from lora_mnist import MLP as Net\n")
    record = {"net": {"_target_": "evil_net.Net", "hidden_sizes": [16]}}
    record["made"] = {"folder": str(tmp_path)}
    adapter = evil_adapter(outputs, tmp_path, **record)
    base = f"base_ckpt={outputs}/base/mnist.ckpt"
    options = ("eval", f"adapter={adapter}", base, *SMALL[1:], *FEW, f"paths.outputs={outputs}")
    said = refused(evaluate, composed(*options))
    assert "names net._target_=evil_net.Net, which could run code; expected trust=true" in said
    assert not (tmp_path / "ran").exists()
    evaluate(composed(*options, "net=mlp", SMALL[0]))  # what is typed is this command's own
    assert not (tmp_path / "ran").exists()
    evaluate(composed(*options, "trust=true"))
    assert (tmp_path / "ran").exists()


def test_a_value_of_a_file_runs_no_code(outputs, tmp_path):
    copy = {"_target_": "shutil.copy", "src": str(outputs / "base" / "mnist.ckpt")}
    data = {"image_size": {**copy, "dst": str(tmp_path / "ran")}}
    adapter = evil_adapter(outputs, tmp_path, data=data)
    options = (f"adapter={adapter}", SMALL[0], f"paths.outputs={outputs}")
    refused(predict, composed("predict", *options, f"images={tmp_path}/x.png"))
    assert not (tmp_path / "ran").exists()


def test_a_name_that_is_a_file_name_is_one_component(outputs, tmp_path):
    adapter = evil_adapter(outputs, tmp_path, data={"name": "../../elsewhere"})
    cfg = composed("eval", f"adapter={adapter}", *SMALL, *FEW, f"paths.outputs={outputs}")
    assert "data.name=../../elsewhere: expected a name without /" in refused(evaluate, cfg)
