"""An experiment of this project from FuxiCTR's files: dataset_config.yaml, feature_map.json and feature_vocab.json.

The experiment reads the same log with the "table" reader, its fields declared in FuxiCTR's order. With --feature-vocab
it also takes FuxiCTR's vocabulary, which is written to DIR/vocabulary/DATASET and named by the key data.vocabulary:
ctr-prepare uses it instead of counting, so that its ids are FuxiCTR's plus one. A column of dtype float must hold 123
in the log, not the text "123.0". An empty value is missing here, with an id of its own (in a number: the mean);
FuxiCTR writes 0.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from model.atomic_folder import write_whole
from model.data.data_folder import add_data_argument
from model.data.fuxictr.config import Dataset, Feature, read_dataset
from model.data.fuxictr.vocabulary import check_feature_map, read_vocabularies, write_vocabularies
from model.data.readers.log import SPLITS
from model.experiment_config import Experiment


def experiment_toml(dataset: Dataset, vocabulary: str = "") -> str:
    """The text of an experiment, whose model and training are left to the defaults."""
    folder = PurePosixPath(os.path.commonpath([file.parent for file in dataset.files.values()]))
    lines = [f"# Imported from FuxiCTR's data set {dataset.name}.", f"name = {_toml(f'stec-{dataset.name}')}", ""]
    data = {"reader": "table", "folder": str(folder), "prepared": f"prepared/{dataset.name}"}
    data |= {split: str(dataset.files[split].relative_to(folder)) for split in SPLITS} | {"label": dataset.label}
    data |= {"vocabulary": vocabulary} if vocabulary else {}
    lines += ["[data]", *(f"{key} = {_toml(value)}" for key, value in data.items())]
    lines.append(f"min_count = {dataset.min_count}")
    for feature in dataset.features:
        lines += ["", "[[data.fields]]", *_field_lines(feature)]
    text = "\n".join(lines) + "\n"
    msgspec.toml.decode(text, type=Experiment)
    return text


def _field_lines(feature: Feature) -> Iterator[str]:
    yield f"name = {_toml(feature.field.name)}"
    yield f"side = {_toml(feature.field.side)}"
    yield f"kind = {_toml(feature.field.kind)}"
    if feature.missing:
        yield f"missing = [{', '.join(map(_toml, feature.missing))}]"
    if feature.min_count is not None:
        yield f"min_count = {feature.min_count}"
    if feature.transform:
        yield f"transform = {_toml(feature.transform)}"


def _toml(text: str) -> str:
    """A basic string: JSON's, but for the one control character that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def import_dataset(options: argparse.Namespace) -> Dataset:
    """Writes options.out, and DIR/vocabulary/DATASET where a vocabulary is given.

    Raises:
        ValueError: naming what cannot be imported; then nothing is written.
    """
    if options.out.exists():
        raise ValueError(f"{options.out} exists: name another file, or remove it yourself")
    dataset = read_dataset(options.config, options.dataset, options.candidate, options.data)
    if options.feature_map:
        check_feature_map(options.feature_map, dataset.features, options.feature_vocab)
    folder = f"vocabulary/{dataset.name}" if options.feature_vocab else ""
    text = experiment_toml(dataset, folder)
    if options.feature_vocab:
        vocabularies = read_vocabularies(options.feature_vocab, dataset.features)
        write_vocabularies(options.data / folder, vocabularies, options.feature_vocab.name)
    write_whole(options.out, text.encode())
    return dataset


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m model.data.fuxictr.importer", description=__doc__)
    parser.add_argument("config", type=Path, help="FuxiCTR's dataset_config.yaml")
    parser.add_argument("--dataset", required=True, metavar="ID", help="which of its data sets")
    parser.add_argument("--feature-map", type=Path, metavar="JSON", help="checked against the configuration")
    parser.add_argument("--feature-vocab", type=Path, metavar="JSON", help="the vocabulary to keep")
    names = "features of the ad, for those without a source"
    parser.add_argument("--candidate", type=_names, default=(), metavar="A,B", help=names)
    parser.add_argument("--out", type=Path, required=True, metavar="TOML", help="the experiment to write")
    add_data_argument(parser)
    options = parser.parse_args(arguments)
    try:
        dataset = import_dataset(options)
    except (OSError, ValueError) as error:
        print(f"fuxictr: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}: {len(dataset.features)} fields; no features: {', '.join(dataset.left_out) or 'none'}")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    sys.exit(main())
