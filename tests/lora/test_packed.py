import copy
import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from composed import composed
from helpers.nets import TinyNet, dense, randomize
from torch import nn

from lora_mnist.classifier.net import CNN, MLP
from lora_mnist.config import add_configured_lora, build_data
from lora_mnist.lora import (
    add_lora,
    lora_disabled,
    lora_parameters,
    loraplus,
    merge_lora,
    pack_frozen,
    remove_lora,
    set_lora_enabled,
    unpack_frozen,
)
from lora_mnist.lora import packed as packed_module

X = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of any size are packed."""
    if reason := packed_module.reason_against():
        pytest.skip(reason)
    monkeypatch.setattr(packed_module, "LEAST_SIZE", 1)


@pytest.fixture
def products(packs: None, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of the inputs that were multiplied with a packed weight, in order."""
    shapes: list[torch.Size] = []
    multiply = packed_module._multiply

    def record(inputs: torch.Tensor, *others: Any) -> torch.Tensor:
        shapes.append(inputs.shape)
        return multiply(inputs, *others)

    monkeypatch.setattr(packed_module, "_multiply", record)
    return shapes


def adapted(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return randomize(add_lora(TinyNet(), **settings))


def two(**second: Any) -> nn.Module:
    return randomize(add_lora(adapted(rank=2), **second))


def subtracted() -> nn.Module:
    net = two(rank=3)
    net.linear1.parametrizations.weight[1].scaling *= -0.5
    return net


def frozen_weight(net: nn.Module) -> nn.Parameter:
    return net.linear1.parametrizations.weight.original


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def gradients(net: nn.Module, x: torch.Tensor = X) -> list[torch.Tensor]:
    return list(torch.autograd.grad(net(x).square().sum(), trained(net)))


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 6), (1, 6), (0, 6), (6,), (2, 3, 6)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: adapted(rank=3, alpha=5.0),
        lambda: adapted(rank=2, use_rslora=True),
        lambda: adapted(rank=2, init="pissa"),
        lambda: adapted(target_modules=["linear2"]),
        lambda: two(init="kaiming"),
        lambda: two(rank=2, init="pissa"),
        subtracted,
    ],
    ids=["plain", "rslora", "pissa", "one layer", "two", "two, pissa", "subtracted"],
)
def test_laws(
    make: Callable[[], nn.Module], shape: tuple[int, ...], products: list[torch.Size]
) -> None:
    """Packed equals plain; off equals base; merged equals packed; the state stays as it was."""
    net, x = make(), torch.randn(shape)
    output, expected = net(x), gradients(net, x)
    with lora_disabled(net):
        base = net(x)
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    assert pack_frozen(net) is net
    assert_close(net(x), output)
    assert_close(gradients(net, x), expected)
    assert products
    with lora_disabled(net):
        assert torch.equal(net(x), base)
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    assert_close(merge_lora(copy.deepcopy(net))(x), output)
    assert torch.equal(unpack_frozen(net)(x), output)


