"""Exporting a run: the export writes either a complete and verified bundle, or none."""

import math
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.torch import save_file

import kernel
from contract.bundle import EXPLAIN, GOLDEN, KERNEL, MANIFEST, MODEL, SCREEN, VOCABULARY, open_bundle
from contract.calibration import Calibration, Calibrator
from contract.encode import Encoder, join
from contract.golden import largest_difference, read_golden
from contract.vocabulary import open_vocabulary
from export.bundle import export, missing_parts
from export.golden import draw_golden, golden_inputs
from export.onnx_file import WEIGHTS
from export.parity import ParityError, check_parity, torch_ctr
from model.data.prepare.prepared import read_prepared
from model.experiments.run_folder import EXPERIMENT, open_run
from model.experiments.run_folder import WEIGHTS as RUN_WEIGHTS
from model.stec.stec import STECConfig, stec_for
from tests.support.runs import DATA, copy_to_change


def test_an_exported_run_is_a_complete_bundle(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    golden = read_golden(bundle_folder / GOLDEN)
    assert bundle.manifest.name == "small"
    assert bundle.manifest.fields == len(bundle.schema.fields)
    assert 0.5 < bundle.manifest.metrics["test_auc"] < 1
    assert len(golden) == 300
    assert {len(g.candidates) for g in golden} >= {1, 2}
    assert max(len(g.candidates) for g in golden) > 30


def test_a_tenth_of_the_golden_values_is_missing_and_a_tenth_unknown(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    golden = read_golden(bundle_folder / GOLDEN)
    ids = np.concatenate([i.candidate_ids for i in golden_inputs(bundle.schema, bundle.vocabularies, golden)])
    assert 0.08 < (ids == 0).mean() < 0.12
    assert 0.08 < (ids == 1).mean() < 0.12


@pytest.mark.numeric
def test_onnxruntime_gives_the_probabilities_of_the_golden_requests(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    golden = read_golden(bundle_folder / GOLDEN)
    session = onnxruntime.InferenceSession(str(bundle_folder / MODEL))
    encoder = Encoder(bundle.schema)
    for request in golden[:20]:
        tokens = encoder.tokens(request.context, [c.features for c in request.candidates])
        (logit,) = session.run(None, join([encoder.ids(tokens, bundle.vocabularies)[0]]))
        ctr = 1 / (1 + np.exp(-(logit.astype(np.float64) + math.log(0.5))))
        assert largest_difference(request.ctr, ctr.tolist()).is_tolerated


def test_the_calibration_corrects_for_a_log_that_kept_half_of_its_negatives(bundle_folder: Path) -> None:
    assert open_bundle(bundle_folder).manifest.calibration == Calibration(scale=1, shift=math.log(0.5))


def test_the_folded_graph_has_no_batch_norm_and_its_weights_are_in_a_separate_file(bundle_folder: Path) -> None:
    graph = onnx.load(bundle_folder / MODEL, load_external_data=False).graph
    assert not any("BatchNorm" in node.op_type for node in graph.node)
    assert (bundle_folder / WEIGHTS).stat().st_size > (bundle_folder / MODEL).stat().st_size
    assert [i.name for i in graph.input][:3] == ["context_ids", "candidate_ids", "request_index"]


def test_weights_outside_the_bundle_are_not_read(bundle_folder: Path, tmp_path: Path) -> None:
    """A known path traversal attack: external data outside the model's folder."""
    model = onnx.load(bundle_folder / MODEL, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"../{WEIGHTS}"
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / MODEL).write_bytes(model.SerializeToString())
    shutil.copyfile(bundle_folder / WEIGHTS, tmp_path / WEIGHTS)
    with pytest.raises(Exception, match=r"(?i)external|escap|outside|path"):
        onnxruntime.InferenceSession(str(inside / MODEL))


def test_exporting_again_replaces_the_bundle_and_gives_the_same_version(
    run_folder: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))
    (bundle / MODEL).write_bytes(b"of another run")
    manifest, _ = export(run_folder, bundle)
    assert manifest.version == open_bundle(bundle).manifest.version == open_bundle(bundle_folder).manifest.version


def test_a_folder_of_another_kind_is_not_replaced(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match=MANIFEST):
        export(run_folder, tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_no_bundle_is_written_without_parity(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.parity.TOLERANCE", 0.0)  # float32 cannot be this accurate.
    run = untrained(run_folder, tmp_path / "run", MLP)  # It has one graph, so its export is the fastest.
    with pytest.raises(ParityError, match="differs from torch by"):
        export(run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == [run]


def test_parity_detects_a_graph_with_different_weights(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    golden = read_golden(bundle_folder / GOLDEN)
    inputs = list(golden_inputs(bundle.schema, bundle.vocabularies, golden))
    shifted = [[c + 1e-3 for c in g.ctr] for g in golden]
    with pytest.raises(ParityError, match=r"model\.onnx, golden request 0"):
        check_parity(bundle_folder / MODEL, inputs, shifted, bundle.calibrator)


def test_parity_detects_a_relative_difference_if_clicks_are_rare(run_folder: Path, bundle_folder: Path) -> None:
    """The difference is 1% of a probability so small that it is below the absolute tolerance."""
    bundle = open_bundle(bundle_folder)
    inputs = list(golden_inputs(bundle.schema, bundle.vocabularies, read_golden(bundle_folder / GOLDEN)))
    rare = Calibrator(Calibration.of_log(1e-12), None, bundle.schema)
    model, _, schema, _ = open_run(run_folder)
    right = torch_ctr(model, schema, inputs, rare)
    check_parity(bundle_folder / MODEL, inputs, right, rare)
    with pytest.raises(ParityError, match="of its value, more than"):
        check_parity(bundle_folder / MODEL, inputs, [[c * 1.01 for c in answer] for answer in right], rare)


def untrained(run: Path, folder: Path, size: STECConfig) -> Path:
    """Copy a run, and replace its model with an untrained one of another size."""
    copy_to_change(run, folder)
    _, experiment, schema, _ = open_run(run)
    (folder / EXPERIMENT).write_bytes(msgspec.json.encode(msgspec.structs.replace(experiment, model=size)))
    sizes = [len(open_vocabulary(run / VOCABULARY, f.name)) for f in schema.select("categorical")]
    save_file(stec_for(schema, sizes, size).state_dict(), folder / RUN_WEIGHTS)
    return folder


NO_FFN = STECConfig(
    embedding=8, ffn=0, interaction="separate", pairs="upper_diag", attention="request", embedding_std=0.3
)
LAST = STECConfig(
    embedding=8,
    ffn=16,
    fusion="last",
    scale="mean",
    embedding_std=0.3,
    embedding_norm="rms",
    level_eps=0.0,
    level_eps_relative=0.01,
)
MLP = STECConfig(
    embedding=8,
    mlp=(8,),
    mlp_batch_norm=True,
    mlp_dropout=0.2,
    pairs="upper",
    fusion="add",
    embedding_std=0.3,
    embedding_norm="batch",
    layer_norm_eps=5.0,
    level_eps=1e-12,
)


@pytest.mark.parametrize(
    ("size", "files", "words"),
    [
        (MLP, {MODEL}, "no kernel, no explanation and no cascade, because an MLP head cannot be folded"),
        pytest.param(
            NO_FFN,
            {MODEL, EXPLAIN},
            'no kernel.onnx, because the kernel does not support interaction = "separate"',
            marks=pytest.mark.full,
        ),
        (
            LAST,
            {MODEL, EXPLAIN, KERNEL},
            'no cascade, because with fusion = "last" the head does not use the first level',
        ),
    ],
    ids=["mlp", "no ffn", "last"],
)
def test_models_are_exported_with_parity_and_missing_parts_are_reported(
    run_folder: Path, tmp_path: Path, size: STECConfig, files: set[str], words: str
) -> None:
    run = untrained(run_folder, tmp_path / "run", size)
    prepared = read_prepared(run_folder.parent / DATA.prepared) if size.fusion == "last" else None
    manifest, difference = export(run, tmp_path / "bundle", prepared)
    assert difference <= 1e-5
    assert open_bundle(tmp_path / "bundle").manifest.version == manifest.version
    possible = {MODEL, EXPLAIN, SCREEN} | ({KERNEL} if kernel.is_usable() else set())
    assert manifest.files.keys() & {*possible, KERNEL} == files & possible
    said = missing_parts(manifest, open_run(run)[0], prepared)
    assert any(sentence.startswith(words) for sentence in said)


def test_sampling_again_gives_the_same_golden_requests(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    drawn = draw_golden(bundle.schema, bundle.vocabularies)
    stored = read_golden(bundle_folder / GOLDEN)
    assert [(g.context, g.candidates) for g in drawn] == [(g.context, g.candidates) for g in stored]
