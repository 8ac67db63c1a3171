"""The cache on disk: files by content, what is trusted, and pruning."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import graphc as gx
from graphc import cache as cache_module
from graphc import fingerprint as fingerprint_module
from graphc.cache import Cache, digest, open_cache
from graphc.cli import main
from graphc.fingerprint import fingerprint

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are those of POSIX")

KEY = digest("a key")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "below" / "cache"


@pytest.fixture
def cache(folder: Path) -> Cache:
    return Cache(str(folder), 1 << 20)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_is_written_is_read(cache: Cache, folder: Path) -> None:
    assert cache.read("plan", KEY) is None
    assert cache.write("plan", KEY, b"contents")
    assert cache.read("plan", KEY) == b"contents"
    assert cache.read("plan", digest("another key")) is None
    assert cache.read("module", KEY) is None
    assert Cache(str(folder), 1).read("plan", KEY) == b"contents"
    assert cache.write("plan", KEY, b"others")
    assert cache.read("plan", KEY) == b"others"
    assert cache.keys("plan") == [KEY]


def test_parts_of_a_key_have_lengths() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab") == digest(b"ab") != digest("ab", "")


@posix
def test_the_folder_is_the_users_alone(cache: Cache, folder: Path) -> None:
    cache.write("plan", KEY, b"contents")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert only_file(folder).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "empty", "swapped"])
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(
    cache: Cache, folder: Path, how: str
) -> None:
    cache.write("plan", KEY, b"contents" * 20)
    path = only_file(folder)
    good = path.read_bytes()
    if how == "flipped":
        for position in range(len(good)):
            flipped = bytes([good[position] ^ 1])
            path.write_bytes(good[:position] + flipped + good[position + 1 :])
            assert cache.read("plan", KEY) is None
    elif how == "cut":
        for length in range(len(good)):
            path.write_bytes(good[:length])
            assert cache.read("plan", KEY) is None
    elif how == "swapped":
        other = digest("another key")
        cache.write("plan", other, b"what belongs to another key")
        path.write_bytes(Path(cache._path("plan", other)).read_bytes())
    else:
        path.write_bytes(good + b"x" if how == "longer" else b"")
    assert cache.read("plan", KEY) is None
    assert cache.write("plan", KEY, b"contents")
    assert cache.read("plan", KEY) == b"contents"


@posix
def test_what_others_can_write_is_not_read(cache: Cache, folder: Path) -> None:
    cache.write("plan", KEY, b"contents")
    path = only_file(folder)
    for mode in (0o620, 0o602):
        path.chmod(mode)
        assert cache.read("plan", KEY) is None
    path.chmod(0o644)
    assert cache.read("plan", KEY) == b"contents"
    folder.chmod(0o777)
    assert cache.refusal() == "everybody may write to it"
    assert cache.read("plan", KEY) is None
    assert not cache.write("plan", KEY, b"contents")


@posix
def test_what_belongs_to_another_is_not_read(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write("plan", KEY, b"contents")
    if folder.stat().st_uid == 0:
        os.chown(folder, 12345, -1)
        assert cache.refusal() == "it belongs to another user"
        assert cache.read("plan", KEY) is None
        os.chown(folder, 0, -1)
        assert cache.read("plan", KEY) == b"contents"
        os.chown(only_file(folder), 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert cache.refusal() == "it belongs to another user"
    assert cache.read("plan", KEY) is None


@posix
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_no_entry(cache: Cache, folder: Path) -> None:
    cache.write("plan", KEY, b"contents")
    path = only_file(folder)
    path.unlink()
    os.mkfifo(path, 0o600)
    assert cache.read("plan", KEY) is None
    path.unlink()
    path.mkdir()
    assert cache.read("plan", KEY) is None
    assert not cache.write("plan", KEY, b"contents")


def test_a_folder_that_cannot_be_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(str(tmp_path / "file" / "cache"), 1 << 20)
    assert not cache.write("plan", KEY, b"contents")
    assert cache.read("plan", KEY) is None
    assert cache.entries() == cache.prune() == cache.clear() == []


@posix
def test_a_read_only_folder_is_read(cache: Cache, folder: Path) -> None:
    cache.write("plan", KEY, b"contents")
    os.utime(only_file(folder), (1, 1))
    folder.chmod(0o500)
    try:
        assert cache.read("plan", KEY) == b"contents"
        if os.geteuid() != 0:
            assert not cache.write("plan", digest("another key"), b"contents")
    finally:
        folder.chmod(0o700)


def test_a_full_disk_is_no_error(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert not cache.write("plan", KEY, b"contents")
    assert list(folder.iterdir()) == []


def test_what_was_used_longest_ago_goes_first(cache: Cache, folder: Path) -> None:
    now = time.time()
    for i in range(10):
        cache.write("plan", digest(str(i)), bytes(90_000))
        os.utime(cache._path("plan", digest(str(i))), (now - 5000 + i, now - 5000 + i))
    assert cache.read("plan", digest("0"))  # used again: now the newest
    small = Cache(str(folder), 500_000)
    removed = small.prune()
    assert {e.path for e in removed} == {cache._path("plan", digest(str(i))) for i in range(1, 7)}
    assert sum(e.bytes for e in small.entries()) <= 400_000
    assert small.prune() == []
    assert len(small.prune(older_than=3600)) == 3
    assert cache.read("plan", digest("0"))
    assert len(small.prune(limit=0)) == 1


def test_a_first_write_prunes_what_earlier_processes_left(cache: Cache, folder: Path) -> None:
    for i in range(10):
        cache.write("plan", digest(str(i)), bytes(90_000))
    lost = folder / f"plan-{KEY.hex()}.gxc.1.tmp"
    lost.write_bytes(bytes(1000))
    os.utime(lost, (1, 1))
    recent = folder / f"plan-{KEY.hex()}.gxc.2.tmp"
    recent.write_bytes(b"")
    Cache(str(folder), 500_000).write("plan", KEY, b"contents")
    assert not lost.exists()
    assert recent.exists()
    assert sum(e.bytes for e in cache.entries()) <= 500_000


def test_nothing_larger_than_the_limit_is_written(folder: Path) -> None:
    assert not Cache(str(folder), 1000).write("plan", KEY, bytes(1000))
    assert not Cache(str(folder), 1000).write("plan", KEY, bytes(200))
    assert Cache(str(folder), 1000).write("plan", KEY, bytes(180))


def test_explain_says_where_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        return str(gx.explain(gx.constant([1.0]) * 2)).split("== cache ==\n")[1]

    assert said() == "off\n"
    monkeypatch.setenv("GRAPHC_CACHE", str(folder))
    assert said() == f"{folder}\n"
    folder.parent.mkdir()
    folder.write_text("")
    assert said() == f"{folder}, not used: it is not a folder\n"


def test_clearing_leaves_files_of_others_alone(cache: Cache, folder: Path) -> None:
    cache.write("plan", KEY, b"contents")
    (folder / "notes.txt").write_text("not an entry")
    assert len(cache.clear()) == 1
    assert only_file(folder).name == "notes.txt"


def test_flags_say_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", "off")
    assert open_cache() is None
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path))
    monkeypatch.setenv("GRAPHC_CACHE_SIZE", "3K")
    found = open_cache()
    assert found is not None
    assert (found.folder, found.limit) == (str(tmp_path), 3072)
    monkeypatch.delenv("GRAPHC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        found = open_cache()
        assert found is not None
        assert found.folder == str(tmp_path / "graphc")
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        found = open_cache()
        assert found is not None
        assert found.folder == str(tmp_path / "home" / ".cache" / "graphc")
        monkeypatch.setenv("HOME", "")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        assert open_cache() is None


def test_the_tests_themselves_use_none() -> None:
    assert open_cache() is None


def test_the_fingerprint_follows_from_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def now(folder: Path) -> bytes | None:
        monkeypatch.setattr(fingerprint_module, "_PACKAGE", str(folder))
        fingerprint_module._found.clear()
        return fingerprint()

    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint_module, "_found", [])
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    files = [package / "a.py", package / "inner" / "b.py"]
    for path in files:
        path.write_text("x = 1\n")
        os.utime(path, (1000, 1000))
    first = now(package)
    assert first is not None
    assert now(package) == first
    for entry in (tmp_path / "cache").iterdir():
        entry.write_bytes(b"")
    assert now(package) == first  # the same source, wherever it comes from
    files[1].write_text("x = 2\n")
    os.utime(files[1], (2000, 2000))
    second = now(package)
    assert second not in (None, first)
    os.utime(files[1])  # changed after this process began
    assert now(package) is None
    assert now(tmp_path / "nothing") is None


WRITER = """
    import sys
    from graphc.cache import Cache, digest
    cache = Cache(sys.argv[1], 1 << 30)
    for i in range(200):
        key = digest(str(i % 5))
        cache.write("plan", key, bytes([i % 5]) * 20000)
        found = cache.read("plan", key)
        assert found is None or found == bytes([i % 5]) * 20000
        if i % 50 == 0:
            cache.prune(limit=30000)
