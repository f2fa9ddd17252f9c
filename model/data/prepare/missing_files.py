"""Checking, before a log is read, that the files in an experiment's [data] section exist."""

from pathlib import Path

from model.data_config import Data
from model.toml_text import did_you_mean, toml_text
from model.unused_keys import listed

GLOB = frozenset("*?[")


def check_files_exist(toml: Path, root: Path, data: Data) -> None:
    """Check that the files of reader = "table" exist. The readers check globs, URLs and the files of published logs.

    Args:
        toml: The experiment's file, for the message.
        root: The base folder for the experiment's relative paths.
        data: The experiment's [data] section.

    Raises:
        ValueError: If a file or the folder is missing. The message names the key and suggests the closest name.
    """
    if data.reader != "table":
        return
    folder = root / data.folder
    values = [(key, file) for key in ("files", "train", "valid", "test") for file in listed(getattr(data, key))]
    for key, file in values:
        if "://" in f"{data.folder} {file}" or GLOB & set(file):
            continue
        if not folder.is_dir() and not Path(file).is_absolute():
            where = "It is relative to --data, whose default is $CTR_DATA, or ./data."
            raise ValueError(f"{toml}: data.folder = {missing(data.folder, folder, folders(folder.parent))} {where}")
        if not (folder / file).exists():
            where = f"It is relative to data.folder in --data, which is {folder}."
            raise ValueError(
                f"{toml}: data.{key} = {missing(file, folder / file, entries((folder / file).parent))} {where}"
            )


def missing(value: str, path: Path, near: list[Path]) -> str:
    """Return the message for a path that does not exist. It suggests the closest name among the paths in `near`."""
    return f"{toml_text(value)}: {path} does not exist.{did_you_mean(path.name, (entry.name for entry in near))}"


def entries(folder: Path) -> list[Path]:
    """Return the files and folders in a folder, which may not exist."""
    return list(folder.iterdir()) if folder.is_dir() else []


def folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, which may not exist."""
    return [entry for entry in entries(folder) if entry.is_dir()]
