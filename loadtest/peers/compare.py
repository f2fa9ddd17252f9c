"""Ours and its peers on the same machine, in turn: python -m loadtest.peers.compare

The same trained model, the same requests: ours by its bundle and Redis, the peers by a plain export and a dictionary.
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
from loadtest.openloop.bodies import prepare
from loadtest.peers.measure import CONNECTIONS, PATIENCE_MS, Contestant, Serving, measure_at_peers_rates, measure_round
from loadtest.peers.servers import PEERS, Peer, ensure_venv, peer_serving
from loadtest.peers.tables import OUR_GRAPH, SIZES, bars_of, tables_of
from loadtest.reference_model import RUN, ensure_bundle, write_plain
from loadtest.servers import Server, cpu_s_of, free_port, pss_mib, redis_with, serving
from loadtest.targets import report
from model.experiments.run_folder import open_run
from model.stec.stec import STEC
from service.runtime.cpu_quota import available_cpus

OURS = "ours"
WORKERS = 2
REQUESTS = 200  # of each size
TITLE = "Ours and its peers"
VENVS = Path(__file__).resolve().parents[2] / ".peers"


@dataclass(frozen=True)
class _Ours:
    url: str
    server: Server
    redis: int

    def cpu_s(self) -> float:
        return self.server.cpu_s() + cpu_s_of(self.redis)

    def memory_mib(self) -> float:
        return sum(map(pss_mib, (self.server.process.pid, *self.server.workers(), self.redis)))


@contextmanager
def ours(bundle: Bundle) -> Iterator[Serving]:
    """With Redis, where the peers have a dictionary."""
    with tempfile.TemporaryDirectory() as name, redis_with(Path(name), [bundle]) as redis:
        settings = {"CTR_BUNDLE": str(bundle.folder), "CTR_REDIS_URL": redis.url}
        settings |= {"CTR_TIMEOUT_MS": str(PATIENCE_MS), "CTR_QUEUE_TARGET_MS": "1000"}
        with serving(Path(name), WORKERS, settings) as server:
            assert redis.process is not None
            yield _Ours(server.url, server, redis.process.pid)


@contextmanager
def theirs(peer: Peer, folder: Path, body: bytes) -> Iterator[Serving]:
    port = free_port()
    with peer_serving(peer, ensure_venv(peer, VENVS), folder, port, WORKERS, folder / "peer.log", body) as running:
        yield running


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 when a bar is missed; the report is written all the same."""
    options = _arguments(argv)
    bundle = open_bundle(ensure_bundle())
    # Strings only, and every token known: what the peers' plain dictionaries are made for.
    requests = {size: prepare([bundle], {size: REQUESTS}, None, golden=0.0) for size in SIZES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, _, schema, _ = open_run(RUN)
        assert isinstance(model, STEC)
        write_plain(model, schema, {name: dict(v.items()) for name, v in bundle.vocabularies.items()}, folder)
        chosen = [peer for peer in PEERS.values() if not options.only or peer.name in options.only]
        for peer in chosen:
            ensure_venv(peer, VENVS)
        contestants = [Contestant(OURS, partial(ours, bundle))]
        contestants += [Contestant(p.name, partial(theirs, p, folder, requests[1][0].body)) for p in chosen]
        connections: dict[tuple[str, int], int] = {}
        with Progress(transient=True) as progress:
            task = progress.add_task("", total=options.rounds * (len(contestants) + 1))
            for round_ in range(options.rounds):
                for contestant in contestants:
                    progress.update(task, description=f"round {round_ + 1}: {contestant.name}")
                    measure_round(contestant, requests, options.seconds, connections)
                    progress.advance(task)
                progress.update(task, description=f"round {round_ + 1}: {OURS} at the peers' rates")
                measure_at_peers_rates(contestants[0], contestants[1:], requests, options.seconds)
                progress.advance(task)
    command = " ".join(["python -m loadtest.peers.compare", *(argv if argv is not None else sys.argv[1:])])
    return report("peers", TITLE, _text(bundle, chosen, options), bars_of(contestants), tables_of(contestants), command)


def _text(bundle: Bundle, peers: Sequence[Peer], options: argparse.Namespace) -> str:
    pins = "; ".join(f"{peer.name}: {', '.join(peer.requirements)}" for peer in peers)
    closed = ", ".join(map(str, CONNECTIONS))
    return (
        f"The same trained model ({bundle.manifest.name}: 18 context and 5 candidate fields, full attention), the same "
        "JSON, two workers with one thread of onnxruntime each (fronts and pools as each file says), and the "
        f"generator on the same {available_cpus()} cores. "
        f"{options.rounds} rounds, the servers in turn, {options.seconds:g} s for each figure; medians over rounds. "
        f"requests/s: a closed loop of {closed} connections, for each server its best. p50 and p99: an open loop "
        "(Poisson) at half of a server's own most, from the intended time. CPU: of the server's own processes, ours "
        "with Redis's, so the generator's share does not count; memory likewise.\n\n"
        "Ours looks tokens up in a cache and Redis, and has its deadlines and refusals set so long that they do "
        "nothing; the peers have a Python dictionary and a plain export of the model. Only the row "
        f'"{OUR_GRAPH}" has our folded graph (of onnxruntime\'s own operators, without the kernel).\n\n{pins}.'
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("loadtest.peers.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each figure")
    parser.add_argument("--only", nargs="*", default=[], choices=list(PEERS), help="these peers; default: all")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
