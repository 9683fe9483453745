"""Pretrain a base (stage=pretrain), or repair its weak class with an adapter (stage=lora)."""

from lora_mnist.cli.main import run_command

if __name__ == "__main__":
    run_command("train")
