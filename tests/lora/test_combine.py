"""The scaled sum of several adapters as one, exactly."""

import pytest
import torch
from helpers.nets import TinyNet, randomize
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_mnist.lora import (
    add_lora,
    combine_adapters,
    load_adapter,
    lora_adapters,
    lora_names,
    save_adapter,
    set_lora_enabled,
    set_lora_scale,
    sum_adapters,
)

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double()
LAYERS = ["linear1", "linear2"]


def tiny():
    torch.manual_seed(0)
    return TinyNet()


def base():
    return tiny().double()


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
    options,
    scales,
    first_rank,
    tmp_path_factory,
):
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
    set_lora_enabled(stack, False, "default")
    expected = stack(X)
    torch.testing.assert_close(sum_adapters(stack)(X), expected, rtol=1e-12, atol=1e-12)
    assert len(lora_names(stack)) == 1


def on_tiny(folder, **options):
    return save_adapter(randomize(add_lora(tiny(), **options)), folder)


def test_refusals_leave_the_model_alone(tmp_path):
    one, other = on_tiny(tmp_path / "a"), on_tiny(tmp_path / "bb", rank=2, alpha=64.0)
    save_adapter(add_lora(TinyNet()), tmp_path / "stranger")
    net = tiny()
    for folders, arguments, message in (
        ([one, other], {"scales": [1]}, "argument 2 is shorter than argument 1"),
        ([], {"scales": []}, "no layer of the model carries LoRA"),
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
    assert lora_names(net) == ["default"]


def test_refused_sums_leave_the_adapters_alone():
    net = add_lora(add_lora(tiny(), alpha=64, name="a"), name="b")
    set_lora_scale(randomize(net), 3e38)
    with pytest.raises(ValueError, match="lora_B of linear1: expected finite numbers"):
        sum_adapters(net)
    assert lora_names(net) == ["a", "b"]
