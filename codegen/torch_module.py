"""The emitted `model.py`: library functions that are needed, then the classes, innermost first.

In: a system whose updates are free of `grad`, its plan, and the spec's file name. Out: Python text
that imports torch only; the same for the same spec.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from nlc.codegen.ahead import ahead_of_learning
from nlc.codegen.alike import share_classes
from nlc.codegen.library_source import library_texts
from nlc.codegen.names import class_name, class_names, free_class_name
from nlc.codegen.on_the_way import read_on_the_way
from nlc.codegen.program import LoopKernel
from nlc.codegen.scope import Scope, memory_path
from nlc.codegen.torch_block import LoopFinder, UnitWriter
from nlc.codegen.torch_memory import MemoryWriter
from nlc.codegen.torch_tiles import read_name, read_product
from nlc.codegen.triton.fuse import fuse
from nlc.codegen.triton.layer_plan import LayerPlan, in_turn, plan_layers, turn
from nlc.codegen.triton.loop_call import call_loop, find_loop, one_token
from nlc.codegen.triton.loop_plan import LoopPlan
from nlc.codegen.triton.module import emit_kernels
from nlc.codegen.triton.plan import KernelPlan, plan_kernels
from nlc.codegen.triton.rows_call import RowsPlan, plan_rows
from nlc.codegen.triton.step_call import StepPlan, plan_step, step_name
from nlc.codegen.triton.token_group import Group, find_group
from nlc.codegen.triton.window_call import WindowPlan, plan_window
from nlc.codegen.unit import (
    Unit,
    expressions,
    given_whole_numbers,
    of_memory,
    starts_anew,
    units,
)
from nlc.codegen.writer import Writer
from torch import fx

from nlc.ir.expr import Expr, postorder
from nlc.ir.kernel import Calculus, Emitted
from nlc.ir.schedule import ChunkLoop, Plan, Stage, Windows, made_by
from nlc.ir.shape import show
from nlc.ir.shared_reads import shared_read
from nlc.ir.slots import further, routed, sparse_read
from nlc.ir.system import Block, Equation, System


class Emitter:
    """Carries what all classes of a file share."""

    def __init__(self, system: System, plan: Plan, spec: str, calculus: Calculus | None = None):
        self.system, self.plan, self.spec, self.calculus = system, plan, spec, calculus
        self.used: set[str] = set()
        # the kernels of each memory by (block, memory), or why it has none
        self.kernels: dict[tuple[str, str], KernelPlan | LayerPlan | str] = {}
        # ... and the kernel of its step
        self.steps: dict[tuple[str, str], StepPlan | str] = {}
        # ... of a memory that shares its class, by the first that has it
        self.alike: dict[tuple[str, str], tuple[str, str]] = {}
        # the kernels of loops over tokens by (block, memories), or why there are none
        self.loops: dict[tuple[str, tuple[str, ...]], LoopPlan | str] = {}
        # the launches of a memory where its window ends, or why it has none
        self.windows: dict[tuple[str, str], WindowPlan | str] = {}
        # ... and the kernel of one token of a block, while decoding
        self.tokens: dict[tuple[str, tuple[str, ...]], LoopPlan | str] = {}
        self.names = class_names(system)

    def comment(self, step: Any) -> list[str]:
        """The line of the spec that a statement comes from."""
        return [f"{step.text}   ({self.place(step.span)})"]

    def place(self, span: Any) -> str:
        """A place in the spec: `spec.nl:12`."""
        if span.source is self.system.source:
            return f"{self.spec}:{span.line}"
        return f"{PurePosixPath(span.source.name).name}:{span.line}"

    def memory_writers(self, block: Block) -> dict[str, MemoryWriter]:
        """The classes of a block's memories."""
        found = {}
        reads = _reads(block)
        plan = self.plan.block(block.name)
        for memory in block.memories:
            if memory.name in plan.late:
                # the loop around it does that
                memory = replace(memory, reset=None)
            lines = [f"{s.text}   ({self.place(s.span)})" for s in memory.statements]
            found[memory.name] = MemoryWriter(
                name=self.names[block.name, memory.name],
                memory=memory,
                schedule=plan.schedule(memory.name),
                level=self.system.level(memory.level),
                reads=frozenset(reads.get(memory.name, set())),
                on_the_way=read_on_the_way(block, plan, memory, reads.get(memory.name, ())),
                shared=shared_read(plan.stages, memory),
                in_pieces=memory.name in chunked(plan.stages),
                lines=tuple(lines),
                used=self.used,
                static=frozenset(_static(block)),
                windows={m.name: m.window for m in block.memories},
                leads={m.name: m.lead for m in block.memories}
                | {w.name: w.lead for w in block.weights},
                starts={
                    m.name: m.reset.count
                    for m in block.memories
                    if m.reset is not None and starts_anew(block, m.name)
                },
            )
            if self.calculus is not None:
                found[memory.name] = self.with_kernels(found[memory.name], block)
        return found

    def with_kernels(self, writer: MemoryWriter, block: Block) -> MemoryWriter:
        """The writer of a memory's class with its kernels, if it has any."""
        planned = plan_kernels(writer, block.name)
        length = turn(self.plan.block(block.name), writer.memory.name)
        if isinstance(planned, LayerPlan) and length:
            planned = in_turn(planned, length)
        if isinstance(planned, KernelPlan):
            plan, form = self.plan.block(block.name), planned.solve.form
            form, called = fuse(
                self.system.graph_of, form, block, plan, lambda step: self.comment(step)[0]
            )
            parts = ((writer.forms[0][0], form),)
            schedule = replace(writer.schedule, forms=parts)
            writer = replace(writer, schedule=schedule)
            planned = plan_kernels(writer, block.name, called)
        self.kernels[block.name, writer.memory.name] = planned
        if isinstance(planned, LayerPlan):
            writer.layer_kernels = planned
        elif isinstance(planned, KernelPlan):
            writer.kernels = planned
        if writer.schedule.kind == "scan" and not writer.schedule.entries and self.calculus:
            name = step_name(block.name, writer.memory.name)
            rows = plan_rows(writer, self.calculus, self.system.graph_of, name)
            self.loops[block.name, (writer.memory.name,)] = (
                rows if isinstance(rows, str) else rows.loop
            )
            writer.rows_kernel = rows if isinstance(rows, RowsPlan) else None
        if writer.memory.stays and self.calculus:
            name = step_name(block.name, writer.memory.name)
            window = plan_window(writer, name, self.calculus, self.system.graph_of)
            self.windows[block.name, writer.memory.name] = window
            writer.window_kernels = window if isinstance(window, WindowPlan) else None
        assert self.calculus is not None
        name = step_name(block.name, writer.memory.name)
        step = plan_step(writer, name, self.calculus, self.system.graph_of)
        self.steps[block.name, writer.memory.name] = step
        writer.step_kernel = step if isinstance(step, StepPlan) else None
        return writer

    def memory_classes(
        self, unit: Unit, writers: dict[str, MemoryWriter]
    ) -> Iterable[MemoryWriter]:
        """What writes the classes of a unit's memories, some of which share one."""
        if unit.block is None:
            return writers.values()
        block = unit.block
        names = {i.name for i in block.inputs} | {w.name for w in block.weights}
        names |= {n for step in block.steps for n in made_by(step)} | set(writers)

        def free(number: int) -> str:
            base = class_name(block.name, f"memory{number if number > 1 else ''}")
            name = free_class_name(base, self.names.values())
            self.names[block.name, name, "shared"] = name
            return name

        def kernels(writer: MemoryWriter, members: list[MemoryWriter]) -> None:
            self.share_kernels(block, writer, members)

        return share_classes(self.system.graph_of, writers, names, free, kernels).values()

    def share_kernels(
        self, block: Block, writer: MemoryWriter, members: list[MemoryWriter]
    ) -> None:
        """Give a class for several memories the kernels that these have, which become one's."""
        first, *others = [(block.name, member.memory.name) for member in members]
        name = step_name(block.name, "_".join(member.memory.name for member in members))
        writer.step_kernel = writer.layer_kernels = None
        if any(member.step_kernel is not None for member in members) and self.calculus:
            made = plan_step(writer, name, self.calculus, self.system.graph_of)
            writer.step_kernel = made if isinstance(made, StepPlan) else None
            self.alike |= dict.fromkeys(others, first)
            for other in others:
                self.steps.pop(other, None)
            self.steps[first] = made
        plans = [m.layer_kernels for m in members if m.layer_kernels is not None]
        if plans:
            planned = plan_layers(writer, block.name)
            length = turn(self.plan.block(block.name), members[0].memory.name)
            if isinstance(planned, LayerPlan) and length:
                planned = in_turn(planned, length)
            if isinstance(planned, LayerPlan):
                asked = {read for plan in plans for read in plan.reads}
                reads = tuple(read for read in planned.reads if read in asked)
                writer.layer_kernels = planned = replace(planned, name=name, reads=reads)
            for other in others:
                self.kernels.pop(other, None)
            self.kernels[first] = planned

    def classes(self) -> list[str]:
        """The text of every class, in order."""
        texts = []
        made = ahead_of_learning(self.system, units(self.system, self.plan))
        blocks = {u.title: u for u in made if u.kind == "block"}
        shared = _shared(self.system)
        whole = given_whole_numbers(self.system)
        for unit in made:
            writers = self.memory_writers(unit.block) if unit.block is not None else {}
            group = self.token_group(unit, writers)
            owner = UnitWriter(
                unit, writers, self.used, self.comment, blocks, self.about(unit),
                integers={i for block, i in whole if unit.block and block == unit.block.name},
                shared_blocks=shared, system=self.system,
                loop_kernel=self.loop_finder(unit, writers) if self.calculus else None,
                token_group=group,
            )  # fmt: skip
            if self.calculus is not None and writers:
                # which memories have a step of their own is known once the block is written
                first = Writer()
                owner.write(first)
                self.without_steps(unit, writers, group)
                self.without_reads(unit, writers, first.text())
            classes, out = list(self.memory_classes(unit, writers)), Writer()
            owner.write(out)
            for writer in classes:
                own = Writer()
                writer.write(own)
                texts.append(own.text())
            if unit.kind == "model":
                from nlc.codegen.objective import write_loss

                write_loss(self, owner, out)
            texts.append(out.text())
        return texts

    def token_group(self, unit: Unit, writers: dict[str, MemoryWriter]) -> Group | None:
        """The updates and reads of a block that are one kernel for one token."""
        calculus, block = self.calculus, unit.block
        if calculus is None or block is None:
            return None
        graph = self.system.graph_of

        def printable(steps: Sequence[Any], memories: Sequence[str], rows: Sequence[str]) -> bool:
            return one_token(calculus, graph, unit, writers, steps, memories, rows)

        return find_group(graph, block, unit.outputs, printable)

    def without_steps(
        self, unit: Unit, writers: dict[str, MemoryWriter], group: Group | None
    ) -> None:
        """Leave out kernels of single steps that nothing calls."""
        if group is None or not isinstance(self.tokens.get((unit.title, group.memories)), LoopPlan):
            return
        plain = {
            name
            for (title, names), plan in self.loops.items()
            if title == unit.title and isinstance(plan, str)
            for name in names
        }
        for name in group.memories:
            if name not in plain:
                writers[name].step_kernel = None
                self.steps.pop((unit.title, name), None)

    def without_reads(self, unit: Unit, writers: dict[str, MemoryWriter], text: str) -> None:
        """Leave out kernels of reads that a unit's text does not make."""
        for name, writer in writers.items():
            plan = writer.layer_kernels
            if plan is None or writer.on_the_way is not None:
                continue
            made = [
                (when, var)
                for when, var in plan.reads
                if f"{memory_path(writer.memory)}.{read_name('apply', when, var)}(" in text
            ]
            writer.layer_kernels = replace(plan, reads=tuple(made))
            self.kernels[unit.title, name] = writer.layer_kernels

    def loop_finder(self, unit: Unit, writers: dict[str, MemoryWriter]) -> LoopFinder:
        """What finds the kernels of a unit's loops over tokens."""
        calculus = self.calculus
        assert calculus is not None

        def find(
            outer: Scope,
            steps: Sequence[Any],
            memories: Sequence[str],
            wide: Mapping[str, bool],
            carried: tuple[str, ...],
            once: bool,
        ) -> tuple[LoopKernel | None, list[fx.Node]]:
            key = (unit.title, tuple(memories))
            graph = self.system.graph_of
            found = find_loop(
                calculus, graph, unit, writers, outer, steps, memories, wide, carried, once
            )
            (self.tokens if once else self.loops)[key] = (
                found if isinstance(found, str) else found[0]
            )
            return (None, []) if isinstance(found, str) else (call_loop(found[0]), found[1])

        return find

    def about(self, unit: Unit) -> list[str]:
        """What a class's docstring says."""
        match unit.kind:
            case "block":
                assert unit.block is not None
                ins = ", ".join(f"{i.name}{show(i.shape)}" for i in unit.block.inputs)
                outs = ", ".join(f"{name}{show(shape)}" for name, shape in unit.block.outputs)
                first = f"Block {unit.title}: {ins} -> {outs}."
                return [first, *(c for c in unit.block.comments if c.strip())]
            case "pass":
                return [f"One pass of `{unit.title}`."]
            case _:
                vocab = self.system.model.vocab if self.system.model else 0
                return [f"The model {unit.title}: tokens [B, T] -> logits [B, T, {vocab}]."]

    def text(self) -> str:
        """The whole file."""
        classes = self.classes()
        library = library_texts(self.used)
        body = "\n\n\n".join(t.strip("\n") for t in [*library, *classes])
        out = Writer()
        out.docstring(self.head())
        out.blank()
        out.line("from __future__ import annotations")
        out.blank()
        standard = []
        if "math." in body:
            standard.append("import math")
        typed = [name for name in ("Any", "NamedTuple") if _mentions(body, name)]
        if typed:
            standard.append(f"from typing import {', '.join(typed)}")
        for line in standard:
            out.line(line)
        if standard:
            out.blank()
        if _mentions(body, "torch."):
            out.line("import torch")
        if _mentions(body, "F.") or _mentions(body, "F,"):
            out.line("import torch.nn.functional as F")
        taken = [name for name in ("Tensor", "nn") if _mentions(body, name)]
        if taken:
            out.line(f"from torch import {', '.join(taken)}")
        if self.has_kernels():
            out.blank()
            out.line("if __package__:")
            out.line("    from . import kernels")
            out.line("else:")
            out.line("    import kernels")
        if not body:
            # no block: there are rules alone
            return out.text().rstrip("\n") + "\n"
        out.blank(2)
        return out.text() + body + "\n"

    def planned(self) -> dict[tuple[str, str], KernelPlan | LayerPlan]:
        """The memories that have kernels, once their classes are written."""
        return {name: p for name, p in self.kernels.items() if not isinstance(p, str)}

    def planned_steps(self) -> dict[tuple[str, str], StepPlan]:
        """The memories whose step has a kernel."""
        return {name: p for name, p in self.steps.items() if isinstance(p, StepPlan)}

    def planned_windows(self) -> dict[tuple[str, str], WindowPlan]:
        """The memories that have kernels where their windows end."""
        return {name: p for name, p in self.windows.items() if isinstance(p, WindowPlan)}

    def planned_loops(self) -> dict[tuple[str, tuple[str, ...]], LoopPlan]:
        """The loops over tokens that have kernels."""
        return {name: p for name, p in self.loops.items() if isinstance(p, LoopPlan)}

    def planned_tokens(self) -> dict[tuple[str, tuple[str, ...]], LoopPlan]:
        """The blocks that have a kernel of one token."""
        return {name: p for name, p in self.tokens.items() if isinstance(p, LoopPlan)}

    def has_kernels(self) -> bool:
        """Say whether there is a `kernels.py`, once all classes are written."""
        loops = {**self.planned_loops(), **self.planned_tokens()}
        windows = self.planned_windows()
        return bool(self.planned() or self.planned_steps() or loops or windows)

    def kernels_text(self) -> tuple[str, tuple[Emitted, ...]]:
        """The whole of `kernels.py` and its kernels, or nothing where no memory has any."""

        def lines(block: str, memory: str) -> list[str]:
            statements = self.system.block(block).memory(memory).statements
            return list(dict.fromkeys(f"{s.text}   ({self.place(s.span)})" for s in statements))

        plans = [(plan, lines(*name)) for name, plan in self.planned().items()]
        steps = [(plan, lines(*name)) for name, plan in self.planned_steps().items()]
        windows = [(plan, lines(*name)) for name, plan in self.planned_windows().items()]
        loops = [
            (plan, list(dict.fromkeys(line for name in names for line in lines(block, name))))
            for found in (self.planned_loops(), self.planned_tokens())
            for (block, names), plan in found.items()
        ]
        if not self.has_kernels():
            return "", ()
        return emit_kernels(plans, steps, loops, windows, self.spec, self.system.name)

    def head(self) -> list[str]:
        """The file's docstring."""
        system = self.system
        about = f": {system.about}" if system.about else ""
        lines = [f"{system.name}{about}"]
        needs = "torch and kernels.py" if self.has_kernels() else "torch"
        lines.append(
            f"Made by nlc from {self.spec}. It imports {needs} only; change it as you like."
        )
        lines += [f"Changed from outside: {path} = {value}" for path, value in system.changes]
        lines.append("Levels, fastest first:")
        for level in system.levels:
            chunk = f", chunk {level.chunk}" if level.chunk > 1 else ""
            lines.append(f"    {level.name}: {level.period}{chunk}")
        return lines


