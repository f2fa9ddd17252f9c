"""Experiment files: the error for a mistake names the key."""

import codecs
from pathlib import Path

import pytest

from model.experiment_config import read_experiment
from model.experiments.sweep_config import read_sweep
from model.stec.stec import STECConfig

SWEEPS = sorted(Path("experiments").glob("*/sweep*.toml"))
EXPERIMENTS = sorted({*Path("experiments").glob("*/*.toml")} - {*SWEEPS})
DATA = '[data]\nreader = "frappe"\nfolder = "frappe"\nprepared = "prepared/frappe"\n'
TABLE = (
    '[data]\nreader = "table"\nfolder = "own"\nprepared = "prepared/own"\n'
    'train = "a.csv"\nvalid = "b.csv"\ntest = "c.csv"\ncontext = ["user", "age"]\ncandidate = ["ad"]\n'
)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "stec.toml"


@pytest.mark.parametrize("path", SWEEPS, ids=str)
def test_every_sweep_in_this_repository_is_valid(path: Path) -> None:
    _, bases = read_sweep(path)
    assert all(base.points for base in bases)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_every_experiment_in_this_repository_is_valid(path: Path) -> None:
    assert read_experiment(path).name


def test_a_key_that_is_not_set_has_the_value_of_the_paper(toml: Path) -> None:
    toml.write_text(f'name = "x"\n{DATA}')
    experiment = read_experiment(toml)
    assert experiment.training.learning_rate == 1e-3
    assert experiment.training.unknown_rate == 0.01
    assert experiment.data.negative_rate == 1.0


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f'name = "x"\nnmae = "y"\n{DATA}', "nmae"),
        (f'name = "x"\n{DATA}min_cuont = 3\n', "min_cuont"),
        (f'name = "x"\n{DATA}[model]\nembeding = 8\n', "embeding"),
        (f'name = "x"\n{DATA}[training]\nlerning_rate = 0.1\n', "lerning_rate"),
    ],
)
def test_a_misspelled_key_is_an_error_that_names_it(toml: Path, text: str, key: str) -> None:
    toml.write_text(text)
    with pytest.raises(ValueError, match=rf"stec\.toml: .*{key}"):
        read_experiment(toml)


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ("[model]\nembedding = 0", "embedding"),
        ("[model]\nembedding = 2.5", "embedding"),
        ("[model]\nembedding = 99999999999999999999", "embedding"),
        ("[model]\nembedding_std = inf", "embedding_std"),
        ("[model]\nlayer_norm_eps = 0", "layer_norm_eps"),
        ("[model]\nlevel_eps = 0", "level_eps_relative"),
        ("[model]\nlevel_eps = 0\nlevel_eps_relative = 1e-30", "level_eps_relative = 1e-30"),
        ("[model]\nlevel_eps = 1e-300", "level_eps = 1e-300"),
        ("[model]\nlevel_eps = nan", "level_eps"),
        ("[model]\nlevel_eps_relative = -1", "level_eps_relative"),
        ('[model]\nembedding_norm = "layer"', "embedding_norm"),
        ('[model]\ntype = "masknet"\nreduction = inf', "reduction"),
        ('[model]\ntype = "fibinet"\nreduction = 1e-320', "reduction"),
        ("[model]\ndropout = 1.0", "dropout"),
        ("[model]\nembedding_std = 0.0", "embedding_std"),
        ("[model]\nmlp = [0]", "mlp"),
        ("[model]\nembedding = 10\nheads = 4", "embedding = 10 cannot be split into heads = 4"),
        ("[training]\nbatch_size = 1", "batch_size"),
        ("[training]\nclip = inf", "training.clip = inf must be finite"),
        ('[training]\nweights = "averaged"\nema_half_life = inf', "training.ema_half_life = inf must be finite"),
        ("[training]\nlearning_rate = -1.0", "learning_rate"),
        ("[training]\nunknown_rate = 1.0", "unknown_rate"),
        ('[training]\nmonitor = "loss"', "monitor"),
        ("[training]\nepochs = 0", "epochs"),
        ("min_count = 0", "min_count"),
        ("negative_rate = 0.0", "negative_rate"),
        ("negative_rate = 1.5", "negative_rate"),
    ],
)
def test_an_out_of_range_value_is_an_error_that_names_the_key(toml: Path, lines: str, key: str) -> None:
    toml.write_text(f'name = "x"\n{DATA}{lines}\n')
    with pytest.raises(ValueError, match=key):
        read_experiment(toml)


def test_a_table_names_its_files_and_columns(toml: Path) -> None:
    toml.write_text(f'name = "x"\n{TABLE}numeric = ["age"]\n')
    data = read_experiment(toml).data
    assert (data.context, data.candidate, data.numeric, data.label) == (("user", "age"), ("ad",), ("age",), "label")


