"""Random syntax trees, for hypothesis: well formed for the grammar, not for the language.

Names need not exist and shapes need not fit; every tree here can be printed and parsed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from nlc.syntax import tree as t

# words that begin a line somewhere are ordinary names elsewhere, so they belong in here
WORDS = (  # noqa: SIM905
    "x y z k v q M S W_q theta alpha self grad in out tokens task learned zeros prev heads d_k "
    "key value state init at from token step every always never chunk like bias full use level on "
    "θ η_t null true y n no yes"
).split()
# words that begin a line of equations somewhere
OPENING = {"every", "when", "repeat", "state", "memory", "weights", "vocab", "objective", "share"}

names = st.one_of(st.sampled_from(WORDS), st.from_regex(r"\A[a-zA-Z_][a-zA-Z0-9_]{0,7}\Z")).filter(
    lambda name: name not in OPENING
)
numbers = st.one_of(
    st.integers(0, 4096).map(str),
    st.sampled_from(["0.5", "1e-3", "3.0E+4", ".25", "2.", "1_0".replace("_", "")]),
).map(t.Number)


def tuples(
    items: st.SearchStrategy,
    low: int = 0,
    high: int = 3,
    key: Callable[[Any], object] | None = None,
) -> st.SearchStrategy:
    """Tuples of `items`, no two with one key: YAML cannot write a key twice."""
    return st.lists(items, min_size=low, max_size=high, unique_by=key).map(tuple)


def _name(item: Any) -> object:
    return item.name


def _names(item: Any) -> object:
    return item.names


def _composite(inner: st.SearchStrategy) -> st.SearchStrategy:
    keywords = st.lists(
        st.builds(t.Keyword, names, inner), max_size=2, unique_by=lambda k: k.name
    ).map(tuple)
    return st.one_of(
        st.builds(t.Attribute, inner, names),
        st.builds(t.Call, inner, tuples(inner), keywords),
        st.builds(t.Call, names.map(t.Name), tuples(inner), keywords),
        st.builds(t.Unary, st.sampled_from("+-"), inner),
        st.builds(t.Binary, st.sampled_from("+-*/@^"), inner, inner),
        st.builds(t.Compare, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), inner, inner),
        st.builds(t.Norm, inner),
        st.builds(t.Inner, inner, inner),
        st.builds(t.Tuple, tuples(inner, 1)),
    )


expressions = st.recursive(st.one_of(names.map(t.Name), numbers), _composite, max_leaves=8)
shapes = tuples(expressions, 0, 2)
maybe_shapes = st.none() | shapes
rule_names = st.one_of(
    names.map(t.Name),
    st.builds(
        t.Call,
        names.map(t.Name),
        tuples(expressions),
        st.lists(
            st.builds(t.Keyword, names, expressions), max_size=2, unique_by=lambda k: k.name
        ).map(tuple),
    ),
)

# ---- comments ----------------------------------------------------------------------------------

comment_texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12
).map(lambda text: text.rstrip())
_above = st.lists(st.one_of(comment_texts, st.just(t.BLANK)), max_size=2)
comments = st.builds(t.Comments, _above.map(tuple), st.none() | comment_texts, st.just(()))
braced_comments = st.builds(
    t.Comments, _above.map(tuple), st.none() | comment_texts, tuples(comment_texts, 0, 2)
)


def lines(node: type, *parts: st.SearchStrategy, **fields: st.SearchStrategy) -> st.SearchStrategy:
    """Nodes that carry comments."""
    own = {"comments": comments} | fields
    return st.builds(node, *parts, **own)


# ---- statements --------------------------------------------------------------------------------

targets = st.builds(t.Target, tuples(names, 1, 2), maybe_shapes)


@st.composite
def assigns(draw: st.DrawFn) -> t.Assign:
    """Equations: one target or more, with as many values or one."""
    left = draw(tuples(targets, 1, 3))
    count = draw(st.sampled_from([1, len(left)]))
    right = draw(tuples(expressions, count, count))
    return t.Assign(left, right, comments=draw(comments))


shares = lines(t.Share, names, names)
moving = st.builds(t.Period, st.sampled_from(["tokens", "steps"]), expressions)
periods = moving | st.sampled_from([t.Period("always"), t.Period("never")])


def _bodies(inner: st.SearchStrategy) -> st.SearchStrategy:
    body = tuples(inner, 0, 2)
    return st.one_of(
        lines(t.Every, moving, body, comments=braced_comments),
        lines(t.When, expressions, body, comments=braced_comments),
        lines(t.Repeat, expressions, body, comments=braced_comments),
    )


updates = tuples(st.recursive(assigns(), _bodies, max_leaves=3), 0, 3)
sequences = tuples(
    st.recursive(
        assigns() | shares,
        lambda inner: lines(t.Repeat, expressions, tuples(inner, 0, 2), comments=braced_comments),
        max_leaves=3,
    ),
    0,
    3,
)

# ---- clauses -----------------------------------------------------------------------------------

chains = st.builds(t.Chain, tuples(expressions, 1, 3))
maps = st.one_of(
    st.just(t.Map("like", (t.Chain((t.Name("self"),)),))),
    st.builds(
        t.Map,
        names.filter(lambda name: name != "like"),
        tuples(chains),
        st.lists(
            st.builds(t.Keyword, names, expressions), max_size=2, unique_by=lambda k: k.name
        ).map(tuple),
    ),
)
initials = st.none() | expressions | st.builds(t.From, names)
dims = lines(t.Dim, names, expressions)
levels = lines(t.Level, names, periods, st.none() | expressions, st.none() | rule_names)
weights = lines(t.Weights, tuples(names, 1), maps, shapes, st.none() | names, initials)
states = lines(t.State, names, expressions, maybe_shapes)
MEMORY_CLAUSES = ("key", "value", "objective", "update", "init", "reset", "through")


@st.composite
def memories(draw: st.DrawFn) -> t.Memory:
    """Memories with any of their clauses."""
    update = draw(st.none() | rule_names | updates)
    memory = t.Memory(
        draw(tuples(names, 1)),
        draw(maps),
        draw(shapes),
        draw(tuples(names, 0, 2)),
        draw(tuples(expressions, 0, 2)),
        draw(tuples(expressions, 0, 2)),
        draw(st.none() | expressions),
        draw(tuples(states, 0, 2, _name)),
        update,
        draw(initials),
        draw(st.none() | moving),
        draw(st.none() | st.sampled_from(["full", "first_order", "stop"])),
        draw(st.none() | expressions),
        draw(st.none() | expressions),
        draw(st.none() | expressions),
        comments=draw(braced_comments),
        clause_comments=(("update", draw(braced_comments)),) if isinstance(update, tuple) else (),
    )
    return memory


parameters = st.builds(t.Parameter, names, st.none(), st.none() | expressions)
inputs = st.builds(t.Parameter, names, maybe_shapes, st.none() | expressions)
outputs = st.builds(t.Target, tuples(names, 1, 1), maybe_shapes)
rules = lines(
    t.Rule,
    names,
    tuples(parameters),
    tuples(states, 0, 2, _name),
    tuples(memories(), 0, 1),
    updates,
    comments=braced_comments,
)
blocks = lines(
    t.Block,
    names,
    tuples(inputs),
    tuples(outputs, 1, 2),
    tuples(weights, 0, 2, _names),
    tuples(memories(), 0, 2, _names),
    tuples(assigns(), 0, 4),
    comments=braced_comments,
)
models = lines(
    t.Model,
    st.none() | expressions,
    sequences,
    st.none() | expressions,
    comments=braced_comments,
)
sentences = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)


@st.composite
def specs(draw: st.DrawFn) -> t.Spec:
    """Whole specs, with at least one clause."""
    name = draw(st.none() | names)
    spec = t.Spec(
        name,
        draw(st.none() | sentences) if name is not None else None,
        draw(tuples(lines(t.Use, names), 0, 2)),
        draw(tuples(dims, 0, 3, _name)),
        draw(tuples(levels, 0, 2, _name)),
        draw(tuples(rules, 0, 1)),
        draw(tuples(blocks, 0, 1)),
        draw(st.none() | models),
        comments=draw(braced_comments) if name is not None else t.Comments(),
    )
    parts = (spec.name, spec.uses, spec.dims, spec.levels, spec.rules, spec.blocks, spec.model)
    return spec if any(parts) else t.Spec("empty")
