"""Schema: the fields, their order, and equal fingerprints for equal inputs."""

import hashlib
from pathlib import Path

import pytest

from contract.schema import FeatureSchema, Field, Kind, Transform, read_schema, write_schema

USER, AD = Field("user", "context"), Field("ad", "candidate")
BID = Field("bid", "candidate", "numeric", mean=2.5, std=0.5)


@pytest.mark.parametrize("name", ["user", "C1", "_x", "site.id", "os-version", "7days", "a" * 64])
def test_plain_name_is_accepted(name: str) -> None:
    assert Field(name, "context").name == name


@pytest.mark.parametrize("name", ["", "..", ".x", "-x", "a/b", "a b", "a\\b", "ü", "a{b}", "a:b", "a\n", "a" * 65])
def test_name_that_could_escape_its_folder_or_break_a_key_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="field name"):
        Field(name, "context")


def test_duplicate_name_is_refused_on_any_side() -> None:
    with pytest.raises(ValueError, match="field 'twice' appears twice"):
        FeatureSchema((Field("twice", "context"), Field("twice", "candidate")))


def test_each_side_needs_a_categorical_field() -> None:
    with pytest.raises(ValueError, match="no categorical candidate field"):
        FeatureSchema((USER, BID))
    with pytest.raises(ValueError, match="no categorical context field"):
        FeatureSchema((AD, BID))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_field_that_cannot_be_normalized_is_refused(mean: float, std: float) -> None:
    with pytest.raises(ValueError, match="field 'bid': mean"):
        Field("bid", "candidate", "numeric", mean=mean, std=std)


def test_fields_are_selected_in_schema_order() -> None:
    schema = FeatureSchema((AD, BID, USER))
    assert schema.select("categorical") == (AD, USER)
    assert schema.select("categorical", "context") == (USER,)
    assert schema.select("numeric", "candidate") == (BID,)
    assert schema.select("numeric", "context") == ()


def test_fingerprint_changes_with_anything_that_changes_the_input() -> None:
    schemas = [
        FeatureSchema((USER, AD, BID)),
        FeatureSchema((AD, USER, BID)),
        FeatureSchema((USER, AD)),
        FeatureSchema((USER, AD, Field("bid", "candidate", "numeric", mean=2.5, std=0.6))),
        FeatureSchema((USER, AD, Field("bid", "context", "numeric", mean=2.5, std=0.5))),
        FeatureSchema((USER, AD, Field("bid", "candidate"))),
        FeatureSchema((USER, AD, Field("bid", "candidate", "numeric", mean=2.5, std=0.5, seen=(0.0, 9.0)))),
    ]
    assert len({schema.fingerprint() for schema in schemas}) == len(schemas)


def test_schema_is_unchanged_after_writing_and_reading(tmp_path: Path) -> None:
    schema = FeatureSchema((USER, AD, BID))
    write_schema(schema, tmp_path / "schema.json")
    assert read_schema(tmp_path / "schema.json") == schema
    assert read_schema(tmp_path / "schema.json").fingerprint() == schema.fingerprint()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"fields": []}',
        '{"fields": [{"name": "../x", "side": "context"}]}',
        '{"fields": [{"name": "x", "side": "left"}]}',
        '{"fields": [{"name": "x", "side": "context", "kind": "numeric", "seen": [2, 1]}]}',
        '{"fields": [{"name": "x", "side": "context", "kind": "numeric", "seen": [1]}]}',
        '{"fields": [{"name": "x", "side": "context", "color": "red"}]}',
    ],
)
def test_error_for_a_file_that_is_not_a_schema_names_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(ValueError, match=r"schema\.json"):
        read_schema(tmp_path / "schema.json")


def test_field_without_optional_attributes_keeps_its_original_json() -> None:
    expected = (
        '{"fields":[{"name":"user","side":"context","kind":"categorical","mean":0.0,"std":1.0},'
        '{"name":"ad","side":"candidate","kind":"categorical","mean":0.0,"std":1.0}]}'
    )
    fingerprint = hashlib.sha256(expected.encode()).hexdigest()
    assert FeatureSchema((USER, AD)).fingerprint() == fingerprint
    assert FeatureSchema((USER, Field("ad", "candidate", missing=("-1",)))).fingerprint() != fingerprint
    assert FeatureSchema((USER, Field("ad", "candidate", transform="log_square"))).fingerprint() != fingerprint


@pytest.mark.parametrize(
    ("kind", "transform", "needs"),
    [
        ("numeric", "log_square", "categorical"),
        ("numeric", "hour", "categorical"),
        ("categorical", "log1p", "numeric"),
    ],
)
def test_transform_of_a_field_of_the_wrong_kind_is_refused(kind: Kind, transform: Transform, needs: str) -> None:
    with pytest.raises(ValueError, match=f'field \'bid\': transform = "{transform}" needs kind = "{needs}"'):
        Field("bid", "candidate", kind, transform=transform)


@pytest.mark.parametrize("zone", ["Europe/Istambul", "", "../etc/passwd", "/etc/localtime", "Europe", "x\0y"])
def test_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match=r"field 'hour': timezone .* is unknown.*IANA.*tzdata"):
        Field("hour", "context", transform="hour", timezone=zone)


def test_unknown_time_zone_in_a_file_is_refused_with_its_name(tmp_path: Path) -> None:
    schema = FeatureSchema((Field("hour", "context", transform="hour", timezone="Europe/Istanbul"), AD))
    write_schema(schema, tmp_path / "schema.json")
    assert read_schema(tmp_path / "schema.json") == schema
    text = (tmp_path / "schema.json").read_text().replace("Istanbul", "Istambul")
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(ValueError, match=r"schema\.json: .*Istambul"):
        read_schema(tmp_path / "schema.json")


def test_pseudonyms_are_only_for_categorical_fields_without_a_transform() -> None:
    with pytest.raises(ValueError, match=r"field 'bid': pseudonym = \"hmac\" is only .* kind = \"numeric\""):
        Field("bid", "candidate", "numeric", pseudonym="hmac")
    with pytest.raises(ValueError, match='this field has transform = "hour"'):
        Field("at", "context", transform="hour", pseudonym="hmac")


def test_no_other_field_reads_a_name_with_pseudonyms() -> None:
    secret = Field("user", "context", pseudonym="hmac")
    with pytest.raises(ValueError, match="'user' has pseudonyms of 'user', which 'copy' also reads"):
        FeatureSchema((secret, Field("copy", "candidate", source="user"), AD), "0")


def test_the_key_of_the_pseudonyms_belongs_to_a_schema_with_pseudonyms(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no field has pseudonyms"):
        FeatureSchema((USER, AD), "0")
    write_schema(FeatureSchema((Field("user", "context", pseudonym="hmac"), AD)), tmp_path / "schema.json")
    with pytest.raises(ValueError, match="a field has pseudonyms, but pseudonym_key is missing"):
        read_schema(tmp_path / "schema.json")
