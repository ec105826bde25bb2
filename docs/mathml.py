"""Equations of the pages, `$..$` and `$$..$$` as GitHub reads them, become MathML, which browsers show without scripts.

Markdown would take the tags of a formula for those of a block, so a number stands for it until the page is HTML.
"""

import re

from latex2mathml.converter import convert

_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^\s$](?:[^$\n]*[^\s$])?)\$", re.DOTALL)
_PLACE = re.compile(r"⟦(\d+)⟧")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Called by mkdocs with a page's text; code stays as it is."""
    found = page.meta["formulas"] = []

    def put_aside(match: re.Match) -> str:
        block, inline = match.groups()
        found.append(convert(block.strip(), display="block") if block else convert(inline))
        return f"⟦{len(found) - 1}⟧"

    parts = _CODE.split(markdown)
    parts[::2] = (_MATH.sub(put_aside, part) for part in parts[::2])
    return "".join(parts)


def on_page_content(html: str, page, **_) -> str:
    """Called by mkdocs with the page's HTML."""
    return _PLACE.sub(lambda match: page.meta["formulas"][int(match[1])], html)
