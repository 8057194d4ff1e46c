"""One class per memory: its initial state, how it moves and how it is read.

In: a memory with its schedule; its update is over streams and the states before the token, free of
`grad`. Out: the text of an `nn.Module` whose methods take and return states:

    initial(batch, like, ...)      the state at the start
    step(..., states)              one token: the new states
    read_step(q, state)            one token: M(q)
    forward(..., states)           a sequence at once: its course, and the states after it
    read(q, path)                  M(q) for every token of the course
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from textwrap import wrap
from typing import TYPE_CHECKING

from nlc.codegen import library
from nlc.codegen.apply import applied, apply_parts
from nlc.codegen.arguments import arguments, state_variable
from nlc.codegen.branches import gather_choices, swap
from nlc.codegen.kept import Keep, keeps
from nlc.codegen.lowering import Lowering, batch_of, rank_of
from nlc.codegen.names import Names, identifier
from nlc.codegen.parameters import Own, declare_tensors, draw_tensors, of_memory
from nlc.codegen.printer import Printer
from nlc.codegen.program import Program, note
from nlc.codegen.torch_update import Move, build_move, write_asks, write_move
from nlc.codegen.triton.layer_plan import LayerPlan
from nlc.codegen.triton.plan import KernelPlan
from nlc.codegen.triton.rows_call import RowsPlan
from nlc.codegen.triton.step_call import StepPlan
from nlc.codegen.triton.window_call import WindowPlan
from nlc.codegen.unit import of_memory as evaluated
from nlc.codegen.writer import Writer, split_call
from torch import fx

from nlc.ir.expr import Expr, postorder
from nlc.ir.normal_form import Affine
from nlc.ir.online import asks
from nlc.ir.schedule import Schedule
from nlc.ir.shape import Shape, show, sizes
from nlc.ir.shared_reads import SharedRead
from nlc.ir.system import Level, Memory, Part, Variable
from nlc.ir.windows import tokens_of

if TYPE_CHECKING:
    from nlc.codegen.chunk_writes import Written

Where = Callable[[object], str]


@dataclass
class MemoryWriter:
    """Writes the class `name` of one memory; `reads` says which reads its block makes.

    `reads` holds (kind, when, state, part); kind is `apply` for M(q), `bare` for the state itself.
    `static` names the streams of the block that do not depend on tokens. `windows` says for how
    many tokens each memory of the block keeps its state, `starts` its initial one, where it moves;
    `leads` gives the leading axes of memories and weights, `kernels` its kernels, if it has any.
    `on_the_way` is the read that `forward` makes, in place of a course for reads to come; `shared`
    the one that is made where tokens are taken into a window. `in_pieces` says that a loop over
    chunks calls `forward` for each. A class that several memories share is `written_by` the writer
    of one that `stands_for` them.
    """

    name: str
    memory: Memory
    schedule: Schedule
    level: Level
    reads: frozenset[tuple[str, str, str, str]]
    lines: tuple[str, ...]
    used: set[str]
    static: frozenset[str] = frozenset()
    windows: Mapping[str, int] = field(default_factory=dict)
    starts: Mapping[str, int] = field(default_factory=dict)
    leads: Mapping[str, Shape] = field(default_factory=dict)
    kernels: KernelPlan | None = None
    layer_kernels: LayerPlan | None = None
    on_the_way: Expr | None = None
    in_pieces: bool = False
    shared: SharedRead | None = None
    step_kernel: StepPlan | None = None
    rows_kernel: RowsPlan | None = None
    window_kernels: WindowPlan | None = None
    stands_for: tuple[str, ...] = ()
    written_by: MemoryWriter | None = None
    step_arguments: dict[Expr, str] = field(init=False)
    asks: list[dict[str, Expr]] = field(init=False)
    ask_arguments: list[dict[Expr, str]] = field(init=False)
    token_arguments: dict[Expr, str] = field(init=False)
    run_arguments: dict[Expr, str] = field(init=False)
    start_arguments: dict[Expr, str] = field(init=False)

    def __post_init__(self) -> None:
        memory = self.memory
        moving = arguments(memory, evaluated(memory))
        # whether a period ends is no tensor there
        self.step_arguments = {e: name for e, name in moving.items() if e.op != "due"}
        self.asks = [point for _, point in asks(memory)]
        self.ask_arguments = [arguments(memory, point.values()) for point in self.asks]
        self.token_arguments = arguments(memory, [e.args[0] for e in tokens_of(memory)])
        self.run_arguments = moving
        if self.schedule.entries:
            from nlc.codegen.torch_entries import run_arguments

            self.run_arguments = run_arguments(self)
        elif self.parallel and not self.is_kernel:
            roots = [e for _, form in self.forms for e in _coefficients(form)]
            self.run_arguments = arguments(memory, roots)
            for _, form in self.forms:
                for leaf, _ in form.stopped.held if form.stopped else ():
                    # made by `forward` itself
                    self.run_arguments.pop(leaf, None)
        initial = [
            p.initial.expr for v in memory.variables for p in v.parts if p.initial.expr is not None
        ]
        self.start_arguments = arguments(memory, initial, starting=True)

    # ---- facts ---------------------------------------------------------------------------------

    @property
    def is_kernel(self) -> bool:
        """Say whether this is a softmax memory."""
        return self.memory.map.kind == "kernel"

    @property
    def parallel(self) -> bool:
        """Say whether a sequence runs at once."""
        return self.schedule.kind in ("tile-solve", "tile-scan", "scan", "attention")

    @property
    def forms(self) -> list[tuple[str, Affine]]:
        """The normal forms of the parts."""
        return [(part, form) for part, form in self.schedule.forms if isinstance(form, Affine)]

    @cached_property
    def written(self) -> Written:
        """What the tokens of a chunk write, and what of it is made before the chunks."""
        from nlc.codegen.chunk_writes import written

        return written(self)

    @cached_property
    def move(self) -> Move:
        """What moves the memory, before it is printed."""
        return build_move(self)

    @cached_property
    def begins(self) -> bool:
        """Say whether `collect` can be told that a window begins with its tokens."""
        from nlc.codegen.torch_windows import build_collect

        return bool(tokens_of(self.memory)) and build_collect(self, None).begins

    @property
    def form(self) -> Affine | None:
        """The normal form that a tile runs on."""
        return self.forms[0][1] if len(self.forms) == 1 else None

    @property
    def states(self) -> list[str]:
        """The states' names in emitted code."""
        if self.is_kernel:
            return [state_variable(self.memory)]
        return [state_variable(self.memory, v.name) for v in self.memory.variables]

    @property
    def has_start(self) -> bool:
        """Say whether the update reads the state of its chunk's start."""
        roots = [a.value for a in self.memory.update]
        return self.memory.chunk > 1 and any(
            node.op == "state"
            and node.attr("memory") == self.memory.name
            and node.attr("when") == "start"
            for node in postorder(roots)
        )

    @property
    def start_name(self) -> str:
        """The state of the chunk's start in emitted code."""
        return identifier(f"{self.memory.name}_start")

    def comments(self) -> dict[Expr, list[str]]:
        """The equations of the update as comments, by the values they give."""
        found: dict[Expr, list[str]] = {}
        for statement, line in zip(self.memory.statements, self.lines, strict=True):
            above = [line]
            found |= {value: above for _, value in statement.values}
        return found

    def restart_words(self) -> list[str]:
        """The states to go back to at a reset, as arguments."""
        if self.memory.reset is None:
            return []
        return [f"{name}_0: Tensor" for name in self.states]

    def parts(self, var: str) -> tuple[Part, ...]:
        """The parts of a state."""
        return self.memory.variable(var).parts

    def state_type(self, var: str = "") -> str:
        """The type of a state in emitted code."""
        if self.is_kernel or len(self.parts(var)) > 1:
            return "dict[str, Tensor]"
        return "Tensor"

    # ---- the class -----------------------------------------------------------------------------

    def write(self, out: Writer) -> None:
        """Write the whole class."""
        memory = self.memory
        out.line(f"class {self.name}(nn.Module):")
        with out.indent():
            out.docstring(self._about())
            out.blank()
            if own_parameters(memory):
                self._constructor(out)
            if self.is_kernel:
                from nlc.codegen.torch_attention import write_attention

                write_attention(self, out)
                return
            self._initial(out)
            if keeps(memory):
                self._empty(out)
            if self.parallel:
                self._run(out)
                self._read_path(out)
            if memory.stays:
                from nlc.codegen.torch_windows import write_window

                write_window(self, out)
            write_asks(self, out)
            write_move(self, out)
            if any(kind == "apply" for kind, *_ in self.reads):
                self._read_step(out)
            if any(kind == "routed" for kind, *_ in self.reads):
                from nlc.codegen.selected import write_routed

                write_routed(self, out, 1)
            while out.lines and not out.lines[-1]:
                out.lines.pop()

    def _about(self) -> list[str]:
        memory = self.memory
        copies = f", one per {', '.join(a.name for a in memory.lead)}" if memory.lead else ""
        first = f"Memory {memory.name}: {memory.map!r}{copies}; {self.level.period}."
        told = [first, *self._instances(), *dict.fromkeys(self.lines)]
        for variable in memory.variables:
            for part in variable.parts:
                label = ".".join(w for w in (variable.name, part.name) if w)
                several = len(memory.map.parts) > 1
                label = f"{memory.name}.{label}" if variable.name or several else memory.name
                whole = show((*memory.lead, *part.shape))[1:]
                told.append(
                    f"state  {label} [B, {whole}" if whole != "]" else f"state  {label} [B]"
                )
        told.append(f"runs   {self.schedule.kind}: {self.schedule.reason}")
        return told

    def _instances(self) -> list[str]:
        """Say which memories of the block this is, where it is several."""
        names = ", ".join(self.stands_for)
        return wrap(f"names  {names}", 90, subsequent_indent=" " * 7) if names else []

    def _constructor(self, out: Writer) -> None:
        memory = self.memory
        out.line("def __init__(self, device=None, dtype=None):")
        with out.indent():
            out.line("super().__init__()")
            out.line('new = {"device": device, "dtype": dtype}')
            declare_tensors(out, within(memory), self.used)
            out.line("self.reset_parameters()")
        out.blank()
        out.line("def reset_parameters(self) -> None:")
        with out.indent():
            out.docstring(["Draw the initial state anew."])
            draw_tensors(out, within(memory), self.used)
        out.blank()

    def method(self, out: Writer, name: str, words: Sequence[str], result: str, about: str) -> None:
        """Write the head of a method and its docstring."""
        for text in split_call(f"def {name}(", ["self", *words], f") -> {result}:", out.room):
            out.line(text)
        with out.indent():
            out.docstring([about])

    def result_type(self, kept: Sequence[Keep] = ()) -> str:
        """What `initial` and `step` return."""
        kinds = [self.state_type(v.name) for v in self.memory.variables]
        kinds += [keep.type for keep in kept]
        return kinds[0] if len(kinds) == 1 else f"tuple[{', '.join(kinds)}]"

    def state_words(self) -> list[str]:
        """The states as arguments."""
        return [
            f"{name}: {self.state_type(v.name)}"
            for name, v in zip(self.states, self.memory.variables, strict=True)
        ]

    def begin(
        self, expressions: dict[Expr, str], batch: int
    ) -> tuple[Program, dict[Expr, fx.Node]]:
        """Start a program whose inputs are the given arguments."""
        program = Program()
        inputs: dict[Expr, fx.Node] = {}
        for expr, name in expressions.items():
            known = min(batch, self.batch_of(expr))
            inputs[expr] = note(program.input(name), expr.shape, known)
        return program, inputs

    def batch_of(self, expr: Expr) -> int:
        """How a value changes: with every token (2), with windows (1) or never (0)."""
        mine = self.memory.window
        if self.memory.is_task:
            # the model moves it between tokens, when it sees none
            tokens = ("stream", "attend", "position", "shift", "conv")
            if any(node.op in tokens for node in postorder([expr])):
                return 2
            return 1 if self.varies(expr) else 0
        if not self.varies(expr) or mine == 1:
            return 2 if self.varies(expr) else 0
        for node in postorder([expr]):
            match node.op:
                case "stream" if node.attr("name") in self.static:
                    pass
                case "stream" | "attend" | "position" | "due" | "shift" | "conv":
                    return 2
                case "state" if node.attr("when") != "initial":
                    if self.windows[str(node.attr("memory"))] < mine:
                        return 2
                case "state" if self.starts.get(str(node.attr("memory")), mine) < mine:
                    return 2
        return 1

    def varies(self, expr: Expr) -> bool:
        """Say whether a value depends on tokens; the pairs of a softmax memory are stored as if."""
        return self.is_kernel or any(
            (node.op == "stream" and node.attr("name") not in self.static)
            or node.op in ("state", "attend", "position", "due", "shift", "conv")
            for node in postorder([expr])
        )

    def state_input(self, program: Program, var: str, name: str) -> dict[str, fx.Node]:
        """A state as an argument, by part."""
        whole = program.input(name)
        parts = self.parts(var)
        if len(parts) == 1:
            note(whole, (*self.memory.lead, *parts[0].shape), 1, wide=True)
            return {parts[0].name: whole}
        return {
            part.name: note(
                program.call(operator.getitem, whole, part.name),
                (*self.memory.lead, *part.shape),
                1,
                wide=True,
            )
            for part in parts
        }

    def pack(self, var: str, values: dict[str, fx.Node]) -> fx.Node | dict[str, fx.Node]:
        """A state as the caller sees it."""
        return next(iter(values.values())) if len(self.parts(var)) == 1 else values

    def like(self, program: Program, inputs: dict[Expr, fx.Node], states: list[fx.Node]) -> fx.Node:
        """A tensor with the streams' type: the first stream, else another argument."""
        for expr, node in inputs.items():
            if expr.op == "stream":
                return node
        return [*inputs.values(), *states][0]

    def body(
        self, out: Writer, program: Program, known: Mapping[str, str] | None = None
    ) -> Printer:
        """Print a method's body; `known` are inputs that stand there under another name."""
        texts = {str(n.target): str(n.target) for n in program.inputs} | dict(known or {})
        names = Names(set(texts) | set(texts.values()) | reserved())
        printer = Printer(program, out, names, self.used)
        for node in program.inputs:
            printer.bind(node, texts[str(node.target)])
        printer.run()
        return printer

    # ---- methods -------------------------------------------------------------------------------

    def _initial(self, out: Writer) -> None:
        memory = self.memory
        words = ["batch: int", "like: Tensor"]
        program, inputs = self.begin(self.start_arguments, 0)
        sources = self.sources()
        words += [f"{name}: Tensor" for name in self.start_arguments.values()]
        words += [f"{identifier(name)}: {self.state_type()}" for name in sources]
        words += ["learned: Tensor"] if bare(memory) else []
        self.method(out, "initial", words, self.result_type(), "Give the state at the start.")
        batch, like = program.input("batch"), note(program.input("like"), (), 0)
        made: dict[str, dict[str, fx.Node]] = {}

        def leaf(expr: Expr) -> fx.Node:
            if expr in inputs:
                return inputs[expr]
            return made[expr.attr("var")][expr.attr("part")]

        low = Lowering(program, 1, leaf, taken(inputs, leaf), like)
        for variable in memory.variables:
            values = {}
            for part in variable.parts:
                shape: Shape = (*memory.lead, *part.shape)
                node = self._begin_part(low, variable, part, batch, like, program)
                values[part.name] = note(node, shape, 1, wide=True)
            made[variable.name] = values
        results: list[object] = [self.pack(v.name, made[v.name]) for v in memory.variables]
        self.finish(out, program, results)

    def _empty(self, out: Writer) -> None:
        kept = keeps(self.memory)
        kinds = [keep.type for keep in kept]
        result = kinds[0] if len(kinds) == 1 else f"tuple[{', '.join(kinds)}]"
        about = "Give what is kept before the first token."
        self.method(out, "empty", ["batch: int", "like: Tensor"], result, about)
        program = Program()
        batch, like = program.input("batch"), program.input("like")
        results: list[object] = [keep.empty(program, batch, like) for keep in kept]
        self.finish(out, program, results, [keep.name for keep in kept])

    def _begin_part(
        self,
        low: Lowering,
        variable: Variable,
        part: Part,
        batch: fx.Node,
        like: fx.Node,
        program: Program,
    ) -> fx.Node:
        memory, initial = self.memory, part.initial
        shape = sizes((*memory.lead, *part.shape))
        learned = {v.name: own for own, v in memory.learned_states()}
        if variable.name in learned:
            path = ".".join(word for word in (learned[variable.name], part.name) if word)
            # a bare one is the block's own, under the memory's name
            own = program.attribute(path) if path else program.input("learned")
            note(own, (*memory.lead, *part.shape), 0)
            return program.method("expand", low.widen(own), batch, *shape)
        match initial.kind:
            case "expr":
                assert initial.expr is not None
                value = low.widen(low.tensor(initial.expr))
                assert isinstance(value, fx.Node)
                value = self.lifted(low, value, len(shape))
                return program.method("expand", value, batch, *shape)
            case "source":
                own = program.input(identifier(initial.source))
                if len(variable.parts) > 1:
                    own = program.call(operator.getitem, own, part.name)
                names = {axis.name for axis in self.leads[initial.source]}
                front = 1 if initial.source in self.windows else 0
                for place, axis in enumerate(memory.lead):
                    if axis.name not in names:
                        # the source is alike for all copies along this axis
                        own = program.method("unsqueeze", own, front + place)
                note(own, (*memory.lead, *part.shape), 0)
                return program.method("expand", low.widen(own), batch, *shape)
            case _ if initial.value == 0.0:
                return program.call(library.zeros, like, batch, *shape)
            case _:
                return program.call(library.full, initial.value, like, batch, *shape)

    def sources(self) -> list[str]:
        """The memories or weights that the initial state copies."""
        if self.memory.learned:
            return []
        parts = self.memory.variable("").parts
        return sorted({p.initial.source for p in parts if p.initial.kind == "source"})

    def lifted(self, low: Lowering, value: fx.Node, rank: int) -> fx.Node:
        """Give a value of one token all axes of a state."""
        if batch_of(value):
            for _ in range(rank - rank_of(value)):
                value = low.unsqueeze(value, batch_of(value))
        return value

    def full(self, low: Lowering, value: fx.Node, old: fx.Node) -> fx.Node:
        """Give a new value the shape and type of the old one."""
        shape = old.meta["shape"]
        value = self.lifted(low, low.widen(value), len(shape))
        same = sizes(value.meta["shape"]) == sizes(shape) and batch_of(value) == 1
        if not same:
            value = low.program.method("expand_as", value, old)
        return note(value, shape, 1, wide=True)

    def finish(
        self,
        out: Writer,
        program: Program,
        results: list[object],
        names: Sequence[str] | None = None,
        finished: bool = False,
    ) -> None:
        """Print a method's body; results that are dicts stand under `names`."""
        names = self.states if names is None else names
        if not finished:
            program.finish(tuple(results))
        swapped = gather_choices(program)
        results = [swap(result, swapped) for result in results]
        with out.indent():
            printer = self.body(out, program)
            if len(results) == 1 and isinstance(results[0], dict):
                write_dict(out, printer, "return ", results[0])
            else:
                for i, result in enumerate(results):
                    if isinstance(result, dict):
                        write_dict(out, printer, f"{names[i]} = ", result)
                        results[i] = Raw(names[i])
                    printer.settle(results[i], out.room - 7 if len(results) == 1 else 40)
                texts = [r.text if isinstance(r, Raw) else printer.operand(r) for r in results]
                line = f"return {', '.join(texts)}"
                if len(line) <= out.room:
                    out.line(line)
                else:
                    out.lines += ["    " * out.depth + x for x in split_rows(texts)]
        out.blank()

    def _read_step(self, out: Writer) -> None:
        program = Program()
        lead = len(self.memory.lead)
        name = self.states[0]
        self.method(
            out, "read_step", ["q: Tensor", f"{name}: {self.state_type()}"], "Tensor",
            f"Read {self.memory.name}(q) at one token.",
        )  # fmt: skip
        q = note(program.input("q"), (*self.memory.lead, *self.memory.map.inputs), 1)
        parts = self.state_input(program, "", name)
        low = Lowering(program, 1, lambda e: q, lambda low, e: None, q)
        if self.memory.map.kind == "linear" and len(parts) == 1:
            cast = low.widen(q)
            flat = self._flat(program, cast, len(self.memory.map.inputs))
            y = program.call(library.read_linear, flat, parts["weight"], lead)
            if len(self.memory.map.outputs) > 1:
                y = program.method("unflatten", y, -1, sizes(self.memory.map.outputs))
            if not self.memory.map.outputs:
                y = program.method("squeeze", y, -1)
        else:
            stream = Expr("stream", (), (("name", "q"),), q.meta["shape"])
            shape = (*self.memory.lead, *self.memory.map.outputs)
            node = Expr("apply", (stream,), (("lead", lead), ("map", self.memory.map)), shape)
            y = apply_parts(low, node, parts)
        dtype = program.call(getattr, q, "dtype")
        y = program.method("to", y, dtype)
        self.finish(out, program, [y])

    def _flat(self, program: Program, x: fx.Node, count: int) -> fx.Node:
        if count == 0:
            return program.method("unsqueeze", x, -1)
        return x if count == 1 else program.method("flatten", x, -count)

    def _run(self, out: Writer) -> None:
        from nlc.codegen.torch_chunks import write_chunks
        from nlc.codegen.torch_tiles import write_run

        if self.schedule.entries:
            from nlc.codegen.torch_entries import write_entries

            write_entries(self, out)
            return
        (write_chunks if self.schedule.by_chunks else write_run)(self, out)

    def _read_path(self, out: Writer) -> None:
        from nlc.codegen.torch_chunks import write_chunk_reads
        from nlc.codegen.torch_tiles import write_reads

        if self.schedule.entries:
            from nlc.codegen.torch_entries import write_entry_reads

            write_entry_reads(self, out)
            return
        (write_chunk_reads if self.schedule.by_chunks else write_reads)(self, out)


