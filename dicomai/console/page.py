"""The page itself."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from dicomai.database.overview import Entry

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1c2b33; }
h1 { font-size: 1.3rem; } h1 small { font-weight: normal; color: #5c6f7a; }
.counts span { display: inline-block; margin: 0 1.2rem 1rem 0; } .counts b { font-size: 1.5rem; margin-right: .3rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .35rem .7rem .35rem 0;
vertical-align: top; border-bottom: 1px solid #dde5ea; } th { color: #5c6f7a; font-weight: 600; }
.CANCELED td:nth-child(2), .held td:nth-child(2) { color: #a8201a; font-weight: 600; }
.COMPLETED td:nth-child(2) { color: #1b6e3c; } progress { width: 6rem; }
"""


def render(ae_title: str, entries: Sequence[Entry]) -> str:
    """Make the page of a worklist; everything from outside is escaped."""
    counts = Counter(entry.state for entry in entries)
    numbers = "".join(f"<span><b>{count}</b>{escape(state)}</span>" for state, count in sorted(counts.items()))
    rows = "\n".join(_row(entry) for entry in entries) or "<tr><td colspan=7>The worklist is empty.</td></tr>"
    head = "".join(f"<th>{name}</th>" for name in ("", "State", "Study", "Series / to", "Route", "Changed", "Reason"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="3">'
        f"<title>{escape(ae_title)} worklist</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(ae_title)} <small>worklist</small></h1><div class=counts>{numbers}</div>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></body></html>"
    )


def _row(entry: Entry) -> str:
    classes = " ".join(part.strip("()") for part in entry.state.split())
    state = escape(entry.state)
    if entry.state == "IN PROGRESS" and entry.kind == "inference":
        state += f' <progress max="100" value="{entry.progress}"></progress>'
    cells = (
        str(entry.id) if entry.id is not None else "",
        state,
        escape(entry.study),
        escape(entry.series or entry.destination),
        escape(entry.route),
        entry.changed_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        escape(entry.reason),
    )
    return f'<tr class="{escape(classes)}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
