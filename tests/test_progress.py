"""Where there is no terminal there is no bar, whose last state would stand before the next line."""

from composed import logged

from lora_mnist import progress


def test_a_slow_loop_logs_its_progress(monkeypatch, capfd):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1)
    with logged("lora_mnist.progress") as log:
        assert list(progress.progress("abc", "letters", 3)) == ["a", "b", "c"]
    assert log.getvalue() == "letters: 0 of 3\nletters: 1 of 3\nletters: 2 of 3\n"
    assert capfd.readouterr() == ("", "")
