"""Test a saved adapter beside its base (adapter=PATH)."""

import hydra
from omegaconf import DictConfig

from lora_mnist.errors import exit_on_user_error
from lora_mnist.memory import lasting_imports, share_registered_configs
from lora_mnist.sweep import conduct
from lora_mnist.swept_job import swept_job


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(cfg: DictConfig) -> float | None:
    with exit_on_user_error(), swept_job(cfg) as job:
        if job.due:
            with lasting_imports():  # late: --help, --cfg and completion need no torch
                from lora_mnist.run import evaluate

            evaluate(cfg)
    return job.objective


if __name__ == "__main__":
    share_registered_configs()
    with conduct():
        main()
