"""Test ctr-train --warm: weights are copied by token, whatever ids the tokens have."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from contract.schema import FeatureSchema, Field, read_schema, write_schema
from contract.vocabulary import MISSING, UNKNOWN, Vocabulary, build_vocabulary, open_vocabulary
from model.cli.train import main
from model.data.prepare.prepare import prepare
from model.data.prepare.prepared import Prepared, read_prepared
from model.data.synthetic import generate
from model.experiment_config import Experiment, read_experiment, to_experiment
from model.experiments.run_check import METRICS
from model.experiments.run_folder import data_of, open_run, save_run
from model.experiments.settings import changed
from model.experiments.train import train
from model.experiments.trial import load_split
from model.experiments.warm import check_same_fields, moved_mean, open_warm_start, source_rows
from model.layers import FeatureEmbedding, fields_of
from model.training.batches import Split
from model.training.fit import predict
from model.zoo import MODELS, build
from tests.support.runs import TINY, TOML, trained_with, write_tiny

NEXT = "experiments/next.toml"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the prepared logs of two days, and a run on the first."""
    root = tmp_path_factory.mktemp("warm")
    write_tiny(root)
    rows = ["--rows", "4000", "500", "500", "--next-day", "4000", "500", "500", "--seed", "2"]
    assert generate.main(["--data", str(root), *rows]) == 0
    text = TOML.replace('folder = "generated"', 'folder = "generated-next-day"').replace('"prepared"', '"next"')
    (root / NEXT).write_text(text)
    prepare(root, read_experiment(root / TINY).data)
    prepare(root, read_experiment(root / NEXT).data)
    train(read_experiment(root / TINY), root, root / "run")
    return root


def tokens_of(vocabulary: Vocabulary) -> dict[str, int]:
    return dict(vocabulary.items())


def test_rows_are_copied_by_token_and_new_tokens_get_the_unknown_row() -> None:
    old, new = build_vocabulary(["a", "b", "c"]), build_vocabulary(["c", "new", "a"])
    rows = source_rows(old, new)
    ids = tokens_of(new)
    assert rows[UNKNOWN] == UNKNOWN
    assert rows[MISSING] == MISSING
    assert (rows[ids["a"]], rows[ids["c"]]) == (old("a"), old("c"))
    assert rows[ids["new"]] == UNKNOWN


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_every_model_predicts_the_same_for_the_same_tokens(kind: str, root: Path, tmp_path: Path) -> None:
    """A run on day 1 and its copy for day 2, whose tokens have different ids, give the same predictions."""
    base = read_experiment(root / TINY)
    experiment = msgspec.structs.replace(base, model=to_experiment(document(kind)).model)
    first, second = read_prepared(root / "prepared"), read_prepared(root / "next")
    torch.manual_seed(1)
    model = build(fields_of(first.schema, first.vocabulary_sizes), experiment.model)
    with torch.no_grad():  # the default embeddings are too small to matter
        for module in model.modules():
            if isinstance(module, FeatureEmbedding):
                module.table.weight.normal_(std=0.3)
                module.alpha.normal_(std=0.3)
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    metrics = open_run(root / "run")[3]
    save_run(tmp_path / "run", experiment, model, first.schema, first.vocabulary, metrics)
    warm = build(fields_of(second.schema, second.vocabulary_sizes), experiment.model)
    open_warm_start(tmp_path / "run", experiment, second).copy_to(warm)
    today = load_split(second, "valid")
    expected = predict(model, in_the_other_ids(today, second, first))
    assert expected.std() > 1e-4
    assert predict(warm, today) == pytest.approx(expected, abs=1e-6)


def document(kind: str) -> dict[str, object]:
    model: dict[str, object] = {"type": kind}
    if kind == "stec":
        model |= {"blocks": 1, "ffn": 8, "embedding": 8}
    model |= {key: [10] for key in ("mlp", "mlp2") if kind != "stec" and hasattr(MODELS[kind][0], key)}
    data = {"reader": "generated", "folder": "generated", "prepared": "prepared"}
    return {"name": "x", "data": data, "model": model}


