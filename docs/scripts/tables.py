"""Generate the tables in README.md and docs/ that repeat figures from committed reports."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from docs.scripts.reports import ROOT, Table, find_row, find_table, read_report

LATENCY = "loadtest/results/latency.md"
PEERS = "loadtest/results/peers.md"
SOAK = "loadtest/results/soak.md"
OVERLOAD = "loadtest/results/overload.md"
RELOAD = "loadtest/results/reload.md"
VOCABULARY = "benchmarks/results/vocabulary.md"
GRAPH = "benchmarks/results/serving-graph.md"
PREPARE = "benchmarks/results/prepare.md"
TRAINING = "benchmarks/results/training.md"
ANY_LOG = "benchmarks/results/any-log-{}.md"
MOVIELENS_1M = "experiments/movielens_1m/results/stec.md"
CRITEO = "experiments/criteo/results/stec.md"
FRAPPE = "experiments/frappe/results/models.md"
MOVIELENS_TAG = "experiments/movielens_tag/results/models.md"
ABLATIONS = "experiments/ablations.md"

ROOT_MARK = "{root}"  # In links, this stands for the path from the page to the repository root.
GENERATED = "experiments/generated/results/stec.md"

PASSED, FAILED = ("kept", "pass"), ("missed", "fail")
PREPARE_ROWS_PER_S = 300_000  # The target, which the report does not state.
OURS = "**stec-ctr**"
NAMES = {"ours": OURS, "plain FastAPI": "FastAPI", "plain FastAPI, our graph": "FastAPI with our exported graph"}
MODEL_NAMES = {
    "stec": "**STEC**",
    "stec-request": "**STEC**, request attention",
    "lr": "LR",
    "fm": "FM",
    "ipnn": "IPNN",
    "widedeep": "Wide&Deep",
    "dcn": "DCN",
    "deepfm": "DeepFM",
    "xdeepfm": "xDeepFM",
    "fibinet": "FiBiNET",
    "afn": "AFN+",
    "deepim": "DeepIM",
    "aoanet": "AOANet",
    "dcnv2": "DCNv2",
    "edcn": "EDCN",
    "masknet": "MaskNet",
    "finalmlp": "FinalMLP",
    "afm": "AFM",
    "interhat": "InterHAt",
    "autoint": "AutoInt+",
    "destine": "DESTINE",
}


@dataclass(frozen=True)
class Copy:
    """A copy of a table in a report, with unchanged figures.

    Attributes:
        report: The path of the report, relative to the repository root.
        title: A regular expression for the heading above the table.
        header: The column names on the page, in the report's order. If it is empty, the report's names are used.
        labels: Replacements for the first cell of a row, by regular expression.
    """

    report: str
    title: str
    header: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the table in Markdown."""
        table = find_table(self.report, self.title)
        header = tuple(self.header) or table.header
        if len(header) != len(table.header):
            raise ValueError(f"{self.report}: {table.title!r} has {len(table.header)} columns, not {len(header)}")
        return markdown(header, [(self._label(row[0]), *map(verdict, row[1:])) for row in table.rows])

    def _label(self, text: str) -> str:
        for pattern, label in self.labels.items():
            if re.fullmatch(pattern, text):
                return re.sub(pattern, label, text)
        return text


def verdict(cell: str) -> str:
    """Return `pass` or `**fail**` for a cell with any report's wording of these. Return other cells unchanged."""
    if cell.strip("*") in PASSED:
        return "pass"
    return "**fail**" if cell.strip("*") in FAILED else cell


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table with the first column aligned to the left and the others to the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]


WRONG = "Wrong scores"
TARGETS = ("Figure", "Measured", "Target", "Result")
BY_CANDIDATES = ("Server", "1", "10", "100", "500")
BY_RATE, BY_NUMBER = r"^(Over|By) (the )?rate", r"^(Over|By) candidates"
LOAD = (
    *("Candidates", "Share of capacity", "Requests/s", "Sent", "Not answered", "p50 ms", "p90 ms", "p99 ms"),
    *("p99.9 ms", "Client late, p99 ms", "CPU µs per request", "Server's share of the cores", "CPU stolen"),
)
GRAPH_COLUMNS = (
    *("Fields", "Candidates", "Plain ms", "Folded ms", "Kernel ms", "Plain / folded", "Plain / kernel"),
    *("µs per candidate", "GFLOP/s (of the peak)", "Largest difference"),
)
MODEL_COLUMNS = (
    *("Model", "Weights", "Seeds", "Test AUC", "STEC's gain", "Logloss", "p of AUC", "Parameters", "FLOPs per row"),
    *("Training rows/s", "Serving µs per candidate"),
)
RARE_COLUMNS = (
    "ctr-train",
    "Time",
    "Settings",
    "Valid NE",
    "Test NE, true probability",
    "Test AUC",
    "Compared with the base rate",
)
CRITEO_COLUMNS = (
    "Recipe",
    "Settings",
    "Test AUC",
    "Test NE, over seeds",
    "Test NE, over rows",
    "Compared with the base rate",
)
UNSEEN_COLUMNS = (
    *("hide", "Time", "Unseen ads, predicted / true", "All rows, predicted / true", "Test AUC", "Within 5%"),
)
DAY_COLUMNS = ("Training", "Time", "Best epoch", "Valid logloss", "Valid AUC", "Test logloss")
MODEL_LABELS = {re.escape(key): name for key, name in MODEL_NAMES.items()}

