"""The readiness of a model, which may score requests only after its self-test has passed."""

import asyncio
from dataclasses import dataclass, field

from service.errors import NotReady


@dataclass
class Readiness:
    """The result of a model's self-test.

    Attributes:
        problem: Why the model is not ready. None if it is ready.
        tested: Set when the self-test is done.
    """

    problem: str | None = "The server is starting: the model has not passed its self-test yet."
    tested: asyncio.Event = field(default_factory=asyncio.Event)

    def set_result(self, problem: str | None) -> None:
        """Record the result of the self-test. `problem` is None if the test passed."""
        self.problem = problem
        self.tested.set()

    def check(self) -> None:
        """Raise NotReady unless the model is ready."""
        if self.problem is not None:
            raise NotReady(self.problem)
