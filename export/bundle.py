"""ctr-export: a run -> a bundle, checked before it appears."""

import copy
import shutil
import tempfile
from pathlib import Path

import msgspec
import onnx
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
    Calibration,
    CascadeRule,
    Manifest,
    write_manifest,
)
from contract.golden import write_golden
from contract.pairs import MOST_CANDIDATES
from contract.schema import FeatureSchema, write_schema
from contract.vocabulary import open_vocabulary
from export.cascade import calibrate, check_log
from export.golden import draw_golden, golden_inputs
from export.graphs.explain import ExplainGraph
from export.graphs.kernel import kernel_graph
from export.graphs.level import first_in_head
from export.graphs.pack import option_without_kernel
from export.graphs.plain import BaselineGraph, PlainGraph
from export.graphs.serving import ScreenGraph, ServingGraph
from export.graphs.share import ShareGraph
from export.onnx_file import save_together, to_onnx
from export.parity import check_parity, torch_ctr
from model.atomic_folder import check_replaceable, new_folder
from model.data.prepare.prepared import Prepared
from model.experiment_config import Experiment
from model.experiments.run_folder import RunMetrics, open_run
from model.stec.stec import STEC, STECConfig
from model.zoo import name_of


def export(run: Path, bundle: Path, prepared: Prepared | None = None) -> tuple[Manifest, float]:
    """Writes the bundle whole or not at all; returns its manifest and the largest difference from torch.

    prepared: the run's log; without it, or with a head that is an MLP or does not see the first level, the bundle has
    no cascade.

    Raises:
        ValueError: when `run` is no run, `prepared` is another log or too small, or `bundle` is something else.
        ParityError: when onnxruntime and torch disagree.
    """
    check_replaceable(bundle, MANIFEST)
    model, experiment, schema, metrics = open_run(run)
    if prepared is not None:
        check_log(prepared, run)
    calibration = Calibration.of_log(experiment.data.negative_rate)
    vocabularies = {f.name: open_vocabulary(run / VOCABULARY, f.name) for f in schema.select("categorical")}
    with new_folder(bundle, MANIFEST) as folder:
        write_schema(schema, folder / SCHEMA)
        shutil.copytree(run / VOCABULARY, folder / VOCABULARY)
        cascade = _write_graphs(model, schema, folder, prepared)
        golden = draw_golden(schema, vocabularies)
        inputs = list(golden_inputs(schema, vocabularies, golden))
        answers = torch_ctr(model, schema, inputs, calibration)
        # Everything that answers a request; SCREEN alone never does.
        graphs = [name for name in (MODEL, KERNEL, EXPLAIN) if (folder / name).exists()]
        difference = max(
            check_parity(folder / name, inputs, answers, calibration, _most_candidates(name, model)) for name in graphs
        )
        answered = [msgspec.structs.replace(g, ctr=ctr) for g, ctr in zip(golden, answers, strict=True)]
        write_golden(answered, folder / GOLDEN)
        size = experiment.model
        facts, attention = _facts(metrics, experiment), size.attention if isinstance(size, STECConfig) else "full"
        manifest = write_manifest(
            folder, experiment.name, metrics.parameters, facts, calibration, attention, cascade, name_of(size)
        )
    return manifest, difference


def scoring_graph(model: nn.Module, schema: FeatureSchema) -> nn.Module:
    """What MODEL computes, in the form that serves fastest of onnxruntime's own operators."""
    if not isinstance(model, STEC):
        return BaselineGraph(model, schema)
    if len(model.head) > 1:  # an MLP: nothing of it folds
        return PlainGraph(model, schema)
    return ServingGraph(model, schema)


def _write_graphs(
    model: nn.Module, schema: FeatureSchema, folder: Path, prepared: Prepared | None
) -> list[CascadeRule]:
    """MODEL and what else the model makes possible; over one file of weights."""
    graphs = {MODEL: to_onnx(scoring_graph(model, schema), schema)}
    if not isinstance(model, STEC):
        save_together(graphs | {EXPLAIN: to_onnx(ShareGraph(model, schema), schema, EXPLANATION)}, folder)
        return []
    if len(model.head) > 1:
        save_together(graphs, folder)
        return []
    graphs[EXPLAIN] = to_onnx(ExplainGraph(model, schema), schema, EXPLANATION)
    if kernel.is_usable() and not option_without_kernel(model):  # what cannot be checked here is not written
        graphs[KERNEL] = kernel_graph(model, schema)
    cascade: list[CascadeRule] = []
    if prepared is not None and first_in_head(model) == 0:
        screen = to_onnx(ScreenGraph(model, schema), schema)
        cascade = _calibrated({MODEL: graphs[MODEL], SCREEN: screen}, prepared)
        if cascade:  # without what nobody would use
            graphs[SCREEN] = screen
    save_together(graphs, folder)
    return cascade


def _calibrated(graphs: dict[str, onnx.ModelProto], prepared: Prepared) -> list[CascadeRule]:
    with tempfile.TemporaryDirectory() as folder:
        save_together(copy.deepcopy(graphs), Path(folder))
        return calibrate(Path(folder), prepared)


def _most_candidates(graph: str, model: nn.Module) -> int | None:
    return MOST_CANDIDATES if graph == EXPLAIN and not isinstance(model, STEC) else None


def _facts(metrics: RunMetrics, experiment: Experiment) -> dict[str, float]:
    return {
        "valid_auc": metrics.valid.auc,
        "valid_logloss": metrics.valid.logloss,
        "test_auc": metrics.test.auc,
        "test_logloss": metrics.test.logloss,
        "seed": experiment.training.seed,
    }


def missing_parts(manifest: Manifest, model: nn.Module, prepared: Prepared | None) -> list[str]:
    """Why each part that a bundle can have is not in this one."""
    if not isinstance(model, STEC):
        return [
            f"{type(model).__name__} has no kernel and no cascade; its explanation is each field's share of the logit"
        ]
    if EXPLAIN not in manifest.files:
        return ["an MLP head does not fold: no kernel, no explanation, no cascade"]
    missing = []
    if option := option_without_kernel(model):
        missing.append(f"no {KERNEL}, for it cannot compute {option}: onnxruntime's own operators score, more slowly")
    elif KERNEL not in manifest.files:
        why = "scoring will be slower: install the project again where a C++20 compiler is, and export again"
        missing.append(f"no {KERNEL}, for the kernel cannot be used here; {why}")
    if first_in_head(model):
        missing.append('no cascade, for with fusion = "last" the head does not see the first level')
    elif prepared is not None and not manifest.cascade:
        why = "raise embedding_std or lower embedding_l2 if you want one (docs/decisions/0005)"
        missing.append(f"no cascade, for the first level rules next to nothing out; {why}")
    return missing
