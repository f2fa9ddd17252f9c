"""Reading the files of a published data set."""

from collections.abc import Sequence
from pathlib import Path

from contract.schema import Field
from model.data.readers.files import Source
from model.data.readers.log import SPLITS, Log, apply_field_specs
from model.data.readers.scan import Part, join_parts, log_files, open_parts
from model.data.readers.split import split_by_row
from model.data_config import Data


def read_splits(
    folder: Path,
    names: Sequence[str],
    label: str,
    fields: Sequence[Field],
    data: Data,
    hint: str,
    extra: tuple[str, ...] = (),
) -> Log:
    """Return a log that is published as three files.

    Args:
        folder: The folder of the data set.
        names: The possible names of the files. "{}" stands for the split.
        label: The label column, which contains 0 and 1.
        fields: The fields, before the changes in [[data.fields]].
        data: The [data] section.
        hint: Where the data set is published, for the error.
        extra: See Log.

    Raises:
        ValueError: If a file or a column is missing, or a line has too few or too many columns.
    """
    changed = apply_field_specs(fields, data)
    sources = [find(folder, [name.format(split) for name in names], hint) for split in SPLITS]
    parts = open_parts(sources)
    columns = (label, *(field.name for field in fields), *extra)
    splits = {
        split: join_parts([part], columns, first=number)
        for number, (split, part) in enumerate(zip(SPLITS, parts, strict=True))
    }
    paths = {split: source.name for split, source in zip(SPLITS, sources, strict=True)}
    return Log(changed, label, splits, paths, log_files(parts), extra)


def split_file(part: Part, label: str, fields: Sequence[Field], data: Data) -> Log:
    """Return a log that is published as a single file, split at random by row.

    Args:
        part: The file.
        label: The label column, which contains 0 and 1.
        fields: The fields, before the changes in [[data.fields]].
        data: The [data] section.

    Raises:
        ValueError: If a column is missing.
    """
    changed = apply_field_specs(fields, data)
    frame = join_parts([part], (label, *(field.name for field in fields)))
    splits = split_by_row(frame, data.split_seed)
    return Log(changed, label, splits, dict.fromkeys(splits, part.source.name), log_files([part]))


def find(folder: Path, names: Sequence[str], hint: str) -> Source:
    """Return the first of these files that exists.

    Args:
        folder: The folder of the data set.
        names: The possible names of the file.
        hint: Where the data set is published, for the error.

    Raises:
        ValueError: If none of them exists.
    """
    for name in names:
        if (folder / name).is_file():
            return Source(str(folder / name), folder / name)
    others = f" (nor {', '.join(names[1:])})" if names[1:] else ""
    raise ValueError(f"{folder / names[0]}: no such file{others}. {hint}")
