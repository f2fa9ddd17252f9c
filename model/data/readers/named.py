"""Finding the files that a command's arguments name, in the same way as ctr-prepare finds an experiment's files."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import commonpath, relpath
from pathlib import Path

from model.data.readers.files import Source, files_below, find_files
from model.data.readers.scan import DELIMITERS, text_ending

ENDINGS = (".parquet", *DELIMITERS)
HINT = "Give files, folders or globs."


@dataclass(frozen=True)
class NamedFiles:
    """The files of a log.

    Attributes:
        folder: The folder that contains all of them. Only Hive partition folders below it add columns to the rows.
        patterns: The paths, globs and folders, relative to the folder, that an experiment needs to find the same files.
        sources: The files, sorted by name.
    """

    folder: Path
    patterns: tuple[str, ...]
    sources: tuple[Source, ...]


def find_named_files(arguments: Sequence[str]) -> NamedFiles:
    """Return the files that paths, globs, folders and URLs name.

    Files of other formats in a folder, such as a README, are left out.

    Raises:
        ValueError: If an argument names no file, or the files have different or unknown formats.
    """
    local = [argument for argument in arguments if "://" not in argument]
    folder = Path(commonpath([base_of(argument) for argument in local])) if local else Path.cwd()
    patterns = [pattern for argument in arguments for pattern in patterns_of(argument, folder)]
    sources = find_files(folder, patterns, HINT)
    formats = {text_ending(source): source for source in sources}
    for ending, source in formats.items():
        if ending not in ENDINGS:
            known = "Use .parquet, .csv, .tsv or .txt; the last three also with .gz or .zst."
            raise ValueError(f"{source.name}: unknown format. {known}")
    if len(formats) > 1:
        raise ValueError(f"the files have different formats: {', '.join(sorted(formats))}. Give files of one format.")
    return NamedFiles(folder, tuple(patterns), tuple(sources))


def base_of(argument: str) -> Path:
    """Return the folder that contains a file or folder, or the last folder of a glob before its wildcards."""
    base = Path(argument).absolute()
    if not base.exists():
        while glob.has_magic(str(base)):
            base = base.parent
    return base.parent if base.exists() and not (base.is_dir() and glob.has_magic(argument)) else base


def patterns_of(argument: str, folder: Path) -> Iterator[str]:
    """Yield an argument relative to a folder. A folder with files of other formats becomes globs.

    Raises:
        ValueError: If the argument is a folder without a file of a known format.
    """
    path = Path(argument).absolute()
    name = relpath(path, folder)
    if "://" in argument:
        yield argument
    elif path.is_dir():
        files = [Source(str(file), file) for file in files_below(path)]
        log = [source for source in files if text_ending(source) in ENDINGS]
        if not log:
            raise ValueError(f"{argument}: the folder has no .parquet, .csv, .tsv or .txt files (also .gz or .zst).")
        if len(log) == len(files):
            yield name
            return
        suffixes = {source.name[source.name.lower().rindex(text_ending(source)) :] for source in log}
        yield from (f"{glob.escape(name)}/**/*{suffix}" for suffix in sorted(suffixes))
    else:
        yield name
