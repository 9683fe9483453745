"""Pretrain a base (stage=pretrain), or repair its weak class with an adapter (stage=lora)."""

from lora_mnist.cli.entry import run_command
from lora_mnist.cli.main import run_entry

if __name__ == "__main__":
    run_entry(run_command, "train")
