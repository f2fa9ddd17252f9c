"""Finding and joining the files of a log: folders, globs, lists, Hive partitions and URLs."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import polars as pl
import pytest

from contract.vocabulary import open_vocabulary
from model.data.prepare.prepare import prepare, write_prepared
from model.data.prepare.prepared import Prepared, read_prepared
from model.data.readers import table
from model.data.readers.files import find_files
from model.data.readers.log import FILE, LINE, SPLITS, Log
from model.data.readers.scan import join_parts, log_files, open_parts
from model.data_config import Data, SplitAtRandom
from tests.support.compression import compress

HEAD = "click,user,ad\n"
DATA = Data(
    reader="table",
    folder=".",
    prepared="prepared",
    train="train.csv",
    valid="valid.csv",
    test="test.csv",
    label="click",
    context=("user",),
    candidate=("ad",),
)
ROWS = "1,u,a\n0,v,b\n"


def write(folder: Path, **files: str) -> None:
    """Write text files. "__" in a name stands for a slash, and "_" for a dot."""
    for name, text in files.items():
        write_file(folder / name.replace("__", "/").replace("_", "."), text)


def write_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = path.suffix if path.suffix in (".gz", ".zst") else ""
    path.write_bytes(compress(text.encode(), ending))


def read(folder: Path, **keys: Any) -> Log:
    """Read a log with some keys of [data], after writing files for the splits that `keys` does not mention."""
    for split in SPLITS:
        if split not in keys and "files" not in keys:
            write_file(folder / f"{split}.csv", HEAD + ROWS)
    if "files" in keys:
        keys |= dict.fromkeys(SPLITS, "") | {"split": keys.get("split", SplitAtRandom(valid=0.2, test=0.2))}
    return table.read(folder, msgspec.structs.replace(DATA, **keys))


def column(log: Log, name: str, split: str = "train") -> list[Any]:
    return log.splits[split].collect(engine="streaming")[name].to_list()


def positions(log: Log, split: str = "train") -> list[str]:
    """Return the position of each row, relative to the folder."""
    rows = log.splits[split].collect(engine="streaming")
    found = [log.position(file, line) for file, line in zip(rows[FILE], rows[LINE], strict=True)]
    return [position.rpartition("/")[2] for position in found]


def test_a_folder_is_read_in_name_order_without_hidden_files(tmp_path: Path) -> None:
    days = tmp_path / "days"
    for name in ("_SUCCESS", ".part-0.csv.crc", "_temporary/0/part-9.csv", ".staging/part-8.csv"):
        write_file(days / name, "no log")
    write_file(days / "part-1.csv", f"{HEAD}1,u1,a\n0,u2,b\n")
    write_file(days / "part-0.csv.gz", f"{HEAD}1,u0,a\n")
    write_file(days / "later" / "part-2.csv.zst", f"{HEAD}0,u3,a\n")
    log = read(tmp_path, train="days")
    assert column(log, "user") == ["u3", "u0", "u1", "u2"]
    assert positions(log) == ["part-2.csv.zst:2", "part-0.csv.gz:2", "part-1.csv:2", "part-1.csv:3"]
    assert log.paths["train"] == str(days)


def test_a_folder_without_data_files_is_reported_as_such(tmp_path: Path) -> None:
    write_file(tmp_path / "days" / "_SUCCESS", "")
    with pytest.raises(ValueError, match=r"days: the folder has no data files.*_SUCCESS.*\.parquet, \.csv.*\.gz"):
        read(tmp_path, train="days")
    with pytest.raises(ValueError, match="nights: no such file"):
        read(tmp_path, train="nights")


@pytest.mark.parametrize(
    "train", ["2026-01-*.csv", "2026-01-??.csv", ("2026-01-02.csv", "2026-01-01.csv"), "**/*-01-*"]
)
def test_globs_and_lists_are_read_in_name_order(tmp_path: Path, train: str | tuple[str, ...]) -> None:
    for day in ("2026-01-02", "2026-01-01"):
        write_file(tmp_path / f"{day}.csv", f"{HEAD}1,{day},a\n")
    write_file(tmp_path / "2026-02-11.csv", f"{HEAD}1,february,a\n")
    assert column(read(tmp_path, train=train), "user") == ["2026-01-01", "2026-01-02"]


def test_a_name_with_the_characters_of_a_glob_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "log [1]*"
    write_file(folder / "a[1].csv", f"{HEAD}1,u,a\n")
    write_file(folder / "a1.csv", f"{HEAD}1,other,a\n")
    assert column(read(folder, train="a[1].csv"), "user") == ["u"]
    assert column(read(folder, train="a[0-9].csv"), "user") == ["other"]
    write_file(folder / "a[1].tsv.zst", f"{HEAD}1,u,a\n".replace(",", "\t"))
    pl.DataFrame({"click": [1], "user": ["u"], "ad": ["a"]}).write_parquet(folder / "a[1].parquet")
    assert column(read(folder, train=("a[1].tsv.zst", "a[1].parquet")), "user") == ["u", "u"]


@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "csv.zst", "parquet"])
def test_hive_partitions_are_columns_in_every_format(tmp_path: Path, ending: str) -> None:
    delimiter = "\t" if ending.startswith("tsv") else ","
    for folder in ("day=2026-01-02", "day=__HIVE_DEFAULT_PARTITION__", "day=a%3Db%2Fc"):
        path = tmp_path / "log" / folder / "country=TR" / f"part-0.{ending}"
        path.parent.mkdir(parents=True)
        if ending == "parquet":
            pl.DataFrame({"click": [1], "user": ["u"], "ad": ["a"]}).write_parquet(path)
        else:
            write_file(path, f"{HEAD}1,u,a\n".replace(",", delimiter))
    log = read(tmp_path, files="log", context=("day", "country"))
    rows = pl.concat([log.splits[split].collect() for split in SPLITS]).sort(FILE)
    assert rows["day"].to_list() == ["2026-01-02", None, "a=b/c"]
    assert rows["country"].to_list() == ["TR"] * 3


def test_formats_may_be_mixed_and_ids_keep_their_digits(tmp_path: Path) -> None:
    pl.DataFrame({"click": [True], "user": [17], "ad": [2**63 - 1]}).write_parquet(tmp_path / "part-0.parquet")
    pl.DataFrame({"click": ["1"], "user": ["018"], "ad": ["a"]}).write_parquet(tmp_path / "part-1.parquet")
    write_file(tmp_path / "part-2.csv", f"{HEAD}0,0017,a\n")
    write_file(tmp_path / "part-3.tsv.gz", "note\tad\tuser\tclick\nx\tb\tu\t1\n")
    log = read(tmp_path, train="part-*")
    assert column(log, "user") == ["17", "018", "0017", "u"]
    assert column(log, "ad") == [str(2**63 - 1), "a", "a", "b"]
    assert positions(log) == ["part-0.parquet, row 1", "part-1.parquet, row 1", "part-2.csv:2", "part-3.tsv.gz:2"]
    labels = prepare_log(tmp_path, log).split("train")[2]
    assert labels.tolist() == [1, 1, 0, 1]


def prepare_log(folder: Path, log: Log) -> Prepared:
    write_prepared(folder / "prepared", log, DATA)
    return read_prepared(folder / "prepared")


def test_numbers_of_different_types_are_numbers(tmp_path: Path) -> None:
    for number, bid in enumerate((pl.Series([1], dtype=pl.Int32), pl.Series([2.5]), pl.Series([None], dtype=pl.Null))):
        frame = pl.DataFrame({"click": [1], "user": ["u"], "ad": ["a"], "bid": bid})
        frame.write_parquet(tmp_path / f"part-{number}.parquet")
    log = read(tmp_path, files="part-*.parquet", candidate=("ad", "bid"), numeric=("bid",))
    rows = pl.concat([log.splits[split].collect() for split in SPLITS]).sort(FILE)
    assert rows["bid"].to_list() == [1.0, 2.5, None]


def test_ids_that_are_floats_in_only_one_file_are_an_error_that_names_both(tmp_path: Path) -> None:
    for number, ad in enumerate(([1011], [1011.0])):
        pl.DataFrame({"click": [1], "user": ["u"], "ad": ad}).write_parquet(tmp_path / f"part-{number}.parquet")
    message = r'column "ad" has the type Int64 in .*part-0\.parquet and Float64 in .*part-1\.parquet\. Write it with'
    with pytest.raises(ValueError, match=message):
        read(tmp_path, train="part-*")


def test_different_columns_in_two_files_are_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path, part0_csv=HEAD + ROWS, part1_csv="click,user,advert\n1,u,a\n")
    with pytest.raises(
        ValueError, match=r'part1\.csv: no column "ad", which .*part0\.csv has\. The file has click, user'
    ):
        read(tmp_path, train="part*")


def test_an_error_names_the_part_and_its_line(tmp_path: Path) -> None:
    write(tmp_path, part0_csv=f'{HEAD}1,"u\n",a\n0,v,b\n', part1_csv=f'{HEAD}1,"u\n",a\n2,v,b\n')
    log = read(tmp_path, train="part*")
    with pytest.raises(ValueError, match=r'part1\.csv:4: column "click" holds "2"; expected 0 or 1\. Name the labels'):
        write_prepared(tmp_path / "prepared", log, DATA)
    write(tmp_path, part1_csv=f"{HEAD}1,u,a\n0,v,b,c\n")
    with pytest.raises(ValueError, match=r"part1\.csv:3: expected 3 columns, found 4"):
        read(tmp_path, train="part*")


def test_a_damaged_parquet_part_is_an_error_that_says_after_which_row(tmp_path: Path) -> None:
    for number in range(2):
        users = [f"user-{number}-{row * 7919 % 10_007}" for row in range(50_000)]
        frame = pl.DataFrame({"click": [0, 1] * 25_000, "user": users, "ad": ["a", "b"] * 25_000})
        frame.write_parquet(tmp_path / f"part-{number}.parquet")
    content = bytearray((tmp_path / "part-1.parquet").read_bytes())
    content[1000:100_000] = b"\xff" * 99_000
    log = read(tmp_path, train="part-*")
    (tmp_path / "part-1.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"part-\*: cannot be read( after part-0\.parquet, row [0-9]+)?: parquet: "):
        prepare_log(tmp_path, log)


def test_a_file_in_two_splits_is_an_error_that_names_all_three(tmp_path: Path) -> None:
    write(tmp_path, days__a_csv=HEAD + ROWS, days__b_csv=HEAD + ROWS)
    (tmp_path / "link.csv").symlink_to(tmp_path / "days" / "b.csv")
    for valid, name in (("days/b.csv", r"days/b\.csv"), ("link.csv", r"link\.csv"), ("day*/../days/b*", r"b\.csv")):
        with pytest.raises(ValueError, match=rf"{name}: is in both train and valid\. .* Remove the file from one"):
            read(tmp_path, train="days", valid=valid)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (("days", "days/a.csv"), r'days/a\.csv: listed twice, by "days" and by "days/a\.csv"\. Remove one'),
        ("nights/*.csv", r"nights/\*\.csv: no such file\. Paths in the experiment file are relative to"),
        ("empty", r"empty: the folder has no data files"),
        (("days", "*.tsv"), r"\*\.tsv: no such file"),
        ("other", r"other/readme\.md: unknown format\. Use \.parquet"),
        ("days/a.csv/b", r"days/a\.csv/b: no such file"),
    ],
)
def test_files_that_cannot_be_found_are_an_error(tmp_path: Path, train: Any, message: str) -> None:
    write(tmp_path, days__a_csv=HEAD + ROWS, other__a_csv=HEAD + ROWS, other__readme_md="# Log", empty__x_csv="")
    (tmp_path / "empty" / "x.csv").unlink()
    with pytest.raises(ValueError, match=message):
        read(tmp_path, train=train)


def rows_of(prepared: Prepared) -> list[int]:
    return [prepared.facts.splits[split].rows for split in SPLITS]


@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "txt.zst", "parquet"])
def test_a_log_of_many_files_is_split_at_random_without_losing_a_row(tmp_path: Path, ending: str) -> None:
    for day in range(5):
        frame = pl.DataFrame({"click": [n % 2 for n in range(60)], "user": range(60), "ad": [f"a{day}"] * 60})
        path = tmp_path / "log" / f"day={day}" / f"part.{ending}"
        path.parent.mkdir(parents=True)
        if ending == "parquet":
            frame.write_parquet(path)
        else:
            write_file(path, frame.write_csv(separator="," if ending == "csv" else "\t"))
    split = SplitAtRandom(valid=0.2, test=0.2)
    keys: dict[str, Any] = dict.fromkeys(SPLITS, "") | {"files": "log", "split": split, "context": ("user", "day")}
    data = msgspec.structs.replace(DATA, **keys)
    prepared = prepare(tmp_path, data)
    assert sum(rows_of(prepared)) == 300
    assert all(rows > 30 for rows in rows_of(prepared))
    assert sorted(token for token, _ in open_vocabulary(prepared.vocabulary, "day").items()) == list("01234")
    again = [part.collect().rows() for part in table.read(tmp_path, data).splits.values()]
    assert again == [part.collect().rows() for part in table.read(tmp_path, data).splits.values()]
    assert len({row[:2] for part in again for row in part}) == 300


def test_a_row_that_polars_does_not_deliver_is_an_error(tmp_path: Path) -> None:
    log = read(tmp_path)
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_text(HEAD + ROWS * 2)
    with pytest.raises(ValueError, match=r"train\.csv: 4 rows were read, but the file has 2"):
        prepare_log(tmp_path, log)
    assert not (tmp_path / "prepared").exists()


def test_rows_are_compared_before_a_split_leaves_some_out(tmp_path: Path) -> None:
    write(tmp_path, a_csv="click,user,ad,at\n1,u,a,5\n")
    parts = open_parts(find_files(tmp_path, ["a.csv"], ""))
    frame = join_parts(parts, ["click"])
    table.check_all_rows(frame, "click", log_files(parts))
    write(tmp_path, a_csv="click,user,ad,at\n1,u,a,5\n1,u,a,5\n")
    with pytest.raises(ValueError, match=r"a\.csv: 2 rows were read, but the file has 1"):
        table.check_all_rows(frame, "click", log_files(parts))


def test_keys_describe_a_file_with_semicolons_text_labels_and_markers(tmp_path: Path) -> None:
    text = "shown;user id;ad;bid\nYes;'O''Neil;1';a;1.5\nno;\\N;b;NULL\nYES;u;NULL;2.5\nmaybe;u;b;\\N\n"
    for split in SPLITS:
        write_file(tmp_path / f"{split}.csv", text)
    data = msgspec.structs.replace(
        DATA,
        label="click",
        delimiter=";",
        quote="'",
        missing=("\\N", "NULL"),
        positive=("yes",),
        rename={"user id": "user", "shown": "click"},
        candidate=("ad", "bid"),
        numeric=("bid",),
    )
    prepared = prepare(tmp_path, data)
    assert prepared.split("train")[2].tolist() == [1, 0, 1, 0]
    users = dict(open_vocabulary(prepared.vocabulary, "user").items())
    assert sorted(users) == ["O'Neil;1", "u"]
    assert prepared.facts.missing == {"user": 0.25, "ad": 0.25, "bid": 0.5}
    assert all(field.missing == ("\\N", "NULL") for field in prepared.schema.fields)


def test_a_missing_label_is_neither_a_click_nor_a_non_click(tmp_path: Path) -> None:
    write(tmp_path, a_csv=f"{HEAD}yes,u,a\nno,v,b\nNULL,v,b\n")
    log = read(tmp_path, train="a.csv", positive=("yes",), missing=("NULL",))
    with pytest.raises(ValueError, match=r'a\.csv:4: column "click" holds "NULL", which is in missing; expected'):
        prepare_log(tmp_path, log)


def test_labels_of_which_none_is_positive_are_an_error_that_shows_the_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'needs both 0 and 1 \(1 is a label in positive = \["ja", "2"\]\)'):
        prepare_log(tmp_path, read(tmp_path, positive=("ja", "2")))


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"uid": "user"}, r'train\.csv: no column "uid"\. The file has click, user, ad'),
        ({"user": "ad"}, r'train\.csv: rename gives two columns the name "ad"'),
    ],
)
def test_a_name_that_cannot_be_changed_is_an_error(tmp_path: Path, rename: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, rename=rename)


def test_two_columns_may_exchange_their_names(tmp_path: Path) -> None:
    assert column(read(tmp_path, rename={"user": "ad", "ad": "user"}), "user") == ["a", "b"]


def test_a_file_without_a_header_has_the_columns_of_the_experiment(tmp_path: Path) -> None:
    write(tmp_path, days__a_csv="1,u,a\n", days__b_csv="0,v,b\n")
    keys = {"train": "days", "valid": "b.csv", "test": "c.csv"}
    write(tmp_path, b_csv=ROWS, c_csv=ROWS)
    log = read(tmp_path, **keys, columns=("click", "user", "ad"))
    assert column(log, "user") == ["u", "v"]
    assert positions(log) == ["a.csv:1", "b.csv:1"]


def test_quotes_around_the_column_names_of_a_tsv_file_are_an_error_that_names_the_key(tmp_path: Path) -> None:
    write(tmp_path, a_tsv='"click"\t"user"\t"ad"\n1\t"u"\t"a"\n')
    with pytest.raises(ValueError, match=r"""a\.tsv: no column "click"\. .* Set quote = '"' in \[data\]"""):
        read(tmp_path, train="a.tsv")
    assert column(read(tmp_path, train="a.tsv", quote='"'), "user") == ["u"]


def test_one_column_because_of_another_delimiter_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    write(tmp_path, a_csv="click;user;ad\n1;u;a\n")
    with pytest.raises(ValueError, match=r'a\.csv: no column "click"\. .* Set delimiter in \[data\]'):
        read(tmp_path, train="a.csv")


@pytest.fixture
def bucket() -> Iterator[str]:
    """A bucket in memory."""
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/log/day=1/part-0.csv.gz", compress(f"{HEAD}1,u,a\n0,v,b\n".encode(), ".gz"))
    system.pipe("/bucket/log/day=2/part-0.csv", f"{HEAD}1,w,a\n0,x,\n".encode())
    system.pipe("/bucket/log/_SUCCESS", b"")
    yield "memory://bucket/log"
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize("pattern", ["", "/*/*", "/day=*/part-*.csv*"])
def test_urls_are_read_like_local_files(tmp_path: Path, bucket: str, pattern: str) -> None:
    log = read(tmp_path, train=bucket + pattern, context=("user",), candidate=("ad",))
    assert column(log, "user") == ["u", "v", "w", "x"]
    assert positions(log) == ["part-0.csv.gz:2", "part-0.csv.gz:3", "part-0.csv:2", "part-0.csv:3"]
    assert log.files[0].name == "memory:///bucket/log/day=1/part-0.csv.gz"
    assert column(read(tmp_path, files=(bucket + pattern,), context=("day",)), "day", "train")


def test_a_url_that_names_no_file_is_an_error(tmp_path: Path, bucket: str) -> None:
    with pytest.raises(ValueError, match=r"memory://bucket/log/none\.csv: no such file"):
        read(tmp_path, train=f"{bucket}/none.csv")
    with pytest.raises(ValueError, match=r"nowhere://a\.csv: .*nowhere"):
        read(tmp_path, train="nowhere://a.csv")


def test_without_fsspec_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ValueError, match=r"s3://b/a\.csv: .*pip install 'stec-ctr\[remote\]'"):
        read(tmp_path, train="s3://b/a.csv")


def test_a_protocol_whose_package_is_missing_is_an_error_that_names_the_extra(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"oci://b/a\.csv: .*pip install 'stec-ctr\[remote\]'"):
        read(tmp_path, train="oci://b/a.csv")
