"""Test the base, and saved adapters beside it (adapter=FOLDER)."""

from lora_mnist.cli.entry import run_command

if __name__ == "__main__":
    run_command("lora_mnist.commands.evaluate.evaluate", "eval")
