"""Finding the files of a log: paths, globs, folders and URLs, in the order of their names."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

DEFAULT_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # the folder name that Hive and Spark write for null


@dataclass(frozen=True)
class Source:
    """A file of a log.

    Attributes:
        name: The path or URL, as shown in errors. Its extension determines the format.
        path: The file on this machine. It is a copy if `name` is a URL.
        partitions: The columns that Hive partition folders, such as `day=2026-01-01`, add to every row.
    """

    name: str
    path: Path
    partitions: Mapping[str, str | None] = field(default_factory=dict)


def find_files(folder: Path, patterns: Sequence[str], hint: str) -> list[Source]:
    """Return the files that paths, globs, folders and URLs name, sorted by name.

    Folders include their subfolders. Files and folders whose name begins with "_" or "." are skipped, because Spark and
    other tools write metadata to them, unless a path names them exactly.

    Args:
        folder: The folder that paths are relative to.
        patterns: One or more paths, globs, folders or URLs.
        hint: What to do if nothing matches, for the error.

    Raises:
        ValueError: If a pattern matches no file, or a file is matched twice.
    """
    found: dict[str, tuple[str, Source]] = {}
    for pattern in patterns:
        sources = fetch(pattern) if "://" in pattern else find_local(folder, pattern)
        if not sources:
            named = pattern if "://" in pattern else folder / pattern
            raise ValueError(f"{named}: {why_empty(named)}. {hint}")
        for source in sources:
            if source.name in found:
                first = found[source.name][0]
                raise ValueError(f'{source.name}: listed twice, by "{first}" and by "{pattern}". Remove one.')
            found[source.name] = (pattern, source)
    return [found[name][1] for name in sorted(found)]


def why_empty(named: str | Path) -> str:
    """Return why a path, glob, folder or URL names no files."""
    if isinstance(named, str) or not named.is_dir():
        return "no such file"
    return (
        'the folder has no data files. Files whose names begin with "_" or ".", such as _SUCCESS, are not read; '
        "those that end with .parquet, .csv, .tsv or .txt are, the last three also with .gz or .zst"
    )


def reject_shared_files(splits: Mapping[str, Sequence[Source]]) -> None:
    """Check that no file belongs to two splits.

    Raises:
        ValueError: If a file belongs to two splits. The message names the file and both splits.
    """
    seen: dict[Path, str] = {}
    for split, sources in splits.items():
        for source in sources:
            other = seen.setdefault(source.path.resolve(), split)
            if other != split:
                raise ValueError(
                    f"{source.name}: is in both {other} and {split}. A model that has seen the rows it is evaluated on "
                    "looks better than it is. Remove the file from one of them."
                )


def find_local(folder: Path, pattern: str) -> list[Source]:
    """Return the local files of one path, glob or folder, in any order."""
    path = folder / pattern
    if path.exists():
        roots = [path]
    else:
        matches = glob.glob(str(Path(glob.escape(str(folder))) / pattern), recursive=True)
        roots = [Path(match) for match in matches if not is_hidden(Path(match).name)]
    files = {file for root in roots for file in (files_below(root) if root.is_dir() else [root])}
    return [Source(str(file), file, partitions(relative_parts(file, folder))) for file in files]


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the visible files in a folder and its visible subfolders."""
    for path in folder.rglob("*"):
        if path.is_file() and not any(map(is_hidden, path.relative_to(folder).parts)):
            yield path


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is metadata, such as _SUCCESS, or a temporary file."""
    return name.startswith(("_", "."))


def relative_parts(file: Path, folder: Path) -> Sequence[str]:
    """Return the names of the folders between `folder` and the file, or of all its folders if the file is elsewhere."""
    parent = file.parent
    return parent.relative_to(folder).parts if parent.is_relative_to(folder) else parent.parts


def partitions(folders: Sequence[str]) -> dict[str, str | None]:
    """Return the columns that Hive partition folders describe. Special characters in their values are %-encoded."""
    pairs = (name.partition("=") for name in folders)
    return {
        unquote(column): None if value == DEFAULT_PARTITION else unquote(value)
        for column, equals, value in pairs
        if column and equals
    }


def fetch(pattern: str) -> list[Source]:
    """Copy the files of a URL, which may also be a glob or a folder, to this machine.

    ctr-prepare reads a log several times, so a copy is faster than several downloads. The copies are in the system's
    temporary folder ($TMPDIR) and are removed when the process ends.

    Raises:
        ValueError: If fsspec or the package for the URL's protocol is not installed, or the files cannot be copied.
    """
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(pattern)
    except ImportError as error:
        raise ValueError(
            f"{pattern}: {error}. Remote files need the extra `remote`: pip install 'stec-ctr[remote]'."
        ) from error
    except ValueError as error:
        raise ValueError(f"{pattern}: {error}. Use a local path or a URL such as s3://bucket/day.parquet.") from error
    try:
        paths = [path] if system.isfile(path) else system.glob(path)
        files: set[str] = set()
        for match in paths:
            below = system.find(match) if system.isdir(match) else [match]
            files.update(file for file in below if not any(map(is_hidden, file[len(match) :].split("/"))))
        names = [system.unstrip_protocol(file) for file in sorted(files)]
        copies = fsspec.open_local([f"simplecache::{name}" for name in names]) if names else []
    except Exception as error:  # each protocol's package has its own exceptions
        raise ValueError(f"{pattern}: cannot be copied: {error}. Check the URL and your credentials.") from error
    return [
        Source(name, Path(copy), partitions(name.split("/")[:-1])) for name, copy in zip(names, copies, strict=True)
    ]