def _mentions(text: str, name: str) -> bool:
    import re

    word = re.escape(name) + (r"\b" if name[-1].isalnum() else "")
    return re.search(rf"(?<![\w.\"']){word}", text) is not None


def _shared(system: System) -> dict[str, str]:
    from nlc.codegen.unit import calls

    model = system.model
    return {c.instance: c.block for c in calls(model.steps) if c.shared} if model else {}


def chunked(stages: Iterable[Stage]) -> set[str]:
    """Name the memories that a loop moves chunk by chunk, so that each call has one chunk."""
    found: set[str] = set()
    for stage in stages:
        match stage:
            case ChunkLoop(memories=names):
                found |= set(names)
            case Windows(stages=inner):
                found |= chunked(inner)
    return found


def _reads(block: Block) -> dict[str, set[tuple[str, str, str, str]]]:
    """The reads that a block makes of each memory: (apply or bare, when, state, part)."""
    found: dict[str, set[tuple[str, str, str, str]]] = {}
    outside = list(expressions(block.steps))
    outside += [i.default for i in block.inputs if i.default is not None]
    _read_in(block, outside, "", found)
    for memory in block.memories:
        _read_in(block, of_memory(memory), memory.name, found)
        if memory.reset is not None:
            for variable in memory.variables:
                several = len(variable.parts) > 1
                for part in [p for p in variable.parts if p.initial.source]:
                    kind = ("bare", "post", "", part.name if several else "")
                    found.setdefault(part.initial.source, set()).add(kind)
    return found


