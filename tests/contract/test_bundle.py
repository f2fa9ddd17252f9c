"""Bundles: whatever was changed on the way is found before it is served."""

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from contract.bundle import MANIFEST, BundleError, Calibration, open_bundle, write_manifest
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


def test_a_sealed_bundle_opens(sealed: Path) -> None:
    opened = open_bundle(sealed)
    assert opened.schema == SCHEMA
    assert opened.manifest.calibration == Calibration(1.0, -0.5)
    assert (opened.manifest.fields, opened.manifest.parameters) == (3, 12)
    assert opened.vocabularies["ad"]("ad-2") == 3


def test_the_version_is_that_of_the_files_and_not_of_the_day(bundle: Path) -> None:
    first = open_bundle(bundle).manifest
    again = write_manifest(bundle, "another name", 12, {}, Calibration())
    assert again.version == first.version
    (bundle / "model.onnx").write_bytes(b"another graph")
    assert write_manifest(bundle, "demo", 12, {}, Calibration()).version != first.version


def test_one_changed_byte_in_any_file_is_found(bundle: Path) -> None:
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
def test_a_file_that_was_cut_off_is_found(bundle: Path, cut: int) -> None:
    for path in [p for p in bundle.rglob("*") if p.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(whole[: min(cut, len(whole) - 1)])
        with pytest.raises(BundleError, match=path.name):
            open_bundle(bundle)
        path.write_bytes(whole)


def edit(bundle: Path, **changes: object) -> None:
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes())
    (bundle / MANIFEST).write_bytes(msgspec.json.encode(manifest | changes))


def test_another_format_is_named_before_anything_else_is_read(bundle: Path) -> None:
    (bundle / MANIFEST).write_text('{"format_version": 9, "something": "new"}')
    with pytest.raises(BundleError, match="format version 9, this server reads 2"):
        open_bundle(bundle)


@pytest.mark.parametrize("change", [{"name": "other"}, {"metrics": {"test_auc": 0.99}}, {"calibration": {"scale": 2}}])
def test_an_edited_manifest_is_refused(bundle: Path, change: dict[str, object]) -> None:
    edit(bundle, **change)
    with pytest.raises(BundleError, match="was changed after the export"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'{"format_version": 1}', b"\xff\xfe", b'"\xff"', b"[" * 10**5]
)
def test_a_broken_manifest_is_refused(bundle: Path, raw: bytes) -> None:
    (bundle / MANIFEST).write_bytes(raw)
    with pytest.raises(BundleError, match=MANIFEST):
        open_bundle(bundle)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="Make a bundle with: ctr-export"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="Make a bundle with: ctr-export"):
        open_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("gone", ["schema.json", "model.onnx", "vocabulary/ad.marisa"])
def test_a_missing_file_is_named(bundle: Path, gone: str) -> None:
    (bundle / gone).unlink()
    with pytest.raises(BundleError, match=f"{gone} is missing"):
        open_bundle(bundle)


def test_a_file_that_the_manifest_does_not_list_is_refused(bundle: Path) -> None:
    (bundle / "vocabulary" / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"vocabulary/extra\.bin is not in manifest\.json"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "vocabulary", MANIFEST])
def test_a_link_is_refused_even_to_the_right_content(bundle: Path, name: str) -> None:
    moved = bundle.parent / "elsewhere"
    (bundle / name).rename(moved)
    (bundle / name).symlink_to(moved)
    with pytest.raises(BundleError, match=f"{name} is a link"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["model.onnx", MANIFEST, "extra"])
def test_a_pipe_is_refused_and_never_opened(bundle: Path, name: str) -> None:
    (bundle / name).unlink(missing_ok=True)
    os.mkfifo(bundle / name)
    with pytest.raises(BundleError, match=f"{name} is no regular file"):
        open_bundle(bundle)


def test_a_manifest_is_read_no_further_than_16_mib(bundle: Path) -> None:
    with (bundle / MANIFEST).open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(BundleError, match="larger than 16777216 bytes"):
        open_bundle(bundle)


def test_a_link_to_itself_says_how_to_make_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BundleError, match=r"loop.*export"):
        open_bundle(tmp_path / "loop")


def test_a_folder_in_the_place_of_the_schema_is_a_sentence(bundle: Path) -> None:
    (bundle / "schema.json").unlink()
    (bundle / "schema.json").mkdir()
    with pytest.raises(BundleError, match=r"schema\.json is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("outside", ["../secret", "/etc/hostname", "vocabulary/../../secret"])
def test_a_file_outside_the_folder_is_refused_even_by_a_sealed_manifest(bundle: Path, outside: str) -> None:
    (bundle.parent / "secret").write_bytes(b"x")
    reseal(bundle, outside)
    with pytest.raises(BundleError, match="lies outside the bundle"):
        open_bundle(bundle)


def reseal(bundle: Path, listed: str | None = None, **changes: object) -> None:
    """An attacker's manifest: lists one more file, or lies, and has a right digest of its own."""
    import contract.bundle as module

    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=module.Manifest)
    if listed is not None:
        changes["files"] = manifest.files | {listed: "0" * 64}
    manifest = msgspec.structs.replace(manifest, **changes)
    manifest = msgspec.structs.replace(manifest, digest=module._digest(manifest))
    (bundle / MANIFEST).write_bytes(msgspec.json.encode(manifest))


def test_a_vocabulary_that_fits_no_field_of_the_schema_is_refused(bundle: Path) -> None:
    write_schema(FeatureSchema((*SCHEMA.fields, Field("site", "context"))), bundle / "schema.json")
    write_manifest(bundle, "demo", 12, {}, Calibration())
    with pytest.raises(BundleError, match="vocabulary of field 'site'"):
        open_bundle(bundle)


@pytest.mark.parametrize("spelt", ["./schema.json", "vocabulary//user.marisa", "vocabulary/./user.marisa"])
def test_a_listed_name_has_one_spelling(bundle: Path, spelt: str) -> None:
    reseal(bundle, spelt)
    with pytest.raises(BundleError, match="lies outside the bundle"):
        open_bundle(bundle)


def test_a_manifest_that_counts_other_fields_is_refused(bundle: Path) -> None:
    reseal(bundle, fields=4)
    with pytest.raises(BundleError, match=r"3 fields, manifest\.json says 4"):
        open_bundle(bundle)


def test_more_files_than_a_bundle_can_have_are_not_looked_at(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contract.bundle.MOST_FILES", 5)
    with pytest.raises(BundleError, match="more than 5 files"):
        open_bundle(bundle)