def in_the_other_ids(split: Split, own: Prepared, other: Prepared) -> Split:
    """Return a split with the ids and the normalized numbers that a different log gives to the same raw values."""
    ids = np.empty_like(split.ids)
    for column, field in enumerate(own.schema.select("categorical")):
        vocabularies = [open_vocabulary(prepared.vocabulary, field.name) for prepared in (other, own)]
        ids[:, column] = source_rows(*vocabularies)[split.ids[:, column]]
    # The factor compensates for the deviations, but not for the means.
    scale = [b.std / a.std for a, b in zip(other.schema.select("numeric"), own.schema.select("numeric"), strict=True)]
    values = (split.values * np.array(scale)).astype(np.float32)
    return Split(ids, values, split.labels)


def test_the_command_trains_from_the_run_and_records_it(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = [str(root / NEXT), "--data", str(root), "--out", str(out)]
    assert main([*command, "--warm", str(root / "run")]) == 0
    warm = data_of(out).warm  # type: ignore[union-attr]
    assert warm is not None
    assert 0 < warm.new_tokens < warm.tokens
    vocabularies = [read_prepared(root / name).vocabulary_sizes for name in ("prepared", "next")]
    before, after = (sum(sizes) - 2 * len(sizes) for sizes in vocabularies)
    assert warm.tokens == after
    assert before - warm.lost_tokens == after - warm.new_tokens
    message = (
        f"{warm.new_tokens:,} of {warm.tokens:,} tokens are new; {warm.lost_tokens:,} tokens of the run are not in"
    )
    assert message in capsys.readouterr().out
    again = tmp_path / "again"
    shutil.copytree(out, again)
    assert main([*command[:-1], str(again), "--warm", str(again)]) == 0  # a run can be replaced by its own successor
    assert data_of(again).warm.run != warm.run  # type: ignore[union-attr]
    assert open_run(again)[3].valid.logloss < json.loads((root / "run" / METRICS).read_text())["valid"]["logloss"] + 1


def test_a_warm_run_starts_where_the_earlier_one_ended(root: Path, tmp_path: Path) -> None:
    """With a learning rate of almost zero, the model on the same log stays equal to the earlier model."""
    experiment = trained_with(read_experiment(root / TINY), learning_rate=1e-12, epochs=1)
    metrics = train(experiment, root, tmp_path / "run", warm=root / "run")
    assert metrics.valid.logloss == pytest.approx(open_run(root / "run")[3].valid.logloss, abs=1e-3)
    cold = train(experiment, root, tmp_path / "cold")
    assert abs(cold.valid.logloss - metrics.valid.logloss) > 1e-3


def test_a_warm_run_whose_epochs_are_all_worse_keeps_the_earlier_weights(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = trained_with(
        read_experiment(root / TINY), learning_rate=3.0, epochs=2, embedding_l2=10.0, exact_statistics=False
    )
    metrics = train(experiment, root, tmp_path / "run", warm=root / "run")
    assert metrics.best_epoch == 0
    assert len(metrics.history) == 2
    assert not any(epoch.improved for epoch in metrics.history)
    assert metrics.valid.logloss < min(epoch.valid.logloss for epoch in metrics.history)
    earlier, kept = open_run(root / "run")[0], open_run(tmp_path / "run")[0]
    assert all(torch.equal(kept.state_dict()[name], tensor) for name, tensor in earlier.state_dict().items())
    assert "no epoch is better on valid than the weights" in capsys.readouterr().err


def test_another_share_of_kept_negatives_moves_the_logit(root: Path) -> None:
    """The probabilities of the true traffic stay the same: predict() corrects for negative_rate."""
    experiment, prepared = read_experiment(root / NEXT), read_prepared(root / "next")
    sampled = msgspec.structs.replace(experiment, data=msgspec.structs.replace(experiment.data, negative_rate=0.5))
    rows, predictions = load_split(prepared, "valid"), []
    for other, rate in ((experiment, 1.0), (sampled, 0.5)):
        model = build(fields_of(prepared.schema, prepared.vocabulary_sizes), other.model)
        open_warm_start(root / "run", other, prepared).copy_to(model)
        predictions.append(predict(model, replace(rows, negative_rate=rate)))
    assert predictions[0] == pytest.approx(predictions[1], rel=1e-5)


@pytest.mark.parametrize("has_vector", ["earlier", "new"])
def test_a_vector_of_missing_numbers_in_only_one_of_the_models_is_dropped_or_zero(root: Path, has_vector: str) -> None:
    experiment, prepared = read_experiment(root / NEXT), read_prepared(root / "next")
    start = open_warm_start(root / "run", experiment, prepared)
    model = build(fields_of(prepared.schema, prepared.vocabulary_sizes), experiment.model)
    models = {"earlier": start.model, "new": model}
    models[has_vector].embedding.beta = torch.nn.Parameter(torch.ones(2, 8))  # type: ignore[union-attr]
    start.copy_to(model)
    beta = model.state_dict().get("embedding.beta")
    assert (beta is None) if has_vector == "earlier" else (beta is not None and not beta.any())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("embedding", 16, "model.embedding is 8 in the run and 16 in the experiment"),
        ("heads", 4, "model.heads is 2 in the run and 4 in the experiment"),
        ("attention", "request", "model.attention is full in the run and request in the experiment"),
    ],
)
def test_a_model_of_another_size_is_rejected(root: Path, key: str, value: object, message: str) -> None:
    experiment = changed(read_experiment(root / NEXT), key, value)
    with pytest.raises(ValueError, match=message):
        open_warm_start(root / "run", experiment, read_prepared(root / "next"))


