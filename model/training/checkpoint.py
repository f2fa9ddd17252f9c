"""A run's state after its last finished epoch: what a killed run needs to end with the same weights.

Bit for bit on a CPU; a GPU adds in another order each time.

One safetensors file. Its tensors: the model, the best epoch's weights, Adam's moments and steps, and the
states of the random generators: that of shuffling and hiding, and torch's own of the device, which dropout asks. Its
metadata: whose run it is, the learning rate, the plateau's counters and the history.
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

from model.training.device import device_of
from model.training.early_stopping import Epoch, Plateau

PROGRESS = "progress"


@dataclass(frozen=True)
class State:
    """All that changes while a model trains."""

    model: nn.Module
    optimiser: torch.optim.Adam
    generator: torch.Generator
    plateau: Plateau


class Progress(msgspec.Struct, frozen=True):
    run: str
    learning_rate: float
    score: float
    failures: int
    history: list[Epoch]


class Checkpoint:
    """run: what the checkpoint must be of, in words: settings, seed and data."""

    def __init__(self, path: Path, run: str) -> None:
        self._path, self._run = path, run

    def save(self, state: State, history: list[Epoch]) -> None:
        """Replaces the last one at once: a kill leaves one or the other.

        Raises:
            OSError: naming the file, when it cannot be written; the last one stays.
        """
        rate = state.optimiser.param_groups[0]["lr"]
        progress = Progress(self._run, rate, state.plateau.score, state.plateau.failures, history)
        aside = self._path.with_suffix(".aside")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(_tensors(state), aside, metadata={PROGRESS: msgspec.json.encode(progress).decode()})
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(self._path)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise OSError(f"{self._path}: the checkpoint could not be written ({error})") from error

    def restore(self, state: State) -> list[Epoch]:
        """The finished epochs, with the state as it was after them; none when there is no checkpoint of this run.

        A file of another run, a broken one, or one whose tensors do not fit is left out with a line on stderr:
        training starts anew.
        """
        if not self._path.is_file():
            return []
        try:
            with safe_open(self._path, framework="pt") as file:
                progress = msgspec.json.decode((file.metadata() or {}).get(PROGRESS, ""), type=Progress)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, msgspec.DecodeError) as error:
            return self._ignore(f"it is broken ({error})")
        if progress.run != self._run:
            return self._ignore("it is of other settings or data")
        if not _fits(state, tensors):
            return self._ignore("its tensors are of another model or version, or of another device")
        _restore(state, progress, tensors)
        return progress.history

    def remove(self) -> None:
        """When the run is done."""
        for path in (self._path, self._path.with_suffix(".aside")):
            path.unlink(missing_ok=True)

    def _ignore(self, reason: str) -> list[Epoch]:
        print(f"{self._path}: {reason}: training starts from the first epoch", file=sys.stderr)
        return []


def _tensors(state: State) -> dict[str, Tensor]:
    adam = state.optimiser.state_dict()["state"]
    return {
        **{f"model/{name}": tensor for name, tensor in state.model.state_dict().items()},
        **{f"best/{name}": tensor for name, tensor in state.plateau.best.items()},
        **{f"adam/{index}/{name}": tensor for index, moments in adam.items() for name, tensor in moments.items()},
        **_generators(state),
    }


def _generators(state: State) -> dict[str, Tensor]:
    device, states = device_of(state.model), {"generator": state.generator.get_state()}
    if device.type == "cuda":
        return states | {"cuda_generator": torch.cuda.get_rng_state(device)}
    return states | {"torch_generator": torch.get_rng_state()}


def _fits(state: State, tensors: dict[str, Tensor]) -> bool:
    """Whether _restore() can take them: looked at before, for it would stop half-way."""
    model = state.model.state_dict()
    wanted = {f"{kind}/{name}": tensor for kind in ("model", "best") for name, tensor in model.items()}
    wanted |= _generators(state)
    moments = {  # of the parameters that ever had a gradient
        f"adam/{index}/{name}": torch.zeros(()) if name == "step" else parameter
        for index, parameter in enumerate(state.model.parameters())
        for name in ("step", "exp_avg", "exp_avg_sq")
    }
    known = wanted | moments
    return wanted.keys() <= tensors.keys() <= known.keys() and all(
        (tensor.shape, tensor.dtype) == (known[name].shape, known[name].dtype) for name, tensor in tensors.items()
    )


def _restore(state: State, progress: Progress, tensors: dict[str, Tensor]) -> None:
    state.model.load_state_dict(_below("model/", tensors))
    adam: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("adam/", tensors).items():
        index, moment = name.split("/")
        adam.setdefault(int(index), {})[moment] = tensor
    groups = state.optimiser.state_dict()["param_groups"]
    state.optimiser.load_state_dict({"state": adam, "param_groups": groups})
    state.optimiser.param_groups[0]["lr"] = progress.learning_rate
    state.plateau.best = _below("best/", tensors)
    state.plateau.score, state.plateau.failures = progress.score, progress.failures
    state.generator.set_state(tensors["generator"])
    if "cuda_generator" in tensors:
        torch.cuda.set_rng_state(tensors["cuda_generator"], device_of(state.model))
    else:
        torch.set_rng_state(tensors["torch_generator"])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
