"""Normal forms: of known rules, of random affine updates, and the reasons where there is none."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.normal_form import Affine, Neither, NormalForm
from nlc.ir.shape import Axis, Shape
from nlc.ir.system import Assignment, Initial, Map, Memory, Part, Variable
from nlc.passes.normalise import normalise

N, M, H = Axis("d_k", 4), Axis("d_v", 3), Axis("heads", 2)


class Made:
    """A memory under construction: states, streams, and the update's assignments."""

    def __init__(self, extra: tuple[str, ...] = (), body: Shape = (M, N)):
        self.graph, self.body, self.names = Graph(), body, ("", *extra)
        self.shapes: dict[str, Shape] = {}

    def __call__(self, op: str, *args: Expr | float, **attrs: object) -> Expr:
        nodes = [a if isinstance(a, Expr) else self.graph.constant(a) for a in args]
        return self.graph.make(op, *nodes, **attrs)

    def state(self, var: str = "", when: str = "prev") -> Expr:
        shape = (H, *self.body)
        return self("state", memory="M", var=var, part="weight", when=when, shape=shape)

    def stream(self, name: str, *shape: Axis) -> Expr:
        self.shapes[name] = (H, *shape)
        return self("stream", name=name, shape=(H, *shape))

    def gate(self, name: str) -> Expr:
        """A number per head, shaped for the state."""
        return self.wide(self.stream(name))

    def wide(self, x: Expr) -> Expr:
        return self("unsqueeze", x, axes=tuple(range(-len(self.body), 0)))

    def memory(self, update: dict[str, Expr], lead: Shape = (H,)) -> Memory:
        part = Part("weight", self.body, Initial("constant"))
        form = Map("linear", (N,), (M,), (N, M), (part,))
        variables = tuple(Variable(name, (part,)) for name in self.names)
        assigned = tuple(Assignment(var, "weight", value) for var, value in update.items())
        return Memory("M", "fast", lead, form, variables, (), None, False, (), assigned, False, 1,
                      None, "full")  # fmt: skip

    def form(self, update: dict[str, Expr]) -> NormalForm:
        [(part, form)] = normalise(self.graph, self.memory(update))
        assert part == "weight"
        return form

    def draw(self, seed: int = 0) -> dict[tuple, Tensor]:
        make = torch.Generator().manual_seed(seed)

        def random(shape: Shape) -> Tensor:
            return torch.randn([a.size for a in shape], generator=make, dtype=torch.float64)

        leaves = {("stream", name): random(shape) for name, shape in self.shapes.items()}
        for name in self.names:
            for when in ("prev", "start"):
                leaves["state", name, "weight", when] = random((H, *self.body))
        return leaves

    def check(self, update: dict[str, Expr], evaluate) -> Affine:
        """Evaluate the form, and compare with the update itself."""
        form = self.form(update)
        assert isinstance(form, Affine), form
        leaves = self.draw()
        want = dict(zip(update, evaluate(list(update.values()), leaves), strict=True))
        got = run_form(form, leaves, evaluate, len(self.body))
        for j, (name, part) in enumerate(form.states):
            assert part == "weight"
            expected = want.get(name, leaves["state", name, "weight", "prev"])
            torch.testing.assert_close(got[j], expected, rtol=1e-10, atol=1e-10)
        for node in postorder(coefficients(form)):
            assert not (node.op == "state" and node.attr("when") == "prev")
        return form


def coefficients(form: Affine) -> list[Expr]:
    """All expressions of a form."""
    found = [gate.value for row in form.decay for gate in row if gate is not None]
    for write in form.writes:
        found += [e for e in (*write.reads, write.offset, *write.targets) if e is not None]
        found += [c for _, c in write.earlier]
    return found