@dataclass(frozen=True)
class Raw:
    """Text that stands in emitted code as it is."""

    text: str


def write_dict(out: Writer, printer: Printer, head: str, entries: Mapping[str, object]) -> None:
    """Write a dict, on one line if it fits."""
    texts = {
        key: value.text if isinstance(value, Raw) else printer.operand(value)
        for key, value in entries.items()
    }
    line = head + "{" + ", ".join(f'"{key}": {text}' for key, text in texts.items()) + "}"
    if len(line) <= out.room:
        out.line(line)
        return
    out.line(head + "{")
    with out.indent():
        for key, text in texts.items():
            if len(text) + len(key) + 5 <= out.room:
                out.line(f'"{key}": {text},')
            elif text.startswith("{"):
                value, _, rest = text[1:-1].partition(" for ")
                out.line(f'"{key}": {{')
                whole = f"{value} for {rest}"
                for part in [whole] if len(whole) + 4 <= out.room else [value, f"for {rest}"]:
                    out.line(f"    {part}")
                out.line("},")
            else:
                start, _, inner = text.partition("(")
                for part in split_call(f'"{key}": {start}(', [inner[:-1]], "),", out.room):
                    out.line(part)
    out.line("}")


def split_rows(texts: list[str]) -> list[str]:
    """A tuple to be returned, one entry a line."""
    return ["return (", *(f"    {text}," for text in texts), ")"]


