"""Checkpoints: exact resume, exact reports, damaged files, full disks."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphc as gx
from graphc.errors import CheckpointError, UninitializedError
from graphc.tensor_file import pack, unpack
from graphc.train.saver import (
    Saver,
    latest_checkpoint,
    list_variables,
    load_variable,
)

DEVICES = ("reference", "cpu")


def model(**shapes: tuple[int, ...]) -> gx.Graph:
    """A graph with one variable per name; the initial values differ from zero."""
    graph = gx.Graph(seed=1)
    with graph.as_default():
        for name, shape in shapes.items():
            gx.Variable(np.full(shape, len(name), "f4"), name=name)
    return graph


def started(graph: gx.Graph, device: str = "reference") -> gx.Session:
    session = gx.Session(graph, device=device)
    with graph.as_default():
        session.run(gx.global_variables_initializer())
    return session


def training() -> gx.Graph:
    """Momentum descent under dropout, written with assignments; `train` is one step."""
    graph = gx.Graph(seed=1)
    with graph.as_default():
        x = gx.placeholder("f32", (None, 3), name="x")
        w = gx.Variable(np.linspace(-1, 1, 3, dtype="f4"), name="w")
        speed = gx.Variable(np.zeros(3, "f4"), name="w/momentum", trainable=False)
        steps = gx.Variable(np.int64(0), name="steps", trainable=False)
        loss = gx.sum(gx.exp(gx.sum(gx.random.dropout(x, 0.3) * w, axis=1)))
        (g,) = gx.gradients(loss, [w])
        faster = speed.assign(speed * 0.9 + g)
        gx.group(w.assign_sub(faster * 0.001), steps.assign_add(1), name="train")
    return graph


def run_steps(session: gx.Session, first: int, last: int) -> None:
    for i in range(first, last):
        x = np.random.default_rng(i).normal(size=(4, 3)).astype("f4")
        session.run("train", {"x": x})


def values(session: gx.Session) -> dict[str, bytes]:
    made = session.graph.get_collection("variables")
    return {v.node.name: session.get_value(v).tobytes() for v in made}


@pytest.mark.parametrize("device", DEVICES)
def test_resumed_training_is_bit_for_bit_the_same(device: str, tmp_path: Path) -> None:
    whole = started(training(), device)
    run_steps(whole, 0, 10)
    first = started(training(), device)
    run_steps(first, 0, 5)
    saver = Saver()
    path = saver.save(first, tmp_path / "model", first.graph.get_tensor_by_name("steps"))
    assert path == str(tmp_path / "model-5.safetensors")
    second = gx.Session(training(), device=device)  # never initialized: all comes from the file
    report = Saver().restore(second, path)
    assert report.complete and report.matched == ("w", "w/momentum", "steps", "random_counter")
    run_steps(second, 5, 10)
    assert values(second) == values(whole)
    assert values(first) != values(whole)


@pytest.mark.parametrize("seed", [None, 5])
def test_the_random_counter_is_saved(seed: int | None, tmp_path: Path) -> None:
    def random_model() -> tuple[gx.Graph, gx.Variable]:
        graph = gx.Graph(seed=seed)
        with graph.as_default():
            gx.Variable(np.zeros(2, "f4"), name="w")
            counter = gx.Variable(np.uint64(0), name="counter", trainable=False)
        graph.random_counter = counter
        return graph, counter

    graph, counter = random_model()
    session = gx.Session(graph, device="reference")
    session.set_value(graph.get_tensor_by_name("w"), np.ones(2, "f4"))
    unused = Saver().save(session, tmp_path / "unused")
    session.set_value(counter, np.uint64(2**63 + 5))
    used = Saver().save(session, tmp_path / "used")
    graph, counter = random_model()
    session = gx.Session(graph, device="reference")
    assert Saver().restore(session, unused).complete
    assert session.is_initialized(counter) == (seed is not None)
    Saver().restore(session, used)
    assert session.get_value(counter) == np.uint64(2**63 + 5)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    session = started(model(a=(2,)))
    saver = Saver(max_to_keep=2)
    other = Saver(max_to_keep=1)
    other.save(session, tmp_path / "other", 7)
    for step in (9, 10, 11):
        saver.save(session, tmp_path / "m", step)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        "checkpoint.json",
        "m-10.safetensors",
        "m-11.safetensors",
        "other-7.safetensors",
    ]
    assert latest_checkpoint(tmp_path) == str(tmp_path / "m-11.safetensors")
    os.unlink(tmp_path / "m-11.safetensors")
    assert latest_checkpoint(tmp_path) == str(tmp_path / "m-10.safetensors")
    Saver(max_to_keep=2).save(session, tmp_path / "m", 12)  # a new saver goes on with the list
    Saver(max_to_keep=2).save(session, tmp_path / "m", 13)
    assert not (tmp_path / "m-10.safetensors").exists()


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


def test_uninitialized_variables_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UninitializedError, match="'a'"):
        Saver().save(gx.Session(model(a=(2,)), device="reference"), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_listing_and_loading(tmp_path: Path) -> None:
    session = started(model(weight=(2, 3), b=()))
    path = Saver().save(session, tmp_path / "m")
    assert list_variables(path) == [("b", "f32[]"), ("weight", "f32[2,3]")]
    np.testing.assert_array_equal(load_variable(path, "weight"), np.full((2, 3), 6, "f4"))
    with pytest.raises(CheckpointError) as caught:
        load_variable(path, "bias")
    assert str(caught.value) == f"{path!r} has no 'bias' (it has b, weight)"


# ---- differences -------------------------------------------------------------------------------


def test_report_of_every_difference(tmp_path: Path) -> None:
    path = Saver().save(started(model(weight=(2, 3), bias=(3,), old=(1,))), tmp_path / "m")
    session = started(model(weight=(2, 4), biases=(3,), other=()))
    before = values(session)
    with pytest.raises(CheckpointError) as caught:
        Saver().restore(session, path)
    assert str(caught.value) == (
        f"{path!r}: 0 matched, 2 missing, 2 unexpected, 1 of another type\n"
        "  variable          in the file\n"
        "  biases: f32[3]    -                 missing; nearest: bias\n"
        "  other: f32[]      -                 missing\n"
        "  -                 bias: f32[3]      unexpected\n"
        "  -                 old: f32[1]       unexpected\n"
        "  weight: f32[2,4]  weight: f32[2,3]  shape differs"
    )
    assert values(session) == before


def test_partial_restore_and_renaming(tmp_path: Path) -> None:
    path = Saver().save(started(model(weight=(2, 3), bias=(3,))), tmp_path / "m")
    session = started(model(weight=(2, 4), biases=(3,)))
    report = Saver().restore(session, path, strict=False, rename={"bias": "biases"})
    assert (report.matched, report.missing, report.unexpected) == (("biases",), (), ())
    assert report.mismatched == (("weight", "f32[2,4]", "f32[2,3]"),)
    biases = session.graph.get_tensor_by_name("biases")
    np.testing.assert_array_equal(session.get_value(biases), np.full(3, 4, "f4"))
    with pytest.raises(CheckpointError, match=r"has no 'nothing' to rename$"):
        Saver().restore(session, path, rename={"nothing": "weight"})
    with pytest.raises(CheckpointError, match=r"two arrays would be called 'weight'$"):
        Saver().restore(session, path, rename={"bias": "weight"})


def test_chosen_variables_under_other_names(tmp_path: Path) -> None:
    session = started(model(a=(2,), b=(3,)))
    a = session.graph.get_tensor_by_name("a")
    path = Saver({"first": a}).save(session, tmp_path / "m")
    assert list_variables(path) == [("first", "f32[2]")]
    session.set_value(a, np.zeros(2, "f4"))
    Saver({"first": a}).restore(session, path)
    np.testing.assert_array_equal(session.get_value(a), np.ones(2, "f4"))


def test_npz_is_read(tmp_path: Path) -> None:
    session = started(model(a=(2,), b=()))
    np.savez(tmp_path / "w.npz", a=np.array([5, 6], "f4"), b=np.float32(7))
    Saver().restore(session, tmp_path / "w.npz")
    assert session.get_value(session.graph.get_tensor_by_name("a")).tolist() == [5, 6]
    np.savez(tmp_path / "o.npz", a=np.array([object()]), b=np.float32(7))
    with pytest.raises(CheckpointError, match=r"o\.npz' is not a sound npz file: Object arrays"):
        Saver().restore(session, tmp_path / "o.npz")


# ---- damage ------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    at = rng.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
    return data[:at] + rng.randbytes(8) + data[at + 8 :]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_damaged_checkpoints_are_refused(suffix: str, tmp_path: Path) -> None:
    session = started(model(weight=(2, 3), bias=(3,), scalar=()))
    path = Saver().save(session, tmp_path / "m", 3)
    if suffix == ".npz":
        arrays = {name: load_variable(path, name) for name, _ in list_variables(path)}
        path = str(tmp_path / "m.npz")
        np.savez(path, **arrays)
    data = Path(path).read_bytes()
    before = values(session)
    rng = random.Random(2)
    refused = 0
    for _ in range(500):
        Path(path).write_bytes(damaged(data, rng))
        try:
            Saver().restore(session, path)
        except CheckpointError as error:
            assert os.path.basename(path) in str(error)
            refused += 1
        assert values(session) == before  # refused, or damage that changed no content
    assert refused > 350


def test_every_byte_of_a_checkpoint_matters_or_means_nothing() -> None:
    arrays = {"a": np.arange(3, dtype="f4"), "b": np.array([True, False])}
    data = pack(arrays, {"k": "v"})
    for at in range(len(data)):
        for bit in (0, 3, 7):
            changed = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
            try:
                found, _ = unpack(changed, "f")
            except CheckpointError:
                continue
            assert {k: v.tobytes() for k, v in found.items()} == {
                k: v.tobytes() for k, v in arrays.items()
            }


def test_files_agree_with_the_safetensors_library(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays = {
        "f": np.arange(6, dtype="f8").reshape(2, 3),
        "i": np.array(5, "i2"),
        "e": np.zeros((0, 4), "f4"),
        "b": np.array([True, False]),
    }
    theirs = library.load(pack(arrays, {}))
    assert theirs.keys() == arrays.keys()
    ours, _ = unpack(library.save(arrays), "f")
    for name, array in arrays.items():
        for found in (theirs[name], ours[name]):
            assert found.dtype == array.dtype and found.shape == array.shape
            np.testing.assert_array_equal(found, array)


def test_bfloat16_becomes_float32() -> None:
    header = {"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + b"\x80\x3f\x20\xc0"
    arrays, _ = unpack(data, "f")
    assert arrays["x"].dtype == np.float32 and arrays["x"].tolist() == [1.0, -2.5]


def test_other_formats_and_missing_files(tmp_path: Path) -> None:
    path = str(tmp_path / "m.safetensors")
    Path(path).write_bytes(pack({}, {"graphc.format": "2"}))
    with pytest.raises(CheckpointError) as caught:
        list_variables(path)
    assert str(caught.value) == f"{path!r} has format '2'; this graphc reads format 1"
    with pytest.raises(CheckpointError, match=r"^cannot read '.*': No such file or directory$"):
        list_variables(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "index",
    ["", "[]", '{"checkpoints": ["../m-1.safetensors"]}', '{"checkpoints": [3]}', "[" * 9999],
)
def test_damaged_index(index: str, tmp_path: Path) -> None:
    session = started(model(a=(2,)))
    outside = tmp_path / "m-1.safetensors"
    outside.write_bytes(b"precious")
    folder = tmp_path / "run"
    folder.mkdir()
    saver = Saver(max_to_keep=1)
    saver.save(session, folder / "m", 1)
    (folder / "checkpoint.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json' is not a checkpoint index"):
        latest_checkpoint(folder)
    saver.save(session, folder / "m", 2)  # the list is made again from what is there
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.json", "m-2.safetensors"]
    assert outside.read_bytes() == b"precious"


class FullDisk:
    """`os.fsync` of a disk that is full."""

    def __call__(self, descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = started(model(a=(2,)))
    saver = Saver()
    path = saver.save(session, tmp_path / "m")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    session.set_value(session.graph.get_tensor_by_name("a"), np.zeros(2, "f4"))
    monkeypatch.setattr(os, "fsync", FullDisk())
    with pytest.raises(CheckpointError) as caught:
        saver.save(session, tmp_path / "m")
    assert str(caught.value) == f"cannot write {path!r}: No space left on device"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    session: Any = started(model(a=(2,)))
    with pytest.raises(CheckpointError, match=r"^cannot write '.*m\.safetensors': No such file"):
        Saver().save(session, tmp_path / "none" / "m")
