"""Exporting a run to a bundle. The bundle is checked before it is moved into place."""

import copy
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
from torch import nn

import kernel
from contract.bundle import (
    EXPLAIN,
    EXPLANATION,
    GOLDEN,
    KERNEL,
    MANIFEST,
    MODEL,
    SCHEMA,
    SCREEN,
    VOCABULARY,
    CascadeRule,
    Manifest,
    write_manifest,
)
from contract.calibration import CALIBRATION, Calibrator, encode_fitted
from contract.golden import write_golden
from contract.pairs import MAX_CANDIDATES
from contract.reference import REFERENCE, Reference
from contract.schema import FeatureSchema, write_schema
from contract.vocabulary import Vocabulary, open_vocabulary
from export.cascade import CANDIDATES, calibrate, is_large_enough
from export.golden import draw_golden, golden_inputs
from export.graphs.embedding import exact_copy
from export.graphs.explain import ExplainGraph
from export.graphs.kernel import kernel_graph
from export.graphs.level import first_in_head, has_linear_head
from export.graphs.pack import option_without_kernel
from export.graphs.plain import BaselineGraph, PlainGraph
from export.graphs.serving import ScreenGraph, ServingGraph
from export.graphs.share import ShareGraph
from export.logged_reference import measure_logged
from export.onnx_file import save_together, to_onnx
from export.parity import check_parity, torch_ctr
from export.reference import MIN_REQUESTS, measure_reference
from export.request_sample import RequestSample
from export.run_calibrator import open_calibrator
from model.atomic_folder import check_replaceable, new_folder
from model.data.prepare.prepared import Prepared
from model.experiments.run_folder import check_log_of_run, open_run
from model.stec.stec import STEC, STECConfig
from model.training.metrics import Metrics
from model.zoo import name_of


def export(
    run: Path, bundle: Path, prepared: Prepared | None = None, sample: RequestSample | None = None
) -> tuple[Manifest, float]:
    """Write a bundle atomically, and return its manifest and the largest difference in probability from torch.

    Args:
        run: The run folder.
        bundle: The folder to write.
        prepared: The run's log, on which the cascade is calibrated and the reference is measured. If it is None or
            too small, the bundle has no cascade or no reference. A model whose head is an MLP or does not use the
            first level cannot have a cascade either.
        sample: Logged requests, on which the reference is measured instead, or None.

    Raises:
        ValueError: If `run` is not a run, if its calibration.json is invalid or was fitted for another model, if
            `prepared` is a different log, or if `bundle` exists and is not a bundle.
        ParityError: If the results of onnxruntime and torch differ too much.
    """
    check_replaceable(bundle, MANIFEST)
    model, experiment, schema, metrics = open_run(run)
    if prepared is not None:
        check_log_of_run(run, prepared)
    config = experiment.model
    calibrator = open_calibrator(run, experiment, schema)
    vocabularies = {f.name: open_vocabulary(run / VOCABULARY, f.name) for f in schema.select("categorical")}
    with new_folder(bundle, MANIFEST) as folder:
        write_schema(schema, folder / SCHEMA)
        shutil.copytree(run / VOCABULARY, folder / VOCABULARY)
        if calibrator.fitted is not None:
            (folder / CALIBRATION).write_bytes(encode_fitted(calibrator.fitted))
        cascade = write_graphs(model, schema, folder, prepared)
        if sample is not None:
            write_reference(folder, logged_reference(folder, sample, schema, vocabularies, calibrator))
        elif prepared is not None:
            write_reference(folder, measure_reference(folder, prepared, calibrator))
        golden = draw_golden(schema, vocabularies)
        inputs = list(golden_inputs(schema, vocabularies, golden))
        answers = torch_ctr(model, schema, inputs, calibrator)
        difference = 0.0
        for name in (MODEL, KERNEL, EXPLAIN):  # all graphs whose output can be a response, which excludes SCREEN
            if (folder / name).exists():
                max_candidates = MAX_CANDIDATES if name == EXPLAIN and not isinstance(model, STEC) else None
                largest = check_parity(folder / name, inputs, answers, calibrator, max_candidates)
                difference = max(difference, largest)
        answered = [msgspec.structs.replace(g, ctr=ctr) for g, ctr in zip(golden, answers, strict=True)]
        write_golden(answered, folder / GOLDEN)
        facts = {**metrics_of("valid", metrics.valid), **metrics_of("test", metrics.test)}
        facts["seed"] = experiment.training.seed
        attention = config.attention if isinstance(config, STECConfig) else "full"
        manifest = write_manifest(
            folder,
            experiment.name,
            metrics.parameters,
            facts,
            calibrator.correction,
            attention,
            cascade,
            name_of(config),
            metrics.warnings,
        )
    return manifest, difference


