"""How the state of every memory develops: contractive, marginal, or may it grow.

In: a system and its plan, whose normal forms it reads. Out: a `Verdict` for each memory that has an
update of its own, and warnings NL0906 where one and the same token, again and again, may make a
state grow. What can be proved of one token stands in `transition`. Looks at no number that is
learned: a verdict holds for all parameters and inputs.

A memory whose streams are made from its own state has no verdict: what is written then depends on
the state in ways that the normal form does not show. Reads that a chunk freezes are counted over
the whole chunk where they are linear; where they are not, they are taken as given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

from nlc.diagnostics import Diagnostic, Faults
from nlc.ir.expr import Expr, Graph, postorder, rewrite
from nlc.ir.normal_form import Affine, Neither, NormalForm
from nlc.ir.schedule import BlockPlan, Plan
from nlc.ir.stability import Verdict
from nlc.ir.system import Assignment, Block, Call, Equation, Memory, System
from nlc.passes.bound import Bounds
from nlc.passes.coupling import chunk_stretch, stretch
from nlc.passes.explicit import explicit_memory
from nlc.passes.lane import Cause, Stretch
from nlc.passes.normalise import normalise
from nlc.passes.unwound import unwound as one_token
from nlc.source import Span

_STRENGTH = (
    "`unit(k)` keeps ||k|| at 1 or less, `sigmoid(...)` a factor in (0, 1); a write of 2 or more "
    "overshoots further each time"
)
# what would bound an update, by the kind of what has no bound
HINTS = {
    "gate": "a gate in (0, 1) lets the state fade: `sigmoid(...)`, or `exp(-softplus(...))`",
    "strength": _STRENGTH,
    "directions": _STRENGTH,
    "order": _STRENGTH,
    "circle": _STRENGTH,
    "sum": "a momentum below 1 fades: 0.9, or `sigmoid(...)`",
    "chunk": "divide the step by the chunk, or let the chunk be shorter",
}


@dataclass(frozen=True)
class Stability:
    """The verdicts, by `block.memory`, and what is warned about."""

    verdicts: Mapping[str, Verdict]
    warnings: tuple[Diagnostic, ...]


def stability(system: System, plan: Plan) -> Stability:
    """Judge all memories of a system."""
    faults = Faults()
    verdicts = {}
    for block in system.blocks:
        bounds: Bounds | None = None
        for memory in block.memories:
            if memory.map.kind == "kernel" or not memory.update:
                continue
            bounds = bounds or Bounds(block)
            judge = _Judge(system, block, memory, bounds)
            verdict, cause = judge.verdict(plan.block(block.name))
            verdicts[f"{block.name}.{memory.name}"] = verdict
            if cause is not None and cause.grows:
                _warn(faults, judge, cause)
    return Stability(verdicts, tuple(faults.found))


@dataclass(frozen=True)
class _Judge:
    """One memory, and where it stands."""

    system: System
    block: Block
    memory: Memory
    bounds: Bounds

    @property
    def graph(self) -> Graph:
        """The graph of all expressions."""
        return self.system.graph_of

    def verdict(self, plan: BlockPlan) -> tuple[Verdict, Cause | None]:
        """Judge the memory; the cause is what keeps a proof from succeeding."""
        if self.memory.is_task:
            return self.unknown("it learns from the task's loss"), None
        through = self.own_past()
        if through:
            return self.unknown(f"{through} is made from its own state"), None
        known = plan.schedule(self.memory.name).forms
        period = self.system.level(self.memory.level).period
        unwound = one_token(self.graph, self.memory, period)
        forms = known if known and unwound is self.memory else normalise(self.graph, unwound)
        found: list[tuple[Stretch, str]] = []
        for part, form in forms:
            if isinstance(form, Neither):
                return self.unknown(form.reason, form.span), None
            found.append(self.stretch_of(part, form))
        missing = self.other_states(forms)
        if missing:
            return self.unknown(f"its state {missing} has another shape"), None
        return self.judged(found)

    def judged(self, found: list[tuple[Stretch, str]]) -> tuple[Verdict, Cause | None]:
        """Put the parts of a map together: the worst decides."""
        given = next((given for _, given in found if given), "")
        for one, _ in found:
            if one.cause is not None:
                return Verdict("can grow", one.cause.text, None, given, self.place), one.cause
        # two states have gradients of their own, so that they need not come nearer
        if not given and all(one.is_contractive for one, _ in found):
            rates = [one.rate for one, _ in found if not one.is_weighted]
            rate = max(r for r in rates if r is not None) if _all_known(rates, found) else None
            return Verdict("contractive", "", rate, given, self.place), None
        note = next((one.note for one, _ in found if one.note), "")
        return Verdict("marginal", note, None, given, self.place), None

    def stretch_of(self, part: str, form: Affine) -> tuple[Stretch, str]:
        """Bound one part's transition; the text names what is taken as given."""
        own = next(p for p in self.memory.map.parts if p.name == part)
        shape = own.shape[::-1] if form.transposed else own.shape
        size = shape[-1].size if shape else 1
        names = tuple(var or self.memory.name for var, _ in form.states)
        thawed = self.thawed(part)
        match thawed:
            case None:
                return stretch(form, self.bounds, size, names), ""
            case Neither():
                return stretch(form, self.bounds, size, names), "gradients"
            case Affine():
                return chunk_stretch(form, thawed, self.bounds, size, self.memory.chunk, names), ""

    def thawed(self, part: str) -> NormalForm | None:
        """Return the form with frozen reads taken at the running state; None if there are none."""
        memory = explicit_memory(self.graph, self.memory)
        roots = [a.value for a in memory.update]
        if not any(_is_state(n, memory.name, ("start",)) for n in postorder(roots)):
            return None

        def running(node: Expr, args: tuple[Expr, ...]) -> Expr | None:
            if not _is_state(node, memory.name, ("start",)):
                return None
            attrs = {**dict(node.attrs), "when": "prev"}
            return self.graph.make("state", span=node.span, **attrs)

        values = rewrite(self.graph, roots, running)
        return dict(normalise(self.graph, replace(memory, update=_assigned(memory, values))))[part]

    def other_states(self, forms: tuple[tuple[str, NormalForm], ...]) -> str:
        """Name an extra state that no form covers."""
        covered = {state for _, form in forms if isinstance(form, Affine) for state in form.states}
        for variable in self.memory.variables:
            for part in variable.parts:
                if (variable.name, part.name) not in covered:
                    return f"`{variable.name}`"
        return ""

    def own_past(self) -> str:
        """Name a stream or memory of the update that is made from the memory's own state."""
        first = [a.value for a in self.memory.update]
        for name, roots in self.sources(first):
            seen: set[str] = set()
            waiting = [roots]
            while waiting:
                inner = waiting.pop()
                if any(_is_state(n, self.memory.name, MOVING) for n in postorder(inner)):
                    return name
                for other, more in self.sources(inner):
                    if other not in seen:
                        seen.add(other)
                        waiting.append(more)
        return ""

    def sources(self, roots: list[Expr]) -> Iterator[tuple[str, list[Expr]]]:
        """Give what expressions are made from: streams and other memories, with their makers."""
        for node in postorder(roots):
            if node.op == "stream":
                name = str(node.attr("name"))
                yield f"`{name}`", self.makers.get(name, [])
            elif node.op in ("state", "attend") and node.attr("memory") != self.memory.name:
                other = self.block.memory(node.attr("memory"))
                pairs = [e for pair in other.pairs for e in pair]
                yield f"`{other.name}`", [*(a.value for a in other.update), *pairs]

    @cached_property
    def makers(self) -> dict[str, list[Expr]]:
        """What every stream of the block is made from."""
        found: dict[str, list[Expr]] = {
            i.name: [i.default] for i in self.block.inputs if i.default is not None
        }
        for step in self.block.steps:
            if isinstance(step, Equation):
                found[step.name] = [step.value]
            elif isinstance(step, Call):
                made = [e for _, e in step.inputs]
                found.update(dict.fromkeys(step.results, made))
        return found

    @property
    def place(self) -> Span:
        """The update as it was written, or the memory where its rule stands elsewhere."""
        own = [s.span for s in self.memory.statements if s.span.source is self.system.source]
        return own[-1] if own else self.memory.span

    def unknown(self, reason: str, span: Span | None = None) -> Verdict:
        """Say that there is no verdict."""
        return Verdict("unknown", reason, None, "", span or self.place)


