"""How a memory's `update` runs as launches where a window ends: the plan, and the method's text.

In: the writer of a memory that moves with windows. Out: a `WindowPlan`, or why it has none; and the
statements at the head of `update`, whose PyTorch form stands below for what kernels do not take.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nlc.codegen import library
from nlc.codegen.arguments import argument_name, state_variable
from nlc.codegen.kept import keeps
from nlc.codegen.lowering import batch_of, is_wide
from nlc.codegen.names import Names, identifier
from nlc.codegen.program import note
from nlc.codegen.triton.loop_graph import leaf_stream
from nlc.codegen.triton.loop_split import Whole
from nlc.codegen.triton.operations import Unprintable
from nlc.codegen.triton.window_graph import REDUCED, Cutter, Item, Stage, bare, own_of
from nlc.codegen.triton.window_launch import LaunchItem, LaunchPlan
from nlc.codegen.triton.window_text import WORDS, Closed, Leaf, item_text
from nlc.codegen.writer import Writer

from nlc.ir.expr import Expr, Graph, postorder
from nlc.ir.kernel import Calculus
from nlc.ir.shape import sizes
from nlc.ir.slots import choice
from nlc.ir.system import Memory

if TYPE_CHECKING:
    from nlc.codegen.torch_memory import MemoryWriter
    from nlc.codegen.torch_update import Moved

# what stands for itself at the end of a window
LEAVES = ("state", "variable", "ask", "window", "due", "param", "stream", "position", "attend")


@dataclass(frozen=True)
class KernelCall:
    """A function of `kernels.py` as a program calls it."""

    name: str

    @property
    def __name__(self) -> str:
        return f"kernels.{self.name}"

    def __call__(self, *args: object) -> object:
        raise NotImplementedError("a kernel runs as printed")


@dataclass(frozen=True)
class WindowPlan:
    """The launches of one memory, with what each stores and takes, as expressions."""

    name: str
    cutter: Cutter
    stages: tuple[Stage, ...]
    launches: tuple[LaunchPlan, ...]
    takes: tuple[tuple[Expr, ...], ...]
    stores: tuple[tuple[Expr, ...], ...]


class _Refused(Exception):
    """An item that no kernel makes: what to leave to PyTorch instead."""

    def __init__(self, nodes: Sequence[Expr], why: str):
        super().__init__(why)
        self.nodes = nodes


def plan_window(
    writer: MemoryWriter, name: str, calculus: Calculus, graph: Graph
) -> WindowPlan | str:
    """Plan the launches of a memory where its window ends; a text says why there are none."""
    memory = writer.memory
    found = choice(memory)
    if found is not None and found.sparse_update:
        return "it moves the parts alone that tokens select"
    given = writer.step_arguments

    def is_leaf(node: Expr) -> bool:
        return node in given or node.op in LEAVES

    banned: set[Expr] = set()
    roots = [assignment.value for assignment in memory.update]
    while True:
        cutter = Cutter(roots, memory.lead, is_leaf, banned)
        stages = tuple(cutter.stages())
        if not stages or not all(stage.items for stage in stages):
            return "PyTorch has to make all of it"
        try:
            return _Planner(writer, name, calculus, graph, cutter, stages).plan()
        except Unprintable as why:
            return str(why)
        except _Refused as refused:
            new = set(refused.nodes) - banned
            if not new:
                return str(refused)
            banned |= new


class _Planner:
    """Plans launches one after another, as their leaves become known."""

    def __init__(
        self,
        writer: MemoryWriter,
        name: str,
        calculus: Calculus,
        graph: Graph,
        cutter: Cutter,
        stages: tuple[Stage, ...],
    ):
        from nlc.codegen.torch_update import Moved

        self.writer, self.name, self.calculus, self.graph = writer, name, calculus, graph
        self.cutter, self.stages = cutter, stages
        self.moved = Moved(writer, writer.step_arguments)
        self.lead = writer.memory.lead
        # the let nodes of the spec's lines
        self.lines = writer.comments()

    def plan(self) -> WindowPlan:
        """Plan all."""
        launches, takes, stores = [], [], []
        for number, stage in enumerate(self.stages):
            together(self.moved, self.cutter, number)
            leaves = list(dict.fromkeys(n for item in stage.items for n in self._leaves(item)))
            outputs = [node for item in stage.items for node in item.outputs]
            plan = self._launch(number + 1 if len(self.stages) > 1 else 0, stage, leaves)
            launches.append(plan)
            takes.append(tuple(leaves))
            stores.append(tuple(outputs))
            call(self.moved, plan, leaves, outputs)
        return WindowPlan(
            self.name, self.cutter, self.stages, tuple(launches), tuple(takes), tuple(stores)
        )

    def _leaves(self, item: Item) -> list[Expr]:
        """What an item reads, each once whatever its equation is called."""
        hidden = set().union(*(self.cutter.reads(node) for node in item.outputs))
        found: dict[Expr, None] = {}
        seen: set[Expr] = set()
        stack = list(reversed(item.outputs))
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if id(node) in hidden and node not in item.outputs:
                if node.op != "const":
                    found.setdefault(self._stored(node))
            else:
                stack.extend(reversed(node.args))
        return list(found)

    def _stored(self, node: Expr) -> Expr:
        """The value that an earlier launch has stored, by the name it has there."""
        inner = bare(node)
        for stage in self.stages:
            for item in stage.items:
                for output in item.outputs:
                    if bare(output) is inner:
                        return output
        return node

    # ---- one launch ----------------------------------------------------------------------------

    def _launch(self, step: int, stage: Stage, leaves: list[Expr]) -> LaunchPlan:
        names = Names(set(WORDS) | {"rows", "E", "warps", "parts", "blocks"})
        words = {leaf: names.fresh(self._word(leaf)) for leaf in leaves}
        count = 1
        for size in sizes(self.lead):
            count *= size
        given = {}
        for leaf in leaves:
            node = self.moved.totals.low.tensor(leaf)
            if batch_of(node) > 1:
                raise Unprintable("it goes over the window's tokens once more")
            own = own_of(leaf.shape, self.lead)
            copies = bool(self.lead) and own != leaf.shape
            rows = batch_of(node) == 1 and not alike(self.writer.memory, leaf)
            given[leaf] = Leaf(words[leaf], leaf.shape, own, rows, copies, is_wide(node), count)
        if not any(leaf.rows for leaf in given.values()):
            raise Unprintable("it hangs on nothing that a sequence has")
        items, outputs = [], []
        for item in stage.items:
            made = self._item(item, given, names)
            items.append(made)
            shapes = dict(made.text.outputs)
            outputs += [(made.outputs[word], shapes[word]) for word in made.outputs]
        return LaunchPlan(
            self.name, step, self.lead, tuple(given.values()), tuple(outputs), tuple(items)
        )

    def _item(self, item: Item, given: dict[Expr, Leaf], names: Names) -> LaunchItem:
        """The text of an item, over words of its own."""
        leaves = self._leaves(item)
        own = Names(set(WORDS))
        words = {leaf: own.fresh(self._short(leaf)) for leaf in leaves}
        made = {leaf: leaf_stream(self.graph, word, leaf.shape) for leaf, word in words.items()}
        hidden = set().union(*(self.cutter.reads(node) for node in item.outputs))
        inside = self._inside(item, hidden)
        lines = {node: self.lines[node] for node in inside if node in self.lines}
        closed = self._closed([*item.outputs, *lines], made)
        if any(self.lead and r.shape[: len(self.lead)] != self.lead for r in closed):
            bad = [n for n in item.outputs if n.shape[: len(self.lead)] != self.lead]
            if bad:
                raise _Refused(bad, "what it makes is one for all copies")
        roots, outputs = {}, {}
        for node, value in zip(item.outputs, closed, strict=False):
            word = own.fresh(f"{self._made(node, False)}_after")
            roots[word] = value
            outputs[word] = names.fresh(f"{self._made(node, True)}_after")
        comments = dict(zip(closed[len(item.outputs) :], lines.values(), strict=True))
        by_word = {word: replace(given[leaf], word=word) for leaf, word in words.items()}
        try:
            text = item_text(Closed(self.graph, self.lead, roots, comments, by_word), self.calculus)
        except (Unprintable, Whole) as why:
            reduced = [n for n in inside if n.op in REDUCED]
            raise _Refused(reduced or list(item.outputs), str(why) or "it is too large") from None
        known = {word: given[leaf].word for leaf, word in words.items()}
        return LaunchItem(text, known, outputs)

    def _inside(self, item: Item, hidden: set[int]) -> list[Expr]:
        roots = set(item.outputs)
        known = {i for i in hidden if all(id(r) != i for r in roots)}
        return list(postorder(item.outputs, known))

    def _closed(self, roots: list[Expr], made: dict[Expr, Expr]) -> list[Expr]:
        """Put leaves in, and write products with simple matrices as what they are."""
        new: dict[int, Expr] = {}
        inner = {bare(leaf): stream for leaf, stream in made.items()}
        top = {id(root) for root in roots}
        stack = [(root, False) for root in reversed(roots)]
        while stack:
            node, done = stack.pop()
            if id(node) in new:
                continue
            if id(node) not in top and bare(node) in inner:
                new[id(node)] = inner[bare(node)]
            elif done:
                args = tuple(new[id(arg)] for arg in node.args)
                if node.op == "where":
                    # what is chosen by may be a sum over tokens: nothing passes through it
                    args = (self.graph.make("stop", args[0]), *args[1:])
                new[id(node)] = self.graph.make(node.op, *args, span=node.span, **dict(node.attrs))
            else:
                stack.append((node, True))
                stack.extend((arg, False) for arg in reversed(node.args))
        return self.calculus.simple_products(self.graph, [new[id(root)] for root in roots])

    # ---- words ---------------------------------------------------------------------------------

    def _word(self, leaf: Expr) -> str:
        """What a leaf is called in the launch: with its part."""
        part = leaf.attr("part") if leaf.op == "state" else ""
        if leaf.op == "window" and leaf.attr("how") in ("sum", "mean"):
            part = str(leaf.attr("slot"))
        if leaf in self._outputs():
            return self._made(leaf, True)
        return identifier(f"{self._short(leaf)}_{part}" if part else self._short(leaf))

    def _outputs(self) -> set[Expr]:
        return {n for stage in self.stages for item in stage.items for n in item.outputs}

    def _short(self, leaf: Expr) -> str:
        """What a leaf is called in one part's function."""
        memory = self.writer.memory
        if leaf in self._outputs():
            return self._made(leaf, False)
        given = self.writer.step_arguments.get(leaf)
        if leaf.op == "state" and leaf.attr("memory") == memory.name:
            first = leaf.attr("when") == "prev"
            return state_variable(memory, leaf.attr("var")) if first else argument_name(leaf)
        if given is not None:
            return given
        if leaf.op == "window":
            return identifier(f"{memory.name}_{leaf.attr('how')}")
        if leaf.op in ("variable", "ask"):
            return "grad"
        return {"newton_schulz": "orthogonal", "unsqueeze": "scale"}.get(leaf.op, leaf.op)

    def _made(self, node: Expr, whole: bool) -> str:
        """What a launch calls what it makes: after the state that it becomes, or its equation."""
        memory = self.writer.memory
        for assignment in memory.update:
            if bare(assignment.value) is bare(node):
                name = state_variable(memory, assignment.var)
                several = len(memory.variable(assignment.var).parts) > 1
                part = f"_{assignment.part}" if several and whole else ""
                return identifier(f"{name}{part}")
        name = str(node.attr("name")) if node.op == "let" else "value"
        return identifier(name.replace("self", state_variable(memory)))


