"""The bundle: a folder with everything that scoring needs, and the digests that prove it whole."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from contract.schema import Attention, FeatureSchema, read_schema
from contract.vocabulary import Vocabulary, open_vocabulary

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
SCHEMA = "schema.json"
VOCABULARY = "vocabulary"
MODEL = "model.onnx"  # onnxruntime's own operators: runs everywhere
KERNEL = "kernel.onnx"  # the same in one operator of kernel/
EXPLAIN = "explain.onnx"
SCREEN = "screen.onnx"  # the first level alone, for the cascade
GOLDEN = "golden.jsonl"
OUTPUT = "logit"  # of every graph
EXPLANATION = (OUTPUT, "contribution", "attention", "bias")  # of EXPLAIN
MOST_FILES = 100_000
LARGEST_MANIFEST_BYTES = 16 * 1024 * 1024
MAKE_ONE = "Make a bundle with: ctr-export RUN BUNDLE"


class BundleError(ValueError):
    """A bundle that must not be served. The message names the file and the way out."""


STEC = "stec"


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """ctr = sigmoid(scale * logit + shift)."""

    scale: float = 1.0
    shift: float = 0.0

    @classmethod
    def of_log(cls, negative_rate: float) -> "Calibration":
        """Of a log that kept this share of its negatives: its odds are 1 / negative_rate too high."""
        return cls(shift=math.log(negative_rate))

    def ctr(self, logit: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities of logits of any shape, without overflow at either end."""
        x = self.scale * logit.astype(np.float64) + self.shift
        small = np.exp(-np.abs(x))
        return np.where(x >= 0, 1.0, small) / (1.0 + small)


class CascadeRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the first level alone may rule a candidate out of the best k: its logit there is more than `margin` below
    that of the k-th best there.

    recall: of the true best k, the share that the rule keeps; scored: the candidates that it keeps, of all. Both were
    measured on requests that the margin was not calibrated on, of `candidates` candidates each.
    """

    k: int
    margin: float
    recall: float
    scored: float
    candidates: int
    requests: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a bundle is, and the sha256 of each of its files.

    version: sha256 over the sorted (file, sha256) pairs. digest: sha256 over the rest of the
    manifest, so that a changed byte in here is found as well. cascade: by k, the smallest first; none where the
    bundle has no SCREEN. type: the model's, as model/zoo.py names it; a bundle of before there were others lacks it.
    attention: STEC's.
    """

    format_version: int
    name: str
    version: str
    created: str
    schema_fingerprint: str
    fields: int
    parameters: int
    metrics: dict[str, float]
    calibration: Calibration
    files: dict[str, str]
    attention: Attention = "full"
    cascade: tuple[CascadeRule, ...] = ()
    type: str | UnsetType = UNSET
    digest: str = ""

    @property
    def model(self) -> str:
        """The type, of any bundle."""
        return STEC if self.type is UNSET else self.type


@dataclass(frozen=True)
class Bundle:
    """An opened and verified bundle."""

    folder: Path
    manifest: Manifest
    schema: FeatureSchema
    vocabularies: Mapping[str, Vocabulary]


def write_manifest(
    folder: Path,
    name: str,
    parameters: int,
    metrics: Mapping[str, float],
    calibration: Calibration,
    attention: Attention = "full",
    cascade: Sequence[CascadeRule] = (),
    model: str = STEC,
) -> Manifest:
    """Seals a folder: writes the manifest over the files that lie there now."""
    files = {path: _sha256(folder / path) for path in _files(folder) if path != MANIFEST}
    schema = read_schema(folder / SCHEMA)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        version=_version(files),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        schema_fingerprint=schema.fingerprint(),
        fields=len(schema.fields),
        parameters=parameters,
        metrics=dict(metrics),
        calibration=calibration,
        files=files,
        attention=attention,
        cascade=tuple(cascade),
        type=model,
    )
    # As it will be read: an integer among the metrics comes back as a float.
    manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    sealed = msgspec.structs.replace(manifest, digest=_digest(manifest))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(sealed)) + b"\n")
    return sealed