def _assigned(memory: Memory, values: list[Expr]) -> tuple[Assignment, ...]:
    """Give the states of an update other values."""
    named = zip(memory.update, values, strict=True)
    return tuple(Assignment(a.var, a.part, value) for a, value in named)


MOVING = ("prev", "post", "start")


def _is_state(node: Expr, memory: str, when: tuple[str, ...]) -> bool:
    return node.op == "state" and node.attr("memory") == memory and node.attr("when") in when


def _all_known(rates: list[float | None], found: list[tuple[Stretch, str]]) -> bool:
    return len(rates) == len(found) and all(rate is not None for rate in rates)


# ---- warnings ----------------------------------------------------------------------------------


def _warn(faults: Faults, judge: _Judge, cause: Cause) -> None:
    """Record an update that can be unstable, and the streams that nothing bounds."""
    memory = judge.memory
    others = [(span, f"`{name}` has no bound") for name, span in unbounded(judge, cause.terms)]
    faults.warning(
        "NL0906",
        f"the update of `{memory.name}` can be unstable",
        judge.place,
        cause.text,
        HINTS[cause.kind],
        *others,
    )


def unbounded(judge: _Judge, terms: tuple[Expr, ...]) -> Iterator[tuple[str, Span]]:
    """Find the streams and weights that leave these terms without a bound, and where they are."""
    seen = set()
    waiting = list(terms[::-1])
    while waiting:
        node = waiting.pop()
        if judge.bounds.range(node).norm.high < inf:
            continue
        waiting += node.args[::-1]
        name = str(node.attr("name")).split(".")[0] if node.op in ("stream", "param") else ""
        places = [s.span for s in judge.block.steps if isinstance(s, Equation) and s.name == name]
        places += [w.span for w in judge.block.weights if w.name == name]
        if places and name not in seen:
            seen.add(name)
            yield name, places[0]
