"""Create the README's chart, which compares our throughput with that of other servers, from the committed report."""

from docs.scripts.reports import find_table
from docs.scripts.tables import NAMES, OURS, PEERS

CANDIDATES = "100"
WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 760, 270, 70, 64, 30, 18
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"
SUBTITLE = "The same model on the same two cores; higher is better"
BLUE, GRAY, INK, MUTED = "#1f6feb", "#a8b1bb", "#1f2328", "#59636e"


def throughput_chart() -> str:
    """Return an SVG with one bar per server. A bar shows the server's requests/s with 100 candidates each."""
    table = find_table(PEERS, r"^(requests/s|Throughput)")
    column = table.column(CANDIDATES)
    rates = [(NAMES.get(row[0], row[0]).strip("*"), int(row[column].replace(",", ""))) for row in table.rows]
    rates.sort(key=lambda rate: -rate[1])
    height = TOP + ROW * len(rates) + 14
    scale = (WIDTH - LEFT - RIGHT) / max(rate for _, rate in rates)
    title = f"Requests per second with {CANDIDATES} candidates each"
    described = "; ".join(f"{name} {rate:,}" for name, rate in rates)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{title}: {described}">',
        f"<title>{title}: {described}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        f'<g {FONT} font-size="14" fill="{INK}">',
        f'<text x="20" y="28" font-size="16" font-weight="600">{title}</text>',
        f'<text x="20" y="48" font-size="12" fill="{MUTED}">{SUBTITLE}</text>',
    ]
    for number, (name, rate) in enumerate(rates):
        top = TOP + ROW * number
        ours = name == OURS.strip("*")
        base = top + BAR - 4
        weight = ' font-weight="600"' if ours else ""
        lines += [
            f'<text x="{LEFT - 10}" y="{base}" text-anchor="end"{weight}>{name}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{rate * scale:.1f}" height="{BAR}" rx="2"'
            f' fill="{BLUE if ours else GRAY}"/>',
            f'<text x="{LEFT + rate * scale + 8:.1f}" y="{base}"{weight}>{rate:,}</text>',
        ]
    return "\n".join([*lines, "</g>", "</svg>", ""])
