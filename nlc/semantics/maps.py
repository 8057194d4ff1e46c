"""Maps: `linear(d -> heads*d_k, bias)` -> their axes, parts and initial values.

In: `tree.Map`. Out: `ir.Map`. A `kernel` gets its axes later, from the key of its memory.
"""

from __future__ import annotations

from typing import Any, NoReturn, cast

from nlc.errors import nearest
from nlc.ir.shape import Axis, Shape
from nlc.ir.system import Initial, Map, Part
from nlc.semantics.context import Context, flat, real
from nlc.source import Span
from nlc.syntax import tree
from nlc.syntax.print_expression import print_expression, print_map

ZERO = Initial("constant", 0.0)

# kind -> (smallest and largest number of arrows' ends, bare words, settings)
FORMS: dict[str, tuple[int, int, tuple[str, ...], tuple[str, ...]]] = {
    "linear": (2, 2, ("bias",), ()),
    "mlp": (2, 64, ("bias", "residual", "norm"), ("act",)),
    "glu": (3, 3, (), ("act",)),
    "lora": (3, 3, ("bias",), ("act",)),
    "conv": (1, 1, ("bias",), ("width",)),
    "vector": (0, 8, (), ()),
    "scalar": (0, 0, (), ()),
    "matrix": (0, 2, (), ()),
    "table": (2, 2, (), ()),
    "kernel": (0, 0, (), ("window", "scale")),
}
EXAMPLES = {
    "linear": "linear(d -> heads*d_k)",
    "mlp": "mlp(d_k -> 2*d_k -> d_v, act = gelu)",
    "glu": "glu(d -> 4*d -> d)",
    "lora": "lora(d -> 64 -> d, act = tanh, bias)",
    "conv": "conv(d, width = 4)",
    "vector": "vector(d)",
    "scalar": "scalar",
    "matrix": "matrix(d_v, d_k)",
    "table": "table(n -> d)",
    "kernel": "kernel(softmax, window = 64)",
}
ACTIVATIONS = ("gelu", "silu", "relu", "tanh", "sigmoid", "softplus", "exp", "none")
DEFAULT_ACT = {"mlp": "gelu", "glu": "silu", "lora": "none"}


def resolve_map(context: Context, written: tree.Map, extra: dict[str, int] | None = None) -> Map:
    """Make a map from what is written; faults carry the code NL0414."""
    kind = written.kind
    if kind not in FORMS:
        context.unknown("map", kind, written.span, list(FORMS), "NL0301")
    least, most, words, settings = FORMS[kind]
    options: dict[str, object] = {}
    chains: list[tree.Chain] = []
    for argument in written.arguments:
        word = argument.items[0] if len(argument.items) == 1 else None
        if isinstance(word, tree.Name) and word.id in words and word.id not in context.dims:
            options[word.id] = True
        elif kind == "kernel":
            if not (isinstance(word, tree.Name) and word.id == "softmax"):
                _wrong(context, written, argument.span, "the one kernel is `softmax`")
        else:
            chains.append(argument)
    ends = _ends(context, written, kind, chains)
    if not least <= len(ends) <= most or (kind in ("vector", "matrix") and not ends):
        _wrong(context, written, written.span, f"`{kind}` does not have this form")
    for keyword in written.keywords:
        if keyword.name not in settings:
            known = [*settings, *words]
            close = nearest(keyword.name, known)
            hint = f"did you mean `{close}`?" if close else f"write {EXAMPLES[kind]}"
            context.fail(
                "NL0414", f"`{kind}` has no option `{keyword.name}`", keyword.span,
                "unknown option", hint,
            )  # fmt: skip
        options[keyword.name] = _setting(context, keyword)
    if kind in DEFAULT_ACT:
        options.setdefault("act", DEFAULT_ACT[kind])
    if kind == "conv" and "width" not in options:
        _wrong(context, written, written.span, "a convolution needs its width")
    axes = [context.axes(end, extra) for end in ends]
    return _build(context, written, kind, axes, options)


def _ends(
    context: Context, written: tree.Map, kind: str, chains: list[tree.Chain]
) -> tuple[tree.Expr, ...]:
    if kind in ("vector", "matrix"):
        if any(len(chain.items) != 1 for chain in chains):
            _wrong(context, written, written.span, f"`{kind}` takes axes, not an arrow")
        if kind == "matrix" and len(chains) != 2:
            _wrong(context, written, written.span, "a matrix has two axes")
        return tuple(chain.items[0] for chain in chains)
    if len(chains) > 1:
        _not_a_word(context, written, kind, chains)
        _wrong(context, written, chains[1].span, f"`{kind}` takes one chain of axes")
    return chains[0].items if chains else ()


def _not_a_word(context: Context, written: tree.Map, kind: str, chains: list[tree.Chain]) -> None:
    """Refuse a bare word that this map does not have: misspelt, or one of other maps."""
    known, settings = FORMS[kind][2:]
    everywhere = {word for _, _, words, _ in FORMS.values() for word in words}
    for chain in chains:
        word = chain.items[0]
        if len(chain.items) > 1 or not isinstance(word, tree.Name) or word.id in context.dims:
            continue
        close = nearest(word.id, [*known, *settings])
        if close or word.id in everywhere:
            flag = close in known
            hint = f"did you mean `{close}`?" if flag else f"write, for example, `{EXAMPLES[kind]}`"
            text = f"`{close}` is set to a value" if close and not flag else "no word of this map"
            context.fail("NL0414", f"`{kind}` has no word `{word.id}`", word.span, text, hint)


