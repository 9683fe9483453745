"""One bad value of each kind: the functions that refuse it have the others in their own tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import SMALL, composed, small_base
from helpers.commands import ROOT
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lora_mnist import MLP, add_lora, lora_names, save_adapter
from lora_mnist.base import write_base
from lora_mnist.build import (
    add_configured_lora,
    build_data,
    build_module,
    build_net,
    choose_trainable,
    require_bool,
    require_known_keys,
)
from lora_mnist.errors import UserError
from lora_mnist.load import adapter_specs, current_base, load_adapters, load_base
from lora_mnist.lora import CONFIG_NAME, WEIGHTS_NAME, changed_tensors, fingerprint


def lora_config(*overrides: str) -> DictConfig:
    return composed("train", "stage=lora", *SMALL, *overrides)


def eval_config(outputs: Path, *overrides: str) -> DictConfig:
    return composed("eval", *SMALL, f"paths.outputs={outputs}", *overrides)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder of outputs with the current base and two runs of stage=lora."""
    outputs = tmp_path / "outputs"
    small_base(outputs)
    for seed, run in enumerate(("2026-01-01_a", "2026-01-02_b")):
        save_adapter(adapted(outputs, seed), outputs / "lora" / run / "adapter")
    return outputs


def adapted(outputs: Path, seed: int = 0) -> nn.Module:
    cfg = eval_config(outputs)
    net = build_net(cfg)
    load_base(cfg, net)
    torch.manual_seed(seed)
    return add_lora(net)


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
        ("seed=0", "nine", "digit=nine: expected"),
        ("seed=0", [9, 9], r"digit=\[9, 9\]: expected each class once"),
        ("data.replay=-1", 9, "data.replay=-1: expected an integer >= 0"),
        ("data.replay=60000", 9, "data.replay=60000: expected at most the 49534 training images"),
        ("data.hardness=1", 9, "data.hardness=1: expected a number from 0 to below 1"),
        ("data.batch_size=0", 9, "data.batch_size=0: expected an integer >= 1"),
        ("data.val_size=60000", 9, "data.val_size=60000: expected less than 60000"),
        ("data.data_dir=/dev/null", 9, "data.data_dir=/dev/null: expected a folder that can be re"),
        ("data.data_dir={tmp}/none", 9, "files missing, and no download possible; expected the"),
        ("data.mean=abc", 9, "data.mean=abc: expected a number"),
        ("data.seed=abc", 9, "data.seed=abc: expected an integer >= 0"),
        ("data.dataset=CIFAR10", 9, "data.dataset=CIFAR10: expected one of MNIST, FashionMNIST"),
        ("+data.nope=1", 9, "data: .*unexpected keyword argument 'nope'"),
    ],
)
def test_data_that_cannot_be_used(
    tmp_path: Path, override: str, target: Any, message: str
) -> None:
    cfg = lora_config(override.replace("{tmp}", str(tmp_path)))
    with pytest.raises(UserError, match=message):
        build_data(cfg, "fit", target)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("net.hidden_sizes=[0]", r"net.hidden_sizes=\[0\]: expected integers >= 1"),
        ("net._target_=nets.Net", "net: Error locating target 'nets.Net'|net: Error loading"),
        ("+net.nope=1", "net: .*unexpected keyword argument 'nope'"),
    ],
)
def test_a_network_that_cannot_be_built(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_net(lora_config(override))


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


# --- the base ------------------------------------------------------------------------------------


def test_the_current_base_is_the_default(outputs: Path) -> None:
    cfg = eval_config(outputs)
    assert current_base(cfg) == outputs / "base" / "mnist.ckpt"
    net = build_net(cfg)
    base = load_base(cfg, net)
    assert base.sha256 == fingerprint(net.state_dict())
    assert changed_tensors(base.tensors, net.state_dict()) == []


def test_a_base_by_its_file(outputs: Path, tmp_path: Path) -> None:
    torch.save(MLP(hidden_sizes=[16]).state_dict(), tmp_path / "mine.pt")
    cfg = eval_config(outputs, f"base_ckpt={tmp_path}/mine.pt", "adapter=latest")
    expected = torch.load(tmp_path / "mine.pt", weights_only=True)
    assert load_base(cfg, build_net(cfg)).sha256 == fingerprint(expected)


def test_an_adapter_finds_its_own_base(outputs: Path) -> None:
    """Also after another pretraining has replaced the current one."""
    folder, current = outputs / "base", outputs / "base" / "mnist.ckpt"
    own = torch.load(current, weights_only=True)["state_dict"]
    write_base(own, folder, "mnist", current)
    other = MLP(hidden_sizes=[16]).state_dict()
    write_base(other, folder, "mnist", current)
    for adapter in ("latest", f"{outputs}/lora/2026-01-01_a", f"[{outputs}/lora/2026-01-02_b]"):
        cfg = eval_config(outputs, f"adapter={adapter}")
        net = build_net(cfg)
        assert load_base(cfg, net).sha256 == fingerprint(own)
        assert load_adapters(cfg, net)
    cfg = eval_config(outputs)
    assert load_base(cfg, build_net(cfg)).sha256 == fingerprint(other)


def test_without_its_own_base_an_adapter_is_tried_on_the_current_one(outputs: Path) -> None:
    small_base(outputs, seed=1)
    cfg = eval_config(outputs, "adapter=latest")
    net = build_net(cfg)
    load_base(cfg, net)
    with pytest.raises(UserError, match="expected the same base, or allow_other_base=true"):
        load_adapters(cfg, net)
    cfg = eval_config(outputs, "adapter=latest", "allow_other_base=true")
    assert load_adapters(cfg, net) == ["2026-01-02_b"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "no such file; make it with: python train.py stage=pretrain"),
        (("net=cnn",), "no such file; make it with: python train.py stage=pretrain net=cnn"),
        (
            ("data=kmnist",),
            "kmnist.ckpt: no such file; make it with: python train.py stage=pretrain data=kmnist",
        ),
    ],
)
def test_a_missing_base_is_named_with_the_command_that_makes_it(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    cfg = composed("eval", f"paths.outputs={tmp_path}", *overrides)
    with pytest.raises(UserError, match=f"^base_ckpt={tmp_path}/base/.*{message}$"):
        load_base(cfg, build_net(cfg))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or something else"),
        ({"weight": torch.ones(3)}, "missing: linear1.weight, linear1.bias, linear2.weight and 1"),
    ],
)
def test_a_base_that_cannot_be_used(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "mine.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    cfg = lora_config(f"base_ckpt={path}")
    with pytest.raises(UserError, match=f"^base_ckpt={path}: {message}.*; expected"):
        load_base(cfg, build_net(cfg))


# --- adapters ------------------------------------------------------------------------------------


def test_an_adapter_by_its_folder_its_runs_or_as_the_latest(outputs: Path) -> None:
    first, second = (outputs / "lora" / run for run in ("2026-01-01_a", "2026-01-02_b"))
    (outputs / "lora" / "2026-01-03_failed" / "adapter").mkdir(parents=True)
    for value, run in {str(first): first, f"{first}/adapter": first, "latest": second}.items():
        assert adapter_specs(eval_config(outputs, f"adapter={value}")) == [
            {"path": run / "adapter", "name": run.name, "weight": 1.0}
        ]
    assert adapter_specs(eval_config(outputs)) == []


def test_an_adapter_of_peft_is_a_folder_of_its_own(outputs: Path, tmp_path: Path) -> None:
    folder = (outputs / "lora" / "2026-01-01_a" / "adapter").rename(tmp_path / "mine")
    (spec,) = adapter_specs(eval_config(outputs, f"adapter={folder}"))
    assert (spec["path"], spec["name"]) == (folder, "mine")


def test_several_adapters_are_stacked(outputs: Path) -> None:
    first, second = (outputs / "lora" / run for run in ("2026-01-01_a", "2026-01-02_b"))
    several = f"adapter=[{first},{{path: {second}, weight: -0.5, name: minus}},latest]"
    cfg = eval_config(outputs, several)
    assert adapter_specs(cfg) == [
        {"path": first / "adapter", "name": first.name, "weight": 1.0},
        {"path": second / "adapter", "name": "minus", "weight": -0.5},
        {"path": second / "adapter", "name": second.name, "weight": 1.0},
    ]
    net = build_net(cfg)
    load_base(cfg, net)
    assert load_adapters(cfg, net) == [first.name, "minus", second.name]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3", "adapter=3: expected a folder, latest, or a mapping of path, weight and name"),
        ("[{weight: 1}]", "adapter={'weight': 1}: expected a folder, latest, or a mapping of"),
        ("{path: x, scale: 1}", "'scale': 1}: expected a folder, latest, or a mapping of path"),
        ("{path: 3}", "adapter={'path': 3}: expected a folder"),
        ("{path: {run}, weight: x}", "/adapter: weight=x: expected a finite number"),
        ("[{run},{run}]", "name=2026-01-01_a: expected another name than 2026-01-01_a"),
        ("{tmp}/none", f"adapter={{tmp}}/none: expected a readable {WEIGHTS_NAME}"),
        ("{tmp}", f"adapter={{tmp}}: expected a readable {WEIGHTS_NAME}"),
    ],
)
def test_an_adapter_that_cannot_be_loaded(
    outputs: Path, tmp_path: Path, value: str, message: str
) -> None:
    names = {"{tmp}": str(tmp_path), "{run}": f"{outputs}/lora/2026-01-01_a"}
    for name, path in names.items():
        value, message = value.replace(name, path), message.replace(name, path)
    cfg = eval_config(outputs, f"adapter={value}")
    net = build_net(cfg)
    with pytest.raises(UserError) as caught:
        load_base(cfg, net)
        load_adapters(cfg, net)
    assert message in str(caught.value)
    assert str(caught.value).startswith("adapter=")
    assert "\n" not in str(caught.value)


