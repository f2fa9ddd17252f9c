"""The keys of [data] for files and text: contradictions are errors before any file is read."""

import json
from pathlib import Path

import pytest

from model.cli.prepare import main
from model.data_config import Data, read_data

BASE = {
    "reader": "table",
    "folder": "shop",
    "prepared": "prepared",
    "train": "train.csv",
    "valid": "valid.csv",
    "test": "test.csv",
    "context": ["user"],
    "candidate": ["ad"],
}


def write(path: Path, **changes: object) -> Path:
    """Write a TOML file with [data]. A change to None removes the key."""
    keys = {key: value for key, value in (BASE | changes).items() if value is not None}
    path.write_text("[data]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in keys.items()))
    return path


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + " }"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def read(tmp_path: Path, **changes: object) -> Data:
    return read_data(write(tmp_path / "shop.toml", **changes))


def test_files_may_be_a_path_or_a_list(tmp_path: Path) -> None:
    split = {"by": "random", "valid": 0.1, "test": 0.1}
    without: dict[str, object] = {"train": None, "valid": None, "test": None, "split": split}
    assert read(tmp_path, **without, files="days").files == "days"
    assert read(tmp_path, **without, files=["days", "x.csv"]).files == ("days", "x.csv")
    assert read(tmp_path, train=["a", "b"]).train == ("a", "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delimiter": ";;"}, r'delimiter = ";;" must be one ASCII character'),
        ({"delimiter": "§"}, r"delimiter = .* must be one ASCII character"),
        ({"delimiter": "\n"}, r'delimiter = "\\n" must be one ASCII character'),
        ({"quote": "''"}, r"quote = \"''\" must be one ASCII character"),
        ({"delimiter": "|", "quote": "|"}, r'delimiter and quote are both "\|"'),
        ({"columns": ["a", "b", "a"]}, r'columns lists "a" twice'),
        ({"rename": {"x": "user", "y": "user"}}, r'rename gives two columns the name "user"'),
        ({"positive": ["yes", ""]}, r'positive contains "", but a missing label'),
        ({"positive": ["yes"], "missing": ["yes"]}, r'"yes" is in both positive and missing'),
        ({"positive": ["yes"], "missing": [" Yes"]}, r'"yes" is in both positive and missing'),
        ({"positive": ["1.0"], "missing": ["1"]}, r'"1.0" is in both positive and missing'),
        ({"train": ["a.csv", ""]}, r'train contains ""\. Write a path, a glob or a folder'),
        ({"label": "ad"}, r'the label "ad" is also a field'),
        ({"position": "ad"}, r'the position "ad" is also a field, but the server does not know it'),
        ({"position": "label"}, r'the position "label" is also the label'),
        ({"train_negative_rate": 0}, r"train_negative_rate"),
        ({"fields": [{"name": "copy", "side": "candidate", "from": "label"}]}, r'the label "label" is also a field'),
        (
            {"candidate": ["bid", "position"], "numeric": ["bid", "position"]},
            r"candidate has only numeric fields \(bid, position\), but each side needs at least one categorical field",
        ),
        ({"fields": [{"name": "user", "kind": "numeric"}]}, r"context has only numeric fields \(user\)"),
        ({"reader": "criteo"}, r'reader = "criteo" has fixed files and columns\. Remove train, valid, test, context'),
    ],
)
def test_a_contradiction_is_an_error_that_names_the_file_and_the_key(
    tmp_path: Path, changes: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file of the log exists, so the error comes before any of them is read."""
    path = write(tmp_path / "shop.toml", **changes)
    with pytest.raises(ValueError, match=rf"shop\.toml: .*{message}"):
        read_data(path)
    assert main(["--config", str(path), "--data", str(tmp_path)]) == 2
    assert "shop.toml: " in capsys.readouterr().err


def test_a_side_is_categorical_if_one_of_its_fields_is(tmp_path: Path) -> None:
    spec = {"name": "bid", "kind": "categorical", "transform": "log_square"}
    assert read(tmp_path, candidate=["bid"], fields=[spec]).candidate == ("bid",)


def test_an_empty_quote_is_a_key_of_table_only(tmp_path: Path) -> None:
    published = {"reader": "criteo", **dict.fromkeys(("train", "valid", "test", "context", "candidate"))}
    with pytest.raises(ValueError, match=r'reader = "criteo" has fixed files and columns\. Remove quote'):
        read(tmp_path, **published, quote="")