@pytest.mark.parametrize("gone", ["train", "valid", "test", "context", "candidate"])
def test_a_table_without_a_required_key_is_rejected(toml: Path, gone: str) -> None:
    kept = [line for line in TABLE.splitlines() if not line.startswith(f"{gone} ")]
    toml.write_text("\n".join(['name = "x"', *kept]))
    with pytest.raises(ValueError, match=r'reader = "table" needs (train, valid and test|context and candidate)'):
        read_experiment(toml)


@pytest.mark.parametrize("lines", ['context = ["user", "ad"]', 'context = ["user", "user"]'])
def test_a_field_must_not_be_listed_twice(toml: Path, lines: str) -> None:
    toml.write_text(f'name = "x"\n{TABLE}'.replace('context = ["user", "age"]', lines))
    with pytest.raises(ValueError, match="is listed twice in context and candidate"):
        read_experiment(toml)


def test_experiments_with_renamed_columns_can_be_looked_up(toml: Path) -> None:
    toml.write_text(f'name = "x"\n{TABLE}rename = {{ "user id" = "user" }}\n')
    assert read_experiment(toml) in {read_experiment(toml): 1}


def test_a_numeric_field_must_be_on_a_side(toml: Path) -> None:
    toml.write_text(f'name = "x"\n{TABLE}numeric = ["income"]\n')
    with pytest.raises(ValueError, match='numeric field "income" is in neither context nor candidate'):
        read_experiment(toml)


def test_a_reader_with_fixed_columns_accepts_no_columns(toml: Path) -> None:
    toml.write_text(f'name = "x"\n{DATA}context = ["user"]\n')
    with pytest.raises(ValueError, match='reader = "frappe" has fixed files and columns'):
        read_experiment(toml)


@pytest.mark.parametrize("raw", [b"name = ", b"\xff\xfe", b"name = 1\n", b""])
def test_an_invalid_file_is_an_error_that_names_it(toml: Path, raw: bytes) -> None:
    toml.write_bytes(raw)
    with pytest.raises(ValueError, match=r"stec\.toml"):
        read_experiment(toml)


def test_a_file_may_start_with_a_byte_order_mark(toml: Path) -> None:
    toml.write_bytes(codecs.BOM_UTF8 + f'name = "x"\n{DATA}'.encode())
    assert read_experiment(toml).name == "x"


def test_a_missing_file_is_an_error_that_names_it(toml: Path) -> None:
    with pytest.raises(ValueError, match=r"stec\.toml: no such experiment file"):
        read_experiment(toml)


def test_a_model_without_a_type_is_stec(toml: Path) -> None:
    toml.write_text(f'name = "x"\n{DATA}[model]\nblocks = 3\n')
    assert read_experiment(toml).model == STECConfig(blocks=3)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('type = "dcnv3"', 'model.type = "dcnv3" is not a model.*Choose one of stec, lr, fm'),
        ("type = 3", "model.type = 3 is not a model"),
        ('type = "dcn"\nblocks = 2', "no key .blocks.*Its keys are .*cross_layers"),
        ('type = "lr"\nmlp = [4]', "no key .mlp.*Its keys are "),
        ('type = "afm"\nattention = 0', "attention"),
        ('type = "autoint"\nattention = 10\nheads = 4', "attention = 10 cannot be split into heads = 4"),
        ('type = "finalmlp"\nmlp2 = [7]', "heads = 5"),
    ],
)
def test_an_unknown_model_and_a_key_of_another_model_are_errors_that_name_them(
    toml: Path, lines: str, words: str
) -> None:
    toml.write_text(f'name = "x"\n{DATA}[model]\n{lines}\n')
    with pytest.raises(ValueError, match=words):
        read_experiment(toml)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('transform = "hour"\ntimezone = "Europe/Istambul"', "field \"at\": timezone 'Europe/Istambul' is unknown"),
        ('timezone = "UTC"', 'field "at": timezone has no effect'),
        ('transform = "log1p"\nkind = "numeric"\ntimezone = "UTC"', 'field "at": timezone has no effect'),
        ('transform = "log1p"\nkind = "categorical"', 'field "at": transform = "log1p" is for numeric fields'),
        ('transform = "hour"\nkind = "numeric"', 'field "at": transform = "hour" produces a category'),
        ('transform = "minute"', 'transform = "minute" must be "day", "hour"'),
    ],
)
def test_contradictory_keys_of_a_field_are_refused_with_the_file(tmp_path: Path, keys: str, message: str) -> None:
    toml = tmp_path / "x.toml"
    toml.write_text(f'name = "x"\n{TABLE}\n[[data.fields]]\nname = "at"\nside = "context"\n{keys}\n')
    with pytest.raises(ValueError, match=rf"x\.toml: .*{message}"):
        read_experiment(toml)
