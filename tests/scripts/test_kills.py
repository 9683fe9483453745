"""The script that kills runs: what it compares, and that it finds what is broken."""

import kills
import pytest


def test_times_are_not_compared_and_everything_else_is(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "mnist.ckpt").write_bytes(b"base")
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "results.json").write_text('{"steps": 3, "seconds": {"fit": 0.5}}')
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    assert kills.left_in(tmp_path) == {
        "base/mnist.ckpt": b"base",
        "run/results.json": {"steps": 3},
        "run/adapter/adapter_config.json": b"{}",
    }


@pytest.mark.parametrize("name", ["half.json", "half.ckpt", "half.safetensors", ".x-1.tmp.json"])
def test_half_a_file_is_found(tmp_path, name):
    (tmp_path / "whole.json").write_text("{}")
    assert kills.broken_file(tmp_path) is None
    (tmp_path / name).write_text("half")
    assert name in str(kills.broken_file(tmp_path))
