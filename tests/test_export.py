"""Native graph files, frozen graphs and drawings."""

from __future__ import annotations

import errno
import io
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

import graphc as gx
from graphc.errors import CheckpointError, FeedError, GraphError
from graphc.export import (
    freeze,
    load_graph,
    prune,
    save_graph,
    to_networkx,
    write_dot,
    write_graphml,
)
from graphc.files import write_atomically
from graphc.train.saver import Saver
from graphc.verify import verify

DEVICES = ("reference", "cpu")
X = np.linspace(-1, 1, 12, dtype="f4").reshape(3, 4)


def network() -> gx.Graph:
    graph = gx.Graph(seed=4)
    with graph.as_default():
        x = gx.placeholder("f32", (None, 4), name="x")
        w = gx.Variable(np.linspace(0, 1, 8, dtype="f4").reshape(4, 2), name="w")
        speed = gx.Variable(np.zeros((4, 2), "f4"), name="w/momentum", trainable=False)
        y = gx.exp(x @ w, name="y")
        loss = gx.sum(y, name="loss")
        noisy = gx.sum(gx.random.dropout(y, 0.5), name="noisy")
        (g,) = gx.gradients(loss + noisy, [w])
        faster = speed.assign(speed * 0.9 + g)
        gx.group(w.assign_sub(faster * 0.01), name="train")
    return graph


def started(graph: gx.Graph, device: str = "reference") -> gx.Session:
    session = gx.Session(graph, device=device)
    with graph.as_default():
        session.run(gx.global_variables_initializer())
    return session


def signatures(graph: gx.Graph) -> dict[str, tuple[dict[str, gx.Tensor], dict[str, gx.Tensor]]]:
    x, y, loss = (graph.get_tensor_by_name(n) for n in ("x", "y", "loss"))
    return {"serve": ({"image": x}, {"y": y}), "score": ({"x": x}, {"loss": loss, "y": y})}


@pytest.mark.parametrize("device", DEVICES)
def test_a_saved_graph_serves_and_trains_on(device: str, tmp_path: Path) -> None:
    session = started(network(), device)
    for _ in range(3):
        session.run("train", {"x": X})
    path = save_graph(tmp_path / "m.graphc", session=session, signatures=signatures(session.graph))
    model = load_graph(path, device=device)
    verify(model.graph)
    for _ in range(3):
        (served,) = model(image=X).values()
        assert served.tobytes() == session.run("y", {"x": X}).tobytes()
        session.run("train", {"x": X})
        model.session.run("train", {"x": X})
    scores = model.run("score", x=X)
    assert list(scores) == ["loss", "y"]
    assert scores["loss"] == session.run("loss", {"x": X})


def test_a_loaded_graph_can_be_extended_and_differentiated(tmp_path: Path) -> None:
    model = load_graph(save_graph(tmp_path / "m.graphc", session=started(network())))
    with model.graph.as_default():
        (w,) = gx.trainable_variables()
        (g,) = gx.gradients(model.graph.get_tensor_by_name("loss"), [w])
    assert model.session.run(g, {"x": X}).shape == (4, 2)


def test_another_program_uses_the_file(tmp_path: Path) -> None:
    session = started(network())
    save_graph(tmp_path / "m.graphc", session=session, signatures=signatures(session.graph))
    np.save(tmp_path / "x.npy", X)
    code = (
        "import numpy as np\n"
        "from graphc.export import load_graph\n"
        "model = load_graph('m.graphc')\n"
        "np.save('y.npy', model(image=np.load('x.npy'))['y'])\n"
    )
    import os

    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=dict(os.environ))
    expected = session.run("y", {"x": X})
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-6)


def test_a_graph_without_values(tmp_path: Path) -> None:
    model = load_graph(save_graph(tmp_path / "m.graphc", network()))
    w = model.graph.get_tensor_by_name("w")
    assert not model.session.is_initialized(w)
    with model.graph.as_default():
        model.session.run(gx.global_variables_initializer())
    assert model.session.is_initialized(w)


def test_equal_graphs_are_equal_files(tmp_path: Path) -> None:
    files = [save_graph(tmp_path / name, session=started(network())) for name in ("a", "b")]
    assert Path(files[0]).read_bytes() == Path(files[1]).read_bytes()


