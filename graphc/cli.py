"""The command line: `graphc demo`.

Imports: demo, when that command is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graphc", description="A static graph compiler for Python."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="train LeNet on handwritten digits and show how it was compiled"
    )
    demo.add_argument("--epochs", type=_positive, default=30)
    demo.add_argument("--steps", type=_positive, help="stop after so many training steps")
    demo.add_argument("--batch", type=_positive, default=64)
    demo.add_argument("--threads", type=_positive, help="default: the machine's cores")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--out", type=Path, default=Path("graphc-demo"), help="folder for the files")
    demo.add_argument("--device", choices=("cpu", "reference"), default="cpu")
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        message = "install the demo's packages with: pip install 'graphc[demo]'"
        print(f"graphc demo: {error}; {message}", file=sys.stderr)
        return 1
    from graphc.demo import Options, run

    options = Options(
        epochs=arguments.epochs,
        steps=arguments.steps,
        batch=arguments.batch,
        threads=arguments.threads,
        seed=arguments.seed,
        out=arguments.out,
        device=arguments.device,
    )
    print(json.dumps(run(options)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    return _demo(arguments)


if __name__ == "__main__":
    sys.exit(main())
