"""The scaled sum of several adapters as one, exactly."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lora_mnist.lora import (
    add_lora,
    base_state_dict,
    combine_adapters,
    load_adapter,
    lora_adapters,
    lora_names,
    save_adapter,
    set_lora_enabled,
    set_lora_scale,
    sum_adapters,
)


class Mixed(nn.Module):
    """A layer of each kind that has an adapter of its own form, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 3, 2)
        self.conv2 = nn.Conv2d(1, 4, (2, 3))
        self.linear = nn.Linear(4, 2)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.embed(x).transpose(1, 2))
        return self.linear(self.conv2(x[:, None]).mean(-1).transpose(1, 2))


X = torch.arange(14).view(2, 7) % 9
LAYERS = ["embed", "conv", "conv2", "linear"]


def base() -> nn.Module:
    torch.manual_seed(0)
    return Mixed()


ADAPTERS = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 2),
        "alpha": st.floats(0.1, 16),
        "use_rslora": st.booleans(),
        "target_modules": st.lists(st.sampled_from(LAYERS), min_size=1, unique=True),
    }
)


@settings(max_examples=12)
@given(
    options=st.lists(ADAPTERS, min_size=1, max_size=4),
    scales=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    first_rank=st.integers(1, 2),
)
def test_the_sum_is_that_of_the_stack(
    options: list[dict[str, Any]],
    scales: list[float],
    first_rank: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tmp_path = tmp_path_factory.mktemp("sum")
    stack, folders = base(), []
    for number, arguments in enumerate(options):
        first = arguments["target_modules"][0]
        net = randomize(add_lora(base(), **arguments, rank_pattern={first: first_rank}))
        folders.append(save_adapter(net, tmp_path / str(number)))
        load_adapter(stack, folders[-1], scale=scales[number])
    net = base()
    assert combine_adapters(net, folders, scales[: len(folders)], name="sum") is net
    assert lora_names(net) == ["sum"]
    save_adapter(net, tmp_path / "sum")
    torch.testing.assert_close(net(X), stack(X), rtol=1e-12, atol=1e-12)
    assert torch.equal(load_adapter(base(), tmp_path / "sum")(X), net(X))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return TinyNet()


def on_tiny(folder: Path, **options: Any) -> Path:
    return save_adapter(randomize(add_lora(tiny(), **options)), folder)


RSLORA = {"rank": 4, "alpha": 8.0, "use_rslora": True}


@pytest.mark.parametrize(
    ("options", "scales"),
    [  # where PEFT's own sum is another: its issues 3004, 3737 and 3761
        ([{"rank": 2}, {"rank": 2, "alpha": 3.0}], [1.0, -1.0]),
        ([{"rank": 3, "rank_pattern": {"linear2": 1}}] * 2, [0.5, 0.5]),
        ([RSLORA, RSLORA], [0.5, -0.25]),
    ],
)
def test_the_sum_is_the_same_in_peft(
    options: list[dict[str, Any]], scales: list[float], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="the extra peft is not installed")
    folders = [on_tiny(tmp_path / ("a" * (n + 1)), **o) for n, o in enumerate(options)]
    net, x = tiny(), torch.randn(5, 6)
    combine_adapters(net, folders, scales)
    save_adapter(net, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny(), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(theirs(x), net(x), rtol=1e-4, atol=1e-4)


def test_refusals_leave_the_model_alone(tmp_path: Path) -> None:
    one, other = on_tiny(tmp_path / "a"), on_tiny(tmp_path / "bb", rank=2, alpha=64.0)
    save_adapter(add_lora(TinyNet()), tmp_path / "stranger")
    net = tiny()
    before = copy.deepcopy(net.state_dict())
    for folders, arguments, message in (
        ([one, other], {"scales": [1]}, r"scales=\[1\]: expected one for each of 2 adapters"),
        ([], {"scales": []}, r"scales=\[\]: expected one for each of 0 adapters, at least one"),
        ([one], {"scales": [float("nan")]}, "scale=nan: expected a finite number"),
        ([other], {"scales": [3e38]}, "lora_B of linear1: expected finite numbers"),
        ([one, tmp_path / "none"], {"scales": [1, 1]}, "none: expected a readable"),
        ([one, tmp_path / "stranger"], {"scales": [1, 1]}, "stranger: made for the base .*"),
    ):
        with pytest.raises(ValueError, match=message):
            combine_adapters(net, folders, **arguments)
        assert not lora_adapters(net)
        assert all(parameter.requires_grad for parameter in net.parameters())
    combine_adapters(net, [one, tmp_path / "stranger"], [1, -1], allow_other_base=True)
    assert base_state_dict(net).keys() == before.keys()


def test_what_is_on_a_network_becomes_one_adapter(tmp_path: Path) -> None:
    """What was trained on top of others is saved as one adapter, on the base alone."""
    net = add_lora(base(), rank=2, alpha=3, target_modules=["conv", "linear"], name="below")
    add_lora(net, rank=1, target_modules=".*", name="off")
    add_lora(net, rank=2, target_modules=LAYERS, init="pissa", use_rslora=True, name="top")
    set_lora_scale(randomize(net), 0.3, "below")
    set_lora_scale(net, -2, "top")
    set_lora_enabled(net, False, "off")
    expected = net(X)
    assert sum_adapters(net, "sum") is net
    assert lora_names(net) == ["sum"]
    torch.testing.assert_close(net(X), expected, rtol=1e-12, atol=1e-12)
    folder = save_adapter(net, tmp_path / "sum")
    torch.testing.assert_close(load_adapter(base(), folder)(X), expected, rtol=1e-12, atol=1e-12)


def test_refused_sums_leave_the_adapters_alone() -> None:
    net = add_lora(add_lora(tiny(), alpha=64, name="a"), name="b")
    set_lora_scale(randomize(net), 3e38)
    with pytest.raises(ValueError, match="lora_B of linear1: expected finite numbers"):
        sum_adapters(net)
    assert lora_names(net) == ["a", "b"]
    with pytest.raises(ValueError, match="no layer of the model carries LoRA"):
        sum_adapters(tiny())