COPIES: Mapping[str, Copy] = {
    "latency-targets": Copy(
        LATENCY,
        r"^(Bars|Targets)",
        TARGETS,
        {
            r"p99 of 100 candidates at half of .*, (.*)/s": r"p99, 100 candidates, half capacity (\1 requests/s)",
            "not answered (then|in that load)": "Requests without an answer at that rate",
            "wrong scores": WRONG,
        },
    ),
    "latency-long": Copy(LATENCY, r"minutes at half", LOAD),
    "latency-rate": Copy(LATENCY, BY_RATE, LOAD),
    "latency-candidates": Copy(LATENCY, BY_NUMBER, LOAD),
    "peers-targets": Copy(
        PEERS,
        r"^(Bars|Targets)",
        TARGETS,
        {
            r"requests/s of 100 candidates, over the best.*": "Throughput, 100 candidates, over the best other server",
            "the same, over the median .*": "The same, over the median other server",
            "requests/s of 1 candidate, over the best.*": "Throughput, 1 candidate, over the best other server",
            "the lowest p99 at half of .*": "Lowest p99, each server at half of its own capacity",
            "p99 of ours at half of .*": "p99 not above another server's, at half of its capacity",
            "requests that ours did not answer": "Requests without an answer",
            "largest difference in probability": "Largest difference in probability",
        },
    ),
    "peers-throughput": Copy(PEERS, r"^(requests/s|Throughput)", BY_CANDIDATES, NAMES),
    "peers-p99": Copy(PEERS, r"^p99 ms at half", BY_CANDIDATES, NAMES),
    "peers-p99-same-rate": Copy(PEERS, r"^p99 ms of ours", BY_CANDIDATES, NAMES),
    "peers-cpu": Copy(PEERS, r"^CPU", BY_CANDIDATES, NAMES),
    "soak-targets": Copy(
        SOAK,
        r"^(Bars|Targets)",
        TARGETS,
        {
            "wrong scores": WRONG,
            "without an answer, .*killed worker.*": "Unanswered requests, except the killed worker's",
            "lost with the killed worker": "Requests lost with the killed worker",
            r"not answered within the deadline \+ 20 ms": "Answers later than the deadline + 20 ms",
            "hostile requests with a wrong status": "Hostile requests with a wrong status",
            "memory, start to end": "Memory of the workers, start to end",
            "exit code at SIGTERM": "Exit code after SIGTERM",
        },
    ),
    "overload-targets": Copy(
        OVERLOAD,
        r"^(Bars|Targets)",
        TARGETS,
        {
            "goodput at 3x, of capacity": "Goodput at 3x, as a share of capacity",
            "p99 of (what is accepted|the 200s) at 3x": "p99 of accepted requests at 3x",
            "wrong scores, of those checked": "Wrong scores among the checked answers",
        },
    ),
    "overload-answers": Copy(
        OVERLOAD,
        r"^Answers",
        (
            *("Offered", "Offered/s", "Goodput/s", "Share of capacity", "p50 ms, from sending", "p99 ms, from sending"),
            *("p50 ms, from the intended time", "p99 ms, from the intended time", "Accepted requests in time"),
        ),
    ),
    "reload-targets": Copy(
        RELOAD,
        r"^(Bars|Targets)",
        TARGETS,
        {
            r"p99 with reloads / without.*": "p99 with reloads divided by p99 without, median of the rounds",
            "failed requests in the rounds with reloads": "Failed requests in the rounds with reloads",
            "wrong scores": WRONG,
        },
    ),
    "vocabulary": Copy(
        VOCABULARY,
        r"tokens",
        ("Figure", "Measured", "Target"),
        {
            "first worker": "Memory of the first worker",
            "each further worker": "Memory of each further worker",
            "a cached token": "Look up a cached token",
            "any other known token": "Look up any other known token",
            "an unknown token": "Look up an unknown token",
        },
    ),
    "graph-full": Copy(GRAPH, r'"full"', GRAPH_COLUMNS),
    "graph-request": Copy(GRAPH, r'"request"', GRAPH_COLUMNS),
    "prepare": Copy(
        PREPARE,
        r"Preparing",
        (
            *("Rows", "Text", "Distinct values of C1 to C26", "Seconds", "Rows/s", "Peak memory", "Cores busy"),
            "Reading alone",
        ),
    ),
    "training-step": Copy(
        TRAINING,
        r"training step",
        (
            *("Fields", "Plain ms/step", "Factorized ms/step", "Kernel ms/step", "Kernel rows/s", "Plain / kernel"),
            *("Factorized / kernel", "Logit difference", "Gradient difference", "ReLUs flipped"),
        ),
    ),
    "any-log-rare": Copy(ANY_LOG.format("rare"), r"Click rate", RARE_COLUMNS),
    "any-log-criteo": Copy(ANY_LOG.format("criteo"), r"Criteo", CRITEO_COLUMNS),
    "any-log-unseen": Copy(ANY_LOG.format("unseen"), r"not in train", UNSEEN_COLUMNS),
    "any-log-warm": Copy(ANY_LOG.format("warm"), r"Day 2", DAY_COLUMNS),
    "frappe": Copy(FRAPPE, r"", MODEL_COLUMNS, MODEL_LABELS),
    "movielens-tag": Copy(MOVIELENS_TAG, r"", MODEL_COLUMNS, MODEL_LABELS),
    "ablations": Copy(
        ABLATIONS,
        r"",
        (
            *("Model", "Frappe AUC", "Frappe logloss", "Parameters", "Paper's Table 6"),
            *("MovieLens tags AUC", "MovieLens tags logloss", "Parameters", "Paper's Table 6"),
        ),
    ),
}


