"""The bundle: a folder with everything that scoring needs, including digests that show whether it has changed."""

import errno
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path, PurePosixPath

import msgspec
from msgspec import UNSET, UnsetType

from contract.calibration import CALIBRATION, Calibration, Calibrator, read_fitted
from contract.reference import REFERENCE, Reference, read_reference
from contract.schema import TIME_TRANSFORMS, Attention, FeatureSchema, read_schema
from contract.system_errors import HOW_TO_RAISE_LIMITS, OUT_OF_RESOURCES, explain_denied, may
from contract.vocabulary import Vocabulary, open_vocabulary

FORMAT_VERSIONS = (2, 3, 4, 5)  # The versions that this server reads. See format_version().
MANIFEST = "manifest.json"
SCHEMA = "schema.json"
VOCABULARY = "vocabulary"
MODEL = "model.onnx"  # uses onnxruntime's own operators and runs everywhere
KERNEL = "kernel.onnx"  # the same function as a single operator, which kernel/ implements
EXPLAIN = "explain.onnx"
SCREEN = "screen.onnx"  # the first level alone, for the cascade
GOLDEN = "golden.jsonl"
STEC = "stec"  # a model type
OUTPUT = "logit"  # an output of every graph
EXPLANATION = (OUTPUT, "contribution", "attention", "bias")  # the outputs of EXPLAIN
MAX_FILES = 100_000
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
HOW_TO_EXPORT = "Create a bundle with: ctr-export RUN BUNDLE"


class BundleError(ValueError):
    """The bundle cannot be served. The message names the file and says how to fix it."""


class OutOfResources(BundleError):
    """This process has too few file descriptors or too little memory to open the bundle. The bundle may be valid."""


class CascadeRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule that uses only the first level to exclude candidates that are not among the best k.

    It excludes a candidate whose first-level logit is more than `margin` below that of the k-th best candidate.

    Attributes:
        k: Number of best candidates.
        margin: Maximum distance below the first-level logit of the k-th best candidate.
        recall: Share of the true best k that the rule keeps.
        scored: Share of all candidates that the rule keeps.
        candidates: Number of candidates per request for which the margin was calibrated.
        requests: Number of requests on which `recall` and `scored` were measured. These requests differ from those on
            which the margin was calibrated.
    """

    k: int
    margin: float
    recall: float
    scored: float
    candidates: int
    requests: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Describes a bundle's content.

    Attributes:
        name: The experiment's name.
        version: SHA-256 over the sorted (file, SHA-256) pairs.
        created: When the bundle was exported, in UTC.
        schema_fingerprint: See FeatureSchema.fingerprint.
        fields: Number of fields in the schema.
        parameters: Number of the model's parameters.
        metrics: The metrics of the run that was exported.
        calibration: The first step of the calibration. Read both steps from Bundle.calibrator.
        files: The SHA-256 of each file.
        attention: What the context fields of a STEC attend to.
        cascade: The cascade rules in ascending order of k. Empty if the bundle has no SCREEN.
        type: The type of the model, as in model/zoo.py. Absent from older bundles, all of which contain a STEC.
        warnings: Why the model may not be worth serving. Absent if there are no warnings. Servers before version 0.9
            refuse a bundle with warnings.
        digest: SHA-256 over the rest of the manifest. It reveals changes to the manifest itself.
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
    warnings: tuple[str, ...] | UnsetType = UNSET
    digest: str = ""

    @property
    def model(self) -> str:
        """The type of the model, including for bundles without `type`."""
        return STEC if self.type is UNSET else self.type


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        folder: The bundle's folder.
        manifest: Its manifest.
        schema: The model's fields.
        vocabularies: One entry per categorical field, or empty if they were not opened.
        calibrator: Turns the logits of the bundle's graphs into probabilities.
        reference: The distributions of the run's log, or None if the bundle has none, like bundles before version 0.12.
    """

    folder: Path
    manifest: Manifest
    schema: FeatureSchema
    vocabularies: Mapping[str, Vocabulary]
    calibrator: Calibrator
    reference: Reference | None = None


