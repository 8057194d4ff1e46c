"""Where the values of a block's expressions come from, for a sequence or for one token.

In: leaves and structured operations met while lowering. Out: nodes. A `Scope` follows one
execution of a unit's steps: its streams, the states of its memories, and what it remembers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

from nlc.codegen import library, library_maps
from nlc.codegen.apply import apply_module, apply_parts, unsplit
from nlc.codegen.arguments import state_name
from nlc.codegen.lowering import Lowering, batch_of, rank_of
from nlc.codegen.names import identifier
from nlc.codegen.parameters import as_module
from nlc.codegen.program import Program, note
from nlc.codegen.selected import routed_name
from nlc.codegen.torch_memory import bare
from nlc.codegen.torch_tiles import read_name, read_product
from nlc.codegen.unit import Unit, is_alike
from torch import fx

from nlc.ir.expr import Expr
from nlc.ir.shape import Shape
from nlc.ir.slots import further, routed, sparse_read
from nlc.ir.system import Memory


def memory_path(memory: Memory) -> str:
    """The attribute that holds a memory's module; a bare learned state has the memory's name."""
    return f"{memory.name}_memory" if bare(memory) else memory.name


@dataclass
class Scope:
    """One execution: `batch` is 2 over a sequence and 1 for a token.

    `states` are by (memory, when, var), `when` being prev, post or start, or sum or recent for what
    is kept of a window; `paths` the courses of memories that ran over the sequence, `answers` what
    was read of them on the way; `pasts` what shifts and convolutions remember; `aliases` streams
    that hold values that were made before; `late` the memories whose resets come when windows have
    ended.
    """

    unit: Unit
    program: Program
    batch: int
    like: fx.Node
    streams: dict[str, fx.Node | None] = field(default_factory=dict)
    states: dict[tuple[str, str, str], fx.Node] = field(default_factory=dict)
    paths: dict[str, fx.Node] = field(default_factory=dict)
    answers: dict[Expr, fx.Node] = field(default_factory=dict)
    pasts: dict[str, fx.Node] = field(default_factory=dict)
    after: dict[str, fx.Node] = field(default_factory=dict)
    position: fx.Node | None = None
    outer: Callable[[str], fx.Node | None] = lambda name: None
    fetch: Callable[[str], fx.Node] | None = None
    borrow: Callable[[Expr], fx.Node] | None = None
    around: Callable[[Expr], fx.Node] | None = None
    inside: Callable[[Expr], bool] = lambda expr: False
    ahead: Callable[[Expr], fx.Node | None] = lambda expr: None
    first: fx.Node | None = None
    aliases: dict[Expr, Expr] = field(default_factory=dict)
    late: frozenset[str] = frozenset()
    low: Lowering = field(init=False)

    def __post_init__(self) -> None:
        self.low = Lowering(self.program, self.batch, self.leaf, self.structured, self.like)

    def fresh(self) -> None:
        """Forget built expressions: a state or a stream has a new value."""
        self.low.done.clear()

    # ---- leaves --------------------------------------------------------------------------------

    def stream(self, name: str) -> fx.Node | None:
        """A stream's value, or None where it has none yet."""
        if name not in self.streams:
            node = self.outer(name)
            if node is not None:
                self.streams[name] = node
        found = self.streams.get(name)
        entry = next((i for i in self.unit.inputs if i.name == name and i.default), None)
        if entry is None or entry.default is None or found is None or found.meta.get("settled"):
            return found
        own = self.low.narrow(self.low.tensor(entry.default))
        found = self.program.call(library.given, found, own)
        note(found, entry.shape, self.batch, name=name)
        found.meta["settled"] = True
        self.streams[name] = found
        return found

    def leaf(self, expr: Expr) -> fx.Node:
        """The value of a stream, parameter, state or the position."""
        match expr.op:
            case "stream":
                node = self.stream(str(expr.attr("name")))
                assert node is not None, f"the stream {expr.attr('name')} has no value"
                return node
            case "param":
                return note(self.program.attribute(self.parameter(expr)), expr.shape, 0)
            case "position":
                return self.positions()
            case _:
                return self.state(expr)

    def parameter(self, expr: Expr) -> str:
        """The attribute that holds a parameter."""
        name = str(expr.attr("name"))
        if self.unit.tied and name.startswith("unembed."):
            return "embed." + name.split(".", 1)[1]
        return name

    def positions(self) -> fx.Node:
        """The tokens' places in the sequence."""
        assert self.position is not None
        tokens = self.tokens() if self.batch == 2 else 1
        node = self.program.call(library.positions, self.position, tokens, self.like)
        if self.batch == 1:
            node = self.program.method("squeeze", node, 1)
        return note(node, (), self.batch, wide=True)

    def tokens(self) -> fx.Node:
        """How many tokens the sequence has."""
        shape = self.program.call(getattr, self.first or self.like, "shape")
        return self.program.call(operator.getitem, shape, 1)

    def rows(self) -> fx.Node:
        """How many sequences there are."""
        shape = self.program.call(getattr, self.first or self.like, "shape")
        return self.program.call(operator.getitem, shape, 0)

    def state(self, expr: Expr) -> fx.Node:
        """A state by itself."""
        memory = self.unit.memory(str(expr.attr("memory")))
        var, part, when = (str(expr.attr(n)) for n in ("var", "part", "when"))
        shape: Shape = expr.shape
        if memory.name in self.paths and when in ("post", "prev"):
            several = part if len(memory.map.parts) > 1 else ""
            path, name = self.paths[memory.name], read_name("bare", when, var, several)
            node = self.program.module(f"{memory_path(memory)}.{name}", path)
            return note(node, shape, 2, wide=True)
        if when == "start" and memory.name in self.paths:
            several = part if len(memory.map.parts) > 1 else ""
            name = read_name("bare", when, var, several)
            node = self.program.module(f"{memory_path(memory)}.{name}", self.paths[memory.name])
            return note(node, shape, 2, wide=True)
        kept = (memory.name, "initial", var) in self.states
        if when == "initial" and self.borrow is not None and not kept:
            return note(self.borrow(expr), shape, 1, wide=True)
        if self.elsewhere(memory.name) and self.around is not None:
            return self.around(expr)
        whole = self.whole(memory, var, when)
        if len(memory.variable(var).parts) > 1:
            whole = self.program.call(operator.getitem, whole, part)
        return note(whole, shape, 1, wide=True)

    def elsewhere(self, memory: str) -> bool:
        """Say whether a memory moves outside of the loop that this scope is the body of."""
        return (memory, "prev", "") not in self.states

    def whole(self, memory: Memory, var: str, when: str) -> fx.Node:
        """All parts of a state at a time."""
        if when == "initial" and (memory.name, "initial", var) not in self.states:
            return self.initial(memory, var)
        if (memory.name, when, var) not in self.states and when == "post":
            when = "prev"
        return self.states[memory.name, when, var]

    def initial(self, memory: Memory, var: str) -> fx.Node:
        """A state at the start or the last reset."""
        names = [v.name for v in memory.variables]
        node = self.start(memory)
        if len(names) == 1:
            return node
        return self.program.unpack(node, [f"{state_name(memory, n)}_0" for n in names])[
            names.index(var)
        ]

    def start(self, memory: Memory) -> fx.Node:
        """A call of the memory's `initial`."""
        from nlc.codegen.runner import initial_arguments

        words = initial_arguments(self, memory)
        return self.program.module(f"{memory_path(memory)}.initial", self.rows(), self.like, *words)

    # ---- structured operations -----------------------------------------------------------------

    def structured(self, low: Lowering, expr: Expr) -> fx.Node | None:
        """Take over what needs modules, memories or the past."""
        match expr.op:
            case "apply":
                return self.apply(expr)
            case "matvec" | "lookup":
                return self.product(expr) or self.plain_module(expr)
            case "attend":
                return self.attend(expr)
            case "shift":
                return self.shift(expr)
            case "conv":
                return self.conv(expr)
            case "sum":
                return self.routed(expr)
            case "route":
                # for all tokens before a loop, where it can be
                return self.ahead(expr)
            case "window" if self.batch == 1:
                # at the window's last token
                return low.tensor(expr.args[0])
            case "due":
                _, count = expr.attr("period")
                node = self.program.call(library.due, self.positions(), count)
                return note(node, (), self.batch, wide=True)
            case _:
                return None

    def apply(self, expr: Expr) -> fx.Node:
        """Weights as modules, memories by their own reads, all else by parts."""
        parts = expr.args[1:]
        if parts and all(p.op == "param" for p in parts):
            name = str(parts[0].attr("name")).split(".")[0]
            weight = next((w for w in self.unit.weights if w.name == name), None)
            whole = weight is not None and len(parts) == len(weight.map.parts)
            if weight is not None and whole and as_module(weight):
                tied = self.unit.tied and name == "unembed"
                if not tied:
                    return apply_module(self.low, expr, name)
        if parts and all(p.op == "state" and p.attr("var") == "" for p in parts):
            found = self.read(expr)
            if found is not None:
                return found
        form = expr.attr("map")
        values = [self.low.tensor(p) for p in parts]
        if not any(map(batch_of, values)) and not self.is_wide_query(expr):
            values = [self.low.narrow(v) for v in values]
        return apply_parts(
            self.low, expr, {p.name: v for p, v in zip(form.parts, values, strict=True)}
        )

    def product(self, expr: Expr) -> fx.Node | None:
        """`M @ q` or `M.S @ q` over a sequence: a read of the course, not of whole states."""
        whole = read_product(expr, self.unit.memory) if self.batch == 2 else None
        if whole is None:
            return None
        if expr in self.answers:
            return self.answers[expr]
        memory = self.unit.memory(str(whole.attr("memory")))
        if memory.name not in self.paths:
            return None
        name = read_name("apply", str(whole.attr("when")), str(whole.attr("var")))
        q = self.query(expr.args[1])
        node = self.program.module(f"{memory_path(memory)}.{name}", q, self.paths[memory.name])
        return note(node, expr.shape, 2, bool(q.meta["wide"]))

    def plain_module(self, expr: Expr) -> fx.Node | None:
        """`W @ x` or a row of a table as a call of the weights' module, where they are one."""
        part, x = expr.args
        if part.op != "param":
            return None
        name, _, label = str(part.attr("name")).partition(".")
        weight = next((w for w in self.unit.weights if w.name == name), None)
        kind = {"matvec": "linear", "lookup": "table"}[expr.op]
        if weight is None or label != "weight" or not as_module(weight):
            return None
        tied = self.unit.tied and name == "unembed"
        if weight.map.kind != kind or len(weight.map.parts) > 1 or tied:
            return None
        value = self.low.tensor(x)
        if kind == "linear" and batch_of(value) == 0:
            return None
        if kind == "linear":
            value = self.low.narrow(value)
        elif not value.meta.get("integer"):
            value = self.low.mark(self.program.method("long", value), value.meta["shape"], value)
        node = self.program.module(name, value)
        return note(node, expr.shape, batch_of(value), bool(self.like.meta["wide"]))

    def is_wide_query(self, expr: Expr) -> bool:
        """Say whether what a map is applied to is wide."""
        return bool(self.low.tensor(expr.args[0]).meta["wide"])

    def query(self, asked: Expr) -> fx.Node:
        """What a memory is read with."""
        q = self.low.tensor(asked)
        if batch_of(q) == self.batch:
            return q
        front = [self.rows(), self.tokens()][: self.batch]
        shape, wide = q.meta["shape"], bool(q.meta["wide"])
        if batch_of(q):
            q = self.program.method("unsqueeze", q, 1)
        # the same at every token
        q = self.program.method("expand", q, *front, *([-1] * len(shape)))
        return note(q, shape, self.batch, wide)

    def read(self, expr: Expr) -> fx.Node | None:
        """M(q), by the memory's own class."""
        if expr in self.answers:
            return self.answers[expr]
        part = expr.args[1]
        memory = self.unit.memory(str(part.attr("memory")))
        when = str(part.attr("when"))
        if when != "initial" and self.around is not None and self.elsewhere(memory.name):
            return None if self.inside(expr.args[0]) else self.around(expr)
        lead = int(expr.attr("lead"))
        more = rank_of(self.low.tensor(expr.args[0])) - lead - len(memory.map.inputs)
        path = memory_path(memory)
        if memory.name in self.paths and when in ("post", "prev", "start"):
            q = self.query(expr.args[0])
            node = self.program.module(
                f"{path}.{read_name('apply', when)}", q, self.paths[memory.name]
            )
            return note(node, expr.shape, 2, bool(q.meta["wide"]))
        simple = memory.map.kind == "linear" and len(memory.map.parts) == 1
        if self.batch == 2 and memory.stays and not more:
            q = self.query(expr.args[0])
            node = self.program.module(f"{path}.read", q, self.whole(memory, "", when))
            return note(node, expr.shape, 2, bool(q.meta["wide"]))
        if self.batch == 2 or (more and not simple):
            return None
        q = self.query(expr.args[0])
        node = self.program.module(f"{path}.read_step", q, self.whole(memory, "", when))
        return note(node, expr.shape, 1, bool(q.meta["wide"]))

    def routed(self, expr: Expr) -> fx.Node | None:
        """A read of a memory with slots, of the parts that are selected alone."""
        memory = sparse_read(expr, self.unit.memory)
        if memory is None or (self.batch == 2 and not memory.stays):
            return None
        found = routed(expr)
        assert found is not None
        weights, read = found
        if self.elsewhere(memory.name):
            asked = any(map(self.inside, (read.args[0], weights)))
            return None if asked or self.around is None else self.around(expr)
        q, w = self.query(read.args[0]), self.spread(self.low.tensor(weights))
        name = routed_name(self.batch, further(read))
        state = self.whole(memory, "", str(read.args[1].attr("when")))
        node = self.program.module(f"{memory_path(memory)}.{name}", q, w, state)
        return note(node, expr.shape, self.batch, bool(q.meta["wide"]))

    def attend(self, expr: Expr) -> fx.Node:
        """Read a softmax memory."""
        memory, when = self.unit.memory(str(expr.attr("memory"))), str(expr.attr("when"))
        if self.around is not None and self.elsewhere(memory.name):
            return self.around(expr)
        q = self.query(expr.args[0])
        if self.batch == 2:
            name = read_name("apply", when)
            node = self.program.module(f"{memory.name}.{name}", q, self.paths[memory.name])
        else:
            whole = self.whole(memory, "", when)
            node = self.program.module(f"{memory.name}.read_step", q, whole)
        return note(node, expr.shape, self.batch, bool(q.meta["wide"]))

    def past(self, slot: str) -> fx.Node:
        """What a slot remembers."""
        if slot not in self.pasts:
            assert self.fetch is not None
            self.pasts[slot] = self.fetch(slot)
        return self.pasts[slot]

    def shift(self, expr: Expr) -> fx.Node:
        """X of n tokens ago."""
        x = self.low.tensor(expr.args[0])
        if int(expr.attr("n")) == 0:
            return x
        slot = str(expr.attr("slot"))
        function = library.shift if self.batch == 2 else library.shift_step
        node = self.program.call(function, self.full(x, expr.args[0]), self.past(slot))
        return self.remember(node, slot, expr, bool(x.meta["wide"]), "shifted")

    def spread(self, x: fx.Node, alike: bool = False) -> fx.Node:
        """Give a constant all rows and tokens; `alike` says that a value has one row for all."""
        known = batch_of(x)
        if known == self.batch and not alike:
            return x
        shape, wide = x.meta["shape"], bool(x.meta["wide"])
        for place in range(known, self.batch):
            x = self.program.method("unsqueeze", x, place)
        front = [self.rows(), self.tokens()][: self.batch]
        x = self.program.method("expand", x, *front, *[-1] * len(shape))
        return note(x, shape, self.batch, wide)

    def full(self, x: fx.Node, expr: Expr) -> fx.Node:
        """Give the value of an expression all rows and tokens."""
        return self.spread(x, is_alike([expr], self.unit.alike))

    def conv(self, expr: Expr) -> fx.Node:
        """A causal convolution by its module, or with weights that are a state."""
        slot, owner = str(expr.attr("slot")), expr.args[1]
        x = self.low.narrow(self.full(self.low.tensor(expr.args[0]), expr.args[0]))
        shape = x.meta["shape"]
        if len(shape) > 1:
            inner = unsplit(x, len(shape))
            x = inner or note(self.program.method("flatten", x, self.batch), shape[:1], self.batch)
        if owner.op == "state":
            function = library_maps.convolve if self.batch == 2 else library_maps.convolve_step
            weights = [self.low.tensor(part) for part in expr.args[1:]]
            node = self.program.call(function, x, self.past(slot), *weights)
        else:
            weight = str(owner.attr("name")).split(".")[0]
            path = weight if self.batch == 2 else f"{weight}.step"
            node = self.program.module(path, x, self.past(slot))
        y = self.remember(node, slot, expr, bool(self.like.meta["wide"]), "convolved")
        if len(shape) > 1:
            from nlc.ir.shape import sizes

            y = self.program.method("unflatten", y, self.batch, sizes(shape))
            note(y, shape, self.batch)
        return y

    def remember(self, node: fx.Node, slot: str, expr: Expr, wide: bool, word: str) -> fx.Node:
        """Take a result and the new past apart."""
        names = [word, identifier(slot)]
        y, self.after[slot] = self.program.unpack(node, names)
        return note(y, expr.shape, self.batch, wide)
