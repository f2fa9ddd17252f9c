"""The reader for your own log, and the errors for a log that cannot be read."""

import gzip
import os
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from msgspec import UNSET

from contract.vocabulary import open_vocabulary
from model.data.prepare.prepare import prepare, write_prepared
from model.data.readers import frappe, generated, table
from model.data.readers.files import Source
from model.data.readers.log import FILE, LINE, SPLITS, Log
from model.data.readers.scan import open_parts
from model.data.synthetic.generate import main as generate
from model.data_config import Data, FieldSpec

FRAPPE = Path(os.environ.get("CTR_DATA") or "data") / "frappe"
OWN = Data(
    reader="table",
    folder=".",
    prepared="prepared",
    train="train.csv",
    valid="valid.csv",
    test="test.csv",
    label="clicked",
    context=("user", "age"),
    candidate=("ad",),
    numeric=("age",),
)
HEAD = "clicked,user,age,ad\n"
GOOD = "clicked,user,age,ad,note\n1,0017,31,a,x\n0,18,,b,y\n"


def read_own(folder: Path, train: str = GOOD) -> Log:
    (folder / "train.csv").write_text(train)
    (folder / "valid.csv").write_text(GOOD)
    (folder / "test.csv").write_text(GOOD)
    return table.read(folder, OWN)


def test_a_table_has_the_fields_of_the_experiment(tmp_path: Path) -> None:
    log = read_own(tmp_path)
    assert [(f.name, f.side, f.kind) for f in log.fields] == [
        ("user", "context", "categorical"),
        ("age", "context", "numeric"),
        ("ad", "candidate", "categorical"),
    ]
    assert log.splits["train"].collect_schema().names() == [FILE, LINE, "clicked", "user", "age", "ad"]
    assert log.extra == ()


def test_an_id_in_a_csv_file_keeps_its_leading_zeros(tmp_path: Path) -> None:
    assert read_own(tmp_path).splits["train"].collect()["user"].to_list() == ["0017", "18"]


def test_every_row_has_its_line_number(tmp_path: Path) -> None:
    assert read_own(tmp_path).splits["train"].collect()[LINE].to_list() == [2, 3]