def logged_reference(
    folder: Path,
    sample: RequestSample,
    schema: FeatureSchema,
    vocabularies: Mapping[str, Vocabulary],
    calibrator: Calibrator,
) -> Reference | None:
    """Return the reference of logged requests, or None if it cannot be measured. Then `sample.problem` says why."""
    if sample.problem is not None:
        return None
    reference = measure_logged(folder, sample.lines, schema, vocabularies, calibrator)
    if reference is None:
        sample.problem = f"fewer than {MIN_REQUESTS} requests of {sample} have valid values for the model's fields"
    return reference


def write_reference(folder: Path, reference: Reference | None) -> None:
    """Write REFERENCE to a bundle, if there is one."""
    if reference is not None:
        (folder / REFERENCE).write_bytes(msgspec.json.format(msgspec.json.encode(reference)) + b"\n")


def metrics_of(split: str, metrics: Metrics) -> dict[str, float]:
    """Return a split's metrics for the manifest, without those that an older run did not measure."""
    measured = {
        "auc": metrics.auc,
        "logloss": metrics.logloss,
        "base_logloss": metrics.base_logloss,
        "normalized_entropy": metrics.normalized_entropy,
        "gauc": metrics.gauc,
        "ndcg": metrics.ndcg,
    }
    return {f"{split}_{name}": value for name, value in measured.items() if value is not None}


def scoring_graph(model: nn.Module, schema: FeatureSchema) -> nn.Module:
    """Return the graph for MODEL, in the form that is fastest with onnxruntime's own operators."""
    if not isinstance(model, STEC):
        return BaselineGraph(model, schema)
    if has_linear_head(model):
        return ServingGraph(model, schema)
    # Without a norm, a large table would be copied for nothing.
    return PlainGraph(model if model.embedding_norm is None else exact_copy(model).float(), schema)


def write_graphs(model: nn.Module, schema: FeatureSchema, folder: Path, prepared: Prepared | None) -> list[CascadeRule]:
    """Write MODEL and the other graphs that the model supports, with one file of weights. Return the cascade."""
    graphs = {MODEL: to_onnx(scoring_graph(model, schema), schema)}
    cascade: list[CascadeRule] = []
    if has_linear_head(model):
        graphs[EXPLAIN] = to_onnx(ExplainGraph(model, schema), schema, EXPLANATION)
        # If the kernel cannot run on this machine, its graph cannot be checked, so it is not written.
        if kernel.is_usable() and not option_without_kernel(model):
            graphs[KERNEL] = kernel_graph(model, schema)
        if prepared is not None and is_large_enough(prepared) and first_in_head(model) == 0:
            screen = to_onnx(ScreenGraph(model, schema), schema)
            with tempfile.TemporaryDirectory() as scratch:
                save_together(copy.deepcopy({MODEL: graphs[MODEL], SCREEN: screen}), Path(scratch))
                cascade = calibrate(Path(scratch), prepared)
            if cascade:
                graphs[SCREEN] = screen
    elif not isinstance(model, STEC):
        graphs[EXPLAIN] = to_onnx(ShareGraph(model, schema), schema, EXPLANATION)
    save_together(graphs, folder)
    return cascade


def missing_parts(
    manifest: Manifest, model: nn.Module, prepared: Prepared | None, sample: RequestSample | None = None
) -> list[str]:
    """Return a message for each optional part that this bundle does not have, if the reason is not the missing log."""
    messages = []
    if REFERENCE not in manifest.files and (sample is not None or prepared is not None):
        reason = f"valid has fewer than {MIN_REQUESTS} requests" if sample is None else sample.problem
        messages.append(f"no {REFERENCE}, because {reason}. The server cannot detect drift.")
    if not isinstance(model, STEC):
        share = "Its explanation is each field's share of the logit."
        return [*messages, f"{type(model).__name__} has no kernel and no cascade. {share}"]
    if EXPLAIN not in manifest.files:
        return [*messages, "no kernel, no explanation and no cascade, because an MLP head cannot be folded"]
    if option := option_without_kernel(model):
        messages.append(
            f"no {KERNEL}, because the kernel does not support {option}. onnxruntime's own, slower operators are used."
        )
    elif KERNEL not in manifest.files:
        messages.append(
            f"no {KERNEL}, because the kernel cannot be used on this machine. Scoring will be slower. Install the "
            "project again with a C++20 compiler, and export again."
        )
    if first_in_head(model):
        messages.append('no cascade, because with fusion = "last" the head does not use the first level')
    elif prepared is not None and not is_large_enough(prepared):
        messages.append(f"no cascade, because valid or test has at most {CANDIDATES} rows. Use a larger log.")
    elif prepared is not None and not manifest.cascade:
        messages.append(
            "no cascade, because the first level rules out too few candidates. It ranks them better with "
            "level_eps_relative or embedding_norm, larger embedding_std or lower embedding_l2 (docs/decisions/0005)."
        )
    return messages