def open_bundle(folder: Path, *, vocabulary: bool = True, verify: bool = True) -> Bundle:
    """Checks format version, every digest and the schema's fingerprint, then memory-maps the vocabulary.

    vocabulary: False where another place has it; its files may be missing then, and there are no `vocabularies`.
    verify: False where the digests of the files were checked just before.

    Raises:
        BundleError: when anything is missing, changed, unlisted, or a link.
    """
    try:
        folder = folder.resolve()
        files = _files(folder)  # before any is opened: opening a pipe would wait for ever
        manifest = _read_manifest(folder)
        _check_names(folder, files, manifest, vocabulary)
        if verify:
            _check_digests(folder, files, manifest)
        schema = read_schema(folder / SCHEMA)
        names = [f.name for f in schema.select("categorical")] if vocabulary else []
        vocabularies = {name: open_vocabulary(folder / VOCABULARY, name) for name in names}
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"{error.filename or folder}: {error.strerror}. {MAKE_ONE}") from error
    except (ValueError, RuntimeError) as error:  # RuntimeError: too deep, or pathlib's for a loop of links
        raise BundleError(f"bundle {folder}: {error}: export it again") from error
    if schema.fingerprint() != manifest.schema_fingerprint:
        raise BundleError(f"bundle {folder}: {SCHEMA} has another fingerprint than {MANIFEST} says: export it again")
    if len(schema.fields) != manifest.fields:
        counted = f"{SCHEMA} has {len(schema.fields)} fields, {MANIFEST} says {manifest.fields}"
        raise BundleError(f"bundle {folder}: {counted}: export it again")
    return Bundle(folder, manifest, schema, vocabularies)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    with path.open("rb") as file:
        raw = file.read(LARGEST_MANIFEST_BYTES + 1)
    if len(raw) > LARGEST_MANIFEST_BYTES:
        raise BundleError(f"{path}: larger than {LARGEST_MANIFEST_BYTES} bytes, no manifest is: export the run again")
    try:
        # The version comes first and alone: another format may have other keys.
        found = msgspec.json.decode(raw, type=dict[str, object]).get("format_version")
        if found != FORMAT_VERSION:
            raise BundleError(
                f"{path}: format version {found!r}, this server reads {FORMAT_VERSION}: "
                "export the run again with the version of ctr-export that you serve with"
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {error}: copy or export the bundle again") from error
    _check_numbers(path, manifest)
    if manifest.digest != _digest(manifest):
        raise BundleError(f"{path}: was changed after the export: copy or export the bundle again")
    return manifest


def _check_numbers(path: Path, manifest: Manifest) -> None:
    """What would make every probability wrong, or none."""
    scale, shift = manifest.calibration.scale, manifest.calibration.shift
    if not (math.isfinite(scale) and scale > 0 and math.isfinite(shift)):
        raise BundleError(f"{path}: the calibration has scale {scale} and shift {shift}: export the run again")
    for rule in manifest.cascade:
        if rule.k < 1 or not (math.isfinite(rule.margin) and rule.margin >= 0):
            raise BundleError(f"{path}: the cascade has k {rule.k} and margin {rule.margin}: export the run again")


def _check_names(folder: Path, files: list[str], manifest: Manifest, vocabulary: bool) -> None:
    for listed in manifest.files:
        # Only a name that is spelt in the one way that files are listed in can be compared with them.
        if (
            listed != PurePosixPath(listed).as_posix()
            or PurePosixPath(listed).is_absolute()
            or ".." in listed.split("/")
        ):
            raise BundleError(f"bundle {folder}: {listed!r} lies outside the bundle: export it again")
    present = set(files) - {MANIFEST}
    for unlisted in sorted(present - manifest.files.keys()):
        raise BundleError(f"bundle {folder}: {unlisted} is not in {MANIFEST}: remove it, or export the bundle again")
    for gone in sorted(manifest.files.keys() - present):
        if vocabulary or not gone.startswith(f"{VOCABULARY}/"):
            raise BundleError(f"bundle {folder}: {gone} is missing: copy or export the bundle again")
    if _version(manifest.files) != manifest.version:
        raise BundleError(f"bundle {folder}: the version in {MANIFEST} is not that of its files: export it again")


def _check_digests(folder: Path, files: list[str], manifest: Manifest) -> None:
    for path in files:
        if path != MANIFEST and _sha256(folder / path) != manifest.files[path]:
            raise BundleError(f"bundle {folder}: {path} was changed after the export: copy or export the bundle again")


def _files(folder: Path) -> list[str]:
    """Every file below the folder, as sorted relative POSIX paths. What is neither file nor folder is refused."""
    paths = sorted(islice(folder.rglob("*"), MOST_FILES + 1))
    if len(paths) > MOST_FILES:
        raise BundleError(
            f"bundle {folder}: has more than {MOST_FILES} files, no bundle has: is this the right folder?"
        )
    for path in paths:
        if path.is_symlink():
            raise BundleError(f"bundle {folder}: {path.relative_to(folder)} is a link: put the file itself there")
        if not path.is_file() and not path.is_dir():
            raise BundleError(f"bundle {folder}: {path.relative_to(folder)} is no regular file: remove it")
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(files: Mapping[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(sorted(files.items()))).hexdigest()


def _digest(manifest: Manifest) -> str:
    bare = msgspec.structs.replace(manifest, digest="")
    return hashlib.sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()
