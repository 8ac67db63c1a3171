"""The command line: `graphc demo`, `graphc cache`, `graphc debug`, `graphc doctor`.

Imports: what a command needs, when it is given.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphc.cache import Cache, Entry


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
    demo.add_argument(
        "--device", choices=("cpu", "reference", "gpu", "emulated-gpu"), default="cpu"
    )
    demo.set_defaults(run=_demo)
    _add_cache(commands)
    _add_debug(commands)
    _add_doctor(commands)
    return parser


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor", help="say what graphc needs on this machine, and how to get what is missing"
    )
    doctor.add_argument("--gpu", action="store_true", help="fail if no GPU can be used")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)


def _add_debug(commands: Any) -> None:
    debug = commands.add_parser(
        "debug", help="check that a saved model is compiled right, fed with noise"
    )
    debug.add_argument("model", type=Path, help="a file that save_graph wrote")
    debug.add_argument("--size", type=_positive, default=3, help="of dimensions left open")
    debug.add_argument("--set", type=_named_size, action="append", default=[], metavar="NAME=N")
    debug.add_argument("--gradients", action="store_true", help="check gradient rules too")
    debug.add_argument("--seed", type=int, default=0)
    debug.set_defaults(run=_debug)


def _named_size(text: str) -> tuple[str, int]:
    name, equals, number = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=N")
    return name, _positive(number)


def _add_cache(commands: Any) -> None:
    """The command `cache` and the commands inside it."""
    cache = commands.add_parser("cache", help="the compiled code kept on disk between processes")
    inside = cache.add_subparsers(dest="cache_command", required=True)
    what = {
        "path": "print the folder",
        "ls": "list what is in it, by kind: files, size, when it was last used",
        "prune": "remove what was used longest ago",
        "clear": "remove everything",
    }
    for name, text in what.items():
        command = inside.add_parser(name, help=text, description=text)
        command.set_defaults(run=_cache)
        if name == "ls":
            command.add_argument("--all", action="store_true", help="list every file")
        if name == "prune":
            command.add_argument(
                "--size", type=_bytes, help="until no more than this is left, as 500M or 2G"
            )
            command.add_argument(
                "--days", type=float, help="what has not been used for so many days"
            )


def _demo(arguments: argparse.Namespace) -> int:
    try:
        import matplotlib  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        message = "install the demo's packages with: pip install 'graphc[demo]'"
        print(f"graphc demo: {error}; {message}", file=sys.stderr)
        return 1
    from graphc.demo import Options, run
    from graphc.errors import DeviceError

    options = Options(
        epochs=arguments.epochs,
        steps=arguments.steps,
        batch=arguments.batch,
        threads=arguments.threads,
        seed=arguments.seed,
        out=arguments.out,
        device=arguments.device,
    )
    try:
        print(json.dumps(run(options)))
    except DeviceError as error:
        print(f"graphc demo: {error}", file=sys.stderr)
        return 1
    return 0


def _debug(arguments: argparse.Namespace) -> int:
    from graphc.debug_command import check_model
    from graphc.errors import GraphcError

    sizes = dict(arguments.set)
    try:
        reports = check_model(
            arguments.model, arguments.size, sizes, arguments.gradients, arguments.seed
        )
    except (GraphcError, OSError) as error:
        print(f"graphc debug: {error}", file=sys.stderr)
        return 1
    for name, report in reports.items():
        print(f"== {name} ==\n{report}")
    return 0 if all(report.ok for report in reports.values()) else 1


def _doctor(arguments: argparse.Namespace) -> int:
    from graphc.doctor import examine

    found = examine()
    print(json.dumps(found.as_dict(), indent=1) if arguments.json else found)
    return 0 if (found.gpu_works if arguments.gpu else found.cpu_works) else 1


# ---- cache -------------------------------------------------------------------------------------


def _bytes(text: str) -> int:
    from graphc.flags import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _cache(arguments: argparse.Namespace) -> int:
    from graphc.cache import open_cache

    cache = open_cache()
    if cache is None:
        print("graphc cache: there is none: GRAPHC_CACHE=off, or no home", file=sys.stderr)
        return 1
    if arguments.cache_command == "path":
        print(cache.folder)
    elif arguments.cache_command == "ls":
        _list_cache(cache, arguments.all)
    elif arguments.cache_command == "clear":
        _print_removed(cache.clear())
    else:
        days = arguments.days
        _print_removed(cache.prune(arguments.size, None if days is None else 86400 * days))
    return 0


def _list_cache(cache: Cache, every: bool) -> None:
    from graphc.cache import total_bytes

    entries = sorted(cache.entries(), key=lambda e: -e.used)
    refusal = cache.refusal()
    if refusal and Path(cache.folder).exists():
        print(f"{cache.folder} is not used: {refusal}")
    if every:
        for entry in entries:
            print(f"{_age(entry.used):>8}  {_size(entry.bytes):>9}  {Path(entry.path).name}")
    print(f"{'kind':8}  {'files':>6}  {'size':>9}  last used")
    for kind in sorted({entry.kind for entry in entries}):
        of_kind = [entry for entry in entries if entry.kind == kind]
        size = _size(total_bytes(of_kind))
        print(f"{kind:8}  {len(of_kind):6}  {size:>9}  {_age(of_kind[0].used)} ago")
    limit = f"of {_size(cache.limit)} in {cache.folder}"
    print(f"{'all':8}  {len(entries):6}  {_size(total_bytes(entries)):>9}  {limit}")


def _print_removed(removed: Sequence[Entry]) -> None:
    from graphc.cache import total_bytes

    print(f"removed {len(removed)} files, {_size(total_bytes(removed))}")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _age(then: float) -> str:
    seconds = max(time.time() - then, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