"""


def test_processes_write_read_and_prune_at_once(folder: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(folder)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    said = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert not [p for p in folder.iterdir() if p.name.endswith(cache_module._TEMPORARY)]


# ---- the command line --------------------------------------------------------------------------


def test_the_command_line_lists_prunes_and_clears(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        assert main(["cache", *arguments]) == 0
        return capsys.readouterr().out

    monkeypatch.setenv("GRAPHC_CACHE", str(folder))
    monkeypatch.setenv("GRAPHC_CACHE_SIZE", "1M")
    assert said("path") == f"{folder}\n"
    assert said("ls").splitlines()[-1] == f"{'all':8}       0        0 B  of 1 MiB in {folder}"
    cache = open_cache()
    assert cache is not None
    for kind, key, size, age in [
        ("plan", KEY, 10240, 3 * 86400),
        ("plan", digest("another key"), 1024, 7205),
        ("kernels", KEY, 2048, 305),
    ]:
        cache.write(kind, key, bytes(size - 60))
        os.utime(cache._path(kind, key), (time.time() - age,) * 2)
    assert said("ls") == (
        "kind       files       size  last used\n"
        "kernels        1      2 KiB  5 min ago\n"
        "plan           2     11 KiB  2 h ago\n"
        f"all            3     13 KiB  of 1 MiB in {folder}\n"
    )
    listed = said("ls", "--all").splitlines()
    assert listed[2] == f"     3 d     10 KiB  plan-{KEY.hex()}.gxc"
    assert said("prune") == "removed 0 files, 0 B\n"
    assert said("prune", "--days", "2") == "removed 1 files, 10 KiB\n"
    assert said("prune", "--size", "2K") == "removed 1 files, 1 KiB\n"
    assert said("clear") == "removed 1 files, 2 KiB\n"
    folder.chmod(0o777)
    if os.name == "posix":
        assert said("ls").startswith(f"{folder} is not used: everybody may write to it\n")


def test_the_command_line_says_what_it_does_not_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "ls"]) == 1
    assert capsys.readouterr().err == (
        "graphc cache: there is none: GRAPHC_CACHE=off, or no home\n"
    )
    with pytest.raises(SystemExit):
        main(["cache", "prune", "--size", "much"])
    assert "'much': expected a number of bytes, such as 500M or 2G" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["cache"])