@pytest.mark.parametrize("ending", ["parquet", "csv.gz"])
def test_a_table_may_be_parquet_or_compressed(tmp_path: Path, ending: str) -> None:
    ages = [30.5, None, 34.5]
    frame = pl.DataFrame({"clicked": [1, 0, 0], "user": ["u", "v", "u"], "age": ages, "ad": ["a", "b", "b"]})
    for split in ("train", "valid", "test"):
        if ending == "parquet":
            frame.write_parquet(tmp_path / f"{split}.{ending}")
        else:
            frame.write_csv(tmp_path / f"{split}.{ending}", compression="gzip")
    data = msgspec.structs.replace(OWN, train=f"train.{ending}", valid=f"valid.{ending}", test=f"test.{ending}")
    prepared = prepare(tmp_path, data)
    np.testing.assert_array_equal(prepared.split("valid")[1], [[-1.0], [np.nan], [1.0]])
    assert prepared.schema.select("numeric")[0].mean == 32.5
    assert sorted(token for token, _ in open_vocabulary(prepared.vocabulary, "user").items()) == ["u", "v"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("clicked,user,age\n1,u,3\n", r'train\.csv: no column "ad"\. The file has clicked, user, age'),
        (f"{HEAD}1,u,3,a\n2,u,3,a\n", r'train\.csv:3: column "clicked" holds "2"; expected 0 or 1'),
        (f"{HEAD}yes,u,3,a\n", r'train\.csv:2: column "clicked" holds "yes"; expected 0 or 1'),
        (f"{HEAD}1,u,3,a\n,u,3,a\n", r'train\.csv:3: column "clicked" is empty; expected 0 or 1'),
        (
            f"{HEAD}1,u,3,a\n0,u,old,a\n",
            r'train\.csv:3: column "age" holds "old"; expected a number\. Add "old" to missing',
        ),
        (HEAD, r"train\.csv: no rows for train"),
        ("", r"train\.csv: the file is empty\. Its first line must contain the column names"),
        ("a,b,a\n", r'train\.csv:1: the column "a" occurs twice'),
        (f"{HEAD}1,u,3,a,b,c,d\n", r"train\.csv:2: expected 4 columns, found 7"),
        (f"{HEAD}1,u,3,a\n0,u,3\n", r"train\.csv:3: expected 4 columns, found 3"),
        (f"{HEAD}1,u,3,a\n\n0,u,3,a\n", r"train\.csv:3: expected 4 columns, found 1"),
        (f'{HEAD}1,"u,\n",3,a\n0,"u,",3\n', r"train\.csv:4: expected 4 columns, found 3"),
        (f'{HEAD}1,"u,\n",3,a\n0,"u\n\n",3,a\n0,v,old,a\n', r'train\.csv:7: column "age" holds "old"'),
        (
            f'{HEAD}1,u,3,a\n0,"u,3,a\n1,u,3,a\n',
            r'train\.csv:3: no quote closes the value that begins with "\\"u,3,a.*Close every quote',
        ),
        (f'{HEAD}1,u,3,a\n0,"u,3,a\n' + "1,u,3,a\n" * 300_000, r"train\.csv:3: no quote closes the value"),
        (
            f'{HEAD}0,"u"v,3,a\n',
            r'train\.csv:2: column "user" holds "\\"u\\"v", a value with text after its closing quote\. Close',
        ),
        (f'{HEAD}0,u,3,19" wide\n', r'train\.csv:2: column "ad" holds "19\\" wide", a value with a quote inside'),
        (f'{HEAD}0,"u\n,",3,a\n1,u,3, "a"\n', r'train\.csv:4: column "ad" holds " \\"a\\"", a value with a quote'),
        (f'{HEAD}1,u,3,a\n0,"u,3,a\n1,"v",3,a\n', r'train\.csv:3: column "user" .* text after its closing quote'),
        ('"' + "a" * 200_000, r"train\.csv:1: the column names cannot be read: field larger"),
        ("clicked,user,age,ad\r1,u,3,a\r", r"train\.csv:1: the line ends are carriage returns\. Convert them"),
        (f"{HEAD}1,u,3,a{',b' * 256}\n", r"train\.csv:2: expected 4 columns, found 260"),
        (f"{HEAD}1,u,3,a{',b' * 300}\n", r"train\.csv:2: expected 4 columns, found 304"),
        (f"{HEAD}1,u,3,a\n1,v,3,a\n", r'train\.csv: column "clicked" is 1 in all 2 rows of train; train needs both'),
    ],
)
def test_an_invalid_table_is_an_error_that_names_file_line_column_and_value(
    tmp_path: Path, train: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_prepared(tmp_path / "prepared", read_own(tmp_path, train), OWN)
    assert not (tmp_path / "prepared").exists()


def test_a_line_with_256_missing_columns_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(",".join(f"c{n}" for n in range(300)) + f"\n{'1,' * 299}1\n{'1,' * 43}1\n")
    with pytest.raises(ValueError, match=r"train\.csv:3: expected 300 columns, found 44"):
        open_parts([Source(str(path), path)])


@pytest.mark.parametrize("before", ["1,u,3,a\n", '1,"u",3,a\n', '1,"u\n",3,a\n', "1,u,3,a\n" * 200_000])
def test_a_line_in_another_encoding_is_an_error_that_names_it(tmp_path: Path, before: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes((HEAD + before).encode() + "1,José,3,a\n".encode("latin-1"))
    line = (HEAD + before).count("\n") + 1
    with pytest.raises(ValueError, match=rf"train\.csv:{line}: byte 0xe9 is not UTF-8\. Convert the file"):
        open_parts([Source(str(path), path)])


WHOLE = gzip.compress((HEAD + "".join(f"{n % 2},{n * n},{n % 7},a\n" for n in range(5000))).encode())


@pytest.mark.parametrize(
    "damaged",
    [GOOD.encode(), WHOLE[:-9], WHOLE[:5000], WHOLE[:12], WHOLE[:5000] + b"\xff" * 200 + WHOLE[5200:], WHOLE + b"more"],
    ids=["not gzip", "end missing", "cut off", "cut off in the header", "damaged", "trailing bytes"],
)
def test_a_damaged_gzip_file_is_an_error_that_names_it(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "train.csv.gz"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"train\.csv\.gz: the gzip file is truncated or corrupt: .*\. Copy it again"):
        open_parts([Source(str(path), path)])


def test_quoted_values_may_contain_commas_and_line_ends(tmp_path: Path) -> None:
    log = read_own(tmp_path, f'{HEAD}1,"u,\nv",3,a\n0,"w",3,a\n')
    assert log.splits["train"].collect()["user"].to_list() == ["u,\nv", "w"]


def test_fields_may_be_declared_individually(tmp_path: Path) -> None:
    fields = (
        FieldSpec(name="user", side="context", missing=("-1",), min_count=2),
        FieldSpec(name="age", side="context", transform="log_square"),
        FieldSpec(name="ad", side="candidate"),
    )
    data = msgspec.structs.replace(OWN, context=(), candidate=(), numeric=(), fields=fields)
    read_own(tmp_path, f"{HEAD}1,u,1,a\n0,u,30, a\n0,v,,b\n1,-1,31,b\n")
    prepared = prepare(tmp_path, data)
    assert prepared.split("train")[0].tolist() == [[2, 3, 2], [2, 2, 2], [0, 1, 3], [1, 2, 3]]
    assert [field.missing for field in prepared.schema.fields] == [("-1",), UNSET, UNSET]


def test_the_experiment_names_the_columns_of_a_file_without_a_header(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.tsv").write_text('1\t"u\t3\ta\n0\tv\t\tb\n')
    columns = ("clicked", "user", "age", "ad")
    data = msgspec.structs.replace(OWN, train="train.tsv", valid="valid.tsv", test="test.tsv", columns=columns)
    train = table.read(tmp_path, data).splits["train"].collect()
    assert train.rows() == [(0, 1, "1", '"u', "3", "a"), (0, 2, "0", "v", None, "b")]


def test_a_label_that_is_also_a_field_is_rejected() -> None:
    with pytest.raises(ValueError, match='label "ad" is also a field'):
        msgspec.structs.replace(OWN, label="ad")


def test_a_table_in_another_format_is_rejected(tmp_path: Path) -> None:
    read_own(tmp_path)
    (tmp_path / "a.xlsx").touch()
    data = msgspec.structs.replace(OWN, train="a.xlsx")
    with pytest.raises(ValueError, match=r"a\.xlsx: unknown format\. Use \.parquet, \.csv, \.tsv or \.txt"):
        table.read(tmp_path, data)


def test_a_broken_parquet_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / f"{split}.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"train\.parquet: cannot be read as parquet"):
        frappe.read(tmp_path, Data(reader="frappe", folder="frappe", prepared="p"))


def test_the_error_about_a_missing_log_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.parquet: no such file.*documentation"):
        frappe.read(tmp_path / "frappe", Data(reader="frappe", folder="frappe", prepared="p"))
    command = rf"model\.data\.synthetic\.generate --data {tmp_path}$"
    with pytest.raises(ValueError, match=rf"train\.parquet: no such file.*{command}"):
        generated.read(tmp_path / "generated", Data(reader="generated", folder="generated", prepared="p"))
    with pytest.raises(ValueError, match=r"train\.csv: no such file.*relative to"):
        table.read(tmp_path, OWN)


def test_the_true_probabilities_of_the_generated_log_are_not_a_feature(tmp_path: Path) -> None:
    assert generate(["--data", str(tmp_path), "--requests", "200"]) == 0
    log = generated.read(tmp_path / "generated", Data(reader="generated", folder="generated", prepared="p"))
    assert log.extra == ("request", "true_ctr")
    assert not {f.name for f in log.fields} & {"request", "true_ctr", "click"}
    assert [f.name for f in log.fields if f.kind == "numeric"] == ["session_depth", "bid"]


@pytest.mark.skipif(not FRAPPE.is_dir(), reason=f"no {FRAPPE}: the documentation says where Frappe is published")
def test_frappe_has_its_ten_fields_and_published_sizes() -> None:
    log = frappe.read(FRAPPE, Data(reader="frappe", folder="frappe", prepared="p"))
    assert [frame.select(pl.len()).collect().item() for frame in log.splits.values()] == [202_027, 57_722, 28_860]
    assert [f.name for f in log.fields if f.side == "candidate"] == ["item", "cost"]
    assert len(log.fields) == 10
    assert all(f.kind == "categorical" for f in log.fields)


@pytest.mark.parametrize(
    ("rows", "min_count", "words"),
    [
        ("1,u,3,a\n0,v,4,a\n", 1, r'train\.csv: column "ad" holds "a" in every row of train\. Remove the field'),
        (
            "1,u,3,a\n0,v,4,b\n",
            2,
            r'train\.csv: column "user" has no tokens: no value occurs min_count times',
        ),
        ("1,u,3,\n0,v,4,\n", 1, r'train\.csv: column "ad" is missing in every row of train\. Remove the field'),
        ("1,u,3,a\n0,v,3,b\n", 1, r'train\.csv: column "age" holds 3 in every row of train that has a number'),
        ("1,u,,a\n0,v,,b\n", 1, r'train\.csv: column "age" is missing in every row of train\. Remove the field'),
    ],
)
def test_a_useless_field_of_a_table_is_an_error(tmp_path: Path, rows: str, min_count: int, words: str) -> None:
    data = msgspec.structs.replace(OWN, min_count=min_count)
    with pytest.raises(ValueError, match=words):
        write_prepared(tmp_path / "prepared", read_own(tmp_path, HEAD + rows), data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.csv", "train.csv", "valid.csv"]


@pytest.mark.parametrize("others", ["0,v,4,\n", "0,v,4,rare\n"])
def test_one_token_is_enough_if_other_values_are_missing_or_rare(tmp_path: Path, others: str) -> None:
    log = read_own(tmp_path, f"{HEAD}1,u,3,a\n0,u,4,a\n1,v,3,a\n{others}")
    write_prepared(tmp_path / "prepared", log, msgspec.structs.replace(OWN, min_count=2))
