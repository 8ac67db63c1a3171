"""`graphc demo`: what it prints, the files it writes, and how well it learns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import graphc as gx
from graphc import cli, demo, demo_figures, train

KEYS = {"test_accuracy", "train_seconds", "step_ms", "compile_seconds", "peak_bytes"}
FILES = {
    "confusion.png",
    "filters.png",
    "graph-after.txt",
    "graph-before.txt",
    "lenet.safetensors",
    "loss.png",
    "plan.txt",
}


def test_the_demo_writes_its_files_and_ends_with_one_json_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "graphc", "demo", "--steps", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) == KEYS
    assert figures["peak_bytes"] > 0
    assert 0 <= figures["test_accuracy"] <= 1
    assert {p.name for p in tmp_path.iterdir()} >= FILES
    for name in ("loss.png", "confusion.png", "filters.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "graph-before.txt").read_text()
    assert "= conv(" in before
    assert "update %fc2/bias := " in before
    assert "peak with these sizes: " in (tmp_path / "plan.txt").read_text()


def test_the_demo_learns_the_digits(tmp_path: Path) -> None:
    said: list[str] = []
    figures = demo.run(demo.Options(epochs=20, out=tmp_path), said.append)
    assert figures["test_accuracy"] >= 0.975
    assert figures["train_seconds"] < 30
    assert any(line.startswith("test accuracy ") for line in said)
    # what was saved is the net that was tested
    digits = demo.load_digits()
    with gx.Graph().as_default():
        model = demo.build_lenet(0.05, 1)
        with gx.Session() as session:
            session.run(gx.global_variables_initializer())
            train.Saver().restore(session, str(tmp_path / "lenet.safetensors"))
            feeds = {model.images: digits.test_images, model.labels: digits.test_labels}
            accuracy = session.run(model.accuracy, feeds)
    assert float(accuracy) == pytest.approx(figures["test_accuracy"], abs=1e-6)


def test_a_seed_decides_the_run(tmp_path: Path) -> None:
    losses = []
    for threads in (1, 2):
        digits = demo.load_digits()
        options = demo.Options(steps=4, seed=3, threads=threads, out=tmp_path)
        with gx.Graph(seed=3).as_default():
            model = demo.build_lenet(0.05, 4)
            with gx.Session(threads=threads) as session:
                session.run(gx.global_variables_initializer())
                record = demo.fit(session, model, digits, options, lambda step, loss: None)
        losses.append(record.losses)
    assert losses[0] == losses[1]


def test_digits_are_split_by_class() -> None:
    digits = demo.load_digits()
    assert digits.images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    shares = np.bincount(digits.test_labels) / np.bincount(digits.labels)
    assert np.abs(shares - 360 / 1437).max() < 0.02


def test_shifted_moves_by_at_most_one_pixel() -> None:
    image = np.zeros((200, 8, 8, 1), np.float32)
    image[:, 4, 4] = 1
    moved = demo.shifted(image, np.random.default_rng(0))
    assert moved.shape == image.shape
    places = {(int(r), int(c)) for _, r, c, _ in np.argwhere(moved)}
    assert places == {(r, c) for r in (3, 4, 5) for c in (3, 4, 5)}


def test_confusion_counts_pairs() -> None:
    counts = demo_figures.confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    np.testing.assert_array_equal(counts, [[1, 1], [0, 1]])


def test_the_command_line_refuses_nonsense(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["demo", "--epochs", "0"], ["dance"], []):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2
    assert "0 is not positive" in capsys.readouterr().err