def alike(memory: Memory, leaf: Expr) -> bool:
    """Say whether a leaf is what the memory begins with, and that is the same for all rows."""
    if leaf.op != "state" or (leaf.attr("memory"), leaf.attr("when")) != (memory.name, "initial"):
        return False
    return all(p.initial.kind != "source" for p in memory.variable(leaf.attr("var")).parts)


# ---- the method --------------------------------------------------------------------------------


def call(moved: Moved, plan: LaunchPlan, leaves: Sequence[Expr], outputs: Sequence[Expr]) -> None:
    """Call a launch, and say what its results are."""
    low, program = moved.totals.low, moved.program
    nodes = []
    for leaf in leaves:
        value = low.tensor(leaf)
        if alike(moved.writer.memory, leaf):
            value = program.call(operator.getitem, value, slice(None, 1))
        nodes.append(value)
    node = program.call(KernelCall(plan.name), *nodes)
    names = [word.removesuffix("_after") for word, _ in plan.outputs]
    parts = program.unpack(node, names) if len(names) > 1 else [node]
    for expr, part, name in zip(outputs, parts, names, strict=True):
        part.meta["name"] = name
        made = note(part, expr.shape, 1, wide=True)
        low.done[expr] = low.done[bare(expr)] = made


def together(moved: Moved, cutter: Cutter, number: int) -> None:
    """Orthogonalise in one batch what is there after so many launches and has one shape."""
    low, program = moved.totals.low, moved.program
    groups: dict[tuple[object, ...], list[Expr]] = {}
    for node in cutter.order:
        if node.op == "newton_schulz" and node not in cutter.inside:
            if cutter.ready[node] != number or node in low.done:
                continue
            shape = (sizes(node.shape[:-2]), *sorted(sizes(node.shape[-2:])))
            words = tuple(node.attr(w) for w in ("steps", "coefficients", "eps"))
            groups.setdefault((shape, words), []).append(node)
    for nodes in groups.values():
        if len(nodes) < 2:
            continue
        plain = low.tensor(nodes[0])
        xs = [low.widen(low.tensor(node.args[0])) for node in nodes]
        made = program.call(library.newton_schulz_of_all, xs, *plain.args[1:])
        parts = program.unpack(made, ["orthogonal"] * len(nodes))
        for node, part in zip(nodes, parts, strict=True):
            low.done[node] = note(part, node.shape, 1, wide=True)