def test_the_real_sizes(products: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-5 of float64's output; the last layer is too small to be packed."""
    monkeypatch.undo()
    torch.manual_seed(0)
    net, x = add_lora(MLP(), rank=4, init="kaiming"), torch.randn(100, 784)
    for parameter in lora_parameters(net):
        nn.init.normal_(parameter, std=0.02)
    expected = copy.deepcopy(net).double()(x.double())
    pack_frozen(net)
    assert [name for name, m in net.named_modules() if hasattr(m, "frozen_operation")] == [
        f"linear{number}.parametrizations.weight" for number in (1, 2)
    ]
    error = (net(x) - expected).abs().max()
    assert error < 1e-5 * expected.abs().max()
    assert torch.equal(net(x).argmax(dim=1), expected.argmax(dim=1))


def test_convolutions_stay_as_they_are(packs: None) -> None:
    net = pack_frozen(add_lora(CNN(channels=(2, 3))))
    found = [name for name, module in net.named_modules() if hasattr(module, "frozen_operation")]
    assert found == ["linear1.parametrizations.weight"]


def test_with_some_adapters_off_the_copy_is_used(products: list[torch.Size]) -> None:
    net = pack_frozen(two())
    set_lora_enabled(net, False)
    net(X)
    assert products == []
    set_lora_enabled(net, True, "default2")
    net(X)
    assert products == [(7, 6), (7, 5)]


def test_an_adapter_stacked_later_is_packed_too(products: list[torch.Size]) -> None:
    net = randomize(add_lora(pack_frozen(adapted()), dropout=0.5))
    assert_close(net.eval()(X), dense(net, X))
    assert products == [(7, 6), (7, 5)]


def test_strided_inputs_and_gradients(products: list[torch.Size]) -> None:
    net = adapted()
    wide = torch.randn(7, 12)
    for x in (X.t().contiguous().t(), wide[:, ::2], X[:1].expand(7, 6)):
        output = unpack_frozen(net)(x)
        expected = torch.autograd.grad(output.sum(), trained(net))
        found = torch.autograd.grad(pack_frozen(net)(x).sum(), trained(net))
        assert_close(net(x), output)
        assert_close(found, expected)
    layer, x = net.linear1, X.clone().requires_grad_()
    (found,) = torch.autograd.grad(layer(x).sum(), x)  # a gradient of stride 0
    assert_close(found, layer.weight.sum(dim=0).expand(7, 6))


def load(net: nn.Module) -> None:
    state = {key: tensor + 1 for key, tensor in net.state_dict().items()}
    net.load_state_dict(state)


def load_by_assignment(net: nn.Module) -> None:
    state = {key: tensor + 1 for key, tensor in net.state_dict().items()}
    net.load_state_dict(state, assign=True)


def exchange_data(net: nn.Module) -> None:
    frozen_weight(net).data = torch.randn(5, 6)


def exchange_parameter(net: nn.Module) -> None:
    weight = nn.Parameter(torch.randn(5, 6), requires_grad=False)
    net.linear1.parametrizations.weight.original = weight


def change_in_place(net: nn.Module) -> None:
    with torch.no_grad():
        frozen_weight(net)[0, 0] += 5


def change_the_strides(net: nn.Module) -> None:
    weight = frozen_weight(net)
    weight.data = weight.data.as_strided((5, 6), (1, 5))


@pytest.mark.parametrize(
    "change",
    [
        load,
        load_by_assignment,
        exchange_data,
        exchange_parameter,
        change_in_place,
        change_the_strides,
    ],
)
def test_a_copy_follows_its_weight(
    change: Callable[[nn.Module], None], products: list[torch.Size]
) -> None:
    net = pack_frozen(adapted())
    before = net(X)
    gradients(net)
    change(net)
    products.clear()
    assert_close(net(X), dense(net, X))
    assert not torch.allclose(net(X), before)
    found = gradients(net)
    assert products
    assert_close(found, gradients(unpack_frozen(net)))


def test_packed_again_it_follows_what_autograd_cannot_see(packs: None) -> None:
    net = pack_frozen(adapted())
    net(X)
    frozen_weight(net).data += 1
    assert_close(pack_frozen(net)(X), dense(net, X))


def test_no_gradient_of_another_weight(packs: None) -> None:
    net = pack_frozen(adapted())
    loss = net.linear2(torch.randn(7, 5, requires_grad=True)).sum()
    with torch.no_grad():
        net.linear2.parametrizations.weight.original += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_twin_has_copies_of_its_own(products: list[torch.Size]) -> None:
    net = pack_frozen(adapted())
    output = net(X)
    twin = copy.deepcopy(net)
    change_in_place(twin)
    products.clear()
    assert_close(twin(X), dense(twin, X))
    assert products
    assert torch.equal(net(X), output)
    remove_lora(twin)
    assert torch.equal(net(X), output)


def operation(net: nn.Module) -> Any:
    return net.linear1.parametrizations.weight.frozen_operation


@pytest.mark.parametrize("free", [merge_lora, remove_lora, unpack_frozen])
def test_copies_go_with_the_adapters(free: Callable[[nn.Module], Any], packs: None) -> None:
    net = pack_frozen(adapted())
    gradients(net)
    copies = weakref.ref(operation(net))
    free(net)
    gc.collect()
    assert copies() is None
    net(X)


def test_copies_go_where_they_are_not_used(packs: None) -> None:
    """At most two of a layer; none that keeps the memory of a weight that moved."""
    net = pack_frozen(adapted())
    for _ in range(3):
        change_in_place(net)
        gradients(net)
    assert len(operation(net)._packed) <= 2
    net.double()(X.double())
    assert not operation(net)._packed
    assert operation(net)._source is None


def trainable(net: nn.Module, part: str) -> nn.Module:
    for name, parameter in net.named_parameters():
        if part in name:
            parameter.requires_grad_(True)
    return net


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "run",
    [
        lambda net: net.double()(X.double()),
        lambda net: trainable(net, "original")(X),
        lambda net: trainable(net, "bias")(X),
        lambda net: torch.func.vmap(net)(X[:, None]),
        lambda net: torch.func.jacrev(net)(X[0]),
        lambda net: torch.func.functional_call(net, dict(net.state_dict()), X),
        lambda net: torch.compile(net, backend="eager", fullgraph=True)(X),
        lambda net: torch.export.export(net, (X,)).module()(X),
        lambda net: torch.jit.trace(net, (X,), check_trace=False)(X),
        lambda net: torch.autocast("cpu", torch.bfloat16)(net)(X),
    ],
    ids=(
        *("double", "trained weight", "trained bias", "vmap", "jacrev", "functional_call"),
        *("compile", "export", "trace", "autocast"),
    ),
)
def test_elsewhere_all_is_as_before(
    run: Callable[[nn.Module], torch.Tensor], products: list[torch.Size]
) -> None:
    expected = run(adapted())
    assert torch.equal(run(pack_frozen(adapted())), expected)
    assert products == []