def _read_in(
    block: Block, roots: list[Expr], own: str, found: dict[str, set[tuple[str, str, str, str]]]
) -> None:
    bare = {root for root in roots if root.op == "state"}
    routed_only = _routed_only(block, roots, own, found)
    for node in postorder(roots):
        if node in routed_only:
            continue
        if node.op == "attend":
            found.setdefault(node.attr("memory"), set()).add(("apply", node.attr("when"), "", ""))
        product = read_product(node, block.memory)
        if product is not None and product.attr("memory") != own:
            kind = ("apply", product.attr("when"), product.attr("var"), "")
            found.setdefault(product.attr("memory"), set()).add(kind)
            continue
        first = 1 if node.op == "apply" else 0
        bare |= {arg for arg in node.args[:first] if arg.op == "state"}
        states = [arg for arg in node.args[first:] if arg.op == "state"]
        if first == 0:
            bare |= set(states)
        for state in states if first else []:
            if state.attr("memory") != own:
                kind = ("apply", state.attr("when"), state.attr("var"), "")
                found.setdefault(state.attr("memory"), set()).add(kind)
    for node in bare:
        if node.attr("memory") != own:
            several = len(block.memory(node.attr("memory")).map.parts) > 1
            part = node.attr("part") if several else ""
            kind = ("bare", node.attr("when"), node.attr("var"), part)
            found.setdefault(node.attr("memory"), set()).add(kind)


