"""A file system as a power cut sees it: what is durable, what was only written, and every mixture that may be left.

The model: a sector of 512 bytes is written whole or not at all; writes, changes of size and changes of names that no
fsync covered are each lost or kept, in any order; bytes behind the durable end of a file may come back as anything. An
fsync of a file keeps its content, not its name; an fsync of a directory keeps its names. A rename is one step. The disk
keeps what it acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import TypeAlias

SECTOR = 512
ROOT = 0
Entry: TypeAlias = tuple[int, str]  # number of the directory, name in it


@dataclass(frozen=True)
class Write:
    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resize:
    file: int
    size: int


@dataclass(frozen=True)
class Sync:
    file: int


@dataclass(frozen=True)
class Names:
    """Entries of directories that change in one step; None takes an entry away."""

    entries: tuple[tuple[Entry, int | None], ...]
    new_directory: int | None = None


@dataclass(frozen=True)
class Ack:
    """The program has told that so many states are committed."""

    n: int


Step: TypeAlias = Write | Resize | Sync | Names | Ack
Image: TypeAlias = dict[str, bytes | None]  # path from the root -> content, None for a directory


@dataclass
class File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Resize] = field(default_factory=list)


@dataclass
class PendingNames:
    names: Names
    unsynced: set[int]


def apply_change(content: bytearray, change: Write | Resize) -> None:
    """Change the content of a file; a gap is filled with zeros."""
    if isinstance(change, Resize):
        del content[change.size :]
        content.extend(bytes(change.size - len(content)))
    else:
        content.extend(bytes(max(0, change.offset - len(content))))
        content[change.offset : change.offset + len(change.data)] = change.data


class Disk:
    """What a recording has done to a directory so far."""

    def __init__(self, base: Image) -> None:
        """Begin with a directory whose whole content is durable."""
        self.files: dict[int, File] = {}
        self.directories = {ROOT}
        self.names: dict[Entry, int] = {}
        self.pending_names: list[PendingNames] = []
        numbers = {"": ROOT}
        for path in sorted(base):
            content = base[path]
            number = numbers[path] = len(numbers)
            above, _, name = path.rpartition("/")
            self.names[numbers[above], name] = number
            if content is None:
                self.directories.add(number)
            else:
                self.files[number] = File(bytearray(content))

    def apply(self, step: Step) -> None:
        """Take one step of the recording."""
        match step:
            case Write(file) | Resize(file):
                self.files.setdefault(file, File()).pending.append(step)
            case Sync(file) if file in self.directories:
                for change in self.pending_names:
                    change.unsynced.discard(file)
                for change in [change for change in self.pending_names if not change.unsynced]:
                    self.pending_names.remove(change)
                    _rename(self.names, change.names)
            case Sync(file):
                content = self.files.setdefault(file, File())
                for written in content.pending:
                    apply_change(content.durable, written)
                content.pending.clear()
            case Names():
                if step.new_directory is not None:
                    self.directories.add(step.new_directory)
                self.pending_names.append(PendingNames(step, {entry[0] for entry, _ in step.entries}))
            case Ack():
                pass

    def unsynced_files(self) -> list[int]:
        """Return the files that hold something a power cut may take."""
        return [number for number, file in self.files.items() if file.pending]

    def image(self, kept_names: Sequence[bool], contents: Mapping[int, bytes]) -> Image:
        """Return what is found after a power cut.

        Args:
            kept_names: for each pending change of names whether it is kept.
            contents: of the files that had something pending; all others have what is durable.
        """
        names = dict(self.names)
        for change, kept in zip(self.pending_names, kept_names, strict=True):
            if kept:
                _rename(names, change.names)
        image: Image = {}

        def walk(directory: int, above: str) -> None:
            for (parent, name), number in names.items():
                if parent != directory:
                    continue
                if number in self.directories:
                    image[above + name] = None
                    walk(number, above + name + "/")
                else:
                    file = self.files.get(number, File())
                    image[above + name] = contents.get(number, bytes(file.durable))

        walk(ROOT, "")
        return image


def _rename(names: dict[Entry, int], change: Names) -> None:
    for entry, number in change.entries:
        if number is None:
            names.pop(entry, None)
        else:
            names[entry] = number


def kept(file: File) -> bytes:
    """Return the content when nothing is lost."""
    content = bytearray(file.durable)
    for change in file.pending:
        apply_change(content, change)
    return bytes(content)


def torn(file: File, rng: Random) -> bytes:
    """Return the content after some sectors of what was not synced were lost, in one of several manners."""
    share = rng.choice((0.1, 0.5, 0.9))
    whole, prefix, garbage = rng.random() < 0.4, rng.random() < 0.3, rng.random() < 0.5
    n_kept = rng.randint(0, len(file.pending))
    content = bytearray(file.durable)
    durable_end = len(content)
    for position, change in enumerate(file.pending):
        if prefix and position >= n_kept:
            break
        if isinstance(change, Resize) or whole:
            if prefix or rng.random() < share:
                apply_change(content, change)
            continue
        for sector in _sectors(change):
            if rng.random() < share:
                apply_change(content, sector)
            elif sector.offset >= durable_end and rng.random() < 0.5:  # the size is there, the bytes are not
                apply_change(
                    content,
                    Write(
                        sector.file,
                        sector.offset,
                        rng.randbytes(len(sector.data)) if garbage else bytes(len(sector.data)),
                    ),
                )
    return bytes(content)


def _sectors(write: Write) -> Iterator[Write]:
    start, end = write.offset, write.offset + len(write.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        yield Write(write.file, start, write.data[start - write.offset : stop - write.offset])
        start = stop


def _mixture(disk: Disk, rng: Random) -> Image:
    """Return one image at random: one thing lost, one thing kept, or each thing lost, kept or torn."""
    files = disk.unsynced_files()
    things: list[tuple[str, int]] = [("file", number) for number in files]
    things += [("name", position) for position in range(len(disk.pending_names))]
    manner = rng.choice(("one lost", "one kept", "each", "each", "torn"))
    chosen = rng.choice(things) if things else ("", 0)
    names = []
    for position in range(len(disk.pending_names)):
        is_chosen = chosen == ("name", position)
        names.append({"one lost": not is_chosen, "one kept": is_chosen, "torn": True}.get(manner, rng.random() < 0.5))
    contents = {}
    for number in files:
        file, is_chosen = disk.files[number], chosen == ("file", number)
        fate = {"one lost": 1 if is_chosen else 0, "one kept": 0 if is_chosen else 1, "torn": 2}.get(manner)
        fate = rng.randrange(3) if fate is None else fate
        contents[number] = (kept(file), bytes(file.durable), torn(file, rng))[fate]
    return disk.image(names, contents)


def _after(disk: Disk, manner: int, rng: Random) -> Image:
    """Return the image of one manner: nothing lost, all lost, only content lost, only names lost, then mixtures."""
    n_names = len(disk.pending_names)
    durable = {number: bytes(disk.files[number].durable) for number in disk.unsynced_files()}
    written = {number: kept(disk.files[number]) for number in disk.unsynced_files()}
    match manner:
        case 0:
            return disk.image([True] * n_names, written)
        case 1:
            return disk.image([False] * n_names, durable)
        case 2:
            return disk.image([True] * n_names, durable)
        case 3:
            return disk.image([False] * n_names, written)
    return _mixture(disk, rng)


def images(base: Image, steps: Sequence[Step], seed: int, *, passes: int = 2_000) -> Iterator[tuple[int, int, Image]]:
    """Yield what power cuts leave, no image twice: (states acknowledged, step of the cut, image).

    The power fails after each step of the recording in turn, then again with other losses, pass by pass.
    """
    rng = Random(seed)
    seen: set[bytes] = set()
    for number in range(passes):
        disk, acknowledged = Disk(base), 0
        for position, step in enumerate(steps):
            disk.apply(step)
            if isinstance(step, Ack):
                acknowledged = step.n
            manner = (number + position) % 4 if number < 4 else number
            image = _after(disk, manner, rng)
            key = digest(image, acknowledged)
            if key not in seen:
                seen.add(key)
                yield acknowledged, position, image


def digest(image: Image, acknowledged: int) -> bytes:
    """Return what tells two images apart."""
    state = blake2b(str(acknowledged).encode(), digest_size=16)
    for path in sorted(image):
        content = image[path]
        state.update(path.encode() + b"\0" + (b"/" if content is None else blake2b(content).digest()))
    return state.digest()


def read_tree(root: Path) -> Image:
    """Return the content of a directory."""
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def write_tree(root: Path, image: Image) -> None:
    """Write an image into an empty directory."""
    for path in sorted(image):
        content = image[path]
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def final(base: Image, steps: Iterable[Step]) -> Image:
    """Return the directory after a recording, nothing lost: what the program left, if the recording is whole."""
    disk = Disk(base)
    for step in steps:
        disk.apply(step)
    return _after(disk, 0, Random(0))
