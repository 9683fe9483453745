import pytest
import torch
from helpers.nets import TinyNet, randomize
from torch import nn

from lora_mnist.lora import (
    add_lora,
    lora_adapters,
    lora_disabled,
    lora_names,
    remove_lora,
    set_lora_enabled,
    set_lora_scale,
)
from lora_mnist.lora.weight import adaptable_weights

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def test_adapters_have_names(tiny):
    base = tiny(X)
    randomize(add_lora(tiny, target_modules="linear1"))
    add_lora(tiny, name="nines")
    add_lora(tiny)
    assert lora_names(tiny) == ["default", "nines", "default2"]
    assert [name for name, p in tiny.named_parameters() if p.requires_grad] == [
        f"linear{n}.parametrizations.weight.{3 - n}.lora_{side}" for n in (1, 2) for side in "AB"
    ]
    everything = randomize(tiny)(X)
    set_lora_enabled(tiny, False)
    assert torch.equal(tiny(X), base)
    set_lora_enabled(tiny, True, "default")
    one = tiny(X)
    with pytest.raises(KeyError), lora_disabled(tiny, "default"):
        assert torch.equal(tiny(X), base)
        raise KeyError
    assert torch.equal(tiny(X), one)
    set_lora_enabled(tiny, True)
    assert torch.equal(tiny(X), everything)
    set_lora_scale(tiny, 0, "nines")
    set_lora_scale(tiny, 0, "default2")
    assert torch.equal(tiny(X), one)


def test_names_and_scales_that_are_refused(tiny):
    with pytest.raises(ValueError, match="no layer of the model carries LoRA"):
        set_lora_scale(tiny, 1)
    add_lora(tiny)
    with pytest.raises(ValueError, match="name=x: expected one of default"):
        lora_disabled(tiny, "x").__enter__()
    with pytest.raises(ValueError, match="name=default: expected another name than default"):
        add_lora(tiny, name="default")
    with pytest.raises(ValueError, match="scale=nan: expected a finite number"):
        set_lora_scale(tiny, float("nan"))


NAN = float("nan")
#: Values of a single argument that are out of range.
BAD_VALUES = [
    *(("rank", bad) for bad in (0, -3, 2.0, True, "2")),
    *(("alpha", bad) for bad in (0, -1, NAN, float("-inf"), "1", None)),
    *(("init", "zeros"), ("init_std", 0), ("init_std", NAN), ("use_rslora", 1)),
    *(("dropout", 1), ("dropout", -0.1)),
]
#: Layers that read their weight, and so never show an adapter its input.
READ_THEIR_WEIGHT = [
    lambda: nn.LSTM(4, 3),
    lambda: nn.Embedding(4, 3),
    lambda: nn.Conv2d(2, 4, 3, groups=2),
    lambda: nn.Conv2d(2, 4, 3, padding_mode="reflect"),
    lambda: nn.MultiheadAttention(8, 2).out_proj,
]


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        *((nn.ReLU, {key: bad}, rf"^{key}={bad}: expected ") for key, bad in BAD_VALUES),
        (nn.ReLU, {"alpha_pattern": [1]}, r"alpha_pattern=\[1\]: expected a mapping"),
        (nn.ReLU, {"rank": 6}, "rank=6: expected at most 5, the smaller side of the largest layer"),
        (nn.ReLU, {"rank_pattern": {"linear2": 4}}, "rank=4: expected at most 3"),
        (nn.ReLU, {"init": "pissa", "rank": 4}, "rank=4: expected at most 3 with init=pissa"),
        (nn.ReLU, {"target_modules": "conv"}, "target_modules=conv: .* of: 0.linear1, 0.linear2"),
        (nn.ReLU, {"rank_pattern": {"conv": 2}}, "rank_pattern={conv: 2}: expected .* of: 0.linea"),
        (nn.ReLU, {"rank_pattern": {"linear2": 0}}, "rank=0: expected an integer >= 1"),
        (nn.ReLU, {"alpha_pattern": {"linear1": 0}}, "alpha=0: expected a finite number > 0"),
        *(
            (layer, {"dropout": 0.1}, "dropout: 1.* expected dropout=0")
            for layer in READ_THEIR_WEIGHT
        ),
    ],
)
def test_refusals_leave_the_model_alone(layer, arguments, message):
    net = nn.Sequential(TinyNet(), layer())
    before = list(net.state_dict())
    with pytest.raises(ValueError, match=message):
        add_lora(net, **{"target_modules": ".*", **arguments})
    assert not lora_adapters(net)
    assert all(p.requires_grad for p in net.parameters())
    assert list(net.state_dict()) == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net[0].modules())


@pytest.mark.parametrize(
    ("layers", "more"),
    [
        (
            [nn.MultiheadAttention(8, 2), nn.Linear(8, 8)],
            "60% of the weights; .*[all,in_proj_weight]",
        ),
        ([nn.Embedding(99, 4), nn.Linear(4, 2)], "98% of the weights; .*[all,0]"),
        ([nn.Conv2d(4, 4, 3, groups=4), nn.Linear(60, 60)], None),  # too few to speak of
        ([nn.Linear(2, 2), nn.BatchNorm1d(2)], None),
    ],
)
def test_all_names_the_large_weights_that_it_leaves_out(layers, more, caplog):
    net = nn.Sequential(*layers)
    remove_lora(add_lora(net))
    if more is None:
        assert not caplog.records
        return
    (record,) = caplog.records
    before, _, advice = more.partition(" .*")
    assert before in record.message
    assert record.message.endswith(f"with the large ones: target_modules={advice}")
    caplog.clear()
    add_lora(net, target_modules=advice.strip("[]").split(","))
    assert len(lora_adapters(net)) == sum(w.base.ndim > 1 for w in adaptable_weights(net).values())
    assert not caplog.records
