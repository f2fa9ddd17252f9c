"""Checkpoints: the state of a run after its last evaluation.

If a killed run continues from its checkpoint, the final weights are the same as those of an uninterrupted run. On a
CPU, they are bit-identical. A GPU adds numbers in a different order each time.

A checkpoint is a safetensors file. Its tensors are the model, the best weights, Adam's moments and steps, and the
states of two random generators: the one that shuffles rows and hides tokens, and torch's own on the device, which
dropout uses. If weights are averaged, the average and the best of the other weights are included. Its metadata consists
of the run's identity, the learning rate, the state of early stopping, the number of averaged steps and the history.

In the middle of an epoch, the state of the first generator is that at the start of the epoch. The position in the epoch
follows from the number of evaluations in the history.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.training.averaged_weights import AveragedWeights
from model.training.device import device_of
from model.training.early_stopping import EarlyStopping, Epoch

PROGRESS = "progress"


@dataclass(frozen=True)
class State:
    """Everything that changes during training.

    Attributes:
        model: The model.
        optimizer: The optimizer.
        generator: The generator that shuffles rows and hides tokens, in its state at the start of the epoch.
        early_stopping: Keeps the best of the weights that Training.weights selects.
        average: The average of the weights, or None.
        other: Keeps the best of the other weights, if there is an average. It does not stop training.
    """

    model: nn.Module
    optimizer: torch.optim.Adam
    generator: torch.Generator
    early_stopping: EarlyStopping
    average: AveragedWeights | None = None
    other: EarlyStopping | None = None


class Progress(msgspec.Struct, frozen=True):
    """The metadata of a checkpoint."""

    run: str
    learning_rate: float
    score: float
    failures: int
    history: list[Epoch]
    averaged_steps: int = 0
    other_score: float = 0.0


class Checkpoint:
    """The checkpoint file of one run."""

    def __init__(self, path: Path, run: str, whole_epochs: bool = False) -> None:
        """Set the file, which may not exist yet.

        Args:
            path: The file.
            run: The identity of the run: its settings, seed and data.
            whole_epochs: Whether states in the middle of an epoch are not saved, unless training has stopped there.
        """
        self._path, self._run, self._whole_epochs = path, run, whole_epochs
        self._partial = path.with_suffix(".partial")

    def save(self, state: State, history: list[Epoch]) -> None:
        """Replace the file atomically. If the process is killed, either the old or the new checkpoint remains.

        Args:
            state: The state after the last evaluation.
            history: All evaluations.

        Raises:
            OSError: If the file cannot be written. The old checkpoint is kept.
        """
        if self._whole_epochs and history[-1].part < 1 and not state.early_stopping.should_stop:
            return
        progress = Progress(
            run=self._run,
            learning_rate=state.optimizer.param_groups[0]["lr"],
            score=state.early_stopping.score,
            failures=state.early_stopping.failures,
            history=history,
            averaged_steps=state.average.steps if state.average else 0,
            other_score=state.other.score if state.other else 0.0,
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors_of(state), self._partial, metadata={PROGRESS: msgspec.json.encode(progress).decode()})
            with self._partial.open("rb") as file:
                os.fsync(file.fileno())
            self._partial.replace(self._path)
        except (OSError, SafetensorError) as error:
            self._partial.unlink(missing_ok=True)
            raise OSError(f"{self._path}: the checkpoint could not be written ({error})") from error

    def restore(self, state: State) -> list[Epoch]:
        """Load the checkpoint into `state` and return its history, or an empty list if there is no checkpoint.

        If the file is broken, belongs to another run or has other tensors, it is ignored with a message on stderr.
        """
        if not self._path.is_file():
            return []
        try:
            with safe_open(self._path, framework="pt") as file:
                progress = msgspec.json.decode((file.metadata() or {}).get(PROGRESS, ""), type=Progress)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, msgspec.DecodeError) as error:
            return self._ignore(f"the checkpoint is broken ({error})")
        if progress.run != self._run:
            return self._ignore("the checkpoint has other settings or data")
        if not fits(state, tensors):
            return self._ignore("the checkpoint has the tensors of another model, version or device")
        load_state(state, progress, tensors)
        return progress.history

    def remove(self) -> None:
        """Delete the file. To be called when the run is finished."""
        for path in (self._path, self._partial):
            path.unlink(missing_ok=True)

    def _ignore(self, reason: str) -> list[Epoch]:
        print(f"{self._path}: {reason}; training starts from the first epoch", file=sys.stderr)
        return []


def tensors_of(state: State) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name."""
    adam = state.optimizer.state_dict()["state"]
    weights = {"model": state.model.state_dict(), "best": state.early_stopping.best}
    if state.average and state.other:
        weights |= {"average": state.average.model.state_dict(), "other": state.other.best}
    return {
        **{f"{kind}/{name}": tensor for kind, tensors in weights.items() for name, tensor in tensors.items()},
        **{f"adam/{index}/{name}": tensor for index, moments in adam.items() for name, tensor in moments.items()},
        **generator_states(state),
    }


def generator_states(state: State) -> dict[str, Tensor]:
    """Return the states of the random generators by name."""
    device, states = device_of(state.model), {"generator": state.generator.get_state()}
    if device.type == "cuda":
        return states | {"cuda_generator": torch.cuda.get_rng_state(device)}
    return states | {"torch_generator": torch.get_rng_state()}


def fits(state: State, tensors: dict[str, Tensor]) -> bool:
    """Return whether load_state() can load these tensors. If loading failed halfway, the state would be mixed."""
    model = state.model.state_dict()
    kinds = ("model", "best", "average", "other") if state.average else ("model", "best")
    required = {f"{kind}/{name}": tensor for kind in kinds for name, tensor in model.items()}
    required |= generator_states(state)
    moments = {  # present only for parameters that have received a gradient
        f"adam/{index}/{name}": torch.zeros(()) if name == "step" else parameter
        for index, parameter in enumerate(state.model.parameters())
        for name in ("step", "exp_avg", "exp_avg_sq")
    }
    known = required | moments
    return required.keys() <= tensors.keys() <= known.keys() and all(
        (tensor.shape, tensor.dtype) == (known[name].shape, known[name].dtype) for name, tensor in tensors.items()
    )


def load_state(state: State, progress: Progress, tensors: dict[str, Tensor]) -> None:
    """Set `state` to the content of a checkpoint."""
    state.model.load_state_dict(below("model/", tensors))
    adam: dict[int, dict[str, Tensor]] = {}
    for name, tensor in below("adam/", tensors).items():
        index, moment = name.split("/")
        adam.setdefault(int(index), {})[moment] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": adam, "param_groups": groups})
    state.optimizer.param_groups[0]["lr"] = progress.learning_rate
    state.early_stopping.best = below("best/", tensors)
    state.early_stopping.score, state.early_stopping.failures = progress.score, progress.failures
    if state.average and state.other:
        state.average.model.load_state_dict(below("average/", tensors))
        state.average.steps = progress.averaged_steps
        state.other.best, state.other.score = below("other/", tensors), progress.other_score
    state.generator.set_state(tensors["generator"])
    if "cuda_generator" in tensors:
        torch.cuda.set_rng_state(tensors["cuda_generator"], device_of(state.model))
    else:
        torch.set_rng_state(tensors["torch_generator"])


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, with the prefix removed from the names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