def run_form(form: Affine, leaves, evaluate, rank: int) -> list[Tensor]:
    """Move the states by one token, as `normal_form` says."""

    def number(e: Expr) -> Tensor:
        [value] = evaluate([e], leaves)
        return value

    Z = []
    for name, part in form.states:
        value = leaves["state", name, part, "prev"]
        value = value.reshape(*value.shape[:1], *[1] * (2 - rank), *value.shape[1:])
        Z.append(value.mT if form.transposed else value)
    rows, columns = Z[0].shape[-2:]

    def vector(e: Expr, size: int) -> Tensor:
        value = number(e)
        return value.expand(*value.shape[:-1], size) if value.ndim else value.expand(1, size)

    writes: list[Tensor] = []
    for write in form.writes:
        e = torch.zeros(2, rows, dtype=torch.float64)
        if write.offset is not None:
            e = e + vector(write.offset, rows)
        for j, p in enumerate(write.reads):
            if p is not None:
                e = e + torch.einsum("hmn,hn->hm", Z[j], vector(p, columns).expand(2, columns))
        for s, c in write.earlier:
            e = e + number(c)[..., None] * writes[s]
        writes.append(e)
    new = []
    for j in range(len(Z)):
        total = torch.zeros_like(Z[j])
        for i, old in enumerate(Z):
            gate = form.decay[i][j]
            if gate is not None:
                value = number(gate.value)
                total = total + old * (
                    value[..., None, None] if gate.kind == "scalar" else value[..., None, :]
                )
        for e, write in zip(writes, form.writes, strict=True):
            b = write.targets[j]
            if b is not None:
                total = total + e[..., :, None] * vector(b, columns)[..., None, :]
        total = total.mT if form.transposed else total
        new.append(total.reshape(leaves["state", "", "weight", "prev"].shape))
    return new


def delta(c: Made, at: Expr) -> Expr:
    """The gradient of 1/2 ||M k - v||^2, as it is written by `differentiate`."""
    k, v = c.stream("k", N), c.stream("v", M)
    return c("outer", c("sub", c("matvec", at, k), v), k)


def test_linear_attention_knows_its_writes(evaluate):
    c = Made()
    form = c.check(
        {"": c("add", c.state(), c("outer", c.stream("v", M), c.stream("k", N)))}, evaluate
    )
    assert form.known and len(form.writes) == 1
    assert form.writes[0].offset is c.stream("v", M) and form.writes[0].targets[0] is c.stream(
        "k", N
    )
    assert form.decay[0][0].kind == "scalar" and form.decay[0][0].value is c.graph.constant(1)


def test_the_delta_rule_has_one_write(evaluate):
    c = Made()
    step = c("mul", c.gate("beta"), delta(c, c.state()))
    form = c.check({"": c("sub", c.state(), step)}, evaluate)
    assert len(form.writes) == 1 and not form.known
    assert form.writes[0].targets[0] is c.stream("k", N)


def test_the_gated_delta_rule_is_the_same_however_it_is_written(evaluate):
    def by_grad(c: Made) -> Expr:
        S = c("let", c("mul", c.gate("alpha"), c.state()), name="self", part="weight")
        return c("sub", S, c("mul", c.gate("beta"), delta(c, S)))

    def by_matrix(c: Made) -> Expr:
        # S (alpha (I - beta k k^T)) + beta v k^T
        k, v = c.stream("k", N), c.stream("v", M)
        inner = c("sub", c("identity", axis=N), c("mul", c.gate("beta"), c("outer", k, k)))
        kept = c("matmul", c.state(), c("mul", c.gate("alpha"), inner))
        return c("add", kept, c("mul", c.gate("beta"), c("outer", v, k)))

    def by_parts(c: Made) -> Expr:
        k, v, beta = c.stream("k", N), c.stream("v", M), c.stream("beta")
        scaled = c("mul", c("unsqueeze", beta, axes=(-1,)), k)
        S = c("mul", c.gate("alpha"), c.state())
        S = c("sub", S, c("outer", c("matvec", S, scaled), k))
        return c("add", S, c("outer", v, scaled))

    for way in (by_grad, by_matrix, by_parts):
        c = Made()
        form = c.check({"": way(c)}, evaluate)
        assert len(form.writes) == 1, way
        assert form.writes[0].reads[0] is not None and form.writes[0].offset is not None
        assert form.writes[0].targets[0] is c.stream("k", N)
        assert form.decay[0][0].kind == "scalar" and form.decay[0][0].value is c.stream("alpha")


