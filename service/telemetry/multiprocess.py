"""Metrics of several processes: each keeps its own in files, by prometheus_client's multiprocess mode."""

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.telemetry.rolling_latency import SUFFIX, LastMinuteOfAll

SUMMED = ("counter", "histogram")
ENDED = "ended"  # in place of a pid: the sums over all processes that have ended


def text_of_all(folder: Path) -> bytes:
    """Prometheus's text format, over all processes."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    registry.register(LastMinuteOfAll(folder))
    return generate_latest(registry)


def forget_process(folder: Path, pid: int) -> None:
    """Of a process that has ended: its gauges go, its counts stay. One file for all such, or the folder would grow."""
    mark_process_dead(pid, str(folder))
    for kind in SUMMED:
        own, ended = folder / f"{kind}_{pid}.db", folder / f"{kind}_{ENDED}.db"
        if own.exists():
            _add(own, ended)
            own.unlink()


def forget_latencies(folder: Path, pid: int) -> None:
    """A minute after a process has ended."""
    (folder / f"latency_{pid}{SUFFIX}").unlink(missing_ok=True)


def _add(own: Path, ended: Path) -> None:
    files = [str(path) for path in (ended, own) if path.exists()]
    sums = MmapedDict(str(ended))
    try:
        for metric in MultiProcessCollector.merge(files, accumulate=False):
            for sample in metric.samples:
                labels = list(sample.labels)
                key = mmap_key(
                    metric.name, sample.name, labels, [sample.labels[label] for label in labels], metric.documentation
                )
                sums.write_value(key, sample.value, 0.0)
    finally:
        sums.close()