def _wrong(context: Context, written: tree.Map, span: Span, text: str) -> NoReturn:
    context.fail(
        "NL0414", f"wrong form of `{written.kind}`", span, text,
        f"write, for example, `{EXAMPLES[written.kind]}`",
    )  # fmt: skip


def _setting(context: Context, keyword: tree.Keyword) -> object:
    value = keyword.value
    match keyword.name:
        case "act":
            if not isinstance(value, tree.Name) or value.id not in ACTIVATIONS:
                word = print_expression(value)
                close = nearest(word, list(ACTIVATIONS))
                context.fail(
                    "NL0414", f"unknown activation `{word}`", value.span, "no activation",
                    f"did you mean `{close}`?" if close else f"one of {', '.join(ACTIVATIONS)}",
                )  # fmt: skip
            return value.id
        case "width":
            return context.positive(value, "a width")
        case "window":
            if isinstance(value, tree.Name) and value.id == "none":
                return None
            return context.positive(value, "a window")
        case _:
            return real(context, value)


def _uniform(fan_in: int) -> Initial:
    return Initial("uniform", float(fan_in))


def _matrix(name: str, out: Axis, into: Axis, initial: Initial | None = None) -> Part:
    shape = (
        Axis(out.name, out.size, role="out"),
        Axis(into.name, into.size, role="in"),
    )
    return Part(name, shape, initial or _uniform(into.size))


def _build(
    context: Context,
    written: tree.Map,
    kind: str,
    axes: list[Shape],
    options: dict[str, object],
) -> Map:
    chain = tuple(flat(shape) for shape in axes)
    bias = bool(options.get("bias"))
    parts: list[Part] = []
    inputs: Shape = axes[0] if axes else ()
    outputs: Shape = axes[-1] if axes else ()
    match kind:
        case "linear":
            parts.append(_matrix("weight", chain[1], chain[0]))
            if bias:
                parts.append(Part("bias", (chain[1],), _uniform(chain[0].size)))
        case "mlp":
            for i in range(1, len(chain)):
                parts.append(_matrix(f"layer{i}.weight", chain[i], chain[i - 1]))
                if bias:
                    parts.append(Part(f"layer{i}.bias", (chain[i],), _uniform(chain[i - 1].size)))
            if options.get("norm"):
                parts.append(Part("norm.weight", (chain[-1],), Initial("constant", 1.0)))
                parts.append(Part("norm.bias", (chain[-1],), ZERO))
            if options.get("residual") and [a.name for a in inputs] != [a.name for a in outputs]:
                _wrong(
                    context, written, written.span, "a residual needs the same axes at both ends"
                )
        case "glu":
            a, h, b = chain
            parts += [_matrix("gate", h, a), _matrix("up", h, a), _matrix("down", b, h)]
        case "lora":
            a, r, b = chain
            up = "up.weight" if bias else "up"
            parts += [_matrix("down", r, a), _matrix(up, b, r, ZERO)]
            if bias:
                parts.append(Part("up.bias", (b,), _uniform(r.size)))
        case "conv":
            width = options["width"]
            assert isinstance(width, int)
            taps = Axis("width", width)
            parts.append(Part("weight", (chain[0], Axis("1", 1), taps), _uniform(width)))
            if bias:
                parts.append(Part("bias", (chain[0],), _uniform(width)))
        case "vector":
            inputs, outputs = (), tuple(axis for shape in axes for axis in shape)
            parts.append(Part("", chain, ZERO))
        case "scalar":
            parts.append(Part("", (), ZERO))
        case "matrix":
            inputs, outputs = (), ()
            part = _matrix("", chain[0], chain[1], ZERO)
            parts.append(part)
            outputs = part.shape
        case "table":
            parts.append(Part("weight", (chain[0], chain[1]), Initial("normal", 0.02)))
            inputs = ()
        case "kernel":
            pass
    return Map(
        cast(Any, kind), inputs, outputs, chain, tuple(parts), tuple(sorted(options.items())),
        text=print_map(written),
    )  # fmt: skip


# which parts read the key, and which make the value: `self @ X` and `X @ self` act on them
def reads_key(map: Map, part: str) -> bool:
    """Say whether a part of a map multiplies the map's input."""
    return part in {"", "weight", "layer1.weight", "gate", "down" if map.kind == "lora" else "up"}


def makes_value(map: Map, part: str) -> bool:
    """Say whether a part of a map makes the map's output."""
    last = f"layer{len(map.chain) - 1}"
    ends = {"lora": {"up", "up.weight", "up.bias"}, "glu": {"down"}}.get(
        map.kind, {"", "weight", "bias", f"{last}.weight", f"{last}.bias"}
    )
    return part in ends