def write_manifest(
    folder: Path,
    name: str,
    parameters: int,
    metrics: Mapping[str, float],
    calibration: Calibration,
    attention: Attention = "full",
    cascade: Sequence[CascadeRule] = (),
    model: str = STEC,
    warnings: Sequence[str] = (),
) -> Manifest:
    """Write and return a bundle's manifest, which contains the digests of all files now in the folder."""
    files = {path: _sha256(folder / path) for path in _files(folder) if path != MANIFEST}
    schema = read_schema(folder / SCHEMA)
    manifest = Manifest(
        format_version=format_version(schema, CALIBRATION in files),
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
        warnings=tuple(warnings) or UNSET,
    )
    # Decode the manifest as a reader does. Decoding turns integer metrics into floats.
    manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    sealed = msgspec.structs.replace(manifest, digest=_digest(manifest))
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(sealed)) + b"\n")
    return sealed


def format_version(schema: FeatureSchema, is_calibrated: bool = False) -> int:
    """Return the oldest version of the bundle format that supports all features of a bundle.

    Servers before 0.9 read only version 2. Version 3 adds timestamps, log1p, vectors for missing numbers, and the names
    in requests that fields are read from. Servers before 0.11 read versions 2 and 3. Version 4 adds pseudonyms.
    Servers before 0.12 read versions 2 to 4. Version 5 adds a fitted calibration. A server that does not support these
    would compute wrong probabilities.

    Args:
        schema: The bundle's schema.
        is_calibrated: Whether the bundle has a CALIBRATION.
    """
    if is_calibrated:
        return 5
    if any(field.pseudonym is not UNSET for field in schema.fields):
        return 4
    uses_version_3 = any(
        field.transform in ("log1p", *TIME_TRANSFORMS)
        or any(key is not UNSET for key in (field.source, field.timezone, field.missing_vector))
        for field in schema.fields
    )
    return 3 if uses_version_3 else 2


def open_bundle(folder: Path, *, vocabulary: bool = True, verify: bool = True) -> Bundle:
    """Verify a bundle and open it. The vocabulary is memory-mapped.

    Args:
        folder: The bundle's folder.
        vocabulary: False if the vocabulary comes from elsewhere. Its files may then be missing, and `vocabularies` is
            empty.
        verify: False if the digests of the files have just been checked.

    Raises:
        BundleError: The format is not supported, or a file is missing, changed, invalid, not in the manifest, or a
            link.
        OutOfResources: This process cannot open more files or allocate more memory.
    """
    try:
        folder = folder.resolve()
        files = _files(folder)  # Check before opening any file: opening a named pipe would block forever.
        manifest = _read_manifest(folder)
        _check_names(folder, files, manifest, vocabulary)
        if verify:
            _check_digests(folder, files, manifest)
        schema = read_schema(folder / SCHEMA)
        names = [f.name for f in schema.select("categorical")] if vocabulary else []
        vocabularies = {name: open_vocabulary(folder / VOCABULARY, name) for name in names}
        fitted = read_fitted(folder / CALIBRATION) if CALIBRATION in manifest.files else None
        calibrator = Calibrator(manifest.calibration, fitted, schema)
        reference = read_reference(folder, schema) if REFERENCE in manifest.files else None
    except BundleError:
        raise
    except PermissionError as error:
        raise BundleError(f"bundle {folder}: {explain_denied(Path(error.filename or folder))}") from error
    except OSError as error:
        raise unreadable(Path(error.filename or folder), error) from error
    except (ValueError, RuntimeError) as error:  # RuntimeError: JSON nested too deeply, or a symlink loop
        raise BundleError(f"bundle {folder}: {error}: export it again") from error
    if schema.fingerprint() != manifest.schema_fingerprint:
        raise BundleError(f"bundle {folder}: {SCHEMA} does not match its fingerprint in {MANIFEST}: export it again")
    if len(schema.fields) != manifest.fields:
        counted = f"{SCHEMA} has {len(schema.fields)} fields, but {MANIFEST} has {manifest.fields}"
        raise BundleError(f"bundle {folder}: {counted}: export it again")
    return Bundle(folder, manifest, schema, vocabularies, calibrator, reference)


