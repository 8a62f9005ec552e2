"""The microscope as one HTML page: nothing is loaded from elsewhere, everything shown is escaped."""

from collections.abc import Sequence
from html import escape

from danlu.data.microscope.frame import STYLE, document
from danlu.data.microscope.sums import Counts, Sums, histogram
from danlu.data.microscope.view import Token, View

TOKEN_STYLE = """
.tokens { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  border: 1px solid var(--line); padding: .8rem; border-radius: 4px; }
.t { background: var(--plain); border-radius: 2px; margin-right: 1px; } .t:hover { outline: 2px solid var(--special); }
.tr { background: var(--trained); } .sp { color: var(--special); font-weight: bold; }
.w { outline: 1px dashed var(--cut); }
.cut { background: none; color: var(--cut); text-decoration: line-through; }
.seg { border-left: 3px solid var(--special); padding-left: 3px; }
"""
WIDTH, HEIGHT, MARGIN = 640, 160, 20


def page(title: str, sums: Sums, views: Sequence[View], *, cutoff: int) -> str:
    """Return the page: sums, pictures of the lengths, and the examples token by token."""
    rows = "\n".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in sums.rows)
    parts = [
        f"<table>{rows}</table>", picture(sums.lengths, "tokens of an example", mark=cutoff),
        picture(sums.trained, "trained tokens of an example"), f'<p class="tokens">{_legend()}</p>',
        *map(_section, views)]
    return document(title, parts, STYLE + TOKEN_STYLE)


def picture(values: Counts, title: str, *, mark: int | None = None) -> str:
    """Return a histogram as SVG, with a line at `mark` when it lies within."""
    bars = histogram(values)
    if not bars:
        return ""
    first, last, most = bars[0][0], bars[-1][1] + 1, max(count for _, _, count in bars)
    across = (WIDTH - 2 * MARGIN) / (last - first)
    drawn = []
    for begin, end, count in bars:
        height = (HEIGHT - 2 * MARGIN) * count / most
        drawn.append(
            f'<rect x="{MARGIN + (begin - first) * across:.1f}" y="{HEIGHT - MARGIN - height:.1f}" '
            f'width="{max(1.0, (end + 1 - begin) * across - 1):.1f}" height="{height:.1f}">'
            f"<title>{begin:,} to {end:,}: {count:,}</title></rect>")
    if mark is not None and first <= mark <= last:
        x = MARGIN + (mark - first) * across
        drawn.append(f'<line x1="{x:.1f}" y1="{MARGIN}" x2="{x:.1f}" y2="{HEIGHT - MARGIN}"><title>cutoff_len {mark:,}'
                     "</title></line>")
    label = escape(title)
    return (f'<h2>{label}</h2><svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
            f'aria-label="{label}, histogram">{"".join(drawn)}'
            f'<text x="{MARGIN}" y="{HEIGHT - 5}">{first:,}</text>'
            f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 5}" text-anchor="end">{last - 1:,}</text>'
            f'<text x="{MARGIN}" y="{MARGIN - 6}">most: {most:,}</text></svg>')


def _legend() -> str:
    return ('<span class="t tr">trained</span> <span class="t">not trained</span> '
            '<span class="t sp">special</span> <span class="t tr sp">special, trained</span> '
            '<span class="t tr w">trained with another weight than 1</span> '
            '<span class="t cut">cut</span> - point at a token for its id, position and weight')


def _section(view: View) -> str:
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in view.notes)
    tokens = "".join(_token(token, before) for token, before in
                     zip(view.tokens, (None, *view.tokens), strict=False))
    return f'<h2>{escape(view.title)}: {view.summary}</h2>{notes}<div class="tokens">{tokens}</div>'


def _token(token: Token, before: Token | None) -> str:
    names = ["t"] + [name for name, is_so in (
        ("tr", token.is_trained), ("w", token.is_trained and token.weight != 1), ("sp", token.is_special),
        ("cut", token.is_cut),
        ("seg", before is not None and before.segment != token.segment)) if is_so]
    where = "cut" if token.is_cut else f"position {token.position}, weight {token.weight:g}"
    text = escape(token.text).replace("\n", "↵\n")
    return f'<span class="{" ".join(names)}" title="id {token.id}, {where}">{text}</span>'
