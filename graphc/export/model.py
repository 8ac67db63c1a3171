"""A saved graph in use again.

    model = gx.load_graph("digits.graphc")
    y = model(x=images)["probabilities"]

Imports: graph_file, session, train.saver.
"""

from __future__ import annotations

import os
from typing import Any

from graphc.errors import CheckpointError, FeedError, GraphcError, GraphError
from graphc.export.graph_file import Signature, read_graph_file
from graphc.graph import Graph
from graphc.session import Session
from graphc.train.saver import all_variables


class Model:
    """A loaded graph with a session that holds its variables.

    graph, session   to run, extend or train as if the graph had been built here
    signatures       how it is called: tensor names by argument and by result
    """

    def __init__(self, graph: Graph, session: Session, signatures: dict[str, Signature]) -> None:
        self.graph = graph
        self.session = session
        self.signatures = signatures

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Run the only signature, or the one called 'serve'; raises GraphError without either."""
        if len(self.signatures) == 1:
            (name,) = self.signatures
        elif "serve" in self.signatures:
            name = "serve"
        else:
            listed = ", ".join(map(repr, self.signatures)) or "none"
            raise GraphError(f"which signature to run? The model has {listed}: use run(name, ...)")
        return self.run(name, **inputs)

    def run(self, signature: str, /, **inputs: Any) -> dict[str, Any]:
        """Feed the arguments of a signature; the results by name.

        Raises GraphError for an unknown signature, FeedError for wrong arguments.
        """
        found = self.signatures.get(signature)
        if found is None:
            listed = ", ".join(map(repr, self.signatures)) or "none"
            raise GraphError(f"no signature is called {signature!r} (the model has {listed})")
        if set(inputs) != set(found.inputs):
            raise FeedError(
                f"signature {signature!r} takes {_listed(found.inputs)}, "
                f"but was given {_listed(inputs)}"
            )
        feeds = {found.inputs[k]: v for k, v in inputs.items()}
        result: dict[str, Any] = self.session.run(found.outputs, feeds)
        return result

    def close(self) -> None:
        """Release the session."""
        self.session.close()

    def __repr__(self) -> str:
        return f"<Model of {len(self.graph.nodes)} nodes: {_listed(self.signatures)}>"


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "nothing"


def load_graph(
    path: str | os.PathLike[str], device: str = "cpu", threads: int | None = None
) -> Model:
    """The model in a file that `save_graph` wrote: graph, variables, random state, signatures.

    Raises CheckpointError if the file is truncated, tampered with or of another format.
    """
    contents = read_graph_file(path)
    session = Session(contents.graph, threads=threads, device=device)
    state = all_variables(contents.graph)
    try:
        for name, value in contents.weights.items():
            if name not in state:
                raise CheckpointError(f"it holds a value for {name!r:.60}, which is no variable")
            if value.dtype != state[name].dtype.numpy:
                raise CheckpointError(f"the value of {name!r:.60} is {value.dtype}")
            session.set_value(state[name], value)
    except GraphcError as error:
        session.close()
        raise CheckpointError(f"{os.fspath(path)!r}: {error}") from None
    return Model(contents.graph, session, contents.signatures)
