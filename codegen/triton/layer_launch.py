"""What starts the kernels of a memory that moves from chunk to chunk: operations of torch.

In: the kernels of `triton.layers`. Out: the text of

    NAME, NAME_back              the course: what is written, and the states before each chunk
    NAME_read, NAME_read_back    a read at every token, one pair for each kind of read
    NAME_course, ...             the functions that the memory's module calls
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.codegen.triton.graph import Dims
from nlc.codegen.triton.launch import listed
from nlc.codegen.triton.layer_printer import several
from nlc.codegen.triton.layer_slices import printer_of, widths
from nlc.codegen.triton.layer_values import count
from nlc.codegen.triton.layers import START, Layers, State
from nlc.codegen.triton.solve import Kernel
from nlc.codegen.writer import Writer, split_call

from nlc.ir.kernel import Emitted


@dataclass
class LayerLauncher:
    """Writes the kernels of one memory and what starts them; `digest` keeps operations apart."""

    name: str
    layers: Layers
    variables: dict[str, str]
    start: str
    reads: list[tuple[str, str]]
    about: list[str]
    digest: str
    used: set[str]
    tensors: dict[str, list[str]] = field(default_factory=dict)
    made: list[Emitted] = field(default_factory=list)

    def write(self, out: Writer) -> None:
        """Write everything."""
        layers = self.layers
        self.chunk = layers.memory.chunk
        self.leaves = [leaf.name for leaf in layers.values.leaves.values()]
        self.writes = [*layers.stored.values(), *layers.solved.values()]
        self.states = [state for _, state, _ in layers.states()]
        self.own = [state for state in self.states if not state.var]
        self._kernel(out, layers.course())
        back = layers.course_back()
        self.started = {word for word, _ in back.stores if word.endswith(START)}
        self._kernel(out, back)
        self._kernel(out, layers.writes_back())
        self._course(out)
        self._course_back(out)
        for when, var in self.reads:
            suffix = read_suffix(layers, when, var)
            self._kernel(out, layers.read(when, var, f"read{suffix}"))
            self._kernel(out, layers.read_back(when, var, f"read{suffix}_back"))
            self._read(out, suffix, when)
        self._functions(out)

    @property
    def table(self) -> str:
        """The name of the memory's block sizes."""
        return f"{self.name.upper()}_BLOCKS"

    def _kernel(self, out: Writer, kernel: Kernel) -> None:
        walked = self.layers.walked
        printer = printer_of(kernel, out, self.used, self.about, self.chunk, walked)
        printer.write(f"{self.name}_{kernel.name}_kernel")
        out.blank(2)
        self.tensors[kernel.name] = printer.tensors()
        words = ("q", *self.leaves)
        sizes = [count(axis) for state in self.own for axis in state.dims]
        self.made.append(
            Emitted(
                f"{self.name}_{kernel.name}_kernel",
                self.name,
                kernel.name,
                self.table,
                frozenset(w for x in words for w in (x, f"grad_{x}")),
                bool(kernel.loop),
                max(sizes),
                max(sizes),
                sliced=tuple((count(axis), n) for axis, n in widths(walked, kernel).items()),
            )
        )

    # ---- pieces of text ------------------------------------------------------------------------

    def _begin(self, out: Writer, like: str, leaves: list[str]) -> None:
        out.line(f"blocks = {self.table}[architecture({like}.device)]")
        out.call("dot = dot_type(", leaves)
        words = [f"tuple({like}.shape[:3])", str(self.chunk), "offset", "blocks", "dot"]
        out.call("run = LayerLaunch(", words)

    def _start(self, out: Writer, kernel: str, loop: bool = False) -> None:
        words = [f"{self.name}_{kernel}_kernel", *self.tensors[kernel]]
        out.call("run.run(", [*words, *(["loop=True"] if loop else [])])

    def _room(self, out: Writer, word: str, dims: Dims) -> str:
        return f"run.tokens({', '.join([self.leaves[0], *(str(count(d)) for d in dims[1:])])})"

    def _declare(self, out: Writer, name: str, words: list[str], results: int, about: str) -> None:
        kind = "Tensor" if results == 1 else f"tuple[{', '.join(['Tensor'] * results)}]"
        out.line(f'@torch.library.custom_op("{self.digest}::{name}", mutates_args=())')
        typed = [f"{word}: Tensor" for word in words] + ["offset: int"]
        *head, last = split_call(f"def {name}(", typed, f") -> {kind}:", out.room)
        for text in head:
            out.line(text)
        if len(last) <= out.room:
            out.line(last)
        else:
            inside = ", ".join(["Tensor"] * results)
            rows = [inside] if 4 + len(inside) <= out.room else ["Tensor,"] * results
            for text in (") -> tuple[", *(f"    {row}" for row in rows), "]:"):
                out.line(text)
        with out.indent():
            out.docstring([about])

    def _fake(self, out: Writer, name: str, words: list[str], results: list[str]) -> None:
        out.blank(2)
        out.line(f"@{name}.register_fake")
        out.call("def _(", [*words, "offset"], "):")
        with out.indent():
            if any("run." in result for result in results):
                self._begin(out, self.leaves[0], self.leaves)
            self._return(out, results)
        out.blank(2)

    def _return(self, out: Writer, words: list[str]) -> None:
        if len(words) == 1:
            out.line(f"return {words[0]}")
        else:
            listed(out, "return ", words)

    def _register(self, out: Writer, name: str, keep: list[str], gradient: list[str]) -> None:
        out.line(f"def {name}_keep(ctx, inputs, output):")
        out.lines += [f"    {line}" for line in keep]
        out.blank(2)
        out.line(f"def {name}_gradient(ctx, *came):")
        out.lines += [f"    {line}" for line in gradient]
        out.blank(2)
        out.call(
            f"{name}.register_autograd(", [f"{name}_gradient", f"setup_context={name}_keep"], ")"
        )
        out.blank(2)

    # ---- the course ----------------------------------------------------------------------------

    def _course(self, out: Writer) -> None:
        states = [state.word for state in self.states]
        given = [*self.leaves, *(f"{w}_0" for w in states), *(f"{s.word}_start" for s in self.own)]
        made = [*self.writes, *states]
        about = "Give what is written, and the states before each chunk and after the last."
        self._declare(out, self.name, given, len(made), about)
        rooms = [self._room(out, w, self.layers.shapes[w]) for w in self.writes]
        with out.indent():
            self._begin(out, self.leaves[0], self.leaves)
            for word, room in zip(self.writes, rooms, strict=True):
                out.line(f"{word} = {room}")
            for state in self.states:
                words = [f"{state.word}_0", *([f"{state.word}_start"] if not state.var else [])]
                out.call(f"{state.word} = run.begin(", words)
            self._start(out, "course", loop=True)
            self._return(out, made)
        self._fake(out, self.name, given, [*rooms, *(f"run.room({w}_0)" for w in states)])

    def _course_back(self, out: Writer) -> None:
        name, words = f"{self.name}_back", [state.word for state in self.states]
        came = [*(f"d{w}" for w in self.writes), *(f"g{w}" for w in words)]
        given = [*self.leaves, *words, *came]
        moving = self.tensors["writes_back"]
        results = [f"grad_{leaf}" for leaf in self.leaves]
        results += [f"d{w}[:, 1].clone()" for w in words]
        for state in self.own:
            own = f"d{state.word}[:, 0] + " if f"d{state.word}{START}" in self.started else ""
            results.append(f"{own}g{state.word}[:, 0]" + ("" if own else ".clone()"))
        about = "Give the gradients of all that the course was made of."
        self._declare(out, name, given, len(results), about)
        with out.indent():
            self._begin(out, self.leaves[0], self.leaves)
            for leaf in self.leaves:
                fill = "empty_like" if f"grad_{leaf}" in moving else "zeros_like"
                out.line(f"grad_{leaf} = torch.{fill}({leaf})")
            for word in words:
                out.line(f"d{word} = last_back(g{word})")
            self._start(out, "course_back", loop=True)
            self._start(out, "writes_back")
            self._return(out, results)
        ends = [f"g{w}[:, 0].clone()" for w in (*words, *(s.word for s in self.own))]
        self._fake(out, name, given, [*(f"torch.empty_like({x})" for x in self.leaves), *ends])
        n, w = len(self.leaves), len(self.writes)
        keep = [
            f"ctx.save_for_backward(*inputs[:{n}], *output[{w}:])",
            "ctx.offset = inputs[-1]",
        ]
        gradient = [
            "came = [x.contiguous() for x in came]",
            f"return *{name}(*ctx.saved_tensors, *came, ctx.offset), None",
        ]
        self._register(out, self.name, keep, gradient)

    # ---- reads ---------------------------------------------------------------------------------

    def _takes(self, suffix: str) -> list[str]:
        takes = self.tensors[f"read{suffix}"]
        words = [*self.leaves, *self.writes, *(state.word for state in self.states)]
        return [w for w in ["q", *words] if w in takes]

    def _read(self, out: Writer, suffix: str, when: str) -> None:
        name, given = f"{self.name}_read{suffix}_op", self._takes(suffix)
        leaves = [w for w in given if w in ("q", *self.leaves)]
        size = self.layers.memory.map.chain[-1].size
        self._declare(out, name, given, 1, "Give the read at every token.")
        with out.indent():
            self._begin(out, "q", leaves)
            out.line(f"y = run.tokens(q, {size})")
            self._start(out, f"read{suffix}")
            out.line("return y")
        room = f"q.new_empty(*q.shape[:3], {size}, dtype=torch.float32)"
        self._fake(out, name, given, [room])
        grads, moving = [f"grad_{word}" for word in given], self.tensors[f"read{suffix}_back"]
        states = {state.word for state in self.states}
        self._declare(out, f"{name}_back", [*given, "dy"], len(grads), "Give its gradients.")
        with out.indent():
            self._begin(out, "q", leaves)
            for word, grad in zip(given, grads, strict=True):
                fill = "empty_like" if grad in moving and word not in states else "zeros_like"
                out.line(f"{grad} = torch.{fill}({word})")
            self._start(out, f"read{suffix}_back")
            if when == "start" and several(self.chunk):
                for word in [w for w in given if w in states]:
                    out.line(f"grad_{word} = run.at_starts(grad_{word})")
            self._return(out, grads)
        likes = [f"torch.empty_like({word})" for word in given]
        self._fake(out, f"{name}_back", [*given, "dy"], likes)
        keep = ["ctx.save_for_backward(*inputs[:-1])", "ctx.offset = inputs[-1]"]
        head = f"return {'*' if len(given) > 1 else ''}{name}_back("
        words = ["*ctx.saved_tensors", "came[0].contiguous()", "ctx.offset"]
        self._register(out, name, keep, split_call(head, words, "), None", out.room - 4))

    # ---- what the module calls -----------------------------------------------------------------

    def _entry(self, state: State, start: bool = False) -> str:
        word = self.start if start else self.variables[state.var]
        return word if len(self.layers.forms) == 1 else f'{word}["{state.part}"]'

    def _functions(self, out: Writer) -> None:
        leaves = list(self.layers.values.leaves.values())
        kind = "Tensor" if len(self.layers.forms) == 1 else "dict[str, Tensor]"
        words = [f"{leaf.name}: Tensor" for leaf in leaves]
        words += [f"{w}: {kind}" for w in (*self.variables.values(), self.start)]
        kinds = ", ".join(["LayerCourse", *[kind] * (len(self.variables) + 1)])
        head = f"def {self.name}_course("
        for text in split_call(head, [*words, "position: int"], f") -> tuple[{kinds}]:", 100):
            out.line(text)
        with out.indent():
            told = (
                "Move over a sequence: its course, the states after it, that before its open chunk."
            )
            out.docstring([told])
            pairs = [f"({leaf.name}, {leaf.vector})" for leaf in leaves]
            listed(out, "given = ", pairs, "[]")
            first = self._entry(self.own[0])
            out.line(f"front, offset = front_of(given, {first}), position % {self.chunk}")
            out.line("leaves = tuple(spread(x, front, vector) for x, vector in given)")
            entries = [f"each_copy({self._entry(s)}, {len(s.dims)})" for s in self.states]
            entries += [f"each_copy({self._entry(s, True)}, {len(s.dims)})" for s in self.own]
            listed(out, "states = ", entries, "[]")
            out.line(f"found = {self.name}(*leaves, *states, offset)")
            w = len(self.writes)
            out.line(f"blocks = {self.table}[architecture({first}.device)]")
            out.line(f"path = LayerCourse(leaves, found[:{w}], found[{w}:], front, offset)")
            for var, word in self.variables.items():
                own = [s for s in self.states if s.var == var]
                texts = [f"at_end(path.states[{self._place(s)}], {self._entry(s)})" for s in own]
                self._state(out, word, own, texts)
            texts = [
                f"at_open(path.states[{self._place(s)}], {self._entry(s, True)}, "
                f"offset + front[1], {self.chunk}, blocks)"
                for s in self.own
            ]
            self._state(out, self.start, self.own, texts)
            out.line(f"return path, {', '.join([*self.variables.values(), self.start])}")
        out.blank(2)
        for when, var in self.reads:
            self._read_function(out, read_suffix(self.layers, when, var))

    def _place(self, state: State) -> int:
        return self.states.index(state)

    def _state(self, out: Writer, word: str, own: list[State], texts: list[str]) -> None:
        if len(self.layers.forms) == 1:
            out.line(f"{word} = {texts[0]}")
            return
        out.line(f"{word} = {{")
        with out.indent():
            for state, text in zip(own, texts, strict=True):
                name, _, inside = text.partition("(")
                line = f'"{state.part}": {text},'
                if len(line) <= out.room:
                    out.line(line)
                else:
                    head = f'"{state.part}": {name}('
                    for row in split_call(head, inside[:-1].split(", "), "),", out.room):
                        out.line(row)
        out.line("}")

    def _read_function(self, out: Writer, suffix: str) -> None:
        outputs = self.layers.memory.map.outputs
        out.line(f"def {self.name}_read{suffix}(q: Tensor, path: LayerCourse) -> Tensor:")
        with out.indent():
            out.docstring(["Read the course at every token: q [B, T, *lead, *more, d_k]."])
            out.line("if q.ndim > len(path.front) + 1:")
            out.line(f"    rows = [{self.name}_read{suffix}(x, path) for x in q.unbind(-2)]")
            out.line(f"    return torch.stack(rows, {-2 if outputs else -1})")
            kinds = {
                "leaves": self.leaves,
                "writes": self.writes,
                "states": [state.word for state in self.states],
            }
            places = [
                f"path.{kind}[{i}]"
                for kind, names in kinds.items()
                for i, word in enumerate(names)
                if word in self._takes(suffix)
            ]
            words = ["spread(q, path.front, True)", *places, "path.offset"]
            out.call(f"y = {self.name}_read{suffix}_op(", words)
            front = "*path.front, y.shape[-1]" if outputs else "path.front"
            out.line(f"return y.reshape({front}).to(q.dtype)")
        out.blank(2)


def read_suffix(layers: Layers, when: str, var: str) -> str:
    """What tells reads apart."""
    number = [v.name for v in layers.memory.variables].index(var)
    which = f"_{number + 1}" if number else ""
    return which + {"post": "", "prev": "_before", "start": "_start"}[when]
