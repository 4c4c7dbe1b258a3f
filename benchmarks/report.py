"""What both ways of measuring print: numbers, ratios and tables, plain or Markdown."""


def ratio(entry, value, other):
    """How many times better `value` is than `other`; above 1 is better, whichever way the unit counts."""
    if not value or not other:
        return None
    return other / value if entry["lower_is_better"] else value / other


def number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def print_table(rows, markdown):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for i, row in enumerate(rows):
        cells = [cell.ljust(w) if j < 2 else cell.rjust(w) for j, (cell, w) in enumerate(zip(row, widths))]
        print("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells))
        if markdown and i == 0:
            print("|" + "|".join("-" * (w + 1) + (":" if j > 1 else "-") for j, w in enumerate(widths)) + "|")
