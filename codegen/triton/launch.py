"""What starts a memory's kernels: operations of torch, each with its fake and its backward.

In: the kernels of a memory as text functions with the tensors they take. Out: the text of

    NAME, NAME_back              the course: writes, the states before each tile and after the last
    NAME_read, NAME_read_back    a read at every token, one pair for each kind of read
    NAME_course, ...             the functions that the memory's module calls
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.codegen.triton.back import read_back, states_back, tiles_back
from nlc.codegen.triton.cut_printer import CutPrinter, is_cut
from nlc.codegen.triton.graph import Dims
from nlc.codegen.triton.printer import KernelPrinter
from nlc.codegen.triton.solve import Kernel, Solve
from nlc.codegen.writer import Writer, split_call

from nlc.ir.expr import postorder
from nlc.ir.kernel import Emitted


@dataclass
class Launcher:
    """Writes the kernels of one memory and what starts them; `digest` keeps operations apart."""

    name: str
    solve: Solve
    reads: list[tuple[int, bool]]
    about: list[str]
    digest: str
    used: set[str]
    dims: dict[str, Dims] = field(default_factory=dict)
    made: list[Emitted] = field(default_factory=list)
    # the kernels that go over blocks of d_v
    cut: set[str] = field(default_factory=set)

    def write(self, out: Writer) -> None:
        """Write everything."""
        solve = self.solve
        self.leaves = [leaf.name for leaf in solve.coefficients.leaves.values()]
        for leaf in solve.coefficients.leaves.values():
            self.dims[leaf.name] = leaf.dims
        self.writes = [f"e{solve.label(r)}" for r in solve.open_]
        self.starts = [f"starts{solve.number(j)}" for j in solve.states]
        self.states = [f"M{solve.number(j)}" for j in solve.states]
        self.tensors: dict[str, list[str]] = {}
        for kernel in (solve.tiles_kernel(), solve.states_kernel()):
            # where nothing hangs on anything, there is nothing to solve
            if kernel.stores:
                self._kernel(out, kernel)
        self._course(out)
        for kernel in (states_back(solve), tiles_back(solve)):
            self._kernel(out, kernel)
        self._course_back(out)
        for state, late in self.reads:
            suffix = self.suffix(state, late)
            kernel = solve.read_kernel(state, late, f"read{suffix}")
            back = read_back(solve, state, late, f"read{suffix}_back")
            self._kernel(out, kernel)
            self._kernel(out, back)
            self._read(out, suffix, kernel, back)
        self._functions(out)

    def suffix(self, state: int, late: bool) -> str:
        """What tells reads apart."""
        return (f"_{state + 1}" if state else "") + ("" if late else "_before")

    def _kernel(self, out: Writer, kernel: Kernel) -> None:
        cut = is_cut(kernel, self.solve.sizes["V"])
        kind = CutPrinter if cut else KernelPrinter
        printer = kind(kernel, out, self.used, self.about, cut=cut)
        printer.write(f"{self.name}_{kernel.name}_kernel")
        out.blank(2)
        self.tensors[kernel.name] = printer.tensors()
        self.made.append(
            Emitted(
                f"{self.name}_{kernel.name}_kernel",
                self.name,
                kernel.name,
                self.table,
                frozenset(w for x in ("q", *self.leaves) for w in (x, f"grad_{x}")),
                bool(kernel.loop),
                self.solve.sizes["K"],
                self.solve.sizes["V"],
                self.solve.keeping.gates,
                self.solve.keeping.tile,
                cut=cut,
            )
        )
        if cut:
            self.cut.add(kernel.name)
        for node in postorder(printer.roots):
            if node.op == "load":
                self.dims[node.word] = node.dims
        for word, tile in kernel.stores:
            self.dims[word] = tile.dims

    # ---- pieces of text ------------------------------------------------------------------------

    def _room(self, word: str, like: str) -> str:
        d_k, d_v = self.solve.sizes["K"], self.solve.sizes["V"]
        match self.dims[word]:
            case ("C",):
                return f"run.tokens({like})"
            case ("C", "K"):
                return f"run.tokens({like}, {d_k})"
            case ("C", "V"):
                return f"run.tokens({like}, {d_v})"
            case ("K",):
                return f"run.tiles({like}, {d_k})"
            case ("K", "V"):
                return f"run.tiles({like}, {d_k}, {d_v})"
        return f"run.tiles({like})"

    def _begin(self, out: Writer, like: str, leaves: list[str]) -> None:
        d_k, d_v = self.solve.sizes["K"], self.solve.sizes["V"]
        out.line(f"blocks = {self.table}[architecture({like}.device)]")
        out.call("dot = dot_type(", leaves)
        out.line(f"run = Launch(tuple({like}.shape[:3]), {d_k}, {d_v}, blocks, dot)")

    @property
    def table(self) -> str:
        """The name of the memory's block sizes."""
        return f"{self.name.upper()}_BLOCKS"

    def _start(self, out: Writer, kernel: str, loop: bool = False) -> None:
        words = [f"{self.name}_{kernel}_kernel", *self.tensors[kernel]]
        how = [*(["loop=True"] if loop else []), *(["cut=True"] if kernel in self.cut else [])]
        out.call("run.run(", [*words, *how])

    def _declare(self, out: Writer, name: str, words: list[str], results: int, about: str) -> None:
        kinds = ["Tensor"] * results
        kind = "Tensor" if results == 1 else f"tuple[{', '.join(kinds)}]"
        out.line(f'@torch.library.custom_op("{self.digest}::{name}", mutates_args=())')
        typed = [f"{word}: Tensor" for word in words]
        *head, last = split_call(f"def {name}(", typed, f") -> {kind}:", out.room)
        for text in head:
            out.line(text)
        if len(last) <= out.room:
            out.line(last)
        else:
            inside = ", ".join(kinds)
            rows = [inside] if 4 + len(inside) <= out.room else [f"{k}," for k in kinds]
            for text in (") -> tuple[", *(f"    {row}" for row in rows), "]:"):
                out.line(text)
        with out.indent():
            out.docstring([about])

    def _fake(self, out: Writer, name: str, words: list[str]) -> None:
        out.blank(2)
        out.line(f"@{name}.register_fake")
        out.call("def _(", words, "):")

    def _return(self, out: Writer, words: list[str]) -> None:
        if len(words) == 1:
            out.line(f"return {words[0]}")
            return
        self._listed(out, "return ", words)

    def _listed(self, out: Writer, head: str, words: list[str], marks: str = "()") -> None:
        listed(out, head, words, marks)

    # ---- the course ----------------------------------------------------------------------------

    def _course(self, out: Writer) -> None:
        given = [*self.leaves, *self.states]
        after = [f"{state}_after" for state in self.states]
        made = [*self.writes, *self.starts, *after]
        about = "Give the writes, the states before each tile and those after the last token."
        self._declare(out, self.name, given, len(made), about)
        with out.indent():
            self._begin(out, self.leaves[0], self.leaves)
            self._make_tiles(out)
            self._rename(out, "states", self._named())
            self._make(out, [*self.writes, *self.starts], self.leaves[0])
            for state in self.states:
                out.line(f"{state}_after = torch.empty_like({state})")
            self._start(out, "states", loop=True)
            self._return(out, made)
        self._fake(out, self.name, given)
        with out.indent():
            self._begin(out, self.leaves[0], self.leaves)
            self._make(out, [*self.writes, *self.starts], self.leaves[0])
            self._return(
                out,
                [*self.writes, *self.starts, *(f"torch.empty_like({s})" for s in self.states)],
            )
        out.blank(2)

    def _named(self) -> dict[str, str]:
        """The tensors of the kernels over states, as the functions here call them."""
        found: dict[str, str] = {}
        for state in self.states:
            found |= {f"{state}_before": state, f"d{state}_before": f"d{state}"}
        return found

    def _rename(self, out: Writer, kernel: str, names: dict[str, str]) -> None:
        self.tensors[kernel] = [names.get(word, word) for word in self.tensors[kernel]]

    def _make_tiles(self, out: Writer) -> None:
        if "tiles" not in self.tensors:
            return
        made = [word for word in self.tensors["tiles"] if word not in self.leaves]
        self._make(out, made, self.leaves[0])
        self._start(out, "tiles")

    def _make(self, out: Writer, words: list[str], like: str) -> None:
        for word in words:
            out.line(f"{word} = {self._room(word, like)}")

    def _course_back(self, out: Writer) -> None:
        name = f"{self.name}_back"
        starts = [f"d{word}" for word in self.starts]
        after = [f"d{state}_after" for state in self.states]
        came = [*(f"d{word}" for word in self.writes), *starts, *after]
        given = [*self.leaves, *self.writes, *self.starts, *came]
        grads = [f"grad_{leaf}" for leaf in self.leaves]
        moving = [g for g in grads if g in self.tensors["tiles_back"]]
        results = [*grads, *(f"d{state}" for state in self.states)]
        about = "Give the gradients of all that the course was made of."
        self._declare(out, name, given, len(results), about)
        with out.indent():
            self._begin(out, self.leaves[0], self.leaves)
            self._make_tiles(out)
            self._rename(out, "states_back", self._named())
            made = [f"dends{s.removeprefix('starts')}" for s in self.starts]
            for word in made:
                self.dims[word] = ("K", "V")
            made += [f"d{word}_all" for word in self.writes]
            self._make(out, made, self.leaves[0])
            for state in self.states:
                out.line(f"d{state} = torch.empty_like(d{state}_after)")
            self._start(out, "states_back", loop=True)
            for leaf in self.leaves:
                fill = "empty_like" if f"grad_{leaf}" in moving else "zeros_like"
                out.line(f"grad_{leaf} = torch.{fill}({leaf})")
            self._start(out, "tiles_back")
            self._return(out, results)
        self._fake(out, name, given)
        with out.indent():
            self._return(
                out,
                [
                    *(f"torch.empty_like({leaf})" for leaf in self.leaves),
                    *(f"torch.empty_like({word})" for word in after),
                ],
            )
        out.blank(2)
        n, w, s = len(self.leaves), len(self.writes), len(self.starts)
        out.line(f"def {self.name}_keep(ctx, inputs, output):")
        with out.indent():
            out.line(f"ctx.save_for_backward(*inputs[:{n}], *output[:{w + s}])")
        out.blank(2)
        out.line(f"def {self.name}_gradient(ctx, *came):")
        with out.indent():
            out.line("came = [x.contiguous() for x in came]")
            out.line(f"return {name}(*ctx.saved_tensors, *came)")
        out.blank(2)
        words = [f"{self.name}_gradient", f"setup_context={self.name}_keep"]
        out.call(f"{self.name}.register_autograd(", words)
        out.blank(2)

    # ---- reads ---------------------------------------------------------------------------------

    def _read(self, out: Writer, suffix: str, kernel: Kernel, back: Kernel) -> None:
        name = f"{self.name}_read{suffix}_op"
        takes = self.tensors[kernel.name]
        given = [w for w in ["q", *self.leaves, *self.writes, *self.starts] if w in takes]
        leaves = [w for w in given if w in ("q", *self.leaves)]
        self._declare(out, name, given, 1, "Give the read at every token.")
        with out.indent():
            self._begin(out, "q", leaves)
            out.line(f"y = {self._room('y', 'q')}")
            self._start(out, kernel.name)
            out.line("return y")
        self._fake(out, name, given)
        with out.indent():
            size = self.solve.sizes[self.dims["y"][1]]
            out.line(f"return q.new_empty(*q.shape[:3], {size}, dtype=torch.float32)")
        out.blank(2)
        grads = [f"grad_{word}" for word in given]
        moving = self.tensors[back.name]
        self._declare(out, f"{name}_back", [*given, "dy"], len(grads), "Give its gradients.")
        with out.indent():
            self._begin(out, "q", leaves)
            for word, grad in zip(given, grads, strict=True):
                fill = "empty_like" if grad in moving else "zeros_like"
                out.line(f"{grad} = torch.{fill}({word})")
            self._start(out, back.name)
            self._return(out, grads)
        self._fake(out, f"{name}_back", [*given, "dy"])
        with out.indent():
            self._return(out, [f"torch.empty_like({word})" for word in given])
        out.blank(2)
        out.line(f"def {name}_keep(ctx, inputs, output):")
        out.line("    ctx.save_for_backward(*inputs)")
        out.blank(2)
        out.line(f"def {name}_gradient(ctx, dy):")
        out.line(f"    return {name}_back(*ctx.saved_tensors, dy.contiguous())")
        out.blank(2)
        words = [f"{name}_gradient", f"setup_context={name}_keep"]
        out.call(f"{name}.register_autograd(", words)
        out.blank(2)
        self.given = given

    # ---- what the module calls -----------------------------------------------------------------

    def _functions(self, out: Writer) -> None:
        leaves = self.solve.coefficients.leaves.values()
        words = [*(f"{leaf.name}: Tensor" for leaf in leaves)]
        words += [f"{state}: Tensor" for state in self.states]
        kinds = ", ".join(["Course", *["Tensor"] * len(self.states)])
        for text in split_call(f"def {self.name}_course(", words, f") -> tuple[{kinds}]:", 100):
            out.line(text)
        with out.indent():
            out.docstring(["Move over a sequence: the course, and the states after it."])
            pairs = [f"({leaf.name}, {leaf.vector})" for leaf in leaves]
            self._listed(out, "given = ", pairs, "[]")
            out.line(f"front = front_of(given, {self.states[0]})")
            out.line("leaves = tuple(spread(x, front, vector) for x, vector in given)")
            # the form may hold for the transposed states
            turned = ".mT" if self.solve.form.transposed else ""
            out.line(f"shape = {self.states[0]}{turned}.shape")
            states = [f"as_copies({state}{turned})" for state in self.states]
            out.call(f"found = {self.name}(", ["*leaves", *states])
            w, s = len(self.writes), len(self.starts)
            out.line(f"writes, starts = found[:{w}], found[{w}:{w + s}]")
            after = [f"found[{w + s + j}].reshape(shape){turned}" for j in range(s)]
            self._return(out, ["Course(leaves, writes, starts, front)", *after])
        out.blank(2)
        for state, late in self.reads:
            suffix = self.suffix(state, late)
            kernel = f"read{suffix}"
            takes = self.tensors[kernel]
            out.line(f"def {self.name}_read{suffix}(q: Tensor, path: Course) -> Tensor:")
            with out.indent():
                out.docstring(["Read the course at every token: q [B, T, *lead, *more, d_k]."])
                out.line("if q.ndim > len(path.front) + 1:")
                out.line(f"    rows = [{self.name}_read{suffix}(x, path) for x in q.unbind(-2)]")
                out.line("    return torch.stack(rows, -2)")
                places = [
                    f"path.{kind}[{i}]"
                    for kind, names in (
                        ("leaves", self.leaves), ("writes", self.writes), ("starts", self.starts),
                    )
                    for i, word in enumerate(names)
                    if word in takes
                ]  # fmt: skip
                out.call(
                    f"y = {self.name}_read{suffix}_op(",
                    ["spread(q, path.front, True)", *places],
                )
                out.line("return y.reshape(*path.front, y.shape[-1]).to(q.dtype)")
            out.blank(2)


def listed(out: Writer, head: str, words: list[str], marks: str = "()") -> None:
    """Write a tuple or a list, on one line or an entry a line."""
    inside = ", ".join(words)
    line = head + (inside if marks == "()" else f"{marks[0]}{inside}{marks[1]}")
    if len(line) <= out.room:
        out.line(line)
        return
    for text in (f"{head}{marks[0]}", *(f"    {word}," for word in words), marks[1]):
        out.line(text)
