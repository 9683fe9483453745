"""What the files of bases and adapters say, as a classifier."""

import os
from functools import partial

import torch
from composed import SMALL, composed, logged, small_adapter, small_net
from helpers.commands import refused

from lora_mnist import MLP, add_lora, load_classifier, save_adapter, set_lora_scale
from lora_mnist.classifier.base import permanent_base_path, write_base
from lora_mnist.classifier.build import build_network
from lora_mnist.classifier.classifier import Classifier
from lora_mnist.classifier.record import Record
from lora_mnist.config.make import load_from_config
from lora_mnist.files import write_json
from lora_mnist.lora.base_state import hash_tensors
from lora_mnist.lora.model import lora_point
from lora_mnist.lora.point import Point
from lora_mnist.lora.weight import lora_adapters
from lora_mnist.run_paths import find_latest_adapter


def test_an_adapter_finds_its_own_base(outputs):
    """Also after another has become the current one; what is asked for wins, where it fits."""
    adapter, bases = small_adapter(outputs, "lora/nine"), outputs / "base"
    state, other = small_net(outputs).state_dict(), MLP(hidden_sizes=[16]).state_dict()
    own = hash_tensors(state)
    write_base(state, permanent_base_path(bases, "mnist", own))
    write_base(other, bases / "mnist.ckpt")
    load = partial(Classifier.load, net={"hidden_sizes": [16]}, bases=bases)
    for folder, sha256 in ((adapter, own), (adapter.parent, own), (None, hash_tensors(other))):
        classifier = load(folder)
        assert classifier.base.sha256 == sha256
        assert not any(module.training for module in classifier.net.modules())
        assert bool(lora_adapters(classifier.net)) == bool(folder)
    assert "expected the same base" in refused(load, adapter, bases / "mnist.ckpt")
    for net in (None, {"_target_": None}):
        said = refused(Classifier.load, base="none.pt", net=net)
        assert said.startswith("base_ckpt=none.pt: no such file")
        said = refused(Classifier.load, net=net, bases=outputs / "none")
        assert said.endswith("train.py stage=pretrain")
    data = {"_target_": "lora_mnist.data.MNIST", "dataset": "KMNIST"}
    said = refused(load, data=data, bases=outputs / "none")
    assert said.endswith(" of the same data and net with: python train.py stage=pretrain")
    said = refused(find_latest_adapter, outputs / "none")
    assert said.endswith(": python train.py experiment=repair")  # ready to paste
    for path in bases.glob("mnist-*"):
        path.unlink()
    assert f"base_ckpt=FILE, the weights with SHA-256 {own}" in refused(load, adapter)


def test_a_value_of_a_wrong_type_is_refused_by_the_name_of_its_file(tmp_path):
    path, record = tmp_path / "mine.pt", Record("mnist", {"_target_": "lora_mnist.MLP"}, {"std": 1})
    content = {"state_dict": MLP().state_dict(), "record": record.content()}
    of_record = {**content["record"], "data": 3}
    for wrong, reason in (
        ({"train_digests": "x"}, "train_digests=x"),
        ({"record": of_record}, "data=3"),
    ):
        torch.save(content | wrong, path)
        assert refused(load_classifier, base=path).startswith(f"base_ckpt={path}: {reason}: ")


def test_an_adapter_that_contradicts_its_base_is_logged_or_refused(tmp_path):
    """Its record may repeat the training's command line; other values are refused."""
    form = {"classes": ["a", "b"], "image_size": [4, 4], "channels": 1, "mean": 0.1, "std": 0.2}
    network = {"_target_": "lora_mnist.MLP", "in_features": 16, "hidden_sizes": [3]}
    network["num_classes"] = 2
    net = build_network(network)
    data = {"_target_": "lora_mnist.data.Folder"}
    write_base(net.state_dict(), tmp_path / "mine.pt", Record("photos", network, form, data))
    base, sha256 = tmp_path / "mine.pt", hash_tensors(net.state_dict())
    add_lora(net)

    def said(prepare=None, targets=("a",), **change):
        record = Record("photos", network, form | change, data, {}, sha256, list(targets))
        save_adapter(net, tmp_path / "adapter", record.content())
        with logged("lora_mnist.classifier.classifier") as log:
            Classifier.load(tmp_path / "adapter", base, prepare=prepare)
        return log.getvalue().strip().partition("other than in the base: ")[2]

    assert said() == said({"mean": 0.1}) == ""
    assert said(mean=0.4) == said({"mean": 0.4}, mean=0.4) == "prepare.mean=0.4"
    assert said(classes=["b", "a"]) == "prepare.classes=[b,a]"
    assert "classes=[a,a]: " in refused(said, classes=["a", "a"])
    assert "repairs [nope]; " in refused(said, targets=["nope"])


def test_the_latest_is_the_newest_by_time(outputs):
    """Whatever the folders are called."""
    cfg = composed("eval", *SMALL, f"paths.outputs={outputs}", "adapter=latest")
    for seconds, run in enumerate(("lora/2026-b", "lora/2026-a", "lora/nines", "lora/2026-b")):
        file = small_adapter(outputs, run, seed=seconds) / "adapter_config.json"
        os.utime(file, (10**9 + seconds, 10**9 + seconds))
        assert load_from_config(cfg).adapter.parent == outputs / run
    ended = {"ended": "1999-12-31T12:00:00.000000+00:00"}
    write_json(outputs / run / "results.json", ended)  # it was copied here: its times are new
    assert load_from_config(cfg).adapter.parent == outputs / "lora" / "nines"


def test_scale_of_a_saved_adapter(outputs):
    """As it was saved, unless it is said; 0 is the base and 1 as trained, whatever was saved."""
    record = {"version": 2, "net": {"_target_": "lora_mnist.MLP", "hidden_sizes": [16]}}
    record |= {"prepare": {"mean": 0.1}, "data": {"val_from": "train"}}
    adapter = small_adapter(outputs, "lora/nine")
    turned = small_net(outputs, adapter)
    set_lora_scale(turned, 0.4)
    save_adapter(turned, adapter, metadata=record)
    for scale, expected in ((None, 0.4), (1, 1), (0, 0)):
        classifier = load_classifier(adapter, outputs / "base" / "mnist.ckpt")
        if scale is not None:
            set_lora_scale(classifier.net, scale)
        assert lora_point(classifier.net) == Point(expected)
