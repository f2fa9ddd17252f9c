"""Importing FuxiCTR's configurations and vocabularies."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.schema import Field
from contract.vocabulary import open_vocabulary
from model.data.fuxictr.config import Dataset, Feature, read_dataset
from model.data.fuxictr.importer import experiment_toml, main
from model.data.fuxictr.vocabulary import check_feature_map, read_vocabularies
from model.data.prepare.prepare import prepare
from model.data.readers import table
from model.data.readers.log import SPLITS
from model.experiment_config import Experiment, read_experiment
from tests.support.examples import examples

FEATURES: list[dict[str, Any]] = [
    {"name": ["user", "weekday"], "active": True, "dtype": "float", "type": "categorical", "source": "user"},
    {"name": "item", "active": True, "dtype": "str", "type": "categorical", "source": "item", "min_categr_count": 5},
    {"name": "price", "active": True, "dtype": "float", "type": "numeric", "normalizer": "StandardScaler"},
    {"name": "group", "active": True, "dtype": "str", "type": "meta"},
    {"name": "note", "active": False, "dtype": "str", "type": "sequence"},
]
SHOP: dict[str, Any] = {
    "data_root": "../data/Shop/",
    "data_format": "csv",
    "train_data": "../data/Shop/x1/train.csv",
    "valid_data": "../data/Shop/x1/valid.csv",
    "test_data": "../data/Shop/x1/test.csv",
    "min_categr_count": 2,
    "feature_cols": FEATURES,
    "label_col": {"name": "clk", "dtype": "float"},
}
# The ids that FuxiCTR 2 and FuxiCTR 1 assign.
VERSION_2 = {
    "user": {"__PAD__": 0, "9.0": 1, "2.5": 2, "0.0": 3, "__OOV__": 4},
    "weekday": {"__PAD__": 0, "1.0": 1, "__OOV__": 2},
    "item": {"__PAD__": 0, "03349703": 1, "1.0": 2, "__OOV__": 3},
}
VERSION_1 = {
    "user": {"__OOV__": 0, "9.0": 1, "2.5": 2, "0.0": 3},
    "weekday": {"__OOV__": 0, "1.0": 1},
    "item": {"__OOV__": 0, "03349703": 1, "1.0": 2, "__PAD__": 3},
}
# feature_map.json as FuxiCTR 2 and FuxiCTR 1 write it.
MAP: dict[str, Any] = {
    "dataset_id": "shop",
    "num_fields": 4,
    "total_features": 13,
    "input_length": 5,
    "labels": ["clk"],
    "features": [
        {"user": {"type": "categorical", "vocab_size": 5}},
        {"weekday": {"type": "categorical", "vocab_size": 3}},
        {"item": {"type": "categorical", "vocab_size": 4}},
        {"price": {"type": "numeric"}},
        {"group": {"type": "meta"}},
    ],
}
MAP_1: dict[str, Any] = {
    "dataset_id": "shop",
    "num_fields": 4,
    "num_features": 10,
    "input_length": 4,
    "feature_specs": {
        "user": {"source": "user", "type": "categorical", "vocab_size": 4, "index": 0},
        "weekday": {"source": "user", "type": "categorical", "vocab_size": 2, "index": 1},
        "item": {"source": "item", "type": "categorical", "min_categr_count": 5, "vocab_size": 4, "index": 2},
        "price": {"source": "", "type": "numeric", "index": 3},
    },
}


def config(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    path = folder / "dataset_config.yaml"
    path.write_text(yaml.safe_dump({"shop": SHOP | (changes or {}), "other": {}}))
    return path


def read(folder: Path, changes: dict[str, Any] | None = None, candidate: tuple[str, ...] = ()) -> Dataset:
    return read_dataset(config(folder, changes), "shop", candidate, folder)


def with_feature(changes: dict[str, Any]) -> dict[str, Any]:
    """Return changes that append a feature to the data set."""
    return {"feature_cols": [*FEATURES, {"name": "extra", "dtype": "str", "type": "categorical"} | changes]}


def vocab(folder: Path, tables: dict[str, dict[str, int]]) -> Path:
    path = folder / "feature_vocab.json"
    path.write_text(json.dumps(tables))
    return path


def test_features_keep_their_order_kind_and_side(tmp_path: Path) -> None:
    dataset = read(tmp_path)
    assert [(f.field.name, f.field.side, f.field.kind, f.min_count) for f in dataset.features] == [
        ("user", "context", "categorical", None),
        ("weekday", "context", "categorical", None),
        ("item", "candidate", "categorical", 5),
        ("price", "context", "numeric", None),
    ]
    assert (dataset.label, dataset.min_count) == ("clk", 2)


def test_meta_and_inactive_columns_are_skipped(tmp_path: Path) -> None:
    assert read(tmp_path).left_out == ("group", "note")


def test_a_feature_without_a_source_belongs_to_the_context_unless_candidate_names_it(tmp_path: Path) -> None:
    sides = {f.field.name: f.field.side for f in read(tmp_path, with_feature({}), ("extra", "price")).features}
    assert sides["extra"] == sides["price"] == "candidate"
    assert sides["user"] == "context"


def test_the_fill_value_is_treated_as_missing(tmp_path: Path) -> None:
    for key, value, expected in (("fill_na", "-1", "-1"), ("na_value", 0, "0"), ("fill_na", 0.0, "0")):
        assert read(tmp_path, with_feature({key: value})).features[-1].missing == (expected,)
    assert read(tmp_path, with_feature({"fill_na": ""})).features[-1].missing == ()


def test_convert_to_bucket_becomes_log_square(tmp_path: Path) -> None:
    for name in ("convert_to_bucket", "convert_to_bucket(extra)"):
        dataset = read(tmp_path, with_feature({"preprocess": name, "dtype": "float"}))
        assert dataset.features[-1].transform == "log_square"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("../data/Shop/train.csv", "Shop/train.csv"),
        ("../../data/Shop/train.csv", "Shop/train.csv"),
        ("./data/Shop/train.csv.gz", "Shop/train.csv.gz"),
        ("Shop/train.csv", "Shop/train.csv"),
        ("train.csv", "train.csv"),
    ],
)
def test_paths_are_relative_to_fuxictrs_data_folder(tmp_path: Path, path: str, expected: str) -> None:
    assert str(read(tmp_path, {"train_data": path}).files["train"]) == expected


def test_an_absolute_path_must_be_below_the_data_folder(tmp_path: Path) -> None:
    inside = {"train_data": str(tmp_path.resolve() / "a" / "train.csv")}
    assert str(read(tmp_path, inside).files["train"]) == "a/train.csv"
    with pytest.raises(ValueError, match=r"dataset 'shop': train_data: '/else/train\.csv'.*inside --data"):
        read(tmp_path, {"train_data": "/else/train.csv"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "sequence"}, "type: 'sequence' is not supported. A field has one value. Write one element"),
        ({"type": "sequence", "splitter": "^", "max_len": 9}, "type: 'sequence'.*type: categorical.*active: false"),
        ({"type": "embedding", "pretrain_dim": 8}, "type: 'embedding' is not supported. Set active: false"),
        ({"type": "embedding"}, "type: 'embedding' is not supported. Set active: false"),
        ({"type": "categoric"}, "type: 'categoric' is not supported. Write one of categorical, numeric"),
        ({"dtype": "list"}, "dtype: 'list' is not supported. Write one of str, int, float"),
        ({"dtype": "__import__('os').getcwd()"}, "dtype: .* is not supported"),
        ({"type": "numeric"}, "dtype: 'str' is not supported. A numeric feature must be int or float"),
        ({"source": "shop"}, "source: 'shop' is not supported. Write one of user, context, item, ad, candidate"),
        ({"category_processor": "hash_bucket"}, "category_processor: 'hash_bucket'.*Write the bucket or the hash"),
        ({"feature_encoder": "layers.MaskedSumPooling()"}, "feature_encoder: 'layers.*Write null"),
        ({"encoder": "MaskedSumPooling"}, "encoder: .*Write null"),
        ({"preprocess": "convert_weekday"}, "preprocess: 'convert_weekday'.*reader = \"avazu\""),
        ({"preprocess": "copy_from(user)"}, r"preprocess: 'copy_from\(user\)'.*Write the copy into the log"),
        ({"preprocess": "convert_to_bucket(user)"}, "preprocess: .*Write its result into the log"),
        ({"preprocess": "os.system"}, "preprocess: 'os.system'.*Write its result into the log"),
        ({"share_embedding": "item"}, "share_embedding: 'item'.*its own embedding"),
        ({"pretrained_emb": "a.h5"}, "pretrained_emb: 'a.h5'.*trained from scratch"),
        ({"embedding_dim": 8}, "embedding_dim: 8.*the width model.embedding"),
        ({"normalizer": "MinMaxScaler"}, "normalizer: 'MinMaxScaler'.*StandardScaler"),
        ({"min_categr_count": 0}, "min_categr_count: 0.*of at least 1"),
        ({"min_categr_count": True}, "min_categr_count: True"),
        ({"fill_na": []}, "fill_na must be a string, a number"),
        ({"splitter": " "}, "splitter: ' '.*Remove it"),
        ({"name": "../x"}, "use 1 to 64 letters"),
    ],
)
def test_a_feature_without_an_equivalent_is_an_error_that_names_the_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"dataset_config\.yaml: dataset 'shop': feature .*{message}"):
        read(tmp_path, with_feature(changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_format": "h5"}, "data_format: 'h5'.*Use the raw csv or parquet"),
        ({"data_format": "parquet"}, r"train_data: .*ends in \.parquet"),
        ({"train_data": "../data/Shop"}, "train_data: .*Specify one file"),
        ({"train_data": "../data/../../etc/train.csv"}, "train_data: .*without .. in the middle"),
        ({"label_col": [{"name": "a"}, {"name": "b"}]}, "label_col: .*Exactly one label"),
        ({"feature_cols": []}, "feature_cols: .*Write a list of features"),
        ({"feature_cols": ["user"]}, "feature_cols: 'user'.*must be a mapping with a name"),
        ({"feature_cols": FEATURES[:1]}, "no categorical feature has source: item.*with --candidate"),
        ({"feature_cols": FEATURES[1:2]}, "every categorical feature belongs to the candidate"),
        ({"feature_cols": [*FEATURES, FEATURES[1]]}, "feature 'item' occurs twice"),
        ({"train_dta": "x"}, "train_dta: 'x'.*Remove it"),
    ],
)
def test_a_data_set_without_an_equivalent_is_an_error_that_names_the_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=rf"dataset_config\.yaml: dataset 'shop': {message}"):
        read(tmp_path, changes)


def test_an_invalid_configuration_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    with pytest.raises(ValueError, match=r"c\.yaml: no such file"):
        read_dataset(path, "shop", (), tmp_path)
    for text, message in (
        ("a: [", "cannot be read as YAML"),
        ("shop: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("[1, 2]", "has no data sets"),
        ("shop: 3", "has no dataset 'shop'. --dataset must be one of shop"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"c\.yaml: {message}"):
            read_dataset(path, "shop", (), tmp_path)
    with pytest.raises(ValueError, match="--candidate nobody: no such feature"):
        read(tmp_path, candidate=("nobody",))


@pytest.mark.parametrize("tables", [VERSION_1, VERSION_2])
def test_imported_ids_are_the_ids_of_either_version_plus_one(tmp_path: Path, tables: dict[str, dict[str, int]]) -> None:
    vocabularies = read_vocabularies(vocab(tmp_path, tables), read(tmp_path).features)
    assert dict(vocabularies["user"].items()) == {"9": 2, "2.5": 3, "0": 4}
    assert dict(vocabularies["item"].items()) == {"03349703": 2, "1.0": 3}  # The dtype of item is str.
    assert len(vocabularies["weekday"]) == 3


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


@settings(max_examples=examples(50), deadline=None)
@given(
    st.lists(names.filter(lambda name: name not in ("__PAD__", "__OOV__")), unique=True, min_size=1, max_size=20),
    st.booleans(),
)
def test_tokens_keep_the_order_of_their_ids(tmp_path_factory: Any, tokens: list[str], second: bool) -> None:
    ids = {token: n for n, token in enumerate(tokens, 1)}
    ids |= {"__PAD__": 0, "__OOV__": len(tokens) + 1} if second else {"__OOV__": 0}
    path = vocab(tmp_path_factory.mktemp("vocab"), {"item": ids})
    item = Feature(Field("item", "candidate"), "str", (), None, None)
    assert {token: n - 1 for token, n in read_vocabularies(path, [item])["item"].items()} == {
        token: n for token, n in ids.items() if token not in ("__PAD__", "__OOV__")
    }


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"__PAD__": 0, "a": 1, "__OOV__": 2}, "token 'a' is not a finite number, but the dtype is float"),
        ({"__PAD__": 0, "nan": 1, "__OOV__": 2}, "token 'nan' is not a finite number"),
        ({"__PAD__": 0, "1.0": 1, "1": 2, "__OOV__": 3}, "1 tokens appear twice"),
        ({"__PAD__": 0, "1.0": 1, "2.0": 1, "__OOV__": 2}, "two tokens have the same id"),
        ({"__PAD__": 0, "1.0": 0, "__OOV__": 1}, "neither FuxiCTR 1 nor 2. Leave out --feature-vocab"),
        ({"__PAD__": 0, "1.0": 1, "__OOV__": 1}, "neither FuxiCTR 1 nor 2"),
        ({"__OOV__": 0, "1.0": 1, "__PAD__": 1}, "neither FuxiCTR 1 nor 2"),
        ({"1.0": 1}, "neither FuxiCTR 1 nor 2"),
        ({}, "neither FuxiCTR 1 nor 2"),
        (None, "is missing. Use the file of the same data set"),
    ],
)
def test_an_invalid_vocabulary_is_an_error_that_names_the_feature(
    tmp_path: Path, user: dict[str, int] | None, message: str
) -> None:
    tables = {name: table for name, table in (VERSION_2 | {"user": user}).items() if table is not None}
    with pytest.raises(ValueError, match=rf"feature_vocab\.json: feature 'user': .*{message}"):
        read_vocabularies(vocab(tmp_path, tables), read(tmp_path).features)


def test_a_file_that_is_not_a_vocabulary_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "feature_vocab.json"
    features = read(tmp_path).features
    with pytest.raises(ValueError, match=r"feature_vocab\.json: cannot be read"):
        read_vocabularies(path, features)
    for text in ('{"user": {"1": "x"}}', "{", "[]"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"feature_vocab\.json: is not FuxiCTR's feature_vocab"):
            read_vocabularies(path, features)


def test_the_vocabulary_of_a_bucketed_feature_cannot_be_imported(tmp_path: Path) -> None:
    features = read(tmp_path, with_feature({"preprocess": "convert_to_bucket", "dtype": "float"})).features
    path = vocab(tmp_path, VERSION_2 | {"extra": {"__OOV__": 0, "1": 1}})
    with pytest.raises(ValueError, match="feature 'extra': log_square creates different tokens than FuxiCTR"):
        read_vocabularies(path, features)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"features": MAP["features"][1:]}, "Use files of the same data set"),
        ({"features": [{"user": {"type": "numeric"}}, *MAP["features"][1:]]}, "feature 'user' is 'numeric'"),
        ({"features": [{"user": {"type": "categorical", "vocab_size": 9}}, *MAP["features"][1:]]}, "vocab_size 9"),
        ({"features": 3}, "has neither features .* nor feature_specs"),
        ({"users": []}, "has neither features .* nor feature_specs .*, but users. Specify the feature_map.json"),
        ({}, "but no keys"),
    ],
)
def test_a_feature_map_of_another_data_set_is_rejected(tmp_path: Path, edit: dict[str, Any], message: str) -> None:
    features, path, tables = read(tmp_path).features, tmp_path / "feature_map.json", vocab(tmp_path, VERSION_2)
    path.write_text(json.dumps(MAP))
    check_feature_map(path, features, tables)
    path.write_text(json.dumps(edit))
    with pytest.raises(ValueError, match=rf"feature_map\.json: .*{message}"):
        check_feature_map(path, features, tables)


def test_the_feature_map_of_version_1_is_accepted_and_checked(tmp_path: Path) -> None:
    features, path, tables = read(tmp_path).features, tmp_path / "feature_map.json", vocab(tmp_path, VERSION_1)
    path.write_text(json.dumps(MAP_1))
    check_feature_map(path, features, tables)
    specs = MAP_1["feature_specs"] | {"user": {"type": "categorical", "vocab_size": 9}}
    path.write_text(json.dumps(MAP_1 | {"feature_specs": specs}))
    with pytest.raises(ValueError, match=r"feature_map\.json: feature 'user' has vocab_size 9, but .* has 4 ids"):
        check_feature_map(path, features, tables)


def test_the_command_writes_an_experiment_and_its_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "feature_map.json").write_text(json.dumps(MAP))
    out = tmp_path / "shop.toml"
    arguments = [str(config(tmp_path)), "--dataset", "shop", "--out", str(out), "--data", str(tmp_path)]
    files = ["--feature-map", str(tmp_path / "feature_map.json"), "--feature-vocab", str(vocab(tmp_path, VERSION_2))]
    assert main([*arguments, *files]) == 0
    assert "4 fields; columns left out: group, note" in capsys.readouterr().out
    data = read_experiment(out).data
    assert (data.folder, data.train, data.label) == ("Shop/x1", "train.csv", "clk")
    assert [field.name for field in data.fields] == ["user", "weekday", "item", "price"]
    assert "min_count" not in out.read_text()  # the vocabulary is not counted
    assert open_vocabulary(tmp_path / data.vocabulary, "user")("9") == 2
    assert main(arguments) == 2
    assert "Choose another file" in capsys.readouterr().err


def test_the_imported_experiment_reads_the_log_of_fuxictr(tmp_path: Path) -> None:
    out = tmp_path / "shop.toml"
    assert main([str(config(tmp_path)), "--dataset", "shop", "--out", str(out), "--data", str(tmp_path)]) == 0
    folder = tmp_path / "Shop" / "x1"
    folder.mkdir(parents=True)
    for split in SPLITS:
        (folder / f"{split}.csv").write_text("clk,user,weekday,item,price,group,note\n1,9,1,03349703,2.5,g,a^b\n")
    data = read_experiment(out).data
    log = table.read(tmp_path / data.folder, data)
    assert log.label == "clk"
    assert (data.min_count, data.min_count_of("item")) == (2, 5)
    assert [field.name for field in log.fields] == ["user", "weekday", "item", "price"]
    assert log.splits["test"].collect().row(0) == (2, 2, "1", "9", "1", "03349703", "2.5")


def test_prepare_uses_the_imported_vocabulary_instead_of_counting(tmp_path: Path) -> None:
    out, files = tmp_path / "shop.toml", ["--feature-vocab", str(vocab(tmp_path, VERSION_2))]
    assert main([str(config(tmp_path)), "--dataset", "shop", "--out", str(out), "--data", str(tmp_path), *files]) == 0
    folder = tmp_path / "Shop" / "x1"
    folder.mkdir(parents=True)
    rows = ["1,0,1,03349703,2.5", "0,0,1,1.0,1.5", "0,2.5,9,1,", "1,9,,new,2.5"]
    for split in SPLITS:
        (folder / f"{split}.csv").write_text("\n".join(["clk,user,weekday,item,price", *rows]) + "\n")
    prepared = prepare(tmp_path, read_experiment(out).data)
    # The ids are FuxiCTR's plus one. Tokens that are not in its vocabulary get 0, missing values 1.
    assert prepared.split("train")[0].tolist() == [[4, 2, 2], [4, 2, 3], [3, 0, 0], [2, 1, 0]]
    assert prepared.vocabulary_sizes == (5, 3, 4)


def test_files_in_several_folders_are_relative_to_their_common_folder(tmp_path: Path) -> None:
    for files, folder, train in (
        ({"train_data": "../data/train.csv"}, ".", "train.csv"),
        ({"train_data": "../data/Shop/x2/train.csv"}, "Shop", "x2/train.csv"),
    ):
        path = tmp_path / "e.toml"
        path.write_text(experiment_toml(read(tmp_path, files)))
        data = read_experiment(path).data
        assert (data.folder, data.train, data.test) == (folder, train, f"{'Shop/' * (folder == '.')}x1/test.csv")


def test_a_failed_import_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = vocab(tmp_path, {"user": {"__OOV__": 0}})
    out = tmp_path / "shop.toml"
    arguments = [str(config(tmp_path)), "--dataset", "shop", "--out", str(out), "--data", str(tmp_path)]
    assert main([*arguments, "--feature-vocab", str(tables)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "feature 'weekday': is missing" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset_config.yaml", "feature_vocab.json"]


@settings(max_examples=examples(50), deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_label_and_missing_value_are_unchanged_in_the_toml_file(
    tmp_path_factory: Any, label: str, missing: str
) -> None:
    folder = tmp_path_factory.mktemp("toml")
    dataset = read(folder)
    feature = Feature(Field("item", "candidate"), "str", (missing,), None, None)
    features = (*dataset.features[:2], feature)
    changed = Dataset("shop", dataset.files, label, 1, features, ())
    path = folder / "e.toml"
    path.write_text(experiment_toml(changed), encoding="utf-8")
    experiment: Experiment = read_experiment(path)
    assert experiment.data.label == label
    assert experiment.data.fields[-1].missing == (missing,)
