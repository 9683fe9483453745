"""Test the base, and saved adapters beside it (adapter=FOLDER)."""

from lora_mnist.cli.main import run_command

if __name__ == "__main__":
    run_command("eval")