def taken(
    inputs: dict[Expr, fx.Node], leaf: Callable[[Expr], fx.Node]
) -> Callable[[Lowering, Expr], fx.Node | None]:
    """Give what the block has evaluated, and apply maps whose parts are values."""

    def structured(low: Lowering, expr: Expr) -> fx.Node | None:
        if expr in inputs:
            return inputs[expr]
        return applied(low, expr) if expr.op == "apply" else None

    return structured


def _coefficients(form: Affine) -> list[Expr]:
    found: list[Expr | None] = []
    for row in form.decay:
        found += [None if gate is None else gate.value for gate in row]
    for write in form.writes:
        found += [*write.reads, *(c for _, c in write.earlier), write.offset, *write.targets]
    if form.stopped is not None:
        found += _coefficients(form.stopped.form)
        found += [e for _, h in form.stopped.held for e in (*h.reads, h.offset)]
    return [expr for expr in found if expr is not None]


def bare(memory: Memory) -> bool:
    """Say whether the learned initial state is one tensor under the memory's own name."""
    return memory.learned and [p.name for p in memory.map.parts] == [""]


def own_parameters(memory: Memory) -> bool:
    """Say whether the memory's module holds parameters."""
    return bool(within(memory))


def within(memory: Memory) -> list[Own]:
    """List the parameters that the memory's module holds: all but a bare one, the block's own."""
    return [own for own in of_memory(memory) if own.name]


def reserved() -> set[str]:
    """Names that locals of emitted functions leave alone: all functions of the library."""
    from nlc.codegen.library_source import library_names

    return set(library_names())
