"""Frozen weights in the layout that the processor's kernels want, packed once instead of each time.

A matrix product of few rows, ``y = x W^T + b`` with a batch of 10, spends much of its time on
bringing ``W`` into blocks that fit the vector registers and the caches. A weight that is
trained changes with every step; a frozen one can be kept in blocks. oneDNN calls that a reorder, to
be done once: https://oneapi-src.github.io/oneDNN/dev_guide_inference.html, "Layout Propagation",
and page_memory_format_propagation_cpp.html beside it. The gradient of the input, ``dx = dy W``,
multiplies with the transpose, which is packed too, once there is a gradient.

torch reaches oneDNN's packed layout by operators of its compiler alone, whose names begin with an
underscore. So they are tried before they are used, and :func:`reason_against` says where they are
missing; there, as on every processor on which packing was not found to pay, nothing changes.
"""

import logging
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import lora_weights, named_adapters

log = logging.getLogger(__name__)

#: Numbers in the smallest weight that is packed: a smaller one gains less than the call costs.
LEAST_SIZE = 1 << 18


def pack_frozen(model: nn.Module) -> nn.Module:
    """Let adapted linear layers of ``model`` multiply with packed copies of their frozen weights.

    The output is the same to about 1e-6 of its size, and the same bits every time. With every
    adapter off, the layer multiplies with the weight itself: the base stays exact.

    A copy is made when it is first needed, one for the forward pass and one for the backward, each
    as large as the weight; both go with the adapters, or with ``model``. It follows its weight: one
    that was loaded, moved or changed is packed anew. As in autograd, only a change through
    ``weight.data`` or a NumPy view goes unseen; call ``pack_frozen`` again after it.

    The copies serve weights of at least :data:`LEAST_SIZE` numbers and inputs in float32 on a CPU
    with AVX-512. In all other cases, also under autocast, ``torch.compile``, export, ``vmap`` and
    for a weight that requires a gradient, the layers compute as before. Convolutions do, too: their
    weights are small beside their work.

    Args:
        model: network whose layers carry LoRA (see :func:`.model.add_lora`); changed in place, but
            for its ``state_dict``, which stays as it is.

    Returns:
        The same ``model``.

    Raises:
        ValueError: if no layer of ``model`` carries LoRA.
    """
    named_adapters(model)
    if reason := reason_against():
        log.info("the frozen weights are not packed: %s", reason)
        return model
    for weight in lora_weights(model).values():
        is_linear = isinstance(weight.module, nn.Linear) and weight.is_factored
        if is_linear and weight.base.numel() >= LEAST_SIZE:
            weight.steps.frozen_operation = PackedLinear()
    return model


def unpack_frozen(model: nn.Module) -> nn.Module:
    """Drop what :func:`pack_frozen` made; ``model`` multiplies with the weights themselves again.

    Args:
        model: any network; changed in place.

    Returns:
        The same ``model``.
    """
    for weight in lora_weights(model).values():
        if hasattr(weight.steps, "frozen_operation"):
            del weight.steps.frozen_operation
    return model


def reason_against() -> str | None:
    """Why weights are not packed on this machine; ``None`` where they are.

    Nothing is timed for it, so a machine always answers the same, and gets the same numbers.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch has no oneDNN"
    if capability != "AVX512":
        return f"torch uses {capability} here, and packing pays with AVX512"
    if not _operators_work():
        return f"torch {torch.__version__} has other operators for it"
    return None


@cache
def _operators_work() -> bool:
    """Whether the operators are there and compute what they should."""
    weight = nn.Parameter(torch.eye(3, 2), requires_grad=False)
    inputs = torch.ones(4, 2, requires_grad=True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            output = PackedLinear()(inputs, weight, None)
            (grad,) = torch.autograd.grad(output.sum(), inputs)
    except (AttributeError, TypeError, RuntimeError):  # gone, called otherwise, or not built
        return False
    return torch.equal(output, inputs @ weight.T) and torch.equal(grad, torch.ones(4, 2))


def _pack(matrix: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(matrix)
    return packed


def _multiply(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` with what :func:`_pack` returned, and nothing fused to it."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise.default(
        inputs.contiguous(), packed, bias, "none", [], ""
    )
    return output


class PackedLinear:
    """``F.linear`` of one layer with a frozen weight, of which it keeps packed copies."""

    def __init__(self) -> None:
        # What was packed. While it is held, no other weight can have its address.
        self._source: Tensor | None = None
        self._version = 0
        self._packed: dict[bool, Tensor] = {}

    def __call__(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x W^T + b``: (rows, in_features) to (rows, out_features)."""
        is_tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if is_tracing or torch.compiler.is_compiling():
            return F.linear(inputs, weight, bias)
        if not _is_frozen(weight) or not (bias is None or _is_frozen(bias)):
            self._forget()
        elif _is_plain(inputs):
            output: Tensor = _Product.apply(inputs, weight, bias, self)  # type: ignore[no-untyped-call]
            return output
        return F.linear(inputs, weight, bias)

    def __reduce__(self) -> Any:
        """A copy packs its own weight."""
        return PackedLinear, ()

    def packed(self, weight: Tensor, transposed: bool) -> Tensor:
        """The packed copy of ``weight`` or of its transpose, made anew if ``weight`` changed."""
        is_same = self._source is not None and self._source.is_set_to(weight)
        if not (is_same and self._version == weight._version):
            self._forget()
            self._source, self._version = weight.detach(), weight._version
        if transposed not in self._packed:
            matrix = weight.detach()
            self._packed[transposed] = _pack(matrix.t() if transposed else matrix)
        return self._packed[transposed]

    def _forget(self) -> None:
        self._source = None
        self._packed.clear()


def _is_frozen(tensor: Tensor) -> bool:
    """Whether it is a parameter on the CPU whose changes can be noticed, and that gets no gradient.

    A parameter itself: what :func:`torch.func.functional_call` puts in its place comes and goes.
    """
    return (
        type(tensor) is nn.Parameter
        and not tensor.requires_grad
        and _is_ordinary(tensor)
        and not tensor.is_inference()
    )


def _is_plain(inputs: Tensor) -> bool:
    """Whether nothing but autograd looks on."""
    return (
        type(inputs) is Tensor
        and _is_ordinary(inputs)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
    )


def _is_ordinary(tensor: Tensor) -> bool:
    is_dense_float = tensor.dtype == torch.float32 and tensor.layout == torch.strided
    return is_dense_float and tensor.device.type == "cpu"


class _Product(torch.autograd.Function):
    """``x W^T + b``, and its derivative by ``x``."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, copies: PackedLinear
    ) -> Tensor:
        # Saved: autograd then refuses a backward pass after the weight was changed.
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)
        ctx.copies = copies
        return _multiply(inputs, copies.packed(weight, transposed=False), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        # A derivative of this derivative, or many at once: as autograd has it.
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
            return grad @ weight, None, None, None
        return _multiply(grad, ctx.copies.packed(weight, transposed=True), None), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (weight,) = ctx.saved_tensors
        return F.linear(tangent, weight)
