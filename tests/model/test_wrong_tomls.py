"""Wrong TOML files: one message with the file, the key, what is valid, and how to fix it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from model.baselines.edcn import EDCNConfig
from model.baselines.finalmlp import FinalMLPConfig
from model.baselines.interhat import InterHAtConfig
from model.baselines.masknet import MaskNetConfig
from model.cli import prepare, sweep
from model.data_config import Data, read_data
from model.experiment_config import Training, read_experiment, to_experiment
from model.stec.stec import STECConfig
from model.toml_text import toml_value
from model.unused_keys import unused_in_model
from model.zoo import MODELS
from tests.support.examples import examples

FILES = ["train = 'a.csv'", "valid = 'b.csv'", "test = 'c.csv'"]
DATA = ["reader = 'table'", "folder = 'shop'", "prepared = 'prepared'", *FILES, "context = ['user', 'age']"]
DATA += ["candidate = ['ad']"]
SPLIT = [line for line in DATA if line not in FILES] + ["files = ['log.csv']"]
FRAPPE = ["reader = 'frappe'", "folder = 'frappe'", "prepared = 'prepared'"]
FIELD = ["[[data.fields]]", "name = 'age'"]


def lines(*, top: str = "name = 'shop'", data: list[str] = DATA, more: str = "") -> str:
    """Return an experiment's file: its top, its [data] section and more lines, which may begin new sections."""
    return "\n".join([top, "[data]", *data, more, ""])


def without(name: str) -> list[str]:
    """Return DATA without a key."""
    return [line for line in DATA if not line.startswith(f"{name} ")]


def field(*more: str) -> str:
    """Return a file with an entry of [[data.fields]] for `age`."""
    return lines(more="\n".join([*FIELD, *more]))


def model(*more: str) -> str:
    """Return a file with a [model] section."""
    return lines(more="\n".join(["[model]", *more]))


def training(*more: str) -> str:
    """Return a file with a [training] section."""
    return lines(more="\n".join(["[training]", *more]))


def split(text: str, *more: str) -> str:
    """Return a file with a split of one log."""
    return lines(data=[*SPLIT, f"split = {text}", *more])