def unreadable(path: Path, error: OSError) -> BundleError:
    """Return the BundleError for a file that cannot be read: OutOfResources if this process has reached a limit."""
    if error.errno in OUT_OF_RESOURCES:
        return OutOfResources(f"{path}: {error.strerror}. {HOW_TO_RAISE_LIMITS}")
    return BundleError(f"{path}: {error.strerror}. {HOW_TO_EXPORT}")


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    with path.open("rb") as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{path} is larger than {MAX_MANIFEST_BYTES} bytes, too large for a manifest: export the run again"
        )
    try:
        # The format version is decoded on its own first, because another format may have other keys.
        found = msgspec.json.decode(raw, type=dict[str, object]).get("format_version")
        if found not in FORMAT_VERSIONS:
            readable = f"{', '.join(map(str, FORMAT_VERSIONS[:-1]))} and {FORMAT_VERSIONS[-1]}"
            raise BundleError(
                f"{path}: format version is {found!r}, but this server reads {readable}: "
                "export the run again with the ctr-export of this server's version"
            )
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: {error}: copy or export the bundle again") from error
    _check_numbers(path, manifest)
    if manifest.digest != _digest(manifest):
        raise BundleError(f"{path} was changed after the export: copy or export the bundle again")
    return manifest


def _check_numbers(path: Path, manifest: Manifest) -> None:
    """Reject numbers that would make every probability wrong or NaN."""
    scale, shift = manifest.calibration.scale, manifest.calibration.shift
    if not (math.isfinite(scale) and scale > 0 and math.isfinite(shift)):
        raise BundleError(
            f"{path}: the calibration has scale {scale} and shift {shift}; expected finite numbers and a positive "
            "scale: export the run again"
        )
    for rule in manifest.cascade:
        if rule.k < 1 or not (math.isfinite(rule.margin) and rule.margin >= 0):
            raise BundleError(
                f"{path}: the cascade has k {rule.k} and margin {rule.margin}; expected a positive k and a finite "
                "margin of at least 0: export the run again"
            )


def _check_names(folder: Path, files: list[str], manifest: Manifest, vocabulary: bool) -> None:
    for listed in manifest.files:
        # These names are compared with the file names, so they must have the same canonical form.
        if (
            listed != PurePosixPath(listed).as_posix()
            or PurePosixPath(listed).is_absolute()
            or ".." in listed.split("/")
        ):
            raise BundleError(f"bundle {folder}: {listed!r} lies outside the bundle: export it again")
    present = set(files) - {MANIFEST}
    for unlisted in sorted(present - manifest.files.keys()):
        raise BundleError(f"bundle {folder}: {unlisted} is not in {MANIFEST}: remove it, or export the bundle again")
    for missing in sorted(manifest.files.keys() - present):
        if vocabulary or not missing.startswith(f"{VOCABULARY}/"):
            raise BundleError(f"bundle {folder}: {missing} is missing: copy or export the bundle again")
    if _version(manifest.files) != manifest.version:
        raise BundleError(f"bundle {folder}: the version in {MANIFEST} does not match its files: export it again")


def _check_digests(folder: Path, files: list[str], manifest: Manifest) -> None:
    for path in files:
        if path != MANIFEST and _sha256(folder / path) != manifest.files[path]:
            raise BundleError(f"bundle {folder}: {path} was changed after the export: copy or export the bundle again")


def _files(folder: Path) -> list[str]:
    """Return every file below the folder, as sorted relative POSIX paths. Links and special files are refused."""
    _check_listable(folder)
    paths = sorted(islice(folder.rglob("*"), MAX_FILES + 1))
    if len(paths) > MAX_FILES:
        raise BundleError(
            f"bundle {folder} has more than {MAX_FILES} files, too many for a bundle: check that the folder is right"
        )
    for path in paths:
        if path.is_symlink():
            raise BundleError(f"bundle {folder}: {path.relative_to(folder)} is a link: replace it with the file itself")
        if not path.is_file() and not path.is_dir():
            raise BundleError(f"bundle {folder}: {path.relative_to(folder)} is not a regular file: remove it")
        _check_listable(path)
    return [path.relative_to(folder).as_posix() for path in paths if path.is_file()]


def _check_listable(path: Path) -> None:
    """Raise PermissionError for a folder that cannot be read, which rglob() would silently leave out."""
    if path.is_dir() and not may(path, os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(files: Mapping[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(sorted(files.items()))).hexdigest()


def _digest(manifest: Manifest) -> str:
    bare = msgspec.structs.replace(manifest, digest="")
    return hashlib.sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()