def test_weights_made_in_inference_mode_stay_as_they_are(products: list[torch.Size]) -> None:
    with torch.inference_mode():  # they count no versions
        net = pack_frozen(adapted())
        assert_close(net(X), dense(net, X))
    assert products == []


def test_training_after_inference_mode(products: list[torch.Size]) -> None:
    expected = gradients(adapted())
    net = pack_frozen(adapted())
    with torch.inference_mode():
        net(X)
    assert_close(gradients(net), expected)
    assert products


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # within forward_ad
def test_further_derivatives(products: list[torch.Size]) -> None:
    """Of the gradient, forward, and many at once."""

    def norm_of_gradient(net: nn.Module) -> torch.Tensor:
        x = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), x)
        return second

    def tangent(net: nn.Module) -> torch.Tensor:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
            return torch.autograd.forward_ad.unpack_dual(net(dual)).tangent

    def jacobian(net: nn.Module) -> torch.Tensor:
        return torch.autograd.functional.jacobian(net, X, vectorize=True)  # type: ignore[no-any-return]

    for derivative in (norm_of_gradient, tangent, jacobian):
        products.clear()
        assert_close(derivative(pack_frozen(adapted())), derivative(adapted()))
        assert products


def test_somebody_elses_parametrization_beside_lora(products: list[torch.Size]) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    net = nn.Sequential(nn.Linear(6, 5))
    nn.utils.parametrize.register_parametrization(net[0], "weight", Doubled())
    pack_frozen(randomize(add_lora(net)))
    assert_close(net(X), F.linear(X, net[0].weight, net[0].bias))
    assert products == []