# The file, and what the message must contain: the key and its value, what is valid, and what to do.
WRONG = {
    # misspelled keys
    "top_misspelled": (
        lines(top="nam = 'shop'"),
        ['the file has no key "nam"', 'mean "name"', "data, model, training"],
    ),
    "top_section_misspelled": (
        lines(more="[trainng]\nepochs = 3"),
        ['the file has no key "trainng"', 'Did you mean "training"?', "Its keys are name, data, model, training."],
    ),
    "data_misspelled": (
        lines(more="min_cuont = 3"),
        ['[data] has no key "min_cuont"', 'Did you mean "min_count"?', "Its keys are reader, folder, prepared"],
    ),
    "field_misspelled": (
        field("knd = 'numeric'"),
        [
            '[[data.fields]] entry 1 ("age") has no key "knd"',
            'mean "kind"',
            "from, timezone, pseudonym.",
        ],
    ),
    "split_misspelled": (
        split("{ by = 'random', vald = 0.1, test = 0.1 }"),
        ['data.split with by = "random" has no key "vald"', 'Did you mean "valid"?', "by, valid, test, seed, unit."],
    ),
    "stec_misspelled": (
        model("embeding = 8"),
        ['[model] with type = "stec" has no key "embeding"', 'Did you mean "embedding"?', "blocks, heads, ffn"],
    ),
    "dcn_misspelled": (
        model("type = 'dcn'", "cross_layer = 2"),
        ['[model] with type = "dcn" has no key "cross_layer"', 'Did you mean "cross_layers"?', "mlp_dropout"],
    ),
    "training_misspelled": (
        training("lerning_rate = 0.1"),
        ['[training] has no key "lerning_rate"', 'Did you mean "learning_rate"?', "Its keys are epochs, batch_size"],
    ),
    # keys in the wrong place
    "name_after_a_section": (
        lines(top="", more="name = 'shop'"),
        ['[data] has no key "name"', "It belongs at the top of the file, before the first section."],
    ),
    "training_key_in_model": (
        model("epochs = 3"),
        ['[model] with type = "stec" has no key "epochs"', "It belongs in [training]."],
    ),
    "key_of_another_model": (
        model("type = 'autoint'", "cross_layers = 2"),
        ['has no key "cross_layers"', 'It is a key of type = "dcn" or type = "dcnv2".', "layers, heads, layer_norm"],
    ),
    "key_of_another_split": (
        split("{ by = 'random', valid = 0.1, test = 0.1, gap = '1h' }"),
        ['data.split with by = "random" has no key "gap"', 'It is a key of by = "time".'],
    ),
    "field_key_in_data": (
        lines(more="kind = 'numeric'"),
        ['[data] has no key "kind"', "It belongs in [[data.fields]]."],
    ),
    # missing keys
    "no_name": (lines(top=""), ['the file needs the key "name"', "Add name = ..., with text in quotes."]),
    "no_data": ("name = 'shop'\n", ["the file needs a section [data]", "its keys reader and folder and prepared"]),
    "no_folder": (lines(data=without("folder")), ['[data] needs the key "folder"', "Add folder = ..."]),
    "no_field_name": (lines(more="[[data.fields]]\nkind = 'numeric'"), ['entry 1 needs the key "name"', "Add name"]),
    "no_split_kind": (
        split("{ valid = '1d', test = '1d' }"),
        ['data.split needs the key "by"', 'Add by = "time" or by = "random".'],
    ),
    "no_split_length": (
        split("{ by = 'time', valid = '1d' }", "time = 'at'"),
        ['data.split with by = "time" needs the key "test"', 'such as "1d" or "12h"'],
    ),
    # wrong types
    "text_for_number": (training("epochs = 'ten'"), ['training.epochs = "ten" must be a whole number, 1 or more.']),
    "quoted_number": (training("epochs = '10'"), ['training.epochs = "10" must be a whole number', "Write 10."]),
    "fraction": (training("epochs = 2.5"), ["training.epochs = 2.5 must be a whole number, 1 or more."]),
    "number_for_text": (lines(top="name = 7"), ["name = 7 must be text in quotes.", 'Write "7".']),
    "text_for_list": (
        lines(data=[*without("candidate"), "candidate = 'ad'"]),
        ['data.candidate = "ad" must be a list of strings in quotes.', 'Write ["ad"].'],
    ),
    "number_in_list": (lines(more="missing = ['NULL', -1]"), ["data.missing[1] = -1 must be text", 'Write "-1".']),
    "quoted_boolean": (
        training("exact_statistics = 'True'"),
        ['training.exact_statistics = "True" must be true or false.', "Write true."],
    ),
    "date_for_text": (
        lines(more="time = 2026-01-02"),
        ["data.time = 2026-01-02 must be text in quotes.", 'Write "2026-01-02".'],
    ),
    "flat_list_of_groups": (
        training("hide = ['ad']"),
        ['training.hide[0] = "ad" must be a list of strings in quotes.', 'Write ["ad"].'],
    ),
    "number_for_section": (
        lines(top="name = 'shop'\ntraining = 3"),
        ["training = 3 must be a table.", "Begin a section [training], with one key per line."],
    ),
    "list_for_section": (lines(top="name = 'shop'\nmodel = ['dcn']"), ['model = ["dcn"] must be a table.', "[model]"]),
    "table_for_entries": (
        lines(more="[data.fields]\nname = 'age'"),
        ['data.fields = { name = "age" } must be a list of tables.', "Begin each entry with [[data.fields]]."],
    ),
    "list_for_mapping": (
        lines(more="rename = ['a']"),
        ['data.rename = ["a"] must be a table.', "section [data.rename]"],
    ),
    "number_in_mapping": (lines(more="rename = { a = 'b', c = 3 }"), ["data.rename.c = 3 must be text in quotes."]),
    "number_for_files": (
        lines(data=[*without("train"), "train = 1"]),
        ["data.train = 1 must be text in quotes or a list"],
    ),
    # values out of range, and choices
    "too_small": (lines(more="min_count = 0"), ["data.min_count = 0 must be a whole number, 1 or more."]),
    "too_large": (model(f"embedding = {10**20}"), ["model.embedding = 1000", "The largest number is 9,223,372,036"]),
    "out_of_range": (
        lines(more="negative_rate = 1.5"),
        ["data.negative_rate = 1.5 must be a number, more than 0 and at most 1."],
    ),
    "not_a_number": (training("learning_rate = nan"), ["training.learning_rate = nan must be a number, more than 0."]),
    "list_element": (model("mlp = [400, 0]"), ["model.mlp[1] = 0 must be a whole number, 1 or more."]),
    "reader": (
        lines(data=["reader = 'tabel'", *DATA[1:]]),
        ['data.reader = "tabel" must be', '"movielens_tag" or "table".', 'Did you mean "table"?'],
    ),
    "monitor": (
        training("monitor = 'loss'"),
        ['training.monitor = "loss" must be "auc" or "logloss".', 'Did you mean "logloss"?'],
    ),
    "model_type": (
        model("type = 'dcnv3'"),
        ['model.type = "dcnv3" is not a model.', 'Did you mean "dcnv2"?', "Choose one of stec, lr, fm"],
    ),
    "kind": (
        field("kind = 'number'"),
        ['[[data.fields]] entry 1 ("age"): kind = "number" must be', 'Did you mean "numeric"?'],
    ),
    "split_kind": (
        split("{ by = 'tme', valid = '1d', test = '1d' }"),
        ['data.split.by = "tme" must be "time" or "random".', 'Did you mean "time"?'],
    ),
    "split_word": (split("'random'"), ['data.split = "random" must be', 'a table with by = "time" or by = "random".']),
    "heads": (
        model("embedding = 10", "heads = 4"),
        ["[model]", "embedding = 10 cannot be split into heads = 4", "1, 2, 5, 10."],
    ),
    # impossible splits
    "split_duration": (
        split("{ by = 'time', valid = '1 day', test = '1d' }", "time = 'at'"),
        ['data.split.valid = "1 day" must be text in quotes, such as "1d" or "12h".'],
    ),
    "split_share": (
        split("{ by = 'random', valid = 10, test = 10 }"),
        ["data.split.valid = 10 must be a number, more than 0 and less than 1."],
    ),
    "split_without_train": (
        split("{ by = 'random', valid = 0.5, test = 0.5 }"),
        ["data.split", "valid = 0.5 and test = 0.5 leave no rows for train.", "Lower them."],
    ),
    "split_without_time": (
        split("{ by = 'time', valid = '1d', test = '1d' }"),
        ["[data]", 'split = { by = "time" } needs time = "..."'],
    ),
    "split_of_split_files": (
        lines(more="split = { by = 'random', valid = 0.1, test = 0.1 }"),
        ["[data]", "split needs files = [...] instead of train, valid and test."],
    ),
    "split_of_a_published_log": (
        lines(data=[*FRAPPE, "split = { by = 'random', valid = 0.1, test = 0.1 }"]),
        ["[data]", 'split = { by = ... } needs reader = "table"'],
    ),
    "files_without_split": (lines(data=SPLIT), ["[data]", "files needs a split", 'by = "time"']),
    # keys that contradict each other or have no effect
    "files_and_train": (
        lines(data=[*DATA, "files = ['log.csv']"]),
        ["[data]", "files and train contradict each other", "Remove files, or train, valid and test."],
    ),
    "columns_of_a_published_log": (
        lines(data=[*FRAPPE, "delimiter = ';'"]),
        ['reader = "frappe" has fixed files and columns', "Remove delimiter"],
    ),
    "split_seed_with_files": (
        lines(more="split_seed = 3"),
        ["[data]: split_seed has no effect", 'Write seed in split = { by = "random", ... } instead.'],
    ),
    "split_seed_with_time": (
        lines(data=["reader = 'avazu'", *FRAPPE[1:], "split = 'time'", "split_seed = 3"]),
        [
            "[data]: split_seed has no effect",
            'split = "row" of reader = "avazu", "criteo" or "movielens_1m".',
            "Remove",
        ],
    ),
    "split_of_published_splits": (
        lines(data=[*FRAPPE, "split = 'row'"]),
        ["[data]: split has no effect", "Remove it."],
    ),
    "time_with_three_files": (
        lines(more="time = 'at'"),
        ["[data]: time has no effect", 'split = { by = "time", ... }', "no field reads the column. Remove it."],
    ),
    "time_with_a_random_split": (
        split("{ by = 'random', valid = 0.1, test = 0.1 }", "time = 'at'"),
        ["[data]: time has no effect", "Remove it."],
    ),
    "delimiter_of_parquet": (
        lines(data=[line.replace(".csv", ".parquet") for line in DATA], more="delimiter = ';'"),
        ["[data]: delimiter has no effect on parquet files.", "text files (.csv, .tsv, .txt). Remove it."],
    ),
    "clipping_without_numbers": (
        lines(more="clip_quantile = 0.01"),
        ["[data]: clip_quantile has no effect without numeric fields.", "list the fields in numeric."],
    ),
    "pseudonym_of_a_number": (
        field("kind = 'numeric'", "pseudonym = 'hmac'"),
        ['field "age": pseudonym is only for categorical fields.', 'set kind = "categorical"'],
    ),
    "pseudonym_of_a_bucket": (
        field("transform = 'log_square'", "pseudonym = 'hmac'"),
        ['field "age": pseudonym cannot be combined with transform = "log_square".', "Remove one of them."],
    ),
    "pseudonym_with_vocabulary": (
        lines(more="vocabulary = 'v'\n[[data.fields]]\nname = 'age'\npseudonym = 'hmac'"),
        ['field "age": pseudonym cannot be combined with vocabulary', "Remove one of them."],
    ),
    "another_pseudonym": (field("pseudonym = 'md5'"), ["pseudonym", '"md5"', '"hmac"']),
    "min_count_with_vocabulary": (
        lines(more="vocabulary = 'v'\nmin_count = 2"),
        ["[data]: min_count has no effect with vocabulary", "Remove one of them."],
    ),
    "two_kinds": (
        lines(more="\n".join(["numeric = ['age']", *FIELD, "kind = 'categorical'"])),
        ['field "age": it is listed in numeric, but kind = "categorical" here. Remove one of them.'],
    ),
    "two_sides": (
        field("side = 'candidate'"),
        ['field "age": it is listed in context, but side = "candidate" here. Remove one of them.'],
    ),
    "bucket_of_a_number": (
        field("kind = 'numeric'", "transform = 'log_square'"),
        ['field "age": transform = "log_square" produces a category.', 'set kind = "categorical"'],
    ),
    "a_column_as_number_and_text": (
        lines(
            more="\n".join(["numeric = ['age']", *FIELD[:1], "name = 'age_group'", "side = 'context'", "from = 'age'"])
        ),
        [
            'field "age" reads the column "age" as a number, and field "age_group" reads it as text.',
            'set transform = "log_square" in "age_group"',
        ],
    ),
    "log1p_of_a_category": (
        field("transform = 'log1p'"),
        ['field "age": transform = "log1p" is for numeric fields.', 'Set kind = "numeric"'],
    ),
    "timezone_without_time": (
        field("timezone = 'Europe/Istanbul'"),
        ["timezone has no effect without a time transform.", 'Set transform = "hour", "weekday" or "day".'],
    ),
    "min_count_of_a_number": (
        field("kind = 'numeric'", "min_count = 3"),
        ['field "age": min_count has no effect on a numeric field.', 'set kind = "categorical"'],
    ),
    "no_transform": (field("transform = 'none'"), ['transform = "none" has no effect with reader = "table"', "Remove"]),
    "hide_without_rate": (
        training("hide = [['ad', 'age']]", "unknown_rate = 0.0"),
        ["hide has no effect with unknown_rate = 0", "Raise unknown_rate, or remove the groups of several fields."],
    ),
    "mlp_dropout_without_mlp": (model("mlp_dropout = 0.1"), ["mlp_dropout = 0.1 needs hidden layers.", "Set mlp"]),
    # not TOML
    "no_quotes": ("name = shop\n", [":1: 'name = shop' is not valid TOML", "(column 8)", "Text needs quotes"]),
    "key_twice": (lines(more="folder = 'x'"), [":11: \"folder = 'x'\" is not valid TOML", "may occur once"]),
    "open_list": ("name = ['a'", [": is not valid TOML: Unclosed array", "Complete the last line."]),
    "nested": (f"name = {'[' * 9999}", ["nested too deeply. Remove brackets."]),
    "empty": ("", ['the file needs the key "name"']),
}


