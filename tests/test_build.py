"""One bad value of each kind: the functions that refuse it have the others in their own tests."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import SMALL, Unsteady, composed
from helpers.commands import ROOT
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lora_mnist import MLP, lora_names
from lora_mnist.config import (
    add_configured_lora,
    build_data,
    build_module,
    build_net,
    choose_trainable,
    require_bool,
    require_fit,
    require_known_keys,
)
from lora_mnist.errors import UserError
from lora_mnist.lora import changed_tensors


def lora_config(*overrides: str) -> DictConfig:
    return composed("train", "stage=lora", *SMALL, *overrides)


# --- keys ----------------------------------------------------------------------------------------


def test_keys_that_nothing_reads_are_refused() -> None:
    cfg = OmegaConf.create({"stage": "lora", "adapter": "x", "more": {"a": 1}})
    require_known_keys(cfg, "stage", "adapter", "more")
    with pytest.raises(UserError) as caught:
        require_known_keys(cfg, "stage", "more")
    assert str(caught.value) == (
        "adapter=x: nothing reads this key with stage=lora; expected one of more, stage"
    )
    with pytest.raises(UserError, match=r"more=\.\.\.: nothing reads this key"):
        require_known_keys(cfg, "stage", "adapter")


@pytest.mark.parametrize("value", ["yes", 1, None, [True]])
def test_what_merely_is_not_empty_is_not_true(value: Any) -> None:
    for right in (True, False):
        require_bool(OmegaConf.create({"each": right}), "each")
    with pytest.raises(UserError, match="each=.*: expected true or false"):
        require_bool(OmegaConf.create({"each": value}), "each")


# --- parts ---------------------------------------------------------------------------------------


def test_data_of_the_configuration() -> None:
    cfg = lora_config("data.replay=9", "data.batch_size=7", "seed=5")
    data = build_data(cfg, "fit", target=3)
    assert (data.targets, data.replay, data.batch_size, data.seed) == ([3], 9, 7, 5)
    assert set(data.train_set.labels.tolist()) == {3}
    assert len(data.val_set) == 5_000
    assert build_data(cfg, "fit", replay=0).replay == 0
    assert len(build_data(cfg, "test", target=3).test_set) == 10_000


@pytest.mark.parametrize(
    ("override", "target", "message"),
    [
        ("seed=0", 10, "digit=10: expected null, a class from 0 to 9 or a list of them"),
        ("seed=0", -1, "digit=-1: expected"),
        ("seed=0", "neun", "digit=neun: expected"),
        ("seed=0", [9, 9], r"digit=\[9, 9\]: expected each class once"),
        ("data.replay=-1", 9, "data.replay=-1: expected an integer >= 0"),
        ("data.replay=60000", 9, "data.replay=60000: expected at most 49534, the training images"),
        ("data.hardness=1", 9, "data.hardness=1: expected a number from 0 to below 1"),
        ("data.batch_size=0", 9, "data.batch_size=0: expected an integer >= 1"),
        ("data.val_size=60000", 9, "data.val_size=60000: expected less than 60000"),
        ("data.data_dir=/dev/null", 9, "data.data_dir=/dev/null: expected a folder that can be re"),
        ("data.data_dir={tmp}/none", 9, "missing, and no download possible; expected the"),
        ("data.mean=abc", 9, "data.mean=abc: expected a number"),
        ("data.seed=abc", 9, "data.seed=abc: expected an integer >= 0"),
        ("data.dataset=CIFAR10", 9, "data.dataset=CIFAR10: expected one of MNIST, FashionMNIST"),
        ("+data.nope=1", 9, "data: .*unexpected keyword argument 'nope'"),
    ],
)
def test_data_that_cannot_be_used(tmp_path: Path, override: str, target: Any, message: str) -> None:
    cfg = lora_config(override.replace("{tmp}", str(tmp_path)))
    with pytest.raises(UserError, match=message):
        build_data(cfg, "fit", target)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("net.hidden_sizes=[0]", r"net.hidden_sizes=\[0\]: expected integers >= 1"),
        ("net._target_=nets.Net", "net._target_=nets.Net: not found; expected MODULE.CLASS, with"),
        ("+net.nope=1", "net: .*unexpected keyword argument 'nope'"),
    ],
)
def test_a_network_that_cannot_be_built(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_net(lora_config(override))


def test_a_network_must_be_one() -> None:
    with pytest.raises(
        UserError, match="^net._target_=builtins.dict: gives a dict; expected an nn"
    ):
        build_net(OmegaConf.create({"net": {"_target_": "builtins.dict"}}))


def test_the_message_says_what_the_network_takes() -> None:
    with pytest.raises(
        UserError, match=r"'nope'.*; it takes \(in_features: int = 784, hidden_size"
    ):
        build_net(lora_config("+net.nope=1"))


def test_a_network_of_ones_own_is_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from torch import nn\nclass Net(nn.Linear):\n    pass\n"
    (tmp_path / "nets_of_mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    options = ("net._target_=nets_of_mine.Net", "+net.in_features=3", "+net.out_features=2")
    cfg = composed("train", "stage=lora", "net=custom", *options)
    assert [tuple(p.shape) for p in build_net(cfg).parameters()] == [(2, 3), (2,)]
    assert cfg.base_name == "mnist_custom"


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            MLP(hidden_sizes=[16], num_classes=5),
            r"^net: answers \(2, 5\) to images of shape \(2, 1, 28, 28\); expected \(2, 10\),",
        ),
        (
            MLP(100),
            r"^net: cannot take images of shape \(2, 1, 28, 28\) from mnist \(mat1 ",
        ),
        (nn.LSTM(28, 28), "^net: cannot take images of shape "),
    ],
)
def test_a_network_must_fit_its_images(net: nn.Module, message: str) -> None:
    data = build_data(lora_config(), "fit", 9)
    with pytest.raises(UserError, match=message):
        require_fit(net.train(), data, data.train_set.images[:2])
    assert net.training


def test_a_network_that_fits_is_left_as_it_was() -> None:
    data = build_data(lora_config(), "fit", 9)
    net = Unsteady()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    require_fit(net, data, data.train_set.images[:2])
    assert all(module.training for module in net.modules())
    assert changed_tensors(before, net.state_dict()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rank=0", "lora.rank=0: expected an integer >= 1"),
        ("lora.rank=1.5", "lora.rank=1.5: expected an integer >= 1"),
        ("lora.init=svd", "lora.init=svd: expected one of gaussian, kaiming, pissa"),
        ("lora.dropout=1", "lora.dropout=1: expected a number from 0 to below 1"),
        ("lora.use_rslora=2", "lora.use_rslora=2: expected true or false"),
        ("lora.alpha=nan", "lora.alpha=nan: expected a finite number > 0"),
        ("lora.target_modules=conv", "lora.target_modules=conv: expected to match"),
        ("lora.rank_pattern={conv: 2}", "lora.rank_pattern={'?conv'?: 2}: expected"),
        ("lora.rank_pattern=4", "lora.rank_pattern=4: expected a mapping from layers to values"),
        ("+lora.bias=all", r"lora: add_lora\(\) got an unexpected keyword argument 'bias'"),
    ],
)
def test_an_adapter_that_cannot_be_built(override: str, message: str) -> None:
    net = MLP(hidden_sizes=[16])
    with pytest.raises(UserError, match=message):
        add_configured_lora(lora_config(override), net)
    assert lora_names(net) == []


@pytest.mark.parametrize(
    ("value", "layers"),
    [
        ("all", 2),
        ("all-linear", 2),
        ("[linear1]", 1),
        ("linear1", 1),
        ("'linear[12]'", 2),
        ('"linear1|linear2"', 2),
    ],
)
def test_target_modules_as_they_are_written_on_the_command_line(value: str, layers: int) -> None:
    net = MLP(hidden_sizes=[16])
    add_configured_lora(lora_config(f"lora.target_modules={value}"), net)
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * layers


def test_what_is_trained_is_in_train_mode() -> None:
    """A base is in eval mode, since nothing that is asked of it may change its buffers."""
    nets = [Unsteady().eval(), Unsteady().eval()]
    choose_trainable(nets[0], ".*")
    assert all(module.training for module in nets[0].modules())
    add_configured_lora(lora_config("lora.dropout=0.5"), nets[1])
    nets[1](torch.ones(2, 1, 28, 28))
    trained = [name for name, module in nets[1].named_modules() if module.training]
    assert [name for name in trained if "parametrizations" in name]
    assert not {"norm", "dropout"} & set(trained)


def test_only_the_chosen_parameters_are_trained() -> None:
    net = MLP(hidden_sizes=[16])
    for pattern, expected in {".*": 4, "linear2.*": 2, r"linear\d\.bias": 2}.items():
        choose_trainable(net, pattern)
        assert sum(p.requires_grad for p in net.parameters()) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("conv.*", r"trainable=conv\.\*: expected to match a parameter, of: linear1\.weight, "),
        ("linear", "trainable=linear: expected to match a parameter"),
        ("[", r"trainable=\[: expected a regular expression \("),
        (None, r"trainable=None: expected a regular expression \("),
    ],
)
def test_trainable_must_choose_something(pattern: Any, message: str) -> None:
    net = MLP(hidden_sizes=[16])
    with pytest.raises(UserError, match=message):
        choose_trainable(net, pattern)
    assert all(p.requires_grad for p in net.parameters())


# --- the module ----------------------------------------------------------------------------------


def module_of(cfg: DictConfig, target: Any = 9) -> Any:
    net = build_net(cfg)
    data = build_data(cfg, "fit", None if cfg.stage == "pretrain" else target)
    if cfg.stage == "lora":
        add_configured_lora(cfg, net)
    return build_module(cfg, net, data)


def test_the_module_is_what_the_configuration_says() -> None:
    cfg = lora_config("optimizer=loraplus", "optimizer.lr=0.01", "loss=margin", "scheduler=cosine")
    before = OmegaConf.to_container(cfg, resolve=True)
    module = module_of(cfg, target=[3, 5])
    assert OmegaConf.to_container(cfg, resolve=True) == before
    assert module.loss.target == [3, 5]
    assert (module.lr_ratio, module.optimizer.keywords["lr"]) == (16.0, 0.01)
    assert "lr_ratio" not in module.optimizer.keywords
    assert module.scheduler.keywords == {"T_max": 100}
    assert dict(module.hparams) == {
        **before,
        **{"base_sha256": None, "target": [3, 5]},
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("stage=lora", "loss.fit=l1"), "loss.fit=l1: expected one of cross_entropy, hinge"),
        (("stage=lora", "loss.target_weight=2"), "loss.target_weight=2: expected a finite number"),
        (
            ("stage=lora", "loss=distill"),
            "loss.distill=1.0: expected data.replay > 0, or loss.distill_on=target",
        ),
        (("stage=lora", "optimizer.lr=-1"), "optimizer.lr=-1: expected a finite"),
        (("stage=lora", "+optimizer.nope=1"), "optimizer: .*unexpected keyword argument 'nope'"),
        (
            ("stage=lora", "optimizer._target_=torch.optim.Adamm"),
            "optimizer: Error loading 'torch.optim.Adamm'",
        ),
        (("stage=lora", "optimizer.lr_ratio=0"), "optimizer.lr_ratio=0: expected a finite number"),
        (
            ("stage=lora", "scheduler=cosine", "+scheduler.nope=1"),
            "scheduler: .*unexpected keyword argument 'n",
        ),
        (
            ("stage=finetune", "optimizer.lr_ratio=16"),
            "optimizer.lr_ratio=16: expected 1, since stage=finetune trains no lora_B",
        ),
        (
            ("stage=pretrain", "optimizer=loraplus"),
            "optimizer.lr_ratio=16.0: expected 1, since stage=pretrain trains no lora_B",
        ),
        (
            ("stage=pretrain", "loss=distill"),
            "loss.distill=1.0: expected 0, since stage=pretrain has no base",
        ),
        (
            ("stage=pretrain", "data.hardness=0.5"),
            "data.hardness=0.5: expected 0, since stage=pretrain has no base",
        ),
        (
            ("stage=pretrain", "scheduler=linear"),
            "trainer.max_steps=-1: expected the number of steps, since scheduler counts them",
        ),
    ],
)
def test_a_module_that_cannot_be_built(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        module_of(composed("train", *SMALL, *overrides))


def test_configs_name_nothing_that_is_not_there() -> None:
    def targets(node: Any) -> Iterator[str]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from targets(value)
            elif key == "_target_" and value != "???":
                yield value

    files = sorted((ROOT / "configs").rglob("*.yaml"))
    contents = [OmegaConf.to_container(OmegaConf.load(file)) for file in files]
    named = {target for content in contents for target in targets(content)}
    assert len(named) > 10
    for target in named:
        assert callable(get_object(target))
