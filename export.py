"""Fold adapters into their base and write one plain network (adapter=FOLDER out=FILE)."""

from lora_mnist.cli.entry import run_command
from lora_mnist.cli.main import run_entry

if __name__ == "__main__":
    run_entry(run_command, "export")