@dataclass(frozen=True)
class Highlight:
    """A row of the README's benchmark table.

    Attributes:
        name: Description of the figure.
        report: The path of the report with the figure, relative to the repository root.
        row: A regular expression for the first cell of the row in the report.
        target: The target. Empty if the report states it.
        passed: Whether the target was met, if the report does not state it.
    """

    name: str
    report: str
    row: str
    target: str = ""
    passed: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """Return the row's cells: name, figure, target, result and report."""
        row = find_row(self.report, self.row)
        target = self.target or row[2]
        result = verdict(row[3]) if self.passed is None else verdict("pass" if self.passed else "fail")
        return self.name, row[1], target, result, f"[report]({ROOT_MARK}{self.report})"


HIGHLIGHTS = (
    Highlight("Throughput, 100 candidates, over the best server with a plain export", PEERS, r"^requests/s of 100"),
    Highlight("p99 at half capacity, 100 candidates", LATENCY, r"^p99.*100 candidates"),
    Highlight("Goodput at 3x overload, as a share of capacity", OVERLOAD, r"^[Gg]oodput at 3x"),
    Highlight("p99 with ten model reloads a minute, over p99 without", RELOAD, r"^p99 with reloads"),
    Highlight("Answers late by more than 20 ms in a soak with faults", SOAK, r"deadline \+ 20 ms"),
)


def highlights() -> list[str]:
    """Return the README's benchmark table."""
    rows = [highlight.cells() for highlight in HIGHLIGHTS]
    prepare = find_table(PREPARE, r"Preparing")
    rate = prepare.rows[0][prepare.column("rows/s")]
    result = "pass" if int(rate.replace(",", "")) >= PREPARE_ROWS_PER_S else "**fail**"
    name = "Rows/s when preparing a log in Criteo's format"
    rows.append((name, rate, f">= {PREPARE_ROWS_PER_S:,}", result, f"[report]({ROOT_MARK}{PREPARE})"))
    return markdown(("Figure", "Measured", "Target", "Result", "Source"), rows)


def key_figures() -> list[str]:
    """Return the list of the three figures at the top of the README."""
    throughput = find_table(PEERS, r"^(requests/s|Throughput)").cell("ours", "100")
    relative = find_row(PEERS, r"^requests/s of 100")[1]
    p99 = find_row(LATENCY, r"^p99.*100 candidates")
    rate = re.findall(r"([\d,]+)/s", p99[0])[0]
    frappe = find_table(FRAPPE, r"")
    return [
        f"- **{throughput} requests/s** with 100 candidates each on two cores, {relative} the best server with a plain"
        f" export ([report]({ROOT_MARK}{PEERS})).",
        f"- **{p99[1]} p99** at half capacity, {rate} requests/s with 100 candidates each"
        f" ([report]({ROOT_MARK}{LATENCY})).",
        f"- **{auc(frappe.cell('stec', 'test AUC'))} test AUC** on Frappe, {place(frappe, 'stec')}"
        f" ([report]({ROOT_MARK}{FRAPPE})).",
    ]