def _routed_only(
    block: Block, roots: list[Expr], own: str, found: dict[str, set[tuple[str, str, str, str]]]
) -> set[Expr]:
    """Note reads of selected parts alone; returns the applications that serve nothing else."""
    users: dict[Expr, set[Expr]] = {}
    for node in postorder(roots):
        for arg in node.args:
            users.setdefault(arg, set()).add(node)
    serving: set[Expr] = set()
    for node in postorder(roots):
        memory = sparse_read(node, block.memory)
        split = routed(node)
        if memory is None or split is None or memory.name == own:
            continue
        kind = ("routed", split[1].args[1].attr("when"), str(further(split[1]) or ""), "")
        found.setdefault(memory.name, set()).add(kind)
        serving.add(node.args[0])
    return {
        node
        for product in serving
        for node in product.args
        if node.op == "apply" and users[node] <= serving and users[product] <= _sums(product, users)
    }


def _sums(product: Expr, users: dict[Expr, set[Expr]]) -> set[Expr]:
    return {node for node in users[product] if routed(node) is not None}


def _static(block: Block) -> set[str]:
    """The streams that do not depend on tokens."""
    varying = {i.name for i in block.inputs}
    equations = [s for s in block.steps if isinstance(s, Equation)]
    for step in block.steps:
        if not isinstance(step, Equation) and hasattr(step, "results"):
            varying |= set(step.results)
    changed = True
    while changed:
        changed = False
        for step in equations:
            if step.name in varying:
                continue
            leaves = list(postorder([step.value]))
            moving = any(
                n.op in ("state", "attend", "position", "due", "shift", "conv")
                or (n.op == "stream" and n.attr("name") in varying)
                for n in leaves
            )
            if moving:
                varying.add(step.name)
                changed = True
    return {s.name for s in equations} - varying


