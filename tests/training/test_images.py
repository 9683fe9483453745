import torch
from composed import run

from lora_mnist.data import Images
from lora_mnist.training.images import _limit_images

NINES = ("stage=lora", "digit=9")


def test_a_share_of_the_images_is_one_batch_at_least(outputs):
    shares = ("+trainer.limit_test_batches=0.05", "+trainer.limit_val_batches=0.2")
    results = run(outputs, *NINES, *shares, "data.eval_batch_size=100")
    for split in ("val", "test"):
        assert sum(results[split]["images_per_class"]) == 100
    in_rows = Images(torch.arange(10)[:, None, None, None], torch.arange(10))
    assert _limit_images(in_rows, 0.4, batch_size=2).labels.tolist() == [0, 3, 6, 9]