def run(main: Callable[[list[str]], int], path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run ctr-prepare or ctr-sweep on a file that it must reject, and return its message without the command's name."""
    assert main([str(path), "--data", str(path.parent)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    for internal in ("Traceback", "$.", "`"):
        assert internal not in error
    return error.partition(": ")[2]


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_experiment_is_one_message_with_file_key_and_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(text)
    message = run(prepare.main, path, capsys)
    assert message.startswith(f"{path}:")
    for word in words:
        assert word in message


WRONG_SWEEPS = {
    "misspelled": ("sedes = 2\n[grid]\nblocks = [1]", ['the file has no key "sedes"', 'mean "seeds"', "grid, point"]),
    "seeds": ("seeds = 0\n[grid]\nblocks = [1]", ["seeds = 0 must be a whole number, 1 or more."]),
    "no_list": ("[grid]\nblocks = 2", ["grid.blocks = 2 must be a list of values, at least 1.", "Write [2]."]),
    "empty_list": ("[grid]\nblocks = []", ["grid.blocks = [] must be a list of values, at least 1."]),
    "no_points": ("", ["a sweep needs points.", "Add a [grid] section or [[point]] entries."]),
    "point_twice": ("[[point]]\n[[point]]", ["the point base occurs twice.", "Remove one"]),
    "points": ("[point]\nblocks = 1", ["point = { blocks = 1 } must be a list of tables.", "with [[point]]"]),
    "key": (
        "[grid]\nembeding = [8]",
        ['"embeding" is not a key', 'mean "embedding"', "The keys are ablation, embedding"],
    ),
    "seed": ("[grid]\nseed = [8]", ['"seed" is not a key', "Use seeds = N at the top of the file."]),
    "value": (
        "[grid]\nepochs = ['3']",
        ['the point epochs 3: training.epochs = "3" must be a whole number', "Write 3."],
    ),
    "ablation": ("[grid]\nablation = ['STEC_B']", ['"STEC_B" is not an ablation.', 'mean "STEC_BL"?', "Choose one of"]),
}


@pytest.mark.parametrize(("text", "words"), WRONG_SWEEPS.values(), ids=WRONG_SWEEPS)
def test_a_wrong_sweep_is_one_message_with_file_key_and_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str]
) -> None:
    (tmp_path / "shop.toml").write_text(lines())
    path = tmp_path / "sweep.toml"
    path.write_text(f"base = 'shop.toml'\n{text}\n")
    message = run(sweep.main, path, capsys)
    assert message.startswith(f"{path}:")
    for word in words:
        assert word in message


def test_a_missing_file_is_one_message_with_the_closest_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shop.toml").write_text(lines())
    misspelled, alone = tmp_path / "shp.toml", tmp_path / "below" / "x.toml"
    assert (
        run(prepare.main, misspelled, capsys) == f'{misspelled}: no such experiment file. Did you mean "shop.toml"?\n'
    )
    assert run(prepare.main, alone, capsys) == f"{alone}: no such experiment file. Check the path.\n"
    assert "cannot be read: Is a directory. Specify the experiment's TOML file." in run(prepare.main, tmp_path, capsys)
    path = tmp_path / "sweep.toml"
    path.write_text("base = 'shop2.toml'\n[grid]\nblocks = [1]\n")
    message = run(sweep.main, path, capsys)
    assert message.startswith(f'{path}: base = "shop2.toml": ')
    assert message.endswith('no such experiment file. Did you mean "shop.toml"?\n')


def test_a_missing_log_is_one_message_with_its_key_its_path_and_the_closest_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "shop.toml", tmp_path / "shop"
    path.write_text(lines())
    where = "It is relative to --data, whose default is $CTR_DATA, or ./data."
    assert run(prepare.main, path, capsys) == f'{path}: data.folder = "shop": {folder} does not exist. {where}\n'
    folder.mkdir()
    for name in ("a.csv", "b.csv", "c.tsv"):
        (folder / name).write_text("user,age,ad,label\n1,2,3,0\n")
    assert run(prepare.main, path, capsys) == (
        f'{path}: data.test = "c.csv": {folder / "c.csv"} does not exist. Did you mean "c.tsv"? It is relative to '
        f"data.folder in --data, which is {folder}.\n"
    )
    path.write_text(split("{ by = 'random', valid = 0.1, test = 0.1 }"))
    message = run(prepare.main, path, capsys)
    assert message.startswith(f'{path}: data.files = "log.csv": {folder / "log.csv"} does not exist.')


def test_too_few_days_for_a_split_by_time_is_one_message_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(lines(data=["reader = 'avazu'", "folder = '.'", "prepared = 'prepared'", "split = 'time'"]))
    columns = "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,"
    columns += "device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
    row = ",".join(["0"] * 21)
    (tmp_path / "train.csv").write_text(f"{columns}\n1,0,14102100,{row}\n2,1,14102200,{row}\n")
    message = run(prepare.main, path, capsys)
    assert 'has 2 days; split = "time" needs 3. Use split = "row".' in message


def test_a_file_that_is_not_utf8_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shop.toml"
    path.write_bytes("name = 'caf\xe9'".encode("latin-1"))
    assert run(prepare.main, path, capsys) == f"{path}: is not UTF-8 text (byte 11). Save it as UTF-8.\n"


def test_the_data_section_alone_has_the_same_messages(tmp_path: Path) -> None:
    path = tmp_path / "data.toml"
    for text, message in (
        ("min_cuont = 3", r'data\.toml: \[data\] has no key "min_cuont"\. Did you mean "min_count"\?'),
        ("min_count = '3'", r'data\.toml: data\.min_count = "3" must be a whole number, 1 or more\. Write 3\.'),
        ("split_seed = 3", r"data\.toml: \[data\]: split_seed has no effect"),
    ):
        path.write_text(lines(top="", more=text))
        with pytest.raises(ValueError, match=message):
            read_data(path)


def test_a_whole_number_may_be_written_with_a_decimal_point(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(lines(more="min_count = 2.0\n[model]\nmlp = [400.0, 200]\n[training]\nepochs = 10.0"))
    experiment = read_experiment(path)
    assert isinstance(experiment.model, STECConfig)
    assert (experiment.data.min_count, experiment.model.mlp, experiment.training.epochs) == (2, (400, 200), 10)
    assert type(experiment.training.epochs) is int


def test_a_key_of_a_model_without_effect_is_a_warning() -> None:
    for config, message in (
        (
            InterHAtConfig(mlp_dropout=0.1),
            "model.mlp_dropout = 0.1 has no effect with mlp = []. Remove it, or change mlp",
        ),
        (
            EDCNConfig(regulation=False, temperature=1.0),
            "model.temperature = 1.0 has no effect with regulation = false",
        ),
        (FinalMLPConfig(gate=(800,)), "model.gate = [800] has no effect with context1 = [] and context2 = []"),
        (MaskNetConfig(structure="serial", blocks=2), 'model.blocks = 2 has no effect with structure = "serial"'),
    ):
        (found,) = unused_in_model(config)
        assert found.startswith(message)
    assert unused_in_model(FinalMLPConfig(gate=(800,), context1=("user",))) == []
    assert unused_in_model(MaskNetConfig(mlp=(), mlp_dropout=0.1)) == []


@pytest.mark.parametrize("name", MODELS)
def test_a_default_model_has_no_key_without_effect(name: str) -> None:
    assert unused_in_model(MODELS[name][0]()) == []


SECTIONS: dict[str, tuple[str, ...]] = {
    "data": Data.__struct_fields__,
    "training": Training.__struct_fields__,
    "model": MODELS["stec"][0].__struct_fields__,
}
KEYS = [(section, key) for section, keys in SECTIONS.items() for key in keys]
VALUES = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=5), st.dates()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=examples(200), deadline=None)
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_is_accepted_or_is_a_message_about_the_key(place: tuple[str, str], value: Any) -> None:
    section, key = place
    document = msgspec.toml.decode(lines(more="[model]\n[training]"), type=dict[str, Any])
    document[section][key] = value
    message = message_of(document)
    if message is not None:
        assert section in message
        assert key in message or (section, key) in ALONE
        assert "at `$" not in message


@settings(max_examples=examples(100), deadline=None)
@given(st.sampled_from(["", *SECTIONS]), st.text(max_size=9).filter(lambda key: all(key != known for _, known in KEYS)))
@example("", "x - at `$.data")
@example("data", "x` - at `$.training")
@example("training", "a\nb")
@example("", "\x7f")
def test_any_unknown_key_is_one_message_about_the_key(section: str, key: str) -> None:
    assume(key not in ("name", "type", *SECTIONS))
    document = msgspec.toml.decode(lines(more="[model]\n[training]"), type=dict[str, Any])
    (document[section] if section else document)[key] = 1
    message = message_of(document)
    assert message is not None
    assert f"has no key {toml_value(key)}." in message
    assert message.startswith(f"[{section}]" if section else "the file")


def message_of(document: dict[str, Any]) -> str | None:
    """Return the message for an experiment, or None if it is valid."""
    try:
        to_experiment(document)
    except ValueError as error:
        return str(error)
    return None


# Changing one of these keys makes other keys invalid, and the message is about those keys.
ALONE = {("data", "reader"), ("model", "interaction"), ("model", "last")}
