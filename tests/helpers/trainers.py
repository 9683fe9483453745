"""A Trainer's place among several processes, without the processes."""

from types import SimpleNamespace
from typing import Any

import torch


def trainer_of(rank: int, processes: int) -> Any:
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        global_rank=rank,
        world_size=processes,
        strategy=strategy,
        overfit_batches=0.0,
        num_training_batches=10**9,
        max_steps=-1,
        accumulate_grad_batches=1,
    )
