"""Bundles: any change after the export is detected before the bundle is served."""

import os
import resource
import shutil
from pathlib import Path

import msgspec
import pytest

from contract.bundle import MANIFEST, BundleError, OutOfResources, open_bundle, write_manifest
from contract.calibration import Calibration
from contract.golden import GoldenCandidate, GoldenRequest, write_golden
from contract.schema import FeatureSchema, Field, write_schema
from contract.vocabulary import build_vocabulary

SCHEMA = FeatureSchema((Field("user", "context"), Field("ad", "candidate"), Field("bid", "candidate", "numeric")))


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    write_schema(SCHEMA, folder / "schema.json")
    (folder / "vocabulary").mkdir()
    for name in ("user", "ad"):
        build_vocabulary([f"{name}-1", f"{name}-2"]).save(folder / "vocabulary", name)
    (folder / "model.onnx").write_bytes(b"graph")
    write_golden([GoldenRequest({"user": "u"}, [GoldenCandidate("1", {})], [0.5])], folder / "golden.jsonl")
    write_manifest(folder, "demo", 12, {"test_auc": 0.75}, Calibration(shift=-0.5))
    return folder


@pytest.fixture
def bundle(sealed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed, tmp_path / "bundle"))


def test_complete_bundle_opens(sealed: Path) -> None:
    opened = open_bundle(sealed)
    assert opened.schema == SCHEMA
    assert opened.manifest.calibration == Calibration(1.0, -0.5)
    assert (opened.manifest.fields, opened.manifest.parameters) == (3, 12)
    assert opened.vocabularies["ad"]("ad-2") == 3


def test_version_depends_only_on_the_files(bundle: Path) -> None:
    first = open_bundle(bundle).manifest
    again = write_manifest(bundle, "another name", 12, {}, Calibration())
    assert again.version == first.version
    (bundle / "model.onnx").write_bytes(b"another graph")
    assert write_manifest(bundle, "demo", 12, {}, Calibration()).version != first.version


def test_changed_byte_in_any_file_is_detected(bundle: Path) -> None:
    for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        places = range(len(whole)) if path.name == MANIFEST else range(0, len(whole), max(1, len(whole) // 20))
        for place in places:
            changed = bytearray(whole)
            changed[place] ^= 1
            path.write_bytes(changed)
            with pytest.raises(BundleError):
                open_bundle(bundle)
        path.write_bytes(whole)
    open_bundle(bundle)


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_truncated_file_is_detected(bundle: Path, cut: int) -> None:
    for path in [p for p in bundle.rglob("*") if p.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(whole[: min(cut, len(whole) - 1)])
        with pytest.raises(BundleError, match=path.name):
            open_bundle(bundle)
        path.write_bytes(whole)


def edit(bundle: Path, **changes: object) -> None:
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes())
    (bundle / MANIFEST).write_bytes(msgspec.json.encode(manifest | changes))


def test_unsupported_format_is_reported_before_anything_else_is_read(bundle: Path) -> None:
    (bundle / MANIFEST).write_text('{"format_version": 9, "something": "new"}')
    with pytest.raises(BundleError, match="format version is 9, but this server reads 2"):
        open_bundle(bundle)


@pytest.mark.parametrize("change", [{"name": "other"}, {"metrics": {"test_auc": 0.99}}, {"calibration": {"scale": 2}}])
def test_edited_manifest_is_refused(bundle: Path, change: dict[str, object]) -> None:
    edit(bundle, **change)
    with pytest.raises(BundleError, match="was changed after the export"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'{"format_version": 1}', b"\xff\xfe", b'"\xff"', b"[" * 10**5]
)
def test_invalid_manifest_is_refused(bundle: Path, raw: bytes) -> None:
    (bundle / MANIFEST).write_bytes(raw)
    with pytest.raises(BundleError, match=MANIFEST):
        open_bundle(bundle)


def test_missing_manifest_is_reported_with_the_export_command(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="Create a bundle with: ctr-export"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="Create a bundle with: ctr-export"):
        open_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("gone", ["schema.json", "model.onnx", "vocabulary/ad.marisa"])
def test_missing_file_is_named(bundle: Path, gone: str) -> None:
    (bundle / gone).unlink()
    with pytest.raises(BundleError, match=f"{gone} is missing"):
        open_bundle(bundle)


def test_file_that_is_not_in_the_manifest_is_refused(bundle: Path) -> None:
    (bundle / "vocabulary" / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"vocabulary/extra\.bin is not in manifest\.json"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "vocabulary", MANIFEST])
def test_link_is_refused_even_if_its_target_has_the_right_content(bundle: Path, name: str) -> None:
    moved = bundle.parent / "elsewhere"
    (bundle / name).rename(moved)
    (bundle / name).symlink_to(moved)
    with pytest.raises(BundleError, match=f"{name} is a link"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["model.onnx", MANIFEST, "extra"])
def test_named_pipe_is_refused_and_never_opened(bundle: Path, name: str) -> None:
    (bundle / name).unlink(missing_ok=True)
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match=f"{name} is not a regular file"):
        open_bundle(bundle)


