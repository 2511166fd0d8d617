"""A line chart with two logarithmic axes as SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 440, 60, 220, 20, 50
COLOURS = ("#0b6e4f", "#6bbf59", "#c1272d", "#f2a65a", "#2e4a8a", "#7a7a7a", "#9b5de5")


def write_plot(path: Path, xs: Sequence[float], lines: Mapping[str, Sequence[float]], x_name: str, y_name: str) -> None:
    """Draw a line for each name, through one value for each x; all values are positive."""
    values = [value for line in lines.values() for value in line]
    low, high = (10 ** edge(math.log10(end)) for edge, end in ((math.floor, min(values)), (math.ceil, max(values))))

    def place(value: float, start: float, end: float, first: float, last: float) -> float:
        return first + (math.log(value / start) / math.log(end / start) if end > start else 0.5) * (last - first)

    def x_of(x: float) -> float:
        return place(x, xs[0], xs[-1], LEFT, WIDTH - RIGHT)

    def y_of(y: float) -> float:
        return place(y, low, high, HEIGHT - BOTTOM, TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text x="{LEFT}" y="{TOP - 6}" text-anchor="end">{escape(y_name)}</text>',
    ]
    for x in xs:
        parts += [
            f'<line x1="{x_of(x):.1f}" y1="{TOP}" x2="{x_of(x):.1f}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>',
            f'<text x="{x_of(x):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>',
        ]
    tick = low
    while tick <= high:
        for step in (1, 2, 5):
            if low <= tick * step <= high:
                y = y_of(tick * step)
                parts += [
                    f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#eee"/>',
                    f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick * step:,g}</text>',
                ]
        tick *= 10
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in zip(xs, line, strict=True))
        y = TOP + 14 + 20 * number
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<line x1="{WIDTH - RIGHT + 14}" y1="{y}" x2="{WIDTH - RIGHT + 34}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>',
            f'<text x="{WIDTH - RIGHT + 40}" y="{y + 4}">{escape(name)}</text>',
        ]
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