def train(net: nn.Module, steps: int = 5) -> list[torch.Tensor]:
    optimizer = loraplus(net, lambda groups: torch.optim.Adam(groups, 0.01), lr_ratio=4)
    for _ in range(steps):
        optimizer.zero_grad()
        net(X).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in lora_parameters(net)]


def test_training_is_the_same_to_rounding_and_every_time(products: list[torch.Size]) -> None:
    plain = train(adapted())
    first, second = train(pack_frozen(adapted())), train(pack_frozen(adapted()))
    assert_close(first, plain)
    assert all(map(torch.equal, first, second))
    assert len(products) == 2 * 5 * 3  # forward twice, backward where there is a layer before


# --- where weights are not packed ---------------------------------------------------------------


def test_where_it_does_not_pay_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packed_module, "reason_against", lambda: "there is no such thing")
    monkeypatch.setattr(packed_module, "LEAST_SIZE", 1)
    expected = adapted()(X)
    with caplog.at_level(logging.INFO):
        assert torch.equal(pack_frozen(adapted())(X), expected)
    assert caplog.messages == ["the frozen weights are not packed: there is no such thing"]


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(packed_module, "_operators_work", lambda: True)
    assert packed_module.reason_against() is None
    monkeypatch.setattr(packed_module, "_operators_work", lambda: False)
    assert "has other operators for it" in packed_module.reason_against()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SVE256")
    assert packed_module.reason_against() == "torch uses SVE256 here, and packing pays with AVX512"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert packed_module.reason_against() == "this torch has no oneDNN"


@pytest.mark.parametrize("error", [AttributeError, TypeError, RuntimeError, NotImplementedError])
def test_operators_that_cannot_be_called(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(packed_module, "_pack", refuse)
    assert not packed_module._operators_work.__wrapped__()


def test_operators_that_compute_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "_pack", lambda matrix: matrix)
    monkeypatch.setattr(packed_module, "_multiply", lambda inputs, packed, bias: inputs @ packed.T)
    assert packed_module._operators_work.__wrapped__()
    monkeypatch.setattr(packed_module, "_multiply", lambda inputs, packed, bias: -inputs @ packed.T)
    assert not packed_module._operators_work.__wrapped__()


def test_a_network_without_adapters() -> None:
    with pytest.raises(ValueError, match="no layer of the model carries LoRA"):
        pack_frozen(TinyNet())
    unpack_frozen(TinyNet())


# --- in a run -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_the_log_tells_that_a_run_does_not_pack(
    cli: Any, base_ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_module, "reason_against", lambda: "not here")
    options = ["trainer.max_steps=1", "+trainer.limit_test_batches=1", "figures=false"]
    done = cli("train.py", "stage=lora", "digit=9", f"base_ckpt={base_ckpt}", *options)
    assert done.code == 0
    assert "not packed" not in done.out + done.err
    (log,) = tmp_path.glob("outputs/lora/*/train.log")
    assert "the frozen weights are not packed: not here" in log.read_text()


@pytest.mark.slow
def test_every_test_image_is_answered_the_same() -> None:
    """But for ties: logits of float32 that agree to their last digits."""
    cfg = composed("train", "stage=lora")
    torch.manual_seed(0)
    net, data = MLP(), build_data(cfg, "test")
    add_configured_lora(cfg, net)
    for parameter in lora_parameters(net):
        nn.init.normal_(parameter, std=0.05)
    images, _ = data.on_after_batch_transfer((data.test_set.images, torch.empty(0)), 0)
    with torch.no_grad():
        found, expected = net(images), unpack_frozen(net)(images)
    if packed_module.reason_against() is None:
        assert not torch.equal(found, expected)
    best, second = expected.topk(2, dim=1).values.T
    clear = best - second > 1e-5 * expected.abs().max()
    assert clear.float().mean() > 0.999
    assert torch.equal(found.argmax(dim=1)[clear], expected.argmax(dim=1)[clear])
