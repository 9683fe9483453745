"""Code of a user's own, with a bug in each place where ours calls it."""

import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import get_worker_info
from torchvision.transforms.v2.functional import pil_to_tensor


def trip():
    raise ValueError("a bug")


class Unmade(nn.Module):
    def __init__(self):
        super().__init__()
        trip()


class Forward(nn.Linear):
    def __init__(self):
        super().__init__(784, 10)

    def forward(self, images):
        trip()


class InTraining(Callback):
    def on_train_batch_start(self, *_):
        trip()


class UnmadeCallback(Callback):
    def __init__(self):
        trip()


def prepare(picture):
    """Its bug shows where pictures are read by a process of their own."""
    if get_worker_info() is not None:
        trip()
    return pil_to_tensor(picture.resize((8, 8))) / torch.tensor(255)