def test_channel_gates_and_different_keys_as_in_rwkv(evaluate):
    c = Made()
    w, kappa = c.stream("w", N), c.stream("kappa", N)
    kept = c("matmul", c.state(), c("diag", w))
    read = c("matvec", c.state(), kappa)
    erased = c("sub", kept, c("outer", read, c("mul", c.stream("a", N), kappa)))
    form = c.check({"": c("add", erased, c("outer", c.stream("v", M), c.stream("k", N)))}, evaluate)
    assert len(form.writes) == 2 and form.decay[0][0].kind == "diagonal"
    assert not form.writes[0].earlier and not form.writes[1].earlier


def test_momentum_writes_into_both_states(evaluate):
    c = Made(("S",))
    S = c("mul", c.gate("eta"), c.state("S"))
    S = c("let", c("sub", S, c("mul", c.gate("theta"), delta(c, c.state()))), name="S", part="")
    M = c("add", c("mul", c.wide(c("sub", 1.0, c.stream("alpha"))), c.state()), S)
    form = c.check({"": M, "S": S}, evaluate)
    assert len(form.writes) == 1
    assert form.writes[0].targets == (c.stream("k", N), c.stream("k", N))
    assert form.decay[0][1] is None and form.decay[1][0].value is c.stream("eta")


def test_writes_on_successive_lines_see_each_other(evaluate):
    c = Made()
    S = c("mul", c.gate("alpha"), c.state())
    for i in range(3):
        k, v = c.stream(f"k{i}", N), c.stream(f"v{i}", M)
        e = c("sub", c("matvec", S, k), v)
        S = c("let", c("sub", S, c("mul", c.gate(f"b{i}"), c("outer", e, k))), name="S", part="")
    form = c.check({"": S}, evaluate)
    assert [len(write.earlier) for write in form.writes] == [0, 1, 2]


def test_writes_that_read_one_point_do_not(evaluate):
    c = Made()
    S = c.state()
    for i in range(2):
        k, v = c.stream(f"k{i}", N), c.stream(f"v{i}", M)
        e = c("sub", c("matvec", c.state(), k), v)
        S = c("sub", S, c("outer", e, k))
    form = c.check({"": S}, evaluate)
    assert [len(write.earlier) for write in form.writes] == [0, 0]


def test_the_other_side_is_found(evaluate):
    c = Made()
    v, k = c.stream("v", M), c.stream("k", N)
    back = c("matvec", c("transpose", c.state()), v)
    step = c("mul", c.gate("eta"), c("outer", v, c("sub", k, back)))
    form = c.check({"": c("add", c("mul", c.gate("alpha"), c.state()), step)}, evaluate)
    assert form.transposed and len(form.writes) == 1
    c = Made()
    rows = c("mul", c("unsqueeze", c.stream("g", M), axes=(-1,)), c.state())
    form = c.check({"": c("add", rows, c("outer", c.stream("v", M), c.stream("k", N)))}, evaluate)
    assert form.transposed and form.decay[0][0].kind == "diagonal"


def test_a_vector_state_is_one_row(evaluate):
    c = Made(body=(N,))
    h = c("add", c("mul", c.stream("a", N), c.state()), c.stream("b", N))
    form = c.check({"": h}, evaluate)
    assert form.known and form.decay[0][0].kind == "diagonal"
    c = Made(body=(N,))
    k = c.stream("k", N)
    along = c("unsqueeze", c("dot", c.state(), k), axes=(-1,))
    form = c.check({"": c("sub", c.state(), c("mul", along, k))}, evaluate)
    assert not form.known


def test_a_number_as_state(evaluate):
    c = Made(body=())
    form = c.check(
        {"": c("add", c("mul", c.stream("a"), c.state()), c("mul", 2.0, c.stream("b")))}, evaluate
    )
    assert form.known and len(form.writes) == 1 and form.decay[0][0].kind == "scalar"


def test_conditions_on_streams_are_seen_through(evaluate):
    c = Made()
    moved = c("sub", c.state(), delta(c, c.state()))
    condition = c.wide(c("gt", c.stream("surprise"), 0.0))
    form = c.check({"": c("where", condition, moved, c.state())}, evaluate)
    assert len(form.writes) == 1
    c = Made()
    condition = c.wide(c("gt", c.stream("surprise"), 0.0))
    c.check({"": c("where", condition, c.state(), 0.0)}, evaluate)