def test_an_adapter_without_its_config_or_with_a_foreign_one(outputs: Path) -> None:
    folder = outputs / "lora" / "2026-01-01_a" / "adapter"
    (folder / CONFIG_NAME).write_text("{}")
    cfg = eval_config(outputs, f"adapter={folder}")
    net = build_net(cfg)
    load_base(cfg, net)
    with pytest.raises(UserError, match=f"^adapter={folder}: "):
        load_adapters(cfg, net)
    (folder / CONFIG_NAME).unlink()
    with pytest.raises(UserError, match=f"^adapter={folder}: expected a readable {CONFIG_NAME}"):
        load_adapters(cfg, net)


def test_there_may_be_no_latest_adapter(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        adapter_specs(eval_config(tmp_path, "adapter=latest"))
    assert str(caught.value) == (
        f"adapter=latest: expected an adapter in {tmp_path}/lora, found none; "
        "make one with: python train.py stage=lora"
    )


def test_allow_other_base_is_true_or_false(outputs: Path) -> None:
    cfg = eval_config(outputs, "adapter=latest", "allow_other_base=maybe")
    with pytest.raises(UserError, match="allow_other_base=maybe: expected true or false"):
        load_adapters(cfg, build_net(cfg))


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
        (("stage=lora", "optimizer.lr=-1"), "optimizer: Invalid learning rate: -1"),
        (("stage=lora", "+optimizer.nope=1"), "optimizer: .*unexpected keyword argument 'nope'"),
        (
            ("stage=lora", "optimizer._target_=torch.optim.Adamm"),
            "optimizer: Error loading 'torch.optim.Adamm'",
        ),
        (("stage=lora", "optimizer.lr_ratio=0"), "optimizer.lr_ratio=0: expected a finite number"),
        (("stage=lora", "scheduler=cosine", "+scheduler.nope=1"), "scheduler: .*unexpected keyword argument 'n"),
        (("stage=lora", "net.num_classes=5"), "net.num_classes=5: expected the 10 of mnist"),
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
            elif key == "_target_":
                yield value

    files = sorted((ROOT / "configs").rglob("*.yaml"))
    contents = [OmegaConf.to_container(OmegaConf.load(file)) for file in files]
    named = {target for content in contents for target in targets(content)}
    assert len(named) > 10
    for target in named:
        assert callable(get_object(target))
