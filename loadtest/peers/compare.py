"""Compare this server with others by running them in turn on the same machine: python -m loadtest.peers.compare

All servers use the same trained model and get the same requests. Our server uses its bundle and Redis. The others use a
plain export of the model and a dictionary.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress

from contract.bundle import Bundle, open_bundle
from contract.cpu_quota import available_cpus
from loadtest.openloop.bodies import prepare
from loadtest.peers.measure import (
    CONNECTIONS,
    TIMEOUT_MS,
    MeasuredServer,
    Serving,
    measure_at_other_rates,
    measure_round,
)
from loadtest.peers.servers import PEERS, Peer, ensure_venv, peer_serving
from loadtest.peers.tables import OUR_GRAPH, SIZES, tables_of, targets_of
from loadtest.reference_model import RUN, ensure_bundle, write_plain
from loadtest.servers import Server, cpu_seconds, free_port, pss_mib, redis_with, serving
from loadtest.targets import report
from model.experiments.run_folder import open_run
from model.stec.stec import STEC

OURS = "ours"
WORKERS = 2
REQUESTS = 200  # per size
TITLE = "Ours and other servers"
VENVS = Path(__file__).resolve().parents[2] / ".peers"


@dataclass(frozen=True)
class OurServer:
    """Our server and its Redis, whose CPU and memory count too. redis: the pid of Redis."""

    url: str
    server: Server
    redis: int

    def cpu_s(self) -> float:
        return self.server.cpu_s() + cpu_seconds(self.redis)

    def memory_mib(self) -> float:
        return sum(map(pss_mib, (self.server.process.pid, *self.server.workers(), self.redis)))


@contextmanager
def start_ours(bundle: Bundle) -> Iterator[Serving]:
    """Run our server with Redis. The other servers use a dictionary instead."""
    with tempfile.TemporaryDirectory() as name, redis_with(Path(name), [bundle]) as redis:
        settings = {"CTR_BUNDLE": str(bundle.folder), "CTR_REDIS_URL": redis.url}
        settings |= {"CTR_TIMEOUT_MS": str(TIMEOUT_MS), "CTR_QUEUE_TARGET_MS": "1000"}
        with serving(Path(name), WORKERS, settings) as server:
            assert redis.process is not None
            yield OurServer(server.url, server, redis.process.pid)


@contextmanager
def start_other(peer: Peer, folder: Path, body: bytes) -> Iterator[Serving]:
    port = free_port()
    with peer_serving(peer, ensure_venv(peer, VENVS), folder, port, WORKERS, folder / "peer.log", body) as running:
        yield running


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report. Return 1 if a target fails."""
    parser = argparse.ArgumentParser(
        "loadtest.peers.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="duration of each measurement")
    parser.add_argument("--only", nargs="*", default=[], choices=list(PEERS), help="servers to compare (default: all)")
    options = parser.parse_args(argv)
    bundle = open_bundle(ensure_bundle())
    # Use only strings and known tokens, because the other servers' plain dictionaries support nothing else.
    requests = {size: prepare([bundle], {size: REQUESTS}, None, golden=0.0) for size in SIZES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, _, schema, _ = open_run(RUN)
        assert isinstance(model, STEC)
        write_plain(model, schema, {name: dict(v.items()) for name, v in bundle.vocabularies.items()}, folder)
        chosen = [peer for peer in PEERS.values() if not options.only or peer.name in options.only]
        for peer in chosen:
            ensure_venv(peer, VENVS)
        ours = MeasuredServer(OURS, partial(start_ours, bundle))
        body = requests[1][0].body
        others = [MeasuredServer(peer.name, partial(start_other, peer, folder, body)) for peer in chosen]
        servers = [ours, *others]
        connections: dict[tuple[str, int], int] = {}
        with Progress(transient=True) as progress:
            task = progress.add_task("", total=options.rounds * (len(servers) + 1))
            for round_ in range(options.rounds):
                for server in servers:
                    progress.update(task, description=f"round {round_ + 1}: {server.name}")
                    measure_round(server, requests, options.seconds, connections)
                    progress.advance(task)
                progress.update(task, description=f"round {round_ + 1}: {OURS} at the other servers' rates")
                measure_at_other_rates(ours, others, requests, options.seconds)
                progress.advance(task)
    command = " ".join(["python -m loadtest.peers.compare", *(argv if argv is not None else sys.argv[1:])])
    text = describe(bundle, chosen, options)
    return report("peers", TITLE, text, targets_of(servers), tables_of(servers), command)


def describe(bundle: Bundle, peers: Sequence[Peer], options: argparse.Namespace) -> str:
    """Return the report's paragraphs: what was run and how it was measured."""
    pins = "; ".join(f"{peer.name}: {', '.join(peer.requirements)}" for peer in peers)
    closed = ", ".join(map(str, CONNECTIONS))
    return (
        f"The same trained model ({bundle.manifest.name}: 18 context and 5 candidate fields, full attention), the same "
        "JSON, two workers with one onnxruntime thread each (see each server's file for front ends and pools), and the "
        f"generator on the same {available_cpus()} cores. "
        f"{options.rounds} rounds, in which the servers alternate, with {options.seconds:g} s per measurement; the "
        f"figures are medians over rounds. requests/s: a closed loop of {closed} connections, whichever is best for "
        "the server. p50 and p99: an open loop (Poisson arrivals) at half of the server's own capacity, measured from "
        "the intended send time. CPU and memory: the server's own processes, for ours including Redis but not the "
        "generator.\n\n"
        "Ours looks tokens up in a cache and Redis, with deadlines and admission limits high enough to have no effect. "
        "The other servers use a Python dictionary and a plain export of the model. Only the row "
        f'"{OUR_GRAPH}" uses our folded graph (with onnxruntime\'s own operators, without the kernel).\n\n{pins}.'
    )


if __name__ == "__main__":
    sys.exit(main())
