from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lora_mnist.lora.tensor_file import WEIGHTS_NAME, opened, packed

TENSORS = {"b": torch.ones(2, 3), "a": torch.arange(3)}
METADATA = {"z": "1", "a": "ä", "format": "pt", "quoted": '"\\', "empty": ""}


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    files = {packed(dict(TENSORS), dict(METADATA)) for _ in range(8)}
    assert files == {packed(dict(reversed(TENSORS.items())), dict(reversed(METADATA.items())))}
    (tmp_path / WEIGHTS_NAME).write_bytes(files.pop())
    with safe_open(tmp_path / WEIGHTS_NAME, "pt") as file:
        assert file.metadata() == METADATA
        assert {key: file.get_tensor(key).tolist() for key in file.keys()} == {  # noqa: SIM118
            key: tensor.tolist() for key, tensor in TENSORS.items()
        }


def test_opened_without_reading(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / WEIGHTS_NAME)
    with opened(tmp_path) as file:
        assert set(file.keys()) == set(TENSORS)
        assert file.get_slice("b").get_shape() == [2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "expected a readable adapter_model.safetensors in it"),
        (b"\0" * 7, "expected a readable adapter_model.safetensors in it"),
        ((17 * 2**20).to_bytes(8, "little"), "its header is too long"),
        (
            (2).to_bytes(8, "little") + b"{}{}",
            "expected a readable adapter_model.safetensors in it",
        ),
    ],
)
def test_refuses_what_is_no_such_file(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=message), opened(tmp_path):
        pass


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_NAME).mkdir()
    with pytest.raises(ValueError, match="no such file"), opened(tmp_path):
        pass


def test_a_pickle_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="adapter_model.bin is a pickle"), opened(tmp_path):
        pass
