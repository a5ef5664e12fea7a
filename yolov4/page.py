"""A page of HTML in one file: headings, tables, pictures as data: URIs; no script, nothing from a network.
No source: plain HTML 5; all text is escaped here."""

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 70rem; margin: 0 auto;
       padding: 0 1rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 1.2rem 0 .4rem; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
figure { margin: 0 0 1rem; } figcaption { color: #444c56; font-size: .9rem; }
img { max-width: 100%; height: auto; }
.small img { max-width: min(100%, 38rem); }
.wide { overflow-x: auto; } .wide img { max-width: none; width: max(100%, 44rem); }
.huge img { width: 100rem; }
.sheet { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.pair { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
table { border-collapse: collapse; font-size: .9rem; } caption { text-align: left; color: #444c56; padding: .3rem 0; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #d8dee4; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; } thead th { border-bottom: 2px solid #8c959f; vertical-align: bottom; }
tbody tr:nth-child(even) { background: #f6f8fa; } tfoot * { font-weight: bold; }
.bar { background: linear-gradient(to right, #b6d4f2 var(--share), transparent var(--share)); }
pre { overflow-x: auto; background: #f6f8fa; padding: .6rem; font-size: .8rem; overflow-wrap: normal; }
.big { font-size: 1.15rem; } b.truth { color: #0068a8; } b.found { color: #a84b00; }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page; the policy in its head forbids it to load anything."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    return "\n".join((f"<section>\n<h2>{escape(title)}</h2>", *parts, "</section>"))


def group(kind: str, *parts: str) -> str:
    """Parts in a box of a kind of STYLE: sheet, pair."""
    return "\n".join((f'<div class="{kind}">', *parts, "</div>"))


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{_class(kind)}>{escape(text)}</p>"


def preformatted(text: str) -> str:
    return f'<pre tabindex="0">{escape(text)}</pre>'


def picture(content: bytes, alt: str, caption: str = "", kind: str = "") -> str:
    """content: a PNG or JPEG file; alt: what it shows, in words; kind `wide`, `wide huge`: it
    scrolls where the screen is smaller."""
    mime = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
    source = f"data:{mime};base64,{base64.b64encode(content).decode()}"
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    scroll = f' tabindex="0" role="group" aria-label="{escape(alt)}"' if kind.startswith("wide") else ""
    return f'<figure{_class(kind)}{scroll}><img src="{source}" alt="{escape(alt)}">{below}</figure>'


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    total: Sequence[str] = (),
    bar: int | None = None,
) -> str:
    """A row's first cell is its heading; bar: the column of percentages (`12.3%`) that are also drawn."""

    def line(row: Sequence[str], bars: bool) -> str:
        cells = "".join(
            f'<td class="bar" style="--share:{escape(cell)}">{escape(cell)}</td>'
            if bars and index == bar
            else f"<td>{escape(cell)}</td>"
            for index, cell in enumerate(row[1:], 1)
        )
        return f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>'

    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join(line(row, True) for row in rows)
    foot = f"\n<tfoot>{line(total, False)}</tfoot>" if total else ""
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="{escape(caption)}"><table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>{foot}\n</table></div>"
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
