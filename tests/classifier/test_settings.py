"""Settings: who says a value first, and that what a record names is not run because it says so."""

import pytest
from composed import FEW, SMALL, composed, small_net
from helpers.commands import refused

from lora_mnist import add_lora, load_classifier, save_adapter
from lora_mnist.classifier.record import VERSION, Record, read_record
from lora_mnist.classifier.settings import Settings
from lora_mnist.commands.evaluate import evaluate
from lora_mnist.commands.predict import predict

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
V2 = "torchvision.transforms.v2.Resize"
TIMM = {"_target_": "timm.create_model", "model_name": "vit"}
MLP = {"_target_": "lora_mnist.MLP"}
SPLIT = {"data_dir": "/a", "val_size": 0.3}
#: What no test asks for: a record has all three.
RECORD = {"version": VERSION, "net": {**MLP, "hidden_sizes": [16]}}
RECORD |= {"prepare": {"mean": 0.1}, "data": {"val_from": "train"}}


def taken(own, **record):
    settings = Settings.from_command_line(
        own.get("net", {}), own.get("prepare", {}), own.get("data", {})
    )
    return settings.with_record("the adapter", read_record({**RECORD, **record}), "adapter=a")


@pytest.mark.parametrize(
    ("net", "foreign"),
    [
        ({**TIMM, "in_chans": 1, "pretrained": False}, None),
        ({**MLP, "hidden_sizes": [16, [8]]}, None),
        ({"_target_": "lora_mnist.cli.main.os.system"}, "lora_mnist.cli.main.os.system"),
        ({**TIMM, "pretrained": True}, "pretrained=true"),
        ({**TIMM, "model_name": "local-dir:/tmp/gift"}, "model_name=local-dir:/tmp/gift"),
        ({**MLP, "steps": [{"_target_": "a.B", "x": 1}]}, "steps=[{_target_: a.B, x: 1}]"),
        ({**MLP, "sizes": "${oc.env:HOME}"}, "sizes=${oc.env:HOME}"),
        ({**TIMM, "checkpoint_path": "gift.pth"}, "checkpoint_path=gift.pth"),
        ({**MLP, "sizes": ({"_target_": "os.system"},)}, "sizes=[{_target_: os.system}]"),
    ],
)
def test_settings_in_a_file_that_run_code_are_refused(net, foreign):
    """A base's file has tuples."""
    command_line = [{}, {"_target_": net["_target_"]}] if foreign != net["_target_"] else [{}]
    for own in command_line:
        if foreign is None:
            assert taken({"net": own}, net=net).net == net
        else:
            assert f" {foreign}, code" in refused(lambda own=own: taken({"net": own}, net=net))
    assert taken({"net": net}, net=net).net == net


def test_what_two_records_say_together_is_refused_too():
    one = Record(net={"checkpoint_path": "gift.pth"})
    settings = Settings.from_command_line({}, {}, {}).with_record("a", one, "adapter=a")
    said = refused(settings.with_record, "b", read_record({**RECORD, "net": TIMM}), "base_ckpt=b")
    assert said.startswith("base_ckpt=b: ")


def test_a_transform_is_named_whole_and_its_arguments_come_from_the_file():
    """The key ``prepare.transform`` is null, so nothing below it could be set."""
    copy = {"image_size": {"_target_": "shutil.copy", "src": "a", "dst": "b"}}
    assert "shutil.copy" in refused(lambda: taken({}, prepare=copy))
    stored = {"transform": {"_target_": "my.Crop", "size": 8}}
    key = "'prepare.transform={_target_: my.Crop, size: 8}'"
    said = refused(lambda: taken({}, prepare=stored))
    assert key in said
    assert "--config-dir . classifier=NAME" in said
    command_line = {"prepare": {"transform": {"_target_": "my.Crop"}}}
    assert taken(command_line, prepare=stored).prepare == stored


