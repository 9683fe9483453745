"""``python -m lora_mnist`` is the program ``lora-mnist``."""

from lora_mnist.cli.main import main

main()
