"""The base and the adapters that a command starts from, however they are named."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import SMALL, composed, small_base
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lora_mnist import MLP, add_lora, save_adapter
from lora_mnist.config import build_net
from lora_mnist.disk.base import write_base
from lora_mnist.errors import UserError
from lora_mnist.load import (
    adapter_specs,
    current_base,
    load_adapters,
    load_base,
    with_latest_adapter,
)
from lora_mnist.lora import CONFIG_NAME, WEIGHTS_NAME, changed_tensors, fingerprint


def eval_config(outputs: Path, *overrides: str) -> DictConfig:
    cfg = composed("eval", *SMALL, f"paths.outputs={outputs}", *overrides)
    return with_latest_adapter(cfg)


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


# --- the base ------------------------------------------------------------------------------------


def test_the_current_base_is_the_default(outputs: Path) -> None:
    cfg = eval_config(outputs)
    assert current_base(cfg) == outputs / "base" / "mnist.ckpt"
    net = build_net(cfg)
    base = load_base(cfg, net)
    assert base.sha256 == fingerprint(net.state_dict())
    assert changed_tensors(base.tensors, net.state_dict()) == []
    assert not any(module.training for module in net.modules())


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


def test_the_current_base_may_be_the_adapters_own(outputs: Path) -> None:
    """Its own file may be gone."""
    cfg = eval_config(outputs, "adapter=latest")
    assert [path.name for path in (outputs / "base").iterdir()] == ["mnist.ckpt"]
    net = build_net(cfg)
    load_base(cfg, net)
    assert load_adapters(cfg, net) == ["2026-01-02_b"]


def test_another_base_than_the_adapters_own_is_only_taken_where_allowed(outputs: Path) -> None:
    other = small_base(outputs, seed=1)
    cfg = eval_config(outputs, "adapter=latest")
    with pytest.raises(UserError) as caught:
        load_base(cfg, build_net(cfg))
    adapter = outputs / "lora" / "2026-01-02_b" / "adapter"
    assert str(caught.value).startswith(f"adapter={adapter}: its base, ")
    assert f", is not in {outputs}/base; expected base_ckpt=FILE, the weights" in str(caught.value)
    cfg = eval_config(outputs, "adapter=latest", f"base_ckpt={other}")
    net = build_net(cfg)
    load_base(cfg, net)
    with pytest.raises(UserError, match="expected the same base, or allow_other_base=true"):
        load_adapters(cfg, net)
    cfg = eval_config(outputs, "adapter=latest", "allow_other_base=true")
    net = build_net(cfg)
    assert load_base(cfg, net).sha256 == fingerprint(net.state_dict())
    assert load_adapters(cfg, net) == ["2026-01-02_b"]


def test_a_network_of_ones_own_has_weights_of_ones_own(tmp_path: Path) -> None:
    options = ("net=custom", "net._target_=composed.Unsteady", f"paths.outputs={tmp_path}")
    expected = "expected the weights of composed.Unsteady"
    for more, message in (
        ((), f"mnist_custom.ckpt: no such file; {expected} as base_ckpt=FILE; or make some with: "),
        ((f"base_ckpt={tmp_path}/mine.pt",), f"mine.pt: no such file; {expected}"),
    ):
        cfg = composed("eval", *options, *more)
        with pytest.raises(UserError, match=f"^base_ckpt={tmp_path}/.*{message}"):
            load_base(cfg, build_net(cfg))


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
    cfg = eval_config(tmp_path, f"base_ckpt={path}")
    with pytest.raises(UserError, match=f"^base_ckpt={path}: {message}.*; expected"):
        load_base(cfg, build_net(cfg))


def test_a_base_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path, "Is a directory"), (tmp_path / "pipe", "a pipe or a device")):
        cfg = eval_config(tmp_path, f"base_ckpt={path}")
        with pytest.raises(UserError, match=f"^base_ckpt={path}: .*{message}"):
            load_base(cfg, build_net(cfg))


# --- adapters ------------------------------------------------------------------------------------


def test_an_adapter_by_its_folder_its_runs_or_as_the_latest(outputs: Path) -> None:
    first, second = (outputs / "lora" / run for run in ("2026-01-01_a", "2026-01-02_b"))
    (outputs / "lora" / "2026-01-03_failed" / "adapter").mkdir(parents=True)
    for value, run in {str(first): first, f"{first}/adapter": first, "latest": second}.items():
        assert adapter_specs(eval_config(outputs, f"adapter={value}")) == [
            {"path": run / "adapter", "name": run.name, "scale": 1.0}
        ]
    assert adapter_specs(eval_config(outputs)) == []


def test_the_latest_adapter_is_named_wherever_it_is_asked_for(outputs: Path) -> None:
    latest, other = f"{outputs}/lora/2026-01-02_b", f"{outputs}/lora/2026-01-01_a"
    for value, expected in {
        "latest": latest,
        f"[{other},latest]": [other, latest],
        "{path: latest, scale: 2}": {"path": latest, "scale": 2},
        "[{path: latest, name: a}]": [{"path": latest, "name": "a"}],
        other: other,
        "null": None,
    }.items():
        cfg = composed("eval", f"paths.outputs={outputs}", f"adapter={value}")
        before = cfg.copy()
        assert with_latest_adapter(cfg).adapter == expected
        assert cfg == before


def test_an_adapter_of_peft_is_a_folder_of_its_own(outputs: Path, tmp_path: Path) -> None:
    folder = (outputs / "lora" / "2026-01-01_a" / "adapter").rename(tmp_path / "mine")
    (spec,) = adapter_specs(eval_config(outputs, f"adapter={folder}"))
    assert (spec["path"], spec["name"]) == (folder, "mine")


def test_several_adapters_are_stacked(outputs: Path) -> None:
    first, second = (outputs / "lora" / run for run in ("2026-01-01_a", "2026-01-02_b"))
    several = f"adapter=[{first},{{path: {second}, scale: -0.5, name: minus}},latest]"
    cfg = eval_config(outputs, several)
    assert adapter_specs(cfg) == [
        {"path": first / "adapter", "name": first.name, "scale": 1.0},
        {"path": second / "adapter", "name": "minus", "scale": -0.5},
        {"path": second / "adapter", "name": second.name, "scale": 1.0},
    ]
    net = build_net(cfg)
    load_base(cfg, net)
    assert load_adapters(cfg, net) == [first.name, "minus", second.name]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3", "adapter=3: expected a folder, latest, or a mapping of path, scale and name"),
        ("[{scale: 1}]", "adapter={'scale': 1}: expected a folder, latest, or a mapping of"),
        ("{path: x, weight: 1}", "'weight': 1}: expected a folder, latest, or a mapping of path"),
        ("{path: 3}", "adapter={'path': 3}: expected a folder"),
        ("{path: {run}, scale: x}", "/adapter: scale=x: expected a finite number"),
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
        eval_config(tmp_path, "adapter=latest")
    assert str(caught.value) == (
        f"adapter=latest: expected an adapter in {tmp_path}/lora, found none; "
        "make one with: python train.py stage=lora"
    )


def test_allow_other_base_is_true_or_false(outputs: Path) -> None:
    cfg = eval_config(outputs, "adapter=latest", "allow_other_base=maybe")
    with pytest.raises(UserError, match="allow_other_base=maybe: expected true or false"):
        load_adapters(cfg, build_net(cfg))


def test_a_sweep_names_its_adapter(outputs: Path) -> None:
    """While it goes on another may become the latest."""
    cfg = composed("eval", f"paths.outputs={outputs}", "adapter=latest")
    HydraConfig.instance().cfg = OmegaConf.create({"hydra": {"mode": RunMode.MULTIRUN}})
    with pytest.raises(UserError) as caught:
        with_latest_adapter(cfg)
    assert str(caught.value) == (
        "adapter=latest: expected the folder itself in a sweep, whose jobs could find different "
        f"ones: adapter={outputs}/lora/2026-01-02_b"
    )
    cfg.adapter = f"{outputs}/lora/2026-01-01_a"
    assert with_latest_adapter(cfg) == cfg
