"""The identity of a network's tensors: one SHA-256 for all, and which of them changed."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, over name, dtype, shape and bytes of every tensor, by name.

    Args:
        state: tensors by name, such as a ``state_dict``, of any dtype and on any device.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_raw_bytes(tensor).numpy().data)
    return digest.hexdigest()


def changed_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not bit for bit the same in both; missing ones included."""
    return [
        name
        for name in sorted(before.keys() | after.keys())
        if name not in before or name not in after or not _same_bits(before[name], after[name])
    ]


def checksums(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Form and sum of each tensor's bits; where it differs, the tensor changed.

    This takes a moment for gigabytes, on any device. It tells a change that happened, not one that
    somebody hides: that is what :func:`fingerprint` is for.
    """
    return {name: _checksum(tensor) for name, tensor in state.items()}


def _checksum(tensor: Tensor) -> str:
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    even = len(raw) - len(raw) % 8
    head, tail = raw[:even], raw[even:]
    if head.storage_offset() % 8:
        head = head.clone()
    total = int(head.view(torch.int64).sum())
    return f"{tensor.dtype} {tuple(tensor.shape)} {total} {tail.tolist()}"


def _same_bits(first: Tensor, second: Tensor) -> bool:
    same_form = first.dtype == second.dtype and first.shape == second.shape
    return same_form and torch.equal(_raw_bytes(first), _raw_bytes(second))


def _raw_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