def test_manifest_over_16_mib_is_refused(bundle: Path) -> None:
    with (bundle / MANIFEST).open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(BundleError, match="larger than 16777216 bytes"):
        open_bundle(bundle)


def test_link_to_itself_is_reported_with_the_export_command(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BundleError, match=r"loop.*export"):
        open_bundle(tmp_path / "loop")


def test_folder_in_place_of_the_schema_is_refused(bundle: Path) -> None:
    (bundle / "schema.json").unlink()
    (bundle / "schema.json").mkdir()
    with pytest.raises(BundleError, match=r"schema\.json is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("outside", ["../secret", "/etc/hostname", "vocabulary/../../secret"])
def test_file_outside_the_folder_is_refused_even_with_a_valid_manifest(bundle: Path, outside: str) -> None:
    (bundle.parent / "secret").write_bytes(b"x")
    reseal(bundle, outside)
    with pytest.raises(BundleError, match="lies outside the bundle"):
        open_bundle(bundle)


def reseal(bundle: Path, listed: str | None = None, **changes: object) -> None:
    """Write a manifest that lists an extra file or has wrong values, but has a valid digest, as an attacker could."""
    import contract.bundle as module

    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=module.Manifest)
    if listed is not None:
        changes["files"] = manifest.files | {listed: "0" * 64}
    manifest = msgspec.structs.replace(manifest, **changes)
    manifest = msgspec.structs.replace(manifest, digest=module._digest(manifest))
    (bundle / MANIFEST).write_bytes(msgspec.json.encode(manifest))


def test_missing_vocabulary_of_a_field_is_refused(bundle: Path) -> None:
    write_schema(FeatureSchema((*SCHEMA.fields, Field("site", "context"))), bundle / "schema.json")
    write_manifest(bundle, "demo", 12, {}, Calibration())
    with pytest.raises(BundleError, match="vocabulary of field 'site'"):
        open_bundle(bundle)


@pytest.mark.parametrize("spelled", ["./schema.json", "vocabulary//user.marisa", "vocabulary/./user.marisa"])
def test_listed_name_must_be_canonical(bundle: Path, spelled: str) -> None:
    reseal(bundle, spelled)
    with pytest.raises(BundleError, match="lies outside the bundle"):
        open_bundle(bundle)


def test_manifest_with_a_wrong_number_of_fields_is_refused(bundle: Path) -> None:
    reseal(bundle, fields=4)
    with pytest.raises(BundleError, match=r"3 fields, but manifest\.json has 4"):
        open_bundle(bundle)


def test_folder_with_too_many_files_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contract.bundle.MAX_FILES", 5)
    with pytest.raises(BundleError, match="more than 5 files"):
        open_bundle(bundle)


def test_the_manifest_of_a_bundle_without_warnings_has_no_key_that_older_servers_refuse(bundle: Path) -> None:
    assert b"warnings" not in (bundle / MANIFEST).read_bytes()
    write_manifest(bundle, "demo", 12, {}, Calibration(), warnings=["worse than the base rate"])
    assert open_bundle(bundle).manifest.warnings == ("worse than the base rate",)


@pytest.mark.parametrize(
    ("field", "version"),
    [
        (Field("bid", "candidate", "numeric", missing=("-1",), seen=(0.0, 1.0)), 2),
        (Field("count", "candidate", transform="log_square"), 2),
        (Field("hour", "context", source="clock"), 3),
        (Field("hour", "context", transform="hour"), 3),
        (Field("hour", "context", transform="weekday", timezone="UTC"), 3),
        (Field("bid", "candidate", "numeric", transform="log1p"), 3),
        (Field("bid", "candidate", "numeric", missing_vector=True), 3),
    ],
)
def test_format_version_is_the_oldest_that_has_all_features_of_the_schema(
    bundle: Path, field: Field, version: int
) -> None:
    schema = FeatureSchema((Field("user", "context"), Field("ad", "candidate"), field))
    write_schema(schema, bundle / "schema.json")
    if field.kind == "categorical":
        build_vocabulary(["1"]).save(bundle / "vocabulary", field.name)
    assert write_manifest(bundle, "demo", 12, {}, Calibration()).format_version == version
    assert open_bundle(bundle).schema == schema


def test_bundle_with_an_unknown_time_zone_is_refused(bundle: Path) -> None:
    hour = Field("hour", "context", transform="hour", timezone="Europe/Istanbul")
    write_schema(FeatureSchema((Field("user", "context"), Field("ad", "candidate"), hour)), bundle / "schema.json")
    build_vocabulary(["1"]).save(bundle / "vocabulary", "hour")
    write_manifest(bundle, "demo", 12, {}, Calibration())
    path = bundle / "schema.json"
    path.write_text(path.read_text().replace("Istanbul", "Istambul"))
    with pytest.raises(BundleError, match="Europe/Istambul' is unknown"):
        open_bundle(bundle, verify=False)


def test_too_little_memory_is_not_a_fault_of_the_bundle(bundle: Path) -> None:
    os.truncate(bundle / "vocabulary" / "user.marisa", 2**40)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**39, hard))
    try:
        with pytest.raises(OutOfResources, match=r"Cannot allocate memory\. Raise the limit of this process"):
            open_bundle(bundle, verify=False)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