def test_calls_with_wrong_arguments(tmp_path: Path) -> None:
    session = started(network())
    path = save_graph(tmp_path / "m.graphc", session=session, signatures=signatures(session.graph))
    model = load_graph(path)
    with pytest.raises(FeedError) as caught:
        model(x=X)
    assert str(caught.value) == "signature 'serve' takes 'image', but was given 'x'"
    with pytest.raises(GraphError) as unknown:
        model.run("other")
    assert str(unknown.value) == "no signature is called 'other' (the model has 'serve', 'score')"
    bare = load_graph(save_graph(tmp_path / "n.graphc", session=session))
    with pytest.raises(GraphError, match=r"^which signature to run\? The model has none"):
        bare(x=X)


def test_what_cannot_be_saved_is_said(tmp_path: Path) -> None:
    graph = network()
    graph.add_to_collection("notes", object())
    graph.add_to_collection("notes", "kept")
    with pytest.warns(UserWarning, match=r"^collection 'notes': a value of type object is not"):
        path = save_graph(tmp_path / "m.graphc", graph)
    assert load_graph(path).graph.get_collection("notes") == ["kept"]
    with pytest.raises(GraphError, match="belongs to another graph"):
        other = network()
        save_graph(tmp_path / "m.graphc", graph, signatures=signatures(other))


def test_gradient_overrides_are_not_saved(tmp_path: Path) -> None:
    graph = gx.Graph()
    with graph.as_default(), graph.gradient_override({"negative": lambda y, g, x: [g]}):
        gx.negative(gx.placeholder("f32", (2,)))
    with pytest.warns(UserWarning, match=r"^gradient overrides are functions and are not saved"):
        save_graph(tmp_path / "m.graphc", graph)


# ---- damage ------------------------------------------------------------------------------------


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    session = started(network())
    path = tmp_path / "m.graphc"
    save_graph(path, session=session, signatures=signatures(session.graph))
    data = path.read_bytes()
    expected = load_graph(path)
    rng = random.Random(6)
    refused = 0
    positions = [*range(0, len(data), max(1, len(data) // 250)), *range(len(data) - 60, len(data))]
    for at in positions:
        flipped = bytes([data[at] ^ (1 << rng.randrange(8))])
        for broken in (data[:at], data[:at] + flipped + data[at + 1 :]):
            path.write_bytes(broken)
            try:
                found = load_graph(path)
            except CheckpointError as error:
                assert "m.graphc" in str(error)
                refused += 1
                continue
            assert str(found.graph) == str(expected.graph)
            assert found.signatures == expected.signatures
            w = found.graph.get_tensor_by_name("w")
            assert found.session.get_value(w).tolist() == (
                expected.session.get_value(expected.graph.get_tensor_by_name("w")).tolist()
            )
    assert refused > len(positions) * 1.8


def rebuilt(path: Path, **changes: bytes | None) -> None:
    """The archive with members replaced, removed or added."""
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    for key, value in changes.items():
        members[key.replace("__", ".")] = value or b""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    path.write_bytes(buffer.getvalue())


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_graph(path)
    message = str(caught.value)
    assert message.startswith(repr(str(path)))
    return message.removeprefix(repr(str(path)))


def test_tampered_members_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.graphc"
    save_graph(path, session=started(network()))
    good = path.read_bytes()
    rebuilt(path, graph__txt=b"graph {\n}\n")
    assert refusal(path) == ": graph.txt in it is not what was written (digest differs)"
    path.write_bytes(good)
    rebuilt(path, extra__txt=b"x")
    assert refusal(path).startswith(": it holds header.json, graph.txt,")
    path.write_bytes(good)
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("header.json"))
    header["format"] = 2
    rebuilt(path, header__json=json.dumps(header).encode())
    assert refusal(path) == (
        f": it has format 2 (written by graphc {header['graphc']!r}); this graphc reads format 1"
    )
    header["format"] = 1
    header["signatures"] = {"serve": 3}
    rebuilt(path, header__json=json.dumps(header).encode())
    assert refusal(path) == ": its header is not what was written (digest differs)"


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.graphc"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("header.json", "graph.txt", "constants.safetensors", "weights.safetensors"):
            archive.writestr(name, b" " * 10_000_000)
    assert refusal(path) == ": its member header.json is compressed or too large"
    path.write_bytes(b"no archive")
    assert refusal(path) == " is not a sound graphc file: File is not a zip file"


# ---- writing -----------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "data"
    target.write_bytes(b"old")

    def full(file: BinaryIO) -> None:
        file.write(b"new and longer")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError) as caught:
        write_atomically(target, full)
    assert str(caught.value) == f"cannot write {str(target)!r}: No space left on device"

    def interrupted(file: BinaryIO) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, interrupted)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert target.read_bytes() == b"old"


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", lambda file: None)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b""