def write_launches(writer: MemoryWriter, plan: WindowPlan, out: Writer) -> None:
    """Write `if kernels.takes(M): ...`."""
    from nlc.codegen.torch_update import Moved

    memory = writer.memory
    moved = Moved(writer, writer.step_arguments)
    for number, launch in enumerate(plan.launches):
        together(moved, plan.cutter, number)
        call(moved, launch, plan.takes[number], plan.stores[number])
    together(moved, plan.cutter, len(plan.launches))
    low, states = moved.totals.low, moved.states
    after = {v.name: dict(states[v.name]) for v in memory.variables}
    for assignment in memory.update:
        old = states[assignment.var][assignment.part]
        node = writer.full(low, low.tensor(assignment.value), old)
        after[assignment.var][assignment.part] = node
    kept = keeps(memory)
    results: list[object] = [writer.pack(v.name, after[v.name]) for v in memory.variables]
    results += [keep.pack(moved.totals.left(keep)) for keep in kept]
    first = writer.states[0]
    parts = writer.parts("")
    guard = f'{first}["{parts[0].name}"]' if len(parts) > 1 else first
    with out.indent():
        out.line(f"if kernels.takes({guard}):")
        names = [*writer.states, *(keep.name for keep in kept)]
        writer.finish(out, moved.program, results, names)