def test_a_model_of_another_type_is_rejected_but_dropout_may_change(root: Path) -> None:
    experiment, prepared = read_experiment(root / NEXT), read_prepared(root / "next")
    other: Experiment = msgspec.structs.replace(experiment, model=to_experiment(document("fm")).model)
    with pytest.raises(ValueError, match=r'model.type is "stec" in the run and "fm" in the experiment.*without --warm'):
        open_warm_start(root / "run", other, prepared)
    assert open_warm_start(root / "run", changed(experiment, "dropout", 0.5), prepared).facts.tokens > 0


def test_a_log_with_other_fields_is_rejected(root: Path) -> None:
    schema = read_schema(root / "run" / "schema.json")
    fewer, swapped = FeatureSchema(schema.fields[1:]), FeatureSchema(schema.fields[::-1])
    first = msgspec.structs.replace(schema.fields[0], side="candidate")
    moved = FeatureSchema((first, *schema.fields[1:]))
    hour = Field("shown_hour", "context", transform="hour", source="at")
    fields = [
        msgspec.structs.replace(hour, **change)
        for change in ({}, {"timezone": "Europe/Istanbul"}, {"source": "seen_at"}, {"timezone": "UTC"})
    ]
    here, there, elsewhere, utc = (FeatureSchema((*schema.fields, field)) for field in fields)
    check_same_fields(root / "run", here, utc)
    for old, new, message in [
        (schema, fewer, 'field "user" is in the run but not in the log'),
        (fewer, schema, 'field "user" is in the log but not in the run'),
        (schema, swapped, "the fields are in the order user, age_band"),
        (schema, moved, 'field "user" is context categorical in the run and candidate categorical in the log'),
        (here, there, "context categorical with hour in UTC from at in the run and .* in Europe/Istanbul from at in"),
        (here, elsewhere, "with hour in UTC from at in the run and .* in UTC from seen_at in the log"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_same_fields(root / "run", old, new)


def test_a_mean_that_moved_is_a_warning(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = Field("bid", "candidate", "numeric", mean=2.0, std=4.0)
    assert moved_mean(old, msgspec.structs.replace(old, mean=2.4, std=9.0)) is None
    expected = r'the mean of field "bid" has moved by -0\.25 standard deviations, from 2 to 1\.'
    assert re.match(expected, moved_mean(old, msgspec.structs.replace(old, mean=1.0)) or "")
    logarithm = msgspec.structs.replace(old, transform="log1p")
    assert "the mean of its logarithm" in (moved_mean(logarithm, msgspec.structs.replace(logarithm, mean=9.0)) or "")
    schema = read_schema(root / "next" / "schema.json")
    fields = [msgspec.structs.replace(f, mean=f.mean + f.std) if f.name == "bid" else f for f in schema.fields]
    shutil.copytree(root, tmp_path / "root")
    write_schema(FeatureSchema(tuple(fields)), tmp_path / "root" / "next" / "schema.json")
    command = [str(root / NEXT), "--data", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
    assert main([*command, "--warm", str(root / "run")]) == 0
    assert 'ctr-train: warning: the mean of field "bid" has moved by +1' in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_rejected(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(root / NEXT), "--data", str(root), "--out", str(root / "new"), "--warm", str(root / "prepared")]
    assert main(command) == 2
    assert "is not a run" in capsys.readouterr().err
    assert not (root / "new").exists()