def test_gradients_of_the_chunk_start_are_known(evaluate):
    c = Made(("S",))
    S = c("sub", c("mul", c.gate("eta"), c.state("S")), delta(c, c.state(when="start")))
    form = c.check({"": c("add", c.state(), S), "S": S}, evaluate)
    assert form.known and len(form.writes) == 1


def test_a_constant_step_may_be_stopped(evaluate):
    c = Made()
    written = c("add", c.state(), c("outer", c.stream("v", M), c.stream("k", N)))
    stopped = c("add", c.state(), c("stop", c("sub", written, c.state())))
    form = c.check({"": stopped}, evaluate)
    assert form.known and form.writes[0].offset.op == "stop"


def test_a_number_times_a_stopped_step_is_known(evaluate):
    c = Made()
    step = c("stop", c("outer", c.stream("v", M), c.stream("k", N)))
    form = c.check({"": c("sub", c.state(), c("mul", c.gate("eta"), step))}, evaluate)
    assert form.known and len(form.writes) == 1


def test_a_read_that_is_stopped_moves_the_values_and_is_a_constant_to_gradients(evaluate):
    c = Made(("S",))
    step = c("mul", c.gate("eta"), c("stop", delta(c, c.state())))
    S = c("sub", c("mul", c.gate("mu"), c.state("S")), step)
    form = c.check({"": c("add", c("mul", c.gate("a"), c.state()), S), "S": S}, evaluate)
    assert not form.known and form.stopped is not None and form.stopped.form.known
    ((leaf, what),) = form.stopped.held
    assert leaf.shape == (H, M) and what.reads[1] is None and not what.earlier
    (write,) = form.stopped.form.writes
    assert leaf in postorder([write.offset])
    assert form.stopped.form.decay == form.decay


def test_what_is_added_to_a_row_goes_along_its_key(evaluate):
    c = Made(body=(Axis("", 1), N))
    k, error = c.stream("k", N), c.stream("error", Axis("", 1))
    step = c("mul", c.gate("eta"), c("outer", error, k))
    form = c.check({"": c("sub", c.state(), step)}, evaluate)
    (write,) = form.writes
    assert write.targets == (k,)
    assert {n.attr("name") for n in postorder([write.offset]) if n.op == "stream"} == {
        "eta",
        "error",
    }


def test_a_state_that_is_not_assigned_keeps_its_value(evaluate):
    c = Made(("S",))
    form = c.check({"": c("mul", c.gate("a"), c.state("S"))}, evaluate)
    assert form.decay[0][0] is None and form.decay[1][1].value is c.graph.constant(1)


def reason(c: Made, value: Expr) -> Neither:
    form = c.form({"": value})
    assert isinstance(form, Neither), form
    assert form.hint and form.term is not None
    return form


def test_reasons():
    c = Made()
    assert "`tanh` of the running state" in reason(c, c("tanh", c.state())).reason
    unit = c("unit", c.state(), axes=(-1,), eps=1e-12)
    assert "`unit`" in reason(c, unit).reason
    read = c("matvec", c.state(), c.stream("k", N))
    squared = c("outer", c("mul", read, read), c.stream("k", N))
    assert "multiplied" in reason(c, squared).reason
    full = c("matmul", c.state(), c.stream("A", N, N))
    assert "full matrix" in reason(c, full).reason
    assert "added" in reason(c, c("add", c.state(), c.stream("B", M, N))).reason
    assert "entry by entry" in reason(c, c("mul", c.state(), c.stream("B", M, N))).reason
    stop = c("stop", c("mul", c.gate("a"), c.state()))
    assert "`stop`" in reason(c, stop).reason
    gated = c("mul", c("unsqueeze", c.stream("g", M), axes=(-1,)), c.state())
    both = c("mul", c("unsqueeze", c.stream("w", N), axes=(-2,)), gated)
    assert "both sides" in reason(c, both).reason
    assert "divisor" in reason(c, c("div", c.gate("a"), c.state())).reason


# random affine updates ------------------------------------------------------------------------


