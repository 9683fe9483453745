"""A training by Lightning, without the parts that take time, and what it went through."""

import torch
from lightning.pytorch import Trainer

from lora_mnist import lora_parameters
from lora_mnist.training.module import ClassifierModule


class Recorded(ClassifierModule):
    """Keeps, batch by batch, the loss, what is logged, and the adapter."""

    def __init__(self, net, **settings):
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        settings.setdefault("classes", ["cat", "dog", "owl"])
        super().__init__(net, torch.optim.Adam(trained, lr=0.1), **settings)
        self.losses, self.logged, self.adapters = [], [], []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        return loss

    def on_train_batch_end(self, *_):
        self.logged.append(self.trainer.callback_metrics.get("train/loss"))
        self.adapters.append([p.detach().clone() for p in lora_parameters(self.net)])


def trainer(tmp_path, **settings):
    parts = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    settings = {"default_root_dir": tmp_path, **dict.fromkeys(parts, False), **settings}
    return Trainer(accelerator="cpu", **settings)
