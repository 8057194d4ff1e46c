"""Pictures of a system: the level graph as text, JSON, DOT and Mermaid; the level score as SVG.

In: a `System`. Out: a string, or for JSON plain data. The same spec gives the same bytes.
"""

from nlc.view.data import as_json
from nlc.view.graphs import as_dot, as_mermaid
from nlc.view.page import as_html
from nlc.view.score import as_svg
from nlc.view.text import as_text

__all__ = ["as_dot", "as_html", "as_json", "as_mermaid", "as_svg", "as_text"]
