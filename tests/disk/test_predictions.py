import pytest
import torch
from helpers.runs import images, predictions

from lora_mnist.data import ImageTensors
from lora_mnist.disk.predictions import kinds_of, read_predictions, write_predictions


def written(folder, tensors, of):
    test_set = ImageTensors(of, torch.zeros(len(of), dtype=torch.int64))
    write_predictions(tensors, test_set, folder)
    return read_predictions(folder)


def test_what_is_written_is_read_again(tmp_path):
    assert read_predictions(tmp_path) is None
    tensors = predictions()
    content = written(tmp_path, tensors, images())
    for name in ("label", "base", "adapted"):
        assert content[name].tolist() == tensors[name].tolist()
    for name in ("base_probability", "adapted_probability"):
        assert content[name].tolist() == pytest.approx(tensors[name].tolist(), abs=1e-3)
    places = {kind: of_kind.tolist() for kind, of_kind in kinds_of(content).items()}
    assert places == {"repaired": [2], "broken": [5, 4]}  # the highest probability first
    assert [int(image.max()) for image in content["broken.images"]] == [50, 40]
    # Others may read it, though safetensors' own save_file makes files for their owner alone.
    (tmp_path / "plain").touch()
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1


def test_a_gallery_is_small(tmp_path):
    label = torch.tensor([0] * 40 + [999])
    tensors = {
        "index": torch.arange(41),
        "label": label,
        "base": 999 - label,
        "base_probability": torch.linspace(0.99, 0.5, 41),
    }
    content = written(tmp_path, tensors, torch.zeros(41, 3, 200, 100, dtype=torch.uint8))
    assert kinds_of(content)["wrong"].tolist() == [*range(41)]
    assert content["wrong.images"].shape == (16, 3, 50, 25)


def test_images_come_from_where_they_are(tmp_path):
    """A test on part of the images, as with limit_test_batches and several processes."""
    content = written(tmp_path, {key: of[::2] for key, of in predictions().items()}, images())
    assert [int(image.max()) for image in content["broken.images"]] == [40]
