"""How much memory a training run needs, estimated before it starts."""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.experiment_config import Experiment
from model.experiments.memory_limits import resident_memory, tightest_limit
from model.layers import FeatureEmbedding, Fields
from model.training.batches import BLOCK_ROWS, Split
from model.training.fit import EVALUATION_ROWS
from model.zoo import Config, build

WARNING_SHARE = 0.8
# Libraries that are loaded and buffers that are allocated when training starts.
STARTING_BYTES = 100_000_000
# When a checkpoint is written, memory holds the current weights, the weights of the best epoch, Adam's two moments, and
# a copy of all of these.
COPIES = 8.0
# The gradient of the L2 penalty needs temporary copies of the tables, which leave gaps in the heap.
COPIES_WITH_PENALTY = 10.5
# The average of the weights, the best of the other weights, and their copies in a checkpoint.
COPIES_OF_AVERAGE = 4.0
# malloc keeps freed memory (see keep_freed_memory()). Activations have many sizes, so fragmentation doubles it.
GAPS = 2.1
METRIC_BYTES_PER_ROW = 100  # sorted copies of labels and predictions
SAMPLE_ROWS = (32, 64)
TINY_VOCABULARY = 2  # ids


@dataclass(frozen=True)
class MemoryPlan:
    """The estimated peak memory of a run.

    Attributes:
        process: The memory in use before training, in bytes.
        parameters: The number of the model's parameters.
        model: The memory for the parameters, their gradients, Adam's moments and the copies of all these, in bytes.
        activations: The memory for a batch, in bytes.
        log: The memory for the rows of the log, in bytes.
    """

    process: int
    parameters: int
    model: int
    activations: int
    log: int

    @property
    def total(self) -> int:
        """The peak memory in bytes."""
        return self.process + self.model + self.activations + self.log

    def __str__(self) -> str:
        return (
            f"about {size_text(self.total)} of memory: {size_text(self.model)} for {self.parameters:,} parameters and "
            f"their copies, {size_text(self.activations)} for a batch, {size_text(self.log)} for the log, "
            f"{size_text(self.process)} for the program"
        )


def check_memory(plan: MemoryPlan) -> str | None:
    """Return a warning if a run is likely to run out of memory, or None.

    Raises:
        ValueError: If the run needs more memory than this process may use.
    """
    limit = tightest_limit()
    if limit is None or plan.total <= WARNING_SHARE * limit.size:
        return None
    large = "training.batch_size" if plan.activations > plan.model else "model.embedding"
    small = "" if plan.activations > plan.model else " or raise min_count in [data], so that rare tokens share one id"
    message = f"training needs {plan}. {size_text(limit.size)} are available ({limit.name})."
    advice = f"Lower {large}{small}."
    if plan.total > limit.size:
        raise ValueError(f"{message} {advice}")
    return f"{message} It may run out of memory. {advice}"


def plan_memory(experiment: Experiment, fields: Fields, train: Split, evaluated_rows: int) -> MemoryPlan:
    """Return the estimated peak memory of training on a CPU.

    Args:
        experiment: The experiment.
        fields: The model's fields.
        train: The training rows.
        evaluated_rows: The number of rows of valid or test, whichever is larger.
    """
    recipe = experiment.training
    size = measure_model(fields, experiment.model)
    is_penalized = recipe.embedding_l2 > 0 or recipe.net_l2 > 0
    copies = COPIES_WITH_PENALTY if is_penalized else COPIES
    if recipe.ema_half_life:
        copies += COPIES_OF_AVERAGE
    batch, part = min(recipe.batch_size, len(train)), min(EVALUATION_ROWS, evaluated_rows)
    return MemoryPlan(
        process=process_memory() + STARTING_BYTES,
        parameters=size.parameters,
        model=int(4 * size.parameters * copies),
        activations=int(GAPS * max(size.step * batch, size.evaluation * part)),
        log=log_bytes(train) + METRIC_BYTES_PER_ROW * evaluated_rows,
    )


