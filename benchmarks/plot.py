"""Bar charts of a result of run.py, one SVG file a group: how each loop compares with asyncio. No library needed."""

import html
import pathlib

COLOURS = ("#0b7285", "#adb5bd", "#e8590c", "#5c940d", "#6741d9", "#c2255c", "#1971c2", "#f08c00", "#495057")
LEFT, BARS, BAR, GAP, TOP = 190, 480, 13, 14, 62  # pixels
TEXT = 'font-family="system-ui, sans-serif"'


def write(folder, title, entries, loops, value):
    """Write FOLDER/<group>.svg for each group of entries; `value(entry, loop)` is times asyncio's figure, or None.

    Returns the paths.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    groups = {}
    for entry in entries:
        groups.setdefault(entry["name"].partition(".")[0], []).append(entry)
    paths = []
    for group, members in groups.items():
        rows = [(e["name"].partition(".")[2], {loop: value(e, loop) for loop in loops}) for e in members]
        paths.append(folder / f"{group}.svg")
        paths[-1].write_text(chart(f"{group}: times asyncio", title, rows, loops))
    return paths


def chart(heading, title, rows, loops):
    """The SVG text of one chart: for each row a bar a loop, longer is better."""
    loops = [loop for loop in loops if any(figures[loop] for _, figures in rows)]
    longest = max((figure for _, figures in rows for figure in figures.values() if figure), default=1)
    body, y = [legend(loops)], TOP
    for name, figures in rows:
        present = [loop for loop in loops if figures[loop]]
        middle = y + len(present) * BAR / 2 + 4
        body.append(text(LEFT - 8, middle, name, 'text-anchor="end" font-size="12"'))
        for loop in present:
            width = max(1, BARS * figures[loop] / longest)
            colour = COLOURS[loops.index(loop) % len(COLOURS)]
            body.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 1}" fill="{colour}"/>')
            body.append(text(LEFT + width + 5, y + BAR - 3, f"{figures[loop]:.2f}", 'font-size="10"'))
            y += BAR
        y += GAP
    width = LEFT + BARS + 50
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}">\n'
        f'<rect width="{width}" height="{y}" fill="#ffffff"/>\n'
        + text(10, 20, heading, 'font-size="15" font-weight="bold"')
        + text(10, 36, title, 'font-size="10"')
        + "".join(body)
        + "</svg>\n"
    )


def legend(loops):
    parts = []
    for number, loop in enumerate(loops):
        x, colour = LEFT + number * 85, COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{x}" y="44" width="10" height="10" fill="{colour}"/>\n')
        parts.append(text(x + 14, 53, loop, 'font-size="11"'))
    return "".join(parts)


def text(x, y, content, style):
    return f'<text x="{x:.1f}" y="{y:.1f}" {TEXT} {style}>{html.escape(content)}</text>\n'
