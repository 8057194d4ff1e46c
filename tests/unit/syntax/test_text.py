"""The text form: what it reads, and how it is printed."""

from __future__ import annotations

import pytest

from nlc.source import Source
from nlc.syntax import tree as t
from nlc.syntax.parse_text import parse_text
from nlc.syntax.print_expression import print_expression
from nlc.syntax.print_text import print_statement, print_text

N, D = t.Name, t.Number


def spec(text: str) -> t.Spec:
    return parse_text(Source("x.nl", text))


def block(*lines: str) -> t.Block:
    return spec("block f(x) -> y {\n" + "\n".join(lines) + "\n}").blocks[0]


def expression(text: str) -> t.Expr:
    (equation,) = block(f"y = {text}").equations
    assert isinstance(equation, t.Assign)
    return equation.values[0]


def memory(*lines: str) -> t.Memory:
    return block("memory M : linear(a -> b) at fast {\n" + "\n".join(lines) + "\n}").memories[0]


# ---- expressions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3e-4", D("3e-4")),
        ("-a^2", t.Unary("-", t.Binary("^", N("a"), D("2")))),
        ("2^-3^2", t.Binary("^", D("2"), t.Unary("-", t.Binary("^", D("3"), D("2"))))),
        ("-a * b", t.Binary("*", t.Unary("-", N("a")), N("b"))),
        ("a @ b / c", t.Binary("/", t.Binary("@", N("a"), N("b")), N("c"))),
        ("a - b - c", t.Binary("-", t.Binary("-", N("a"), N("b")), N("c"))),
        ("||e||^2", t.Binary("^", t.Norm(N("e")), D("2"))),
        ("||a - ||b||||", t.Norm(t.Binary("-", N("a"), t.Norm(N("b"))))),
        ("<a, b>", t.Inner(N("a"), N("b"))),
        ("<<a, b>, c>", t.Inner(t.Inner(N("a"), N("b")), N("c"))),
        ("<a, b> > c", t.Compare(">", t.Inner(N("a"), N("b")), N("c"))),
        ("c < <a, b>", t.Compare("<", N("c"), t.Inner(N("a"), N("b")))),
        ("<(a > b), c>", t.Inner(t.Compare(">", N("a"), N("b")), N("c"))),
        (
            "where(a < b, c > d, e)",
            t.Call(
                N("where"),
                (t.Compare("<", N("a"), N("b")), t.Compare(">", N("c"), N("d")), N("e")),
            ),
        ),
        ("prev(M)(q)", t.Call(t.Call(N("prev"), (N("M"),)), (N("q"),))),
        ("M.layer1.S", t.Attribute(t.Attribute(N("M"), "layer1"), "S")),
        ("(a, b)", t.Tuple((N("a"), N("b")))),
        ("(a,)", t.Tuple((N("a"),))),
        ("(a)", N("a")),
        (
            "sum(grad, over = (in, out),)",
            t.Call(N("sum"), (N("grad"),), (t.Keyword("over", t.Tuple((N("in"), N("out")))),)),
        ),
        ("key + state + update", expression("(key + state) + update")),
        ("lambda", N("lambda")),
        ("µ", N("μ")),
    ],
)
def test_an_expression(text: str, expected: t.Expr) -> None:
    assert expression(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "1/2 * ||M(k) - v||^2",
        "(1 - decay) * self + S",
        "a - (b - c)",
        "-(a + b)",
        "(-a)^2",
        "a^-2",
        "(a^b)^c",
        "1/sqrt(d_k) * x",
        "f(x, act = gelu)(y).S",
        "(a + b)(x)",
        "where((a < b) == (c < d), 0, 1)",
        "<a + b, -c> / ||d||",
    ],
)
def test_an_expression_is_printed_with_no_bracket_too_many(text: str) -> None:
    assert print_expression(expression(text)) == text


def test_a_line_goes_on_within_brackets_and_after_operators() -> None:
    lines = block(
        "y = f(a,", "b)", "z =", "a +", "b; w = <a,", "b>", "u = ||a", "||", "v = a"
    ).equations
    assert [print_statement(line) for line in lines] == [
        "y = f(a, b)",
        "z = a + b",
        "w = <a, b>",
        "u = ||a||",
        "v = a",
    ]


# ---- statements and clauses --------------------------------------------------------------------


def test_equations() -> None:
    first, second, third = block("a, b = f(x)", "v[heads, 2*d] = x", "n[] = 0").equations
    assert isinstance(first, t.Assign) and isinstance(second, t.Assign)
    assert [target.path for target in first.targets] == [("a",), ("b",)]
    assert second.targets[0].shape == (N("heads"), t.Binary("*", D("2"), N("d")))
    assert isinstance(third, t.Assign) and third.targets[0].shape == ()


def test_words_of_other_clauses_are_names() -> None:
    body = block("key = x", "at, in = f(level)", "every = x", "tokens = task").equations
    assert len(body) == 4
    assert spec("model {\n  every = when\n}").model


def test_a_memory() -> None:
    found = memory(
        "key k1, k2",
        "value v",
        "objective task",
        "state n[] = 0; state S = self",
        "update {",
        "  every 4 steps { n = 0 }",
        "  when n > 0 { self = self - grad(at = S); S = 0 }",
        "  repeat 2*r { self.gate = self.gate }",
        "}",
        "init from N",
        "reset every 256 tokens",
        "through first_order",
        "slots 4",
        "route r",
        "select top_k(2)",
    )
    assert found.keys == (N("k1"), N("k2")) and found.objective == N("task")
    assert [s.shape for s in found.states] == [(), None]
    assert isinstance(found.update, tuple)
    every, when, repeat = found.update
    assert isinstance(every, t.Every) and every.period == t.Period("steps", D("4"))
    assert isinstance(when, t.When) and len(when.body) == 2
    assert isinstance(repeat, t.Repeat) and isinstance(repeat.body[0], t.Assign)
    assert repeat.body[0].targets[0].path == ("self", "gate")
    assert found.init == t.From("N") and found.reset == t.Period("tokens", D("256"))
    assert (found.through, found.slots) == ("first_order", D("4"))
    assert dict(found.clauses)["init"].text == "init from N"
    assert [span.text for span in (*found.name_spans, *found.level_spans)] == ["M", "fast"]


