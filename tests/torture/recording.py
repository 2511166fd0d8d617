"""Records with strace what a program does to the files below a directory, as steps of the model in disk.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from disk import ROOT, Ack, Disk, Image, Names, Resize, Step, Sync, Write, kept, read_tree
from workloads import WORKLOADS, small_commits

_KNOWN = (
    *("open", "openat", "creat", "close", "dup", "dup2", "dup3", "fcntl", "lseek"),
    *("write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range", "ftruncate", "fsync", "fdatasync"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"),
)
# Nothing of ours does these. If something begins to, the recording is refused, not misread.
_UNKNOWN = ("truncate", "link", "linkat", "symlink", "symlinkat", "fallocate", "pwritev2", "mknod", "mknodat", "splice")
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)\) += (-?\d+)")
_BEGUN = re.compile(r"^(\d+) +(\w+\(.*?)(?:, )?<unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(?:, )?(.*)$")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass
class _Open:
    """An open file: its number in the model, position, and whether writes go to the end."""

    file: int
    position: int = 0
    appends: bool = False


@dataclass(frozen=True)
class Recording:
    """What stood below the root before, what the program did there, and what it said on stderr."""

    root: Path
    base: Image
    steps: list[Step]
    said: str


def record(workload: str, memory: Path, *, mutant: str = "", library: Path | None = None) -> Recording:
    """Run a workload under strace in a process of its own, in a directory below `memory`.

    A mutant may end with an error; what it did until then counts. `library` is faults.c; it then counts beside strace.
    """
    root, log, here = memory / "root", memory / "log", Path(__file__).parent
    root.mkdir()
    with small_commits():
        WORKLOADS[workload].prepare(root)
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}:{here.parents[1]}", "OMP_NUM_THREADS": "1"}
    if library is not None:
        environment["LD_PRELOAD"] = str(library)
    command = [sys.executable, str(here / "program.py"), workload, str(root), mutant]
    base = read_tree(root)
    names = ",".join((*_KNOWN, *_UNKNOWN))
    strace = ["strace", "-f", "-xx", "--seccomp-bpf", "-s", str(1 << 26), "-e", f"trace={names}", "-o", str(log)]
    done = subprocess.run([*strace, *command], capture_output=True, text=True, env=environment)
    if done.returncode != 0 and not mutant:
        raise RuntimeError(f"the recorded program failed: {done.stderr[-2000:]}")
    with log.open(encoding="ascii") as lines:
        return Recording(root, base, list(_Reader(root, base).steps(lines)), done.stderr)


def _calls(lines: Iterator[str]) -> Iterator[tuple[str, str, int]]:
    """Yield (name, arguments, result) of the calls that succeeded, those cut in two by another thread put together."""
    begun: dict[str, str] = {}
    for line in lines:
        text = line.rstrip("\n")
        if match := _BEGUN.match(text):
            begun[match[1]] = match[2]
            continue
        if match := _RESUMED.match(text):
            start = begun.pop(match[1])
            text = f"{match[1]} {start}{'' if start.endswith('(') or match[2].startswith(')') else ', '}{match[2]}"
        if (match := _CALL.match(text)) and int(match[4]) >= 0:
            yield match[2], match[3], int(match[4])


class _Reader:
    """Follows file descriptors and names through a log of strace."""

    def __init__(self, root: Path, base: Image) -> None:
        self._root = str(root)
        self._disk = Disk(base)  # as the program sees it: every step is applied and synced at once
        self._open: dict[int, _Open] = {}
        self._next = len(base) + 1

    def steps(self, lines: Iterator[str]) -> Iterator[Step]:
        for name, text, result in _calls(lines):
            arguments = _split(text)
            for step in self._of_call(name, arguments, result):
                self._follow(step)
                yield step

    def _follow(self, step: Step) -> None:
        self._disk.apply(step)
        if isinstance(step, (Write, Resize)):
            self._disk.apply(Sync(step.file))
        elif isinstance(step, Names):
            for entry, _ in step.entries:
                self._disk.apply(Sync(entry[0]))

    def _of_call(self, name: str, arguments: list[str], result: int) -> Iterator[Step]:  # noqa: C901 - one case each
        match name:
            case "open" | "creat":
                flags = arguments[1] if name == "open" else "O_CREAT|O_TRUNC"
                yield from self._opened(self._entry("AT_FDCWD", arguments[0]), flags, result)
            case "openat":
                yield from self._opened(self._entry(arguments[0], arguments[1]), arguments[2], result)
            case "close":
                self._open.pop(int(arguments[0]), None)
            case "dup" | "dup2" | "dup3":
                self._duplicate(int(arguments[0]), result)
            case "fcntl" if arguments[1].startswith("F_DUPFD"):
                self._duplicate(int(arguments[0]), result)
            case "lseek" if int(arguments[0]) in self._open:
                self._open[int(arguments[0])].position = result
            case "write" | "writev":
                yield from self._written(int(arguments[0]), _joined(arguments[1:])[:result], None)
            case "pwrite64":
                yield from self._written(int(arguments[0]), _bytes(arguments[1])[:result], int(arguments[3]))
            case "pwritev":
                yield from self._written(int(arguments[0]), _joined(arguments[1:-1])[:result], int(arguments[-1]))
            case "sendfile":
                yield from self._copied(int(arguments[0]), int(arguments[1]), arguments[2], result)
            case "copy_file_range":
                yield from self._copied(int(arguments[2]), int(arguments[0]), arguments[1], result)
            case "ftruncate" if int(arguments[0]) in self._open:
                yield Resize(self._open[int(arguments[0])].file, int(arguments[1]))
            case "fsync" | "fdatasync" if int(arguments[0]) in self._open:
                yield Sync(self._open[int(arguments[0])].file)
            case "rename":
                yield from self._renamed(
                    self._entry("AT_FDCWD", arguments[0]), self._entry("AT_FDCWD", arguments[1]), ""
                )
            case "renameat" | "renameat2":
                flags = arguments[4] if name == "renameat2" else ""
                yield from self._renamed(self._entry(*arguments[:2]), self._entry(*arguments[2:4]), flags)
            case "unlink" | "rmdir":
                yield from self._gone(self._entry("AT_FDCWD", arguments[0]))
            case "unlinkat":
                yield from self._gone(self._entry(*arguments[:2]))
            case "mkdir":
                yield from self._made(self._entry("AT_FDCWD", arguments[0]))
            case "mkdirat":
                yield from self._made(self._entry(*arguments[:2]))
            case _ if name in _UNKNOWN:
                self._refuse(name, arguments)

    def _entry(self, directory: str, path: str) -> tuple[int, str] | None:
        """Return the entry that a path names, None outside of the root; the root itself is (-1, "")."""
        text = _bytes(path).decode()
        if directory != "AT_FDCWD" and not text.startswith("/"):
            holder = self._open.get(int(directory))
            if holder is None:
                return None
            number, parts = holder.file, text.split("/")
        elif text == self._root or text.startswith(self._root + "/"):
            number, parts = ROOT, text[len(self._root) + 1 :].split("/")
        else:
            return None
        if parts == [""]:
            return -1, ""
        for part in parts[:-1]:
            number = self._disk.names[number, part]
        return number, parts[-1]

    def _opened(self, entry: tuple[int, str] | None, flags: str, descriptor: int) -> Iterator[Step]:
        self._open.pop(descriptor, None)
        if entry is None:
            return
        number = ROOT if entry == (-1, "") else self._disk.names.get(entry)
        if number is None:
            number = self._new()
            self._open[descriptor] = _Open(number, 0, "O_APPEND" in flags)
            yield Names(((entry, number),))
            return
        self._open[descriptor] = _Open(number, 0, "O_APPEND" in flags)
        if "O_TRUNC" in flags:
            yield Resize(number, 0)

    def _duplicate(self, old: int, new: int) -> None:
        self._open.pop(new, None)
        if old in self._open:
            self._open[new] = self._open[old]

    def _written(self, descriptor: int, data: bytes, offset: int | None) -> Iterator[Step]:
        if descriptor == 1 and descriptor not in self._open:
            if match := re.fullmatch(rb"ack (\d+)\n", data):
                yield Ack(int(match[1]))
            return
        target = self._open.get(descriptor)
        if target is None or not data:
            return
        if offset is None:
            if target.appends:
                target.position = len(self._content(target.file))
            offset = target.position
            target.position += len(data)
        yield Write(target.file, offset, data)

    def _copied(self, to: int, of: int, offset: str, n: int) -> Iterator[Step]:
        """Copying within the kernel; Python passes an explicit offset or NULL."""
        target, source = self._open.get(to), self._open.get(of)
        if target is None or n == 0:
            return
        if source is None:
            raise RuntimeError("bytes from outside of the recorded directory were copied into it by the kernel")
        match = re.match(r"\[(\d+)\]", offset)
        start = int(match[1]) if match else source.position
        if match is None:
            source.position += n
        yield from self._written(to, self._content(source.file)[start : start + n], None)

    def _content(self, file: int) -> bytes:
        return kept(self._disk.files[file]) if file in self._disk.files else b""

    def _renamed(self, old: tuple[int, str] | None, new: tuple[int, str] | None, flags: str) -> Iterator[Step]:
        if old is None and new is None:
            return
        if old is None or new is None or "EXCHANGE" in flags:
            raise RuntimeError("a rename over the edge of the recorded directory, or an exchange")
        yield Names(((old, None), (new, self._disk.names[old])))

    def _gone(self, entry: tuple[int, str] | None) -> Iterator[Step]:
        if entry is not None:
            yield Names(((entry, None),))

    def _made(self, entry: tuple[int, str] | None) -> Iterator[Step]:
        if entry is not None:
            number = self._new()
            yield Names(((entry, number),), new_directory=number)

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _refuse(self, name: str, arguments: list[str]) -> None:
        paths = [_bytes(a).decode(errors="replace") for a in arguments if _TEXT.fullmatch(a)]
        descriptors = [int(a) for a in arguments if a.isdigit()]
        if any(path.startswith(self._root) for path in paths) or any(d in self._open for d in descriptors[:1]):
            raise RuntimeError(f"the program calls {name}, which the model does not know")


def _split(text: str) -> list[str]:
    return text.split(", ")  # strings are in hex, so a comma is never part of one


def _bytes(text: str) -> bytes:
    match = _TEXT.fullmatch(text)
    if match is None:
        raise RuntimeError(f"no whole string in the log of strace: {text[:80]}")
    return bytes.fromhex(match[1].replace("\\x", ""))


def _joined(arguments: list[str]) -> bytes:
    """Return the bytes of one string or of a vector of strings."""
    return b"".join(bytes.fromhex(found.replace("\\x", "")) for found in _TEXT.findall(", ".join(arguments)))
