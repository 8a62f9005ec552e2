"""What our HTML pages share: colours, the document around their parts, and a curve as SVG. Loads nothing heavy."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root { --ink: #1d2125; --paper: #fff; --line: #d5d9de; --trained: #b7ebc6; --plain: #eceff2; --special: #1a5fb4;
  --cut: #c01c28; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --paper: #16191d; --line: #3a4048; --trained: #1f5c36;
  --plain: #262b31; --special: #8ab4f8; --cut: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td { padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); }
.note { color: var(--cut); } h2 { margin-top: 2rem; font-size: 1.1rem; }
svg { max-width: 100%; height: auto; } svg rect { fill: var(--special); }
svg text { fill: var(--ink); font-size: 11px; }
svg line { stroke: var(--cut); stroke-dasharray: 4 3; }
"""
WIDTH, HEIGHT, MARGIN = 300, 130, 18
MOST_POINTS = 600
Points = Sequence[tuple[float, float]]


def document(title: str, parts: Sequence[str], style: str = STYLE) -> str:
    """Return a whole page. `title` is escaped; `parts` are HTML already."""
    return "\n".join([
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body>", f"<h1>{escape(title)}</h1>",
        *parts, "</body></html>\n"])


def curve(points: Points, title: str) -> str:
    """Return a line through (step, value) as SVG with its title, first and last step, least and greatest value."""
    if not points:
        return ""
    thinned = [*points[::max(1, len(points) // MOST_POINTS)], points[-1]]
    steps, values = [step for step, _ in thinned], [value for _, value in points]
    left, low = min(steps), min(values)
    across, up = max(steps) - left or 1.0, max(values) - low or 1.0
    inner, tall = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    drawn = " ".join(f"{MARGIN + inner * (step - left) / across:.1f},{HEIGHT - MARGIN - tall * (value - low) / up:.1f}"
                     for step, value in thinned)
    label = escape(title)
    return (f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
            f'aria-label="{label}"><title>{label}, last {values[-1]:.4g}</title>'
            f'<polyline points="{drawn}" fill="none" stroke="var(--special)" stroke-width="1.5"/>'
            f'<text x="{MARGIN}" y="{MARGIN - 6}">{label}</text>'
            f'<text x="{WIDTH - MARGIN}" y="{MARGIN - 6}" text-anchor="end">{low:.4g} to {max(values):.4g}</text>'
            f'<text x="{MARGIN}" y="{HEIGHT - 4}">{left:g}</text>'
            f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 4}" text-anchor="end">{max(steps):g}</text></svg>')
