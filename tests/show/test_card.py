"""The card beside an adapter."""

from pathlib import Path

import yaml
from helpers.runs import results

from lora_mnist.show.card import write_card


def test_the_card_says_what_was_repaired_and_what_it_cost(tmp_path: Path) -> None:
    found = results(dial={"advised": 0.5, "saved": 1, "scales": [0, 0.5, 1], "errors": [3, 2, 1]})
    write_card(tmp_path, found, "python train.py stage=lora digit=1")
    text = (tmp_path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft"
    assert "| images of dog | 9 of 20 (5 to 13) | 2 of 20 (1 to 6) |" in body
    assert "| all | 12 of 60 (" in body
    assert found["base_sha256"] in body
    assert "turn it to 0.5 of its size" in body
    assert "`python train.py stage=lora digit=1`" in body
