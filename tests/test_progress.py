from helpers.commands import run_process

from lora_mnist.progress import progress


def test_a_short_loop_says_nothing(capfd):
    assert list(progress("abc", "short", 3)) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_lightning_is_not_imported():
    script = "import sys, lora_mnist.progress; sys.exit('lightning' in sys.modules)"
    assert run_process("-c", script).returncode == 0
