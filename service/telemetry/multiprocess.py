"""Merge the metrics of all workers.

In prometheus_client's multiprocess mode, each worker keeps its metrics in files.
"""

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.telemetry.drift_table import MergedDrift, add_to_ended
from service.telemetry.metrics_folder import SUMMED
from service.telemetry.rolling_latency import SUFFIX, MergedRollingLatency

ENDED = "ended"  # Replaces the pid in the names of the files with the sums over all exited processes.


def merge_metrics(folder: Path) -> bytes:
    """Return the metrics of all processes in Prometheus's text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    registry.register(MergedRollingLatency(folder))
    registry.register(MergedDrift(folder))
    return generate_latest(registry)


def forget_process(folder: Path, pid: int) -> None:
    """Remove an exited process's gauges, but keep its counts.

    The counts of all exited processes are added up in one file per kind. Otherwise, the folder would grow with every
    process that exits.
    """
    mark_process_dead(pid, str(folder))
    for kind in SUMMED:
        own, ended = folder / f"{kind}_{pid}.db", folder / f"{kind}_{ENDED}.db"
        if own.exists():
            add_counts(own, ended)
            own.unlink()
    add_to_ended(folder, str(pid), ENDED)


def forget_latencies(folder: Path, pid: int) -> None:
    """Remove an exited process's latencies. Call this a minute after it exits, when no quantile covers them."""
    (folder / f"latency_{pid}{SUFFIX}").unlink(missing_ok=True)


def add_counts(own: Path, ended: Path) -> None:
    """Add the counts in a process's file to the file of the exited processes."""
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
