"""Properties that every model in the zoo has."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.experiment_config import read_experiment
from model.layers import FeatureEmbedding, embedding_parameters
from model.stec.stec import STEC
from model.training.flops import count_flops
from model.zoo import MODELS, Config, name_of
from tests.support.models import CASES, a_model, a_model_with_missing_vectors, batch, small
from tests.support.paths import EXPERIMENTS

# The parts that a dropout option applies to. Options that are not listed here apply to `mlp`.
DROPPED: dict[tuple[str, str], tuple[str, ...]] = {
    ("afn", "afn_dropout"): ("cross_mlp",),
    ("edcn", "dropout"): ("deeps",),
    ("masknet", "mlp_dropout"): ("blocks", "out"),
    ("finalmlp", "mlp2_dropout"): ("mlp2",),
    ("afm", "attention_dropout"): ("attention",),
    ("afm", "out_dropout"): ("out",),
    ("interhat", "dropout"): ("attention",),
    ("autoint", "dropout"): ("layers",),
    ("destine", "dropout"): ("layers",),
}
DROPOUTS = [
    (name, key)
    for name, (config, _) in MODELS.items()
    for key in config.__struct_fields__
    if key.endswith("dropout") and name != "stec"
]

of_every_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[" ".join([name, *map(str, options.items())]) for name, options in CASES]
)


def train_step(model: nn.Module, rows: int = 400) -> None:
    ids, values, labels = batch(rows)
    functional.binary_cross_entropy_with_logits(model.train()(ids, values), labels).backward()


@of_every_case
def test_a_model_has_no_tensor_on_another_device(name: str, options: dict[str, Any]) -> None:
    """The test also searches for CPU tensors, because the meta device, unlike a GPU, rejects them only in sums.

    STEC is tested in its plain form, because the factorized form uses autocast, which the meta device does not support.
    """
    model = a_model(name, **options).to("meta")
    left = [name for m in model.modules() for name, t in vars(m).items() if isinstance(t, Tensor) and not t.is_meta]
    assert left == []
    if isinstance(model, STEC):
        model.plain = True
    ids, values, _ = (tensor.to("meta") for tensor in batch(7))
    logits = model(ids, values)
    logits.sum().backward()
    assert (logits.shape, logits.device.type) == ((7,), "meta")


@pytest.mark.parametrize("name", MODELS)
def test_name_of_returns_the_models_type(name: str) -> None:
    assert name_of(small(name)) == name


@of_every_case
@pytest.mark.parametrize("rows", [2, 7])
def test_a_row_has_one_logit(name: str, options: dict[str, Any], rows: int) -> None:
    ids, values, _ = batch(rows)
    logits = a_model(name, **options)(ids, values)
    assert logits.shape == (rows,)
    assert logits.isfinite().all()


@pytest.mark.numeric
@of_every_case
def test_a_row_has_the_same_logit_in_any_batch(name: str, options: dict[str, Any]) -> None:
    model = a_model(name, **options)
    train_step(model)  # This changes the running statistics.
    ids, values, _ = batch(20)
    model.eval()
    logits = model(ids, values)
    torch.testing.assert_close(model(ids[7:8], values[7:8]), logits[7:8], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model(ids.flip(0), values.flip(0)), logits.flip(0), rtol=1e-9, atol=1e-12)
    assert logits.std() > 0


@pytest.mark.numeric
@of_every_case
def test_every_parameter_is_trained(name: str, options: dict[str, Any]) -> None:
    """Every parameter has a gradient that is larger than rounding errors."""
    model = a_model(name, **options)
    train_step(model)
    sizes = {n: 0.0 if p.grad is None else p.grad.abs().max().item() for n, p in model.named_parameters() if p.numel()}
    assert {n for n, size in sizes.items() if size <= 1e-12 * max(sizes.values())} == set()


@pytest.mark.numeric
@of_every_case
def test_missing_numbers_train_the_vector_of_their_field(name: str, options: dict[str, Any]) -> None:
    model = a_model_with_missing_vectors(name, **options)
    ids, values, labels = batch(400)
    values[::2, 1] = torch.nan
    functional.binary_cross_entropy_with_logits(model.train()(ids, values), labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    betas = [module.beta for module in model.modules() if isinstance(module, FeatureEmbedding)]
    assert {id(beta) for beta in betas} <= {id(p) for p in embedding_parameters(model)}
    gradients = [beta.grad for beta in betas if beta is not None and beta.grad is not None]
    assert len(gradients) == len(betas) > 0
    assert all((gradient[0] == 0).all() for gradient in gradients)  # This field is never missing.
    # A gate of FinalMLP has its own table, and reads only some of the table's fields.
    assert any((gradient[1] != 0).all() for gradient in gradients)


@pytest.mark.numeric
@of_every_case
def test_without_missing_numbers_a_missing_vector_does_not_change_the_logits(
    name: str, options: dict[str, Any]
) -> None:
    plain, model = a_model(name, **options), a_model_with_missing_vectors(name, **options)
    unused = model.load_state_dict(plain.state_dict(), strict=False)
    assert [key for key in unused.missing_keys if not key.endswith(".beta")] == unused.unexpected_keys == []
    ids, values, _ = batch(20)
    assert torch.equal(model.eval()(ids, values), plain.eval()(ids, values))


@pytest.mark.parametrize(("name", "key"), DROPOUTS)
def test_a_dropout_option_applies_only_to_its_part(name: str, key: str) -> None:
    model = a_model(name, **{key: 0.5})
    rates = [(place.split(".")[0], m.p) for place, m in model.named_modules() if isinstance(m, nn.Dropout)]
    dropping = {place for place, rate in rates if rate == 0.5}
    assert dropping == set(DROPPED.get((name, key), ("mlp",)))
    assert {rate for place, rate in rates if place in dropping} == {0.5}
    assert {rate for place, rate in rates if place not in dropping} <= {0.0}
    ids, values, _ = batch(20)
    assert not torch.equal(model(ids, values), model(ids, values))
    model.eval()
    assert torch.equal(model(ids, values), model(ids, values))


@of_every_case
def test_embedding_l2_applies_to_all_embedding_tables_and_nothing_else(name: str, options: dict[str, Any]) -> None:
    model = a_model(name, **options)
    found = {id(p) for p in embedding_parameters(model)}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    vectors = {id(p) for name, p in model.named_parameters() if name.endswith(".alpha") and "embedding" in name}
    assert tables
    assert found == tables | vectors


@of_every_case
def test_the_flops_of_every_model_are_counted(name: str, options: dict[str, Any]) -> None:
    flops = count_flops(a_model(name, **options).float(), batch(2)[0], batch(2)[1].float())
    assert (flops == 0) == (name in ("lr", "fm"))  # Sums and element-wise products are not counted.


def test_an_experiment_can_use_every_model() -> None:
    assert [config for config, _ in MODELS.values()] == [*get_args(Config)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("log", ["frappe", "movielens_tag"])
def test_every_model_has_an_experiment_with_its_name(log: str, name: str) -> None:
    assert name_of(read_experiment(EXPERIMENTS / log / f"{name}.toml").model) == name
