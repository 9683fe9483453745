"""Fold adapters into their base and write one plain network (adapter=FOLDER out=FILE)."""

from lora_mnist.cli.main import run_command

if __name__ == "__main__":
    run_command("export")
