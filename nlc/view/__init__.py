"""Pictures of a system: the level graph as text, JSON, DOT and Mermaid; the level score as SVG.

In: a `System`. Out: a string, or for JSON plain data. The same spec gives the same bytes.
"""

from nlc.view.formats import as_dot, as_json, as_mermaid, as_text
from nlc.view.page import as_html
from nlc.view.score import as_svg

__all__ = ["as_dot", "as_html", "as_json", "as_mermaid", "as_svg", "as_text"]
