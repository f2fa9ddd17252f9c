"""A bundle from an attacker who can write a matching manifest is either refused or harmless."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from contract.bundle import BundleError, CascadeRule, open_bundle, write_manifest
from contract.calibration import Calibration
from service.runtime.engine import open_engine
from tests.support.small_bundle import SHIFT


def seal(folder: Path) -> None:
    write_manifest(folder, "small", 1, {}, Calibration(shift=SHIFT))


def with_external_weights(folder: Path, location: str, offset: int = 0, length: int | None = None) -> None:
    """Make the graph read its user table from another file."""
    model = onnx.load(str(folder / "model.onnx"))
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "user_table")
    raw = table.raw_data
    (folder / "weights.bin").write_bytes(raw)
    (folder.parent / "outside.bin").write_bytes(raw)
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length or len(raw))):
        entry = table.external_data.add()
        entry.key, entry.value = key, str(value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    seal(folder)


def test_weights_inside_the_folder_are_read(own_bundle: Path) -> None:
    with_external_weights(own_bundle, "weights.bin")
    assert open_engine(open_bundle(own_bundle), threads=1).graph == "model.onnx"


@pytest.mark.parametrize(
    "location",
    ["../outside.bin", "{parent}/outside.bin", "x/../../outside.bin", "/dev/zero", "*/_ORT_MEM_ADDR_/*", "none.bin"],
)
def test_weights_outside_the_folder_are_never_read(own_bundle: Path, location: str) -> None:
    with_external_weights(own_bundle, location.format(parent=own_bundle.parent))
    with pytest.raises(BundleError, match="onnxruntime cannot open it"):
        open_engine(open_bundle(own_bundle), threads=1)


@pytest.mark.parametrize(("offset", "length"), [(64, None), (10**12, None), (0, 10**12)])
def test_weights_beyond_the_end_of_their_file_are_refused(own_bundle: Path, offset: int, length: int | None) -> None:
    with_external_weights(own_bundle, "weights.bin", offset, length)
    with pytest.raises(BundleError, match="onnxruntime cannot open it"):
        open_engine(open_bundle(own_bundle), threads=1)


def test_tensor_of_a_terabyte_is_refused_and_not_allocated(own_bundle: Path) -> None:
    model = onnx.load(str(own_bundle / "model.onnx"))
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "user_table")
    table.dims[0] = 2**40
    (own_bundle / "model.onnx").write_bytes(model.SerializeToString())
    seal(own_bundle)
    with pytest.raises(BundleError, match="onnxruntime cannot open it"):
        open_engine(open_bundle(own_bundle), threads=1)


def test_truncated_graph_and_unknown_operator_are_refused(own_bundle: Path) -> None:
    whole = (own_bundle / "model.onnx").read_bytes()
    model = onnx.load(str(own_bundle / "model.onnx"))
    model.graph.node[0].op_type = "Exfiltrate"
    for raw in (whole[: len(whole) // 2], model.SerializeToString()):
        (own_bundle / "model.onnx").write_bytes(raw)
        seal(own_bundle)
        with pytest.raises(BundleError, match="export the run again"):
            open_engine(open_bundle(own_bundle), threads=1)


def a_zip() -> bytes:
    """Return half a gigabyte of zeros, compressed to half a megabyte."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("ids.npy", "w") as file:
        for _ in range(512):
            file.write(bytes(1024 * 1024))
    return packed.getvalue()


def saved(array: np.ndarray, header: Callable[[bytes], bytes] = lambda raw: raw) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return header(file.getvalue())


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(a_zip, id="a zip bomb"),
        pytest.param(lambda: saved(np.zeros(3, "i4,f8")), id="records"),
        pytest.param(lambda: saved(np.zeros((40, 1), np.int32)), id="a matrix"),
        pytest.param(lambda: saved(np.zeros(40, np.int32), lambda r: r.replace(b"(40,)", b"(4e9)")), id="no shape"),
        pytest.param(lambda: saved(np.arange(40, dtype=np.int32) + 2)[:-9], id="truncated"),
        pytest.param(lambda: b"", id="empty"),
        pytest.param(lambda: b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, id="nested"),
    ],
)
def test_invalid_ids_are_refused_and_name_their_field(own_bundle: Path, raw: Callable[[], bytes]) -> None:
    (own_bundle / "vocabulary" / "user.ids.npy").write_bytes(raw())
    seal(own_bundle)
    with pytest.raises(BundleError, match="vocabulary of field 'user'"):
        open_bundle(own_bundle)


@pytest.mark.parametrize("length", [0, 10, 100])
def test_truncated_trie_is_refused_and_names_its_field(own_bundle: Path, length: int) -> None:
    path = own_bundle / "vocabulary" / "user.marisa"
    path.write_bytes(path.read_bytes()[:length])
    seal(own_bundle)
    with pytest.raises(BundleError, match="vocabulary of field 'user'"):
        open_bundle(own_bundle)


@pytest.mark.parametrize("calibration", [Calibration(scale=0.0), Calibration(scale=-1.0)])
def test_calibration_that_reverses_the_ranking_is_refused(own_bundle: Path, calibration: Calibration) -> None:
    write_manifest(own_bundle, "small", 1, {}, calibration)
    with pytest.raises(BundleError, match="the calibration has scale"):
        open_bundle(own_bundle)


def test_invalid_cascade_is_refused(own_bundle: Path) -> None:
    rule = CascadeRule(k=0, margin=1.0, recall=1.0, scored=0.5, candidates=100, requests=10)
    write_manifest(own_bundle, "small", 1, {}, Calibration(shift=SHIFT), cascade=[rule])
    with pytest.raises(BundleError, match="the cascade has k 0"):
        open_bundle(own_bundle)


def test_only_the_vocabulary_of_a_bundle_may_be_missing(own_bundle: Path) -> None:
    for path in (own_bundle / "vocabulary").iterdir():
        path.unlink()
    with pytest.raises(BundleError, match=r"vocabulary/.* is missing"):
        open_bundle(own_bundle)
    opened = open_bundle(own_bundle, vocabulary=False)
    assert opened.vocabularies == {}
    (own_bundle / "golden.jsonl").unlink()
    with pytest.raises(BundleError, match=r"golden.jsonl is missing"):
        open_bundle(own_bundle, vocabulary=False)


def test_bundle_that_was_just_verified_is_opened_without_reading_every_file(own_bundle: Path) -> None:
    path = own_bundle / "golden.jsonl"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(BundleError, match=r"golden.jsonl was changed"):
        open_bundle(own_bundle)
    assert open_bundle(own_bundle, verify=False).schema.fields