def emit_model(system: System, plan: Plan, spec: str) -> str:
    """Return the text of `model.py`."""
    return Emitter(system, plan, spec).text()


@dataclass(frozen=True)
class WithKernels:
    """A package with kernels: its texts, the kernels, and why other memories have none."""

    texts: dict[str, str]
    kernels: tuple[Emitted, ...]
    plain: dict[tuple[str, str], str]


def emit_with_kernels(system: System, plan: Plan, spec: str, calculus: Calculus) -> WithKernels:
    """Return `model.py` and, where any memory has kernels, `kernels.py`."""
    emitter = Emitter(system, plan, spec, calculus)
    texts = {"model.py": emitter.text()}
    text, made = emitter.kernels_text()
    plain = {name: why for name, why in emitter.kernels.items() if isinstance(why, str)}
    for (block, memories), loop in emitter.loops.items():
        for memory in memories:
            if isinstance(loop, str):
                plain[block, memory] = f"its loop over tokens runs as PyTorch: {loop}"
            else:
                plain.pop((block, memory), None)
    for name, window in emitter.windows.items():
        if isinstance(window, str):
            plain[name] = f"where its window ends PyTorch does it: {window}"
        else:
            plain.pop(name, None)
    for name, step in emitter.steps.items():
        if name in plain and name not in emitter.windows:
            told = (
                f"nor for one token: {step}" if isinstance(step, str) else "one token has its own"
            )
            plain[name] += f"; {told}"
    for name, first in emitter.alike.items():
        if name in plain and isinstance(emitter.steps.get(first), StepPlan):
            plain[name] += "; one token has its own"
    for block, memories in emitter.planned_tokens():
        for memory in memories:
            why = plain.get((block, memory), "")
            if why and not why.endswith("one token has its own"):
                plain[block, memory] = f"{why}; one token has its own"
    return WithKernels({**texts, "kernels.py": text} if text else texts, made, plain)