def auc(cell: str) -> str:
    """Return the mean from a cell that contains a mean and a standard deviation."""
    return cell.split(" ± ")[0]


def place(table: Table, name: str) -> str:
    """Return a model's rank by mean AUC among the models trained on a data set, counting each model once."""
    models = [row[0] for row in table.rows if row[0] != "stec-request"]
    return f"place {models.index(name) + 1} of {len(models)}"


def results() -> list[str]:
    """Return the README's table of results on the paper's data sets."""
    rows = []
    for label, report, row in (
        ("Frappe", FRAPPE, "stec"),
        ("Frappe, request attention", FRAPPE, "stec-request"),
        ("MovieLens tags", MOVIELENS_TAG, "stec"),
    ):
        table = find_table(report, r"")
        best = next(cells for cells in table.rows if not cells[0].startswith("stec"))
        others = f"{MODEL_NAMES[best[0]]} {best[table.column('test AUC')]}"
        rank = "" if row == "stec-request" else place(table, row)
        figures = (table.cell(row, "test AUC"), table.cell(row, "logloss"))
        rows.append((label, *figures, rank, others, f"[report]({ROOT_MARK}{report})"))
    for label, report in (
        ("MovieLens-1M", MOVIELENS_1M),
        ("Criteo, public sample", CRITEO),
    ):
        rows.append((label, *headline(report), "no other model trained", "", f"[report]({ROOT_MARK}{report})"))
    return markdown(("Data set", "STEC's test AUC", "Logloss", "Place by AUC", "Best other model", "Source"), rows)


def headline_line(report: str) -> list[str]:
    """Return the line of an experiment's report that summarizes its seeds."""
    return [next(line for line in (ROOT / report).read_text().splitlines() if line.startswith("Test AUC"))]


def headline(report: str) -> tuple[str, str]:
    """Return test AUC and logloss, each with its standard deviation, from the summary of an experiment's report."""
    pattern = r"Test AUC \*\*([\d.]+)\*\*( ± [\d.]+)?, logloss \*\*([\d.]+)\*\*( ± [\d.]+)?"
    found = re.search(pattern, (ROOT / report).read_text())
    if found is None:
        raise ValueError(f"{report}: no line 'Test AUC **...**, logloss **...**'")
    return f"{found[1]}{found[2] or ''}", f"{found[3]}{found[4] or ''}"


def production() -> list[str]:
    """Return the estimated number of cores for the paper's production traffic."""
    (line,) = [line for line in (ROOT / LATENCY).read_text().splitlines() if line.startswith("The paper's production")]
    found = re.search(
        r"= ([\d,]+)/s; x (\d) at the peak = ([\d,]+) requests/s.*; x ([\d.]+ ms) of CPU each = ([\d.]+) cores busy;"
        r".*\*\*(\d+) cores\*\*",
        line,
    )
    if found is None:
        raise ValueError(f"{LATENCY}: the line about the paper's production has changed. Adapt production()")
    mean, times, peak, cpu, busy, cores = found.groups()
    return [
        f"- 400,000,000 impressions a day are {mean} requests/s on average.",
        f"- At the peak, {times} times the average, they are {peak} requests/s with 100 candidates each.",
        f"- At {cpu} of CPU per request, measured at capacity, that keeps {busy} cores busy.",
        f"- At half load, as measured here, it takes **{cores} cores**.",
    ]


def expected_p99() -> list[str]:
    """Return the sentence that states the expected p99."""
    table = find_table(LATENCY, BY_RATE)
    share, p99 = 1, table.column("p99 ms")
    half = [row for row in table.rows if int(row[share].rstrip("%")) <= 50]
    figures = sorted(float(row[p99]) for row in half)
    return [
        f"With {half[0][0]} candidates, on two cores that the load generator shares, p99 was {figures[0]} to "
        f"{figures[-1]} ms at {half[0][share]} to {half[-1][share]} of capacity ([report]({ROOT_MARK}{LATENCY}))."
    ]


def tenths() -> list[str]:
    """Return the ratio of mean predicted to mean true click probability for each tenth of the predictions."""
    table = next(table for table in read_report(GENERATED) if table.header[0] == "1")
    return markdown(("Tenth of the predictions", *table.header), [("Mean predicted / mean true", *table.rows[0])])


def blocks() -> dict[str, list[str]]:
    """Return the lines of each generated table, by its name."""
    copied = {name: copy.lines() for name, copy in COPIES.items()}
    return copied | {
        "highlights": highlights(),
        "key-figures": key_figures(),
        "results": results(),
        "production": production(),
        "generated-tenths": tenths(),
        "expected-p99": expected_p99(),
        "headline-movielens-1m": headline_line(MOVIELENS_1M),
        "headline-criteo": headline_line(CRITEO),
    }