# ---- smaller graphs ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_frozen_graphs_need_no_variables(device: str) -> None:
    session = started(network(), device)
    session.run("train", {"x": X})
    frozen = freeze(session.graph, "y", session)
    verify(frozen)
    assert [n.name for n in frozen.nodes] == ["x", "w", "matmul", "y"]
    assert [n.op.name for n in frozen.nodes][:2] == ["placeholder", "constant"]
    assert frozen.collection_keys() == []
    found = gx.Session(frozen, device=device).run("y", {"x": X})
    np.testing.assert_allclose(found, session.run("y", {"x": X}), rtol=1e-6)
    with pytest.raises(GraphError, match=r"^freeze: the outputs need 'assign' .* assigns to a var"):
        freeze(session.graph, "train", session)


@pytest.mark.parametrize("device", DEVICES)
def test_frozen_graphs_stay_random(device: str) -> None:
    session = started(network(), device)
    frozen = freeze(session.graph, ["noisy:0"], session)
    verify(frozen)
    runs = gx.Session(frozen, device=device)
    found = [runs.run("noisy", {"x": X}) for _ in range(3)]
    expected = [session.run("noisy", {"x": X}) for _ in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # the same seed, the same numbers
    assert len(set(map(float, found))) > 1


def test_pruned_graphs_keep_what_is_needed(tmp_path: Path) -> None:
    session = started(network())
    pruned = prune(session.graph, session.graph.get_tensor_by_name("loss"))
    verify(pruned)
    names = {n.name for n in pruned.nodes}
    assert names == {"x", "w", "w/initial_value", "w/assign", "matmul", "y", "loss"}
    (w,) = pruned.get_collection("variables")
    assert isinstance(w, gx.Variable) and w.initializer.graph is pruned
    path = Saver([session.graph.get_tensor_by_name("w")]).save(session, tmp_path / "m")
    restored = gx.Session(pruned, device="reference")
    Saver().restore(restored, path)
    assert restored.run("loss", {"x": X}) == session.run("loss", {"x": X})


# ---- drawings ----------------------------------------------------------------------------------


def test_drawings(tmp_path: Path) -> None:
    graph = gx.Graph()
    with graph.as_default():
        a = gx.placeholder("f32", (2,), name='a "quoted"')
        b = gx.negative(a, name="b")
        gx.group(b, name="all")
    drawn = to_networkx(graph)
    assert drawn.nodes["b"]["op"] == "negative" and drawn.nodes["b"]["type"] == "f32[2]"
    assert list(drawn.edges(data="control")) == [('a "quoted"', "b", False), ("b", "all", True)]
    write_dot(graph, tmp_path / "g.dot")
    assert (tmp_path / "g.dot").read_text() == (
        "digraph graphc {\n"
        "  node [shape=box, fontsize=10];\n"
        '  n0 [label="placeholder\\na \\"quoted\\"", shape=ellipse];\n'
        '  n1 [label="negative\\nb"];\n'
        '  n2 [label="group\\nall", shape=box3d];\n'
        '  n0 -> n1 [label="f32[2]"];\n'
        "  n1 -> n2 [style=dashed];\n"
        "}\n"
    )
    write_graphml(graph, tmp_path / "g.graphml")
    import networkx

    again = networkx.read_graphml(tmp_path / "g.graphml")
    assert set(again.nodes) == set(drawn.nodes) and again.number_of_edges() == 2