def test_memories_and_weights_with_axes_levels_and_starts() -> None:
    found = block(
        "weights a, b[heads] : linear(d -> 2*d, bias) at fast init 0.1",
        "weights c : scalar init from d",
        "memory A, B : vector(d) at l1, l2 { }",
    )
    assert found.weights[0].names == ("a", "b") and found.weights[0].axes == (N("heads"),)
    assert found.weights[0].level == "fast" and found.weights[0].init == D("0.1")
    assert found.weights[1].init == t.From("d") and found.weights[1].map == t.Map("scalar")
    assert found.memories[0].levels == ("l1", "l2")


def test_a_rule() -> None:
    (rule,) = spec(
        "rule m3(lr, beta = 0.9) {\n  state L[out, out] = 0\n"
        "  memory m : like self { key grad; update sgd(lr = lr) }\n"
        "  every 8 steps { L = 0 }\n  self = self - lr * m\n  eval = self\n}"
    ).rules
    assert rule.parameters[1].default == D("0.9")
    assert rule.memories[0].map == t.Map("like", (t.Chain((N("self"),)),))
    assert len(rule.equations) == 3


def test_a_model() -> None:
    model = spec(
        "model {\n  vocab bytes\n  share f = mixer\n  x[d] = embed(tokens)\n"
        "  repeat 2 { repeat 3 { x = f(x) } }\n  objective cross_entropy(logits, targets)\n}"
    ).model
    assert model and model.vocab == N("bytes") and model.objective
    assert model.equations[0] == t.Share("f", "mixer")


def test_levels_and_dims() -> None:
    found = spec(
        "dims { d = 256, h = 4,\n  e = d/h; f = 2\n}\ndims { g = 1 }\n"
        "level a every 1 token, chunk 16, optimizer sgd\nlevel b every 2*h steps\n"
        "level ice never\nlevel now always\nuse rules\n"
    )
    assert [dim.name for dim in found.dims] == ["d", "h", "e", "f", "g"]
    assert [level.period.unit for level in found.levels] == ["tokens", "steps", "never", "always"]
    assert found.levels[0].optimizer == N("sgd") and found.uses[0].name == "rules"


# ---- printing ----------------------------------------------------------------------------------

CANONICAL = """\
# a licence

# the system
system demo "says \\"hello\\" \\beta"

use rules

dims { d = 8, heads = 2 }

level fast   every 1 token, chunk 16    # the fast one
level slower every 4 steps, optimizer sgd(lr = 0.1)

rule sgd(lr) {
  self = self - lr * grad
}

block mixer(x[d], own[d] = x) -> out[d], extra {  # the mixer
  weights W_q : linear(d -> heads*d_k)
  weights g   : vector(d) at fast init 1  # a gain

  q = W_q(x)  # [heads, d_k]

  # the memory
  memory M : linear(d_k -> d_v) at fast {
    key       k
    objective <M(k), v>
    state n[] = 0
    update {
      n    = n + 1
      self = self - grad

      # every now and then
      every 4 tokens { n = 0 }
      when n > 3 {
        self = 0
        n    = 0
        # the end
      }
    }
    init      learned
  }

  out   = M(q)
  extra = q
  # closing words
}

model {
  vocab 256
  x[d] = embed(tokens)
  repeat 4 { x = x + mixer(x) }
}

# the end
"""


def test_the_canonical_form_stays_as_it_is() -> None:
    text = CANONICAL.replace("chunk 16    #", "chunk 16  #")
    assert print_text(spec(text)) == text


def test_everything_is_put_into_its_place() -> None:
    assert (
        print_text(
            spec(
                "model { vocab 2 } # m\n#1\nlevel a never;level bc always\n"
                "block f(x)->y { memory M:scalar at a{value v;key k}\n y=M(x)\n z=x\n"
                "weights W:scalar\n}"
            )
        )
        == """\
#1
level a  never
level bc always

block f(x) -> y {
  weights W : scalar

  memory M : scalar at a {
    key   k
    value v
  }

  y = M(x)
  z = x
}

model {  # m
  vocab 2
}
""".replace("#1", "# 1")
    )


def test_long_lines_are_broken_where_they_may_be() -> None:
    names = ", ".join(f"argument_{i} = value_{i}" for i in range(8))
    text = print_text(spec(f"block f(x) -> y {{\n  y = function({names}) + {'b' * 30}\n}}"))
    assert max(map(len, text.splitlines())) <= 100
    assert print_text(spec(text)) == text


def test_a_memory_stands_before_the_first_equation_that_reads_it() -> None:
    text = print_text(
        spec(
            "block f(x) -> y {\n  a = x\n  b = N(a)\n  y = M(b)\n"
            "  memory M : scalar at l { }\n  memory N : scalar at l { }\n"
            "  memory O : scalar at l { }\n}"
        )
    )
    order = [
        line.split()[1] if "memory" in line else line.split()[0]
        for line in text.splitlines()[1:-1]
        if line
    ]
    assert order == ["a", "M", "N", "b", "y", "O"]