@pytest.mark.parametrize(
    ("group", "own", "stored", "expected"),
    [
        ("net", {"_target_": None, "x": 2}, {**MLP, "x": 1}, {**MLP, "x": 2}),
        ("net", {**MLP, "x": None}, {**MLP, "x": 1, "y": [2]}, {**MLP, "x": 1, "y": [2]}),
        ("net", {"_target_": "b", "x": None}, {**MLP, "x": 1}, {"_target_": "b", "x": None}),
        # Arguments of a transform, one by one; a transform replaces the rest.
        (
            "prepare",
            {"transform": {"_target_": V2, "size": 5}},
            {"mean": 0.5, "transform": {"_target_": V2, "size": 4, "antialias": True}},
            {"transform": {"_target_": V2, "size": 5, "antialias": True}},
        ),
        # How images are held out does not depend on where they lie now.
        ("data", {"data_dir": "/b"}, SPLIT, {**SPLIT, "data_dir": "/b"}),
        # None of the training images says nothing of how many test images.
        ("data", {"val_from": "test"}, {"val_size": 0}, {"val_from": "test"}),
    ],
)
def test_settings_on_the_command_line_take_precedence_over_the_file(group, own, stored, expected):
    settings = taken({group: own}, **{group: stored})
    assert getattr(settings, group) == expected


def test_settings_know_who_has_said_what():
    """And where what is used is other than in a record, whoever has said it."""
    own = {"prepare": {"mean": 0.5, "image_size": 8}}
    settings = taken(own, prepare={"mean": 0.1, "std": [0.3, 0.2], "image_size": [8, 8]})
    record = read_record({**RECORD, "prepare": {"std": 1, "channels": 3}})
    settings = settings.with_record("the base", record, "base=b")
    adapter, differing, base, of_base = settings.notes
    assert ("std" in adapter, "channels" in base) == (True, True)
    assert differing == "other than in the adapter: prepare.mean=0.5"
    assert of_base == "other than in the base: prepare.std=[0.3,0.2]"
    assert settings.prepare["std"] == [0.3, 0.2]


def evil_adapter(outputs, folder, **record):
    about = {**RECORD, **record}
    return save_adapter(add_lora(small_net(outputs)), folder / "evil", metadata=about)


def test_code_named_by_a_file_runs_only_if_the_command_line_names_it(
    outputs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_net.py").write_text(EVIL + "from lora_mnist import MLP as Net\n")
    net = {"_target_": "evil_net.Net", "hidden_sizes": [16]}
    adapter = evil_adapter(outputs, tmp_path, net=net)
    base = f"{outputs}/base/mnist.ckpt"
    named = (f"adapter={adapter}", f"base_ckpt={base}")
    options = (*named, *SMALL[1:], *FEW, f"paths.outputs={outputs}")
    said = "to run it, set net._target_=evil_net.Net,"
    assert said in refused(evaluate, composed("eval", *options))
    assert said in refused(predict, composed("predict", *named, "images=evil_net.py"))
    assert said in refused(load_classifier, adapter, base)
    evaluate(composed("eval", *options, "net=mlp", SMALL[0]))
    assert not (tmp_path / "ran").exists()
    evaluate(composed("eval", *options, "net._target_=evil_net.Net"))
    assert (tmp_path / "ran").exists()


def test_a_folder_that_only_a_record_names_is_not_made(outputs, tmp_path):
    """Nor filled: its maker may have named anything."""
    elsewhere = tmp_path / "elsewhere"
    data = {"_target_": "lora_mnist.data.MNIST", "data_dir": str(elsewhere)}
    adapter = evil_adapter(outputs, tmp_path, data=data)
    options = (f"adapter={adapter}", f"base_ckpt={outputs}/base/mnist.ckpt", *SMALL)
    assert refused(evaluate, composed("eval", *options)).startswith(f"data.data_dir={elsewhere}: ")
    assert not elsewhere.exists()


@pytest.mark.parametrize("group", ["data", "prepare"])
def test_keys_of_hydras_in_a_record_are_refused_in_one_line(outputs, tmp_path, group):
    adapter = evil_adapter(outputs, tmp_path, **{group: {**RECORD[group], "_partial_": True}})
    options = (f"adapter={adapter}", f"base_ckpt={outputs}/base/mnist.ckpt", *SMALL)
    assert "returned a partial" in refused(evaluate, composed("eval", *options))


def test_a_name_that_a_file_gives_is_no_other_folder(outputs, tmp_path):
    adapter = evil_adapter(outputs, tmp_path, data={"name": "../../elsewhere"})
    options = (f"adapter={adapter}", f"base_ckpt={outputs}/base/mnist.ckpt", *SMALL)
    assert "data.name=../../elsewhere: " in refused(evaluate, composed("eval", *options))
