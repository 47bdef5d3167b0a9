"""The HTML of a page: escaping, tables, plots with what they say, sections.  Nothing here knows what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Final

from . import plots
from .plots import brief, is_ours

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence

    from matplotlib.figure import Figure

    from .words import Words


class Html(str):
    """Needs no escaping any more."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A plot, what it says, and the figures behind it."""

    key: str
    title: str
    finding: str
    figure: Figure | None = None
    alt: str = ""
    table: str = ""
    """HTML."""
    note: str = ""
    headline: bool = False
    """It is in the page's summary."""
    bad: bool = False
    """The finding is that something is wrong: it is in the summary too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    key: str
    title: str
    lead: str = ""
    parts: list[Part] = field(default_factory=list)


_CSS: Final = """
:root{--ink:#23272e;--quiet:#646b76;--line:#e3e6ea;--ours:#0072b2;--bad:#b3400a}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:2rem 1.25rem 4rem;background:#fff;color:var(--ink);line-height:1.5;
font-family:system-ui,-apple-system,"Segoe UI","PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
h1{font-size:1.7rem;margin:0 0 .25rem}h2{font-size:1.3rem;margin:3rem 0 .25rem;padding-top:1rem;
border-top:2px solid var(--line)}h3{font-size:1.05rem;margin:0 0 .25rem}
p{margin:.25rem 0 .75rem;max-width:48rem}.lead{color:var(--quiet)}
a{color:var(--ours)}nav{margin:1rem 0}nav a{display:inline-block;margin-right:1.1rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:1rem 0;font-size:.9rem}
dt{color:var(--quiet)}dd{margin:0}
.box{background:#f6f8fa;border-radius:.5rem;padding:.9rem 1.1rem;margin:1rem 0}.box h2{border:0;margin:0;padding:0;
font-size:1.05rem}.box ul{margin:.4rem 0 0;padding-left:1.1rem}.box li{margin:.25rem 0;max-width:60rem}
.rough{border-left:4px solid var(--bad)}
.parts{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:0 1.75rem}
article{grid-column:1/-1;display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:.25rem 1.75rem;
margin:.9rem 0 1.1rem;align-items:start}
article>header{grid-column:1/-1}article.wide,article.half{display:block}article.half{grid-column:auto}
.finding{border-left:3px solid var(--ours);padding-left:.75rem;margin:.35rem 0 .75rem;max-width:60rem}
.finding.is-bad{border-color:var(--bad)}
figure{margin:0;max-width:38rem}figure svg{width:100%;height:auto;display:block}
figure svg text{font-family:inherit!important}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th{color:var(--quiet);font-weight:600;text-align:right;border-bottom:1px solid #c9ced6;vertical-align:bottom}
th,td{padding:.22rem .6rem .22rem 0}td{text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
tfoot td{color:var(--quiet)}tfoot tr:first-child td{border-top:2px solid #c9ced6}
.l{text-align:left}tr.ours td{font-weight:600}.note{font-size:.8rem;color:var(--quiet)}
.bad{background:#fdeee6;color:var(--bad);border-radius:.25rem;padding:0 .35rem;font-weight:600;font-size:.85em;
white-space:normal}
code{font-size:.92em;background:#f1f3f5;padding:.1em .3em;border-radius:.2rem}
@media(max-width:52rem){body{padding:1rem .8rem 3rem}.parts,article{display:block}figure{margin-bottom:.75rem}
dl{grid-template-columns:1fr;gap:0}dt{margin-top:.35rem}}
@media print{body{max-width:none;padding:0;font-size:10pt}nav{display:none}article,figure,tr{break-inside:avoid}
h2,h3{break-after:avoid}.scroll{overflow:visible}td{white-space:normal}a{color:inherit;text-decoration:none}}
"""


def page(title: str, body: Iterable[str], words: Words) -> str:
    """The whole file.

    Args:
      title: Text.
      body: HTML.
    """
    language = "zh-CN" if words.language == "zh" else "en"
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{''.join(body)}</body>\n</html>\n"
    )


def in_short(sections: Sequence[Section], words: Words) -> Iterator[str]:
    """What is to be remembered of each section, and whatever is bad."""
    yield f'<section class="box"><h2>{escape(words("in_short"))}</h2><ul>\n'
    for section in sections:
        said = [part for part in section.parts if part.headline or part.bad]
        if said:
            findings = " ".join(part.finding for part in said)
            link = f'<a href="#{section.key}-section">{escape(section.title)}</a>'
            yield f"<li>{link}{words('colon')}{escape(findings)}</li>\n"
    yield "</ul></section>\n"


def section_of(section: Section, words: Words) -> Iterator[str]:
    """A heading, and its parts: a plot beside its table, two plots beside each other, or a table."""
    yield f'<section>\n<h2 id="{section.key}-section">{escape(section.title)}</h2>\n'
    if section.lead:
        yield f'<p class="lead">{escape(section.lead)}</p>\n'
    yield '<div class="parts">\n'
    for part in section.parts:
        wide = (
            ""
            if part.figure is not None and part.table
            else ' class="half"'
            if part.figure is not None
            else ' class="wide"'
        )
        bad = " is-bad" if part.bad else ""
        yield f'<article{wide} id="{part.key}">\n<header><h3>{escape(part.title)}</h3>'
        yield f'<p class="finding{bad}">{escape(part.finding)}</p></header>\n'
        if part.figure is not None:
            note = f'<figcaption class="note">{escape(part.note)}</figcaption>' if part.note else ""
            drawn = plots.svg(part.figure, f"{part.key}-plot", part.title, f"{part.alt} {part.finding}")
            yield f"<figure>{drawn}{note}</figure>\n"
        if part.table:
            yield part.table
        yield "</article>\n"
    yield "</div>\n</section>\n"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    below: Iterable[Sequence[str]] = (),
    left: Container[int] = (0,),
    note: str = "",
) -> Html:
    """Rows of cells.

    Args:
      below: Rows that stand apart, below a line: they are not of the same whole.
      left: The columns that are words; the others are figures.
    """

    def cell(tag: str, number: int, text: str) -> str:
        aligned = ' class="l"' if number in left else ""
        return f"<{tag}{aligned}>{text if isinstance(text, Html) else escape(text)}</{tag}>"

    head = "".join(cell("th", number, column) for number, column in enumerate(columns))

    def lines(of: Iterable[Sequence[str]]) -> str:
        return "".join(
            f"<tr{' class=' + chr(34) + 'ours' + chr(34) if is_ours(row[0]) else ''}>"
            + "".join(cell("td", number, text) for number, text in enumerate(row))
            + "</tr>\n"
            for row in of
        )

    apart = f"<tfoot>{told}</tfoot>" if (told := lines(below)) else ""
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    body = f"<thead><tr>{head}</tr></thead>\n<tbody>{lines(rows)}</tbody>{apart}"
    return Html(f'<div class="scroll"><table>{body}</table>{said}</div>\n')


def badge(words: Words) -> Html:
    """Says that a run is invalid."""
    return Html(f'<span class="bad">{escape(words("invalid"))}</span>')


def ms(value: float | None) -> str:
    """Milliseconds; or a dash, where the samples cannot tell them."""
    return "–" if value is None else brief(value)


def ours_first(named: tuple[str, Any]) -> tuple[bool, str]:
    """The order of a table's rows."""
    return not is_ours(named[0]), named[0]
