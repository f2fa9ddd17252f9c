"""Convert FuxiCTR's dataset_config.yaml, feature_map.json and feature_vocab.json to an experiment of this project.

The experiment reads the same log with the "table" reader and declares its fields in FuxiCTR's order. With
--feature-vocab, FuxiCTR's vocabulary is written to DIR/vocabulary/DATASET, and data.vocabulary is set to this folder.
ctr-prepare then uses this vocabulary instead of counting tokens, so each id is FuxiCTR's id plus one. In a column of
dtype float, the log must contain 123, not the text "123.0". This project gives an empty value its own id, and a
missing number a trained vector, whereas FuxiCTR writes 0.
"""

import argparse
import json
import os
import sys
from pathlib import Path, PurePosixPath

import msgspec

from model.atomic_folder import write_whole
from model.data.data_folder import add_data_argument
from model.data.fuxictr.config import Dataset, read_dataset
from model.data.fuxictr.vocabulary import check_feature_map, read_vocabularies, write_vocabularies
from model.data.readers.log import SPLITS
from model.experiment_config import Experiment


def experiment_toml(dataset: Dataset, vocabulary: str = "") -> str:
    """Return the text of an experiment with default model and training settings.

    Args:
        dataset: The data set.
        vocabulary: The folder of its vocabularies, relative to --data, or "" for none.
    """
    folder = PurePosixPath(os.path.commonpath([file.parent for file in dataset.files.values()]))
    data = {"reader": "table", "folder": str(folder), "prepared": f"prepared/{dataset.name}"}
    data |= {split: str(dataset.files[split].relative_to(folder)) for split in SPLITS} | {"label": dataset.label}
    data |= {"vocabulary": vocabulary} if vocabulary else {}
    lines = [f"# Imported from FuxiCTR's data set {dataset.name}.", f"name = {toml_string(f'stec-{dataset.name}')}", ""]
    lines += ["[data]", *(f"{key} = {toml_string(value)}" for key, value in data.items())]
    lines.append(f"min_count = {dataset.min_count}")
    for feature in dataset.features:
        lines += ["", "[[data.fields]]"]
        for key in ("name", "side", "kind"):
            lines.append(f"{key} = {toml_string(getattr(feature.field, key))}")
        if feature.missing:
            lines.append(f"missing = [{', '.join(map(toml_string, feature.missing))}]")
        if feature.min_count is not None:
            lines.append(f"min_count = {feature.min_count}")
        if feature.transform:
            lines.append(f"transform = {toml_string(feature.transform)}")
    text = "\n".join(lines) + "\n"
    msgspec.toml.decode(text, type=Experiment)  # so that an error is raised here and not in ctr-prepare
    return text


def toml_string(text: str) -> str:
    """Return a TOML basic string. It differs from JSON only in a control character that JSON does not escape."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def import_dataset(options: argparse.Namespace) -> Dataset:
    """Write the experiment and, if a vocabulary is given, DIR/vocabulary/DATASET.

    Raises:
        ValueError: If something cannot be imported. In this case, nothing is written.
    """
    if options.out.exists():
        raise ValueError(f"{options.out} exists. Choose another file, or remove this one yourself.")
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


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated list. For argparse."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m model.data.fuxictr.importer", description=__doc__)
    parser.add_argument("config", type=Path, help="FuxiCTR's dataset_config.yaml")
    parser.add_argument("--dataset", required=True, metavar="ID", help="the data set's key in the configuration")
    parser.add_argument("--feature-map", type=Path, metavar="JSON", help="check this against the configuration")
    parser.add_argument("--feature-vocab", type=Path, metavar="JSON", help="use this vocabulary")
    candidate_help = "features of the ad, if they have no source in the configuration"
    parser.add_argument("--candidate", type=split_names, default=(), metavar="A,B", help=candidate_help)
    parser.add_argument("--out", type=Path, required=True, metavar="TOML", help="the experiment to write")
    add_data_argument(parser)
    options = parser.parse_args(arguments)
    try:
        dataset = import_dataset(options)
    except (OSError, ValueError) as error:
        print(f"fuxictr: {error}", file=sys.stderr)
        return 2
    left_out = ", ".join(dataset.left_out) or "none"
    print(f"wrote {options.out}: {len(dataset.features)} fields; columns left out: {left_out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