@functools.cache
def process_memory() -> int:
    """Return the resident memory before this process trained its first model.

    Later models reuse the memory of the first one, so it must not be counted again.
    """
    return resident_memory()


@dataclass(frozen=True)
class ModelSize:
    """The size of a model.

    Attributes:
        parameters: The number of parameters.
        step: The memory of a training step in bytes per row.
        evaluation: The memory of an evaluation in bytes per row.
    """

    parameters: int
    step: float
    evaluation: float


def measure_model(fields: Fields, config: Config) -> ModelSize:
    """Return the size of a model without allocating it.

    A copy of the model with tiny vocabularies is measured on a few rows, because activations do not depend on the
    vocabularies. The results for two numbers of rows are subtracted, so memory that does not depend on the number of
    rows cancels out. The random generators are not changed.

    Raises:
        ValueError: If even the copy does not fit into memory.
    """
    tiny = Fields([TINY_VOCABULARY] * len(fields.sizes), fields.numeric, fields.is_context, fields.names)
    limit, (few, many) = tightest_limit(), SAMPLE_ROWS
    try:
        with torch.random.fork_rng(devices=[]):
            with LiveTensors(limit.size if limit else None):
                model = build(tiny, config)
            steps, evaluations = ([peak(run, model, tiny, rows) for rows in SAMPLE_ROWS] for run in (step, evaluation))
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError when out of memory
        raise ValueError(f"the model does not fit into memory ({error}). Lower the sizes in [model].") from error
    tokens = sum(fields.sizes) - sum(tiny.sizes)
    widths = [module.table.embedding_dim for module in model.modules() if isinstance(module, FeatureEmbedding)]
    parameters = sum(p.numel() for p in model.parameters()) + tokens * sum(widths)
    return ModelSize(parameters, (steps[1] - steps[0]) / (many - few), (evaluations[1] - evaluations[0]) / (many - few))


def peak(run: Callable[[nn.Module, Tensor, Tensor], None], model: nn.Module, fields: Fields, rows: int) -> int:
    """Return the peak memory in bytes of a step or an evaluation with this number of rows."""
    ids, values = torch.zeros((rows, len(fields.sizes)), dtype=torch.int64), torch.randn(rows, fields.numeric)
    with LiveTensors() as live:
        run(model, ids, values)
    model.zero_grad()
    highest: int = live.peak
    return highest


def step(model: nn.Module, ids: Tensor, values: Tensor) -> None:
    """Compute the gradients of a batch."""
    model.train()(ids, values).sum().backward()


def evaluation(model: nn.Module, ids: Tensor, values: Tensor) -> None:
    """Compute the logits of a batch as predict() does."""
    with torch.inference_mode():
        model.eval()(ids, values)


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are created in the context and still exist. `peak` is the maximum.

    Raises MemoryError above a limit, before the new tensor is written to and the kernel kills the process.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak, self._live, self._limit, self._known = 0, 0, limit, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._known:
                self._known.add(id(storage))
                self._live += storage.nbytes()
                self.peak = max(self.peak, self._live)
                weakref.finalize(storage, self._free, id(storage), storage.nbytes())
                if self._limit is not None and self._live > self._limit:
                    raise MemoryError(f"more than {size_text(self._limit)}")
        return result

    def _free(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self._live -= size


def log_bytes(train: Split) -> int:
    """Return the memory for the training rows that Batches holds at a time, in bytes."""
    fields: int = train.ids.shape[1] + train.values.shape[1]
    per_row = 4 * (fields + 1 + (train.weights is not None) + (train.positions is not None))
    shuffled = 8  # the position of each row
    if len(train) <= BLOCK_ROWS:
        return len(train) * (per_row + shuffled)
    return BLOCK_ROWS * (2 * per_row + shuffled)  # the runs of a block exist until they are concatenated


def size_text(size: int) -> str:
    """Format a size in bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