@st.composite
def updates(draw: st.DrawFn) -> tuple[Made, dict[str, Expr]]:
    extra = draw(st.sampled_from([(), ("S",), ("S", "R")]))
    body = draw(st.sampled_from([(M, N), (M, N), (Axis("1", 1), N)]))
    c = Made(extra, body)
    turned = body[0] is M and draw(st.booleans())
    rows, columns = body[::-1] if turned else body
    count = iter(range(10_000))

    def leaf(var: str) -> Expr:
        return c("transpose", c.state(var)) if turned else c.state(var)

    env = {name: leaf(name) for name in c.names}

    def fresh(*shape: Axis) -> Expr:
        return c.stream(f"x{next(count)}", *shape)

    def scale(x: Expr, rank: int) -> Expr:
        s = draw(st.sampled_from(["stream", "const", "neg", "div"]))
        if s == "stream":
            return c("mul", x, c("unsqueeze", fresh(), axes=tuple(range(-rank, 0))))
        if s == "const":
            return c("mul", draw(st.sampled_from([2.0, 0.5, -1.0])), x)
        return c("neg", x) if s == "neg" else c("div", x, 4.0)

    def vector(depth: int) -> Expr:
        kind = draw(st.sampled_from(["read", "read", "error", "scaled", "sum", "where", "free"]))
        if depth <= 0 or kind == "free":
            return fresh(rows)
        match kind:
            case "read":
                return c("matvec", matrix(depth - 1), fresh(columns))
            case "error":
                return c("sub", vector(depth - 1), fresh(rows))
            case "scaled":
                return scale(vector(depth - 1), 1)
            case "where":
                test = c("unsqueeze", c("gt", fresh(), 0.0), axes=(-1,))
                return c("where", test, vector(depth - 1), vector(depth - 1))
        return c("add", vector(depth - 1), vector(depth - 1))

    def matrix(depth: int) -> Expr:
        kinds = ["scaled", "columns", "sum", "sub", "write", "write", "delta", "where", "twice",
                 "let", "diag", "householder"]  # fmt: skip
        if depth <= 0:
            return env[draw(st.sampled_from(c.names))]
        match draw(st.sampled_from(kinds)):
            case "scaled":
                return scale(matrix(depth - 1), 2)
            case "columns":
                return c("mul", c("unsqueeze", fresh(columns), axes=(-2,)), matrix(depth - 1))
            case "sum":
                return c("add", matrix(depth - 1), matrix(depth - 1))
            case "sub":
                return c("sub", matrix(depth - 1), matrix(depth - 1))
            case "write":
                return c("add", matrix(depth - 1), c("outer", vector(depth - 1), fresh(columns)))
            case "delta":
                x, k = matrix(depth - 1), fresh(columns)
                e = c("sub", c("matvec", x, k), fresh(rows))
                return c("sub", x, scale(c("outer", e, k), 2))
            case "where":
                test = c.wide(c("gt", fresh(), 0.0))
                return c("where", test, matrix(depth - 1), matrix(depth - 1))
            case "twice":
                return c("transpose", c("transpose", matrix(depth - 1)))
            case "diag":
                return c("matmul", matrix(depth - 1), c("diag", fresh(columns)))
            case "householder":
                a, b = fresh(columns), fresh(columns)
                eye = c("mul", c.wide(fresh()), c("identity", axis=columns))
                return c("matmul", matrix(depth - 1), c("sub", eye, c("outer", a, b)))
        return c("let", matrix(depth - 1), name="x", part="weight")

    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(c.names))
        value = matrix(draw(st.integers(1, 3)))
        env[name] = c("let", value, name=name or "self", part="weight")
    return c, {name: c("transpose", env[name]) if turned else env[name] for name in c.names}


@settings(max_examples=150, deadline=None)
@given(updates())
def test_random_affine_updates_equal_their_form(evaluate, made):
    c, update = made
    c.check(update, evaluate)


def test_long_updates_need_no_stack(evaluate):
    c = Made()
    S = c.state()
    for i in range(3000):
        S = c("mul", 0.999, S) if i % 2 else c("neg", S)
    assert isinstance(c.form({"": S}), Affine)
