"""From the syntax tree to the typed system.

In: `tree.Spec` with its `use` clauses brought in. Out: `System`, with the warnings that were found.
Collects all faults of a stage and raises `SpecError`; opens no file itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nlc.diagnostics import SpecError
from nlc.errors import nearest
from nlc.ir.expr import Expr
from nlc.ir.shape import show
from nlc.ir.system import Block, Call, Input, Model, System
from nlc.semantics.blocks import BlockResolver
from nlc.semantics.context import Bad, Context, several
from nlc.semantics.functions import RESERVED
from nlc.semantics.level_graph import with_level_graph
from nlc.semantics.models import ModelResolver
from nlc.semantics.names import numbered, taken
from nlc.semantics.nesting import check_reset, resolve_levels, sort_levels
from nlc.semantics.order import order
from nlc.semantics.rules import check_names, check_rules
from nlc.semantics.trees import mentions
from nlc.semantics.warnings import warn
from nlc.source import Source, Span
from nlc.syntax import tree
from nlc.syntax.print_expression import print_expression


@dataclass
class Resolver:
    """Resolves one spec; blocks are resolved when they are first needed."""

    context: Context
    spec: tree.Spec
    # the rules of the shipped library
    library: Mapping[str, tree.Rule]
    done: dict[str, Block] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    # rules that have been resolved with a memory
    used_rules: set[str] = field(default_factory=set)

    # ---- names that blocks ask for ---------------------------------------------------------

    def rule(self, name: str, span: Span) -> tree.Rule:
        """Find a rule: of this spec, or of the shipped library."""
        rule = self.context.rules.get(name) or self.library.get(name)
        if rule is None:
            known = [*self.context.rules, *self.library]
            self.context.unknown("rule", name, span, known, "NL0305")
        return rule

    def arguments(self, rule: tree.Rule, written: tree.Expr) -> dict[str, tree.Expr]:
        """Match a rule's arguments with what is given; defaults fill the rest."""
        given: dict[str, tree.Expr] = {}
        names = [p.name for p in rule.parameters]
        call = written if isinstance(written, tree.Call) else tree.Call(written)
        form = f"`{rule.name}({', '.join(names)})`"
        if len(call.arguments) > len(names):
            self.context.fail(
                "NL0506", f"`{rule.name}` takes {several(len(names), 'argument')}", written.span,
                f"{len(call.arguments)} given", f"it is written {form}",
            )  # fmt: skip
        for name, value in zip(names, call.arguments, strict=False):
            given[name] = value
        for keyword in call.keywords:
            if keyword.name not in names:
                close = nearest(keyword.name, names)
                self.context.fail(
                    "NL0506", f"`{rule.name}` has no argument `{keyword.name}`", keyword.span,
                    "nothing has this name",
                    f"did you mean `{close}`?" if close else f"it is written {form}",
                    (rule.span, "the rule"),
                )  # fmt: skip
            if keyword.name in given:
                self.context.fail(
                    "NL0506", f"`{keyword.name}` is given twice", keyword.span, "again",
                    f"it is written {form}",
                )  # fmt: skip
            given[keyword.name] = keyword.value
        for parameter in rule.parameters:
            if parameter.name in given:
                continue
            if parameter.default is None:
                self.context.fail(
                    "NL0506", f"`{rule.name}` needs `{parameter.name}`", written.span, "not given",
                    f"it is written {form}",
                )  # fmt: skip
            given[parameter.name] = parameter.default
        return {name: given[name] for name in names}

    def step_level(self, span: Span) -> str:
        """The system's only level of steps: where weights are unless they name a level."""
        levels = [lv for lv in self.context.levels.values() if lv.period.unit == "steps"]
        if len(levels) == 1:
            return levels[0].name
        if not levels:
            self.context.fail(
                "NL0207", "there is no level for these weights", span, "they name no level",
                "write `level slow every 1 step, optimizer adamw(lr = 3e-4)`, or `at LEVEL`",
            )  # fmt: skip
        self.context.fail(
            "NL0207", "these weights could be at several levels", span, "they name no level",
            f"write `at {levels[0].name}`, one of {', '.join(f'`{lv.name}`' for lv in levels)}",
            *((lv.span, "a level of steps") for lv in levels),
        )  # fmt: skip

    def model_level(self, span: Span) -> str:
        """The level of a model's own weights: of those of steps, the one that moves most often."""
        levels = [lv for lv in self.context.levels.values() if lv.period.unit == "steps"]
        if len(levels) > 1:
            return min(levels, key=lambda level: level.period.count).name
        return self.step_level(span)

    # ---- blocks ----------------------------------------------------------------------------

    def block(self, name: str, span: Span) -> Block:
        """Resolve a block."""
        if name in self.failed:
            raise Bad(name)
        if name in self.busy:
            self.context.fail(
                "NL0704", f"block `{name}` calls itself", span, "called here",
                "blocks stack: use `repeat` in the model",
                (self.context.blocks[name].span, "the block"),
            )  # fmt: skip
        if name not in self.done:
            self.busy.append(name)
            before = len(self.context.faults.errors)
            unordered = BlockResolver(self.context, self.context.blocks[name], self).resolve()
            self.busy.pop()
            for memory in self.context.blocks[name].memories:
                self._reset(memory)
            if len(self.context.faults.errors) > before:
                self.failed.add(name)
                raise Bad(name)
            self.done[name] = order(self.context, unordered)
            if len(self.context.faults.errors) > before:
                self.failed.add(name)
                raise Bad(name)
        return self.done[name]

    def _reset(self, memory: tree.Memory) -> None:
        for level in memory.levels:
            if level in self.context.levels:
                try:
                    check_reset(self.context, memory, self.context.levels[level])
                except Bad:
                    continue

    def call(self, owner: Any, scope: Any, name: str, call: tree.Call, count: int) -> list[Expr]:
        """Call a block from a block or a model; give the streams of its results."""
        target = owner.shared.get(name, name) if isinstance(owner, ModelResolver) else name
        block = self.block(target, call.span)
        if len(block.outputs) != count:
            self.context.fail(
                "NL0702", f"`{name}` gives {len(block.outputs)} results", call.span,
                f"{count} taken", f"write `{', '.join(n for n, _ in block.outputs)} = {name}(...)`",
                (block.span, "the block"),
            )  # fmt: skip
        inputs = self._inputs(owner, scope, block, call)
        if isinstance(owner, ModelResolver):
            instance, shared = owner.instance(name, call, bool(block.memories))
            others = {*owner.later, "tokens", "targets"}
        else:
            others = {*owner.owners, *self.context.blocks}
            instance, shared = numbered(name, owner.instances, others), False
        # a shared instance gives other streams at each call; none is one that is written
        uses = owner.results if shared else {}
        results = tuple(
            numbered(base, uses, others, 1 if base in others else 0)
            for base in (f"{instance}_{output}" for output, _ in block.outputs)
        )
        step = Call(instance, target, inputs, results, shared, call.span.text, call.span)
        if isinstance(owner, ModelResolver):
            owner.add_call(step)
        else:
            owner.calls.append(step)
        return [
            self.context.graph.make("stream", name=result, shape=shape, span=call.span)
            for result, (_, shape) in zip(results, block.outputs, strict=True)
        ]

    def _inputs(
        self, owner: Any, scope: Any, block: Block, call: tree.Call
    ) -> tuple[tuple[str, Expr], ...]:
        known = {i.name: i for i in block.inputs}
        names = list(known)
        form = f"`{block.name}({', '.join(names)})`"
        if len(call.arguments) > len(names):
            self.context.fail(
                "NL0702", f"`{block.name}` takes {several(len(names), 'stream')}", call.span,
                f"{len(call.arguments)} given", f"it is written {form}", (block.span, "the block"),
            )  # fmt: skip
        written = list(zip(names, call.arguments, strict=False))
        for keyword in call.keywords:
            if keyword.name not in known:
                close = nearest(keyword.name, names)
                self.context.fail(
                    "NL0702", f"`{block.name}` has no input `{keyword.name}`", keyword.span,
                    "nothing has this name",
                    f"did you mean `{close}`?" if close else f"it is written {form}",
                    (block.span, "the block"),
                )  # fmt: skip
            if keyword.name in [name for name, _ in written]:
                self.context.fail(
                    "NL0702", f"`{block.name}` is given `{keyword.name}` twice", keyword.span,
                    "again", f"it is written {form}", (block.span, "the block"),
                )  # fmt: skip
            written.append((keyword.name, keyword.value))
        given: dict[str, Expr] = {}
        for name, argument in written:
            missing = owner.missing(argument) if isinstance(owner, ModelResolver) else None
            if missing == "omit" and known[name].default is not None:
                continue
            if missing == "maybe" and known[name].default is not None:
                assert isinstance(argument, tree.Name)
                given[name] = owner.fresh(argument.id, known[name].shape, argument.span)
                continue
            value = scope.plain(argument)
            self._fits(block, known[name], value, argument)
            given[name] = value
        for name, parameter in known.items():
            if name not in given and parameter.default is None:
                self.context.fail(
                    "NL0702", f"`{block.name}` needs the stream `{name}`", call.span, "not given",
                    f"it is written {form}", (block.span, "the block"),
                )  # fmt: skip
        return tuple((name, given[name]) for name in names if name in given)

    def _fits(self, block: Block, parameter: Input, value: Expr, argument: tree.Expr) -> None:
        want, have = parameter.shape, value.shape
        if len(want) == len(have) and all(a.fits(b) for a, b in zip(want, have, strict=True)):
            return
        self.context.fail(
            "NL0702", f"`{block.name}` does not take this stream", argument.span,
            f"`{print_expression(argument)}` is {show(have)}",
            f"its input `{parameter.name}` is {show(want)}", (block.span, "the block"),
        )  # fmt: skip

    # ---- the whole spec --------------------------------------------------------------------

    def resolve(self, source: Source) -> System:
        """Resolve everything, or raise `SpecError` with all that is wrong."""
        context = self.context
        self._dims()
        self._names()
        resolve_levels(context, self.spec.levels, self)
        blocks: list[Block] = []
        for name in context.blocks:
            try:
                blocks.append(self.block(name, context.blocks[name].span))
            except Bad:
                continue
        check_rules(self)
        model: Model | None = None
        if self.spec.model is not None and not self.failed:
            model = ModelResolver(context, self.spec.model, self).resolve()
            if model is not None and any(m.is_task for b in blocks for m in b.memories):
                # what learns from the task counts the tokens of its windows
                model = replace(model, uses_position=True)
        if self.spec.model is None:
            self._task_needs_model()
        context.faults.stop_on_errors()
        levels = sort_levels(context.levels)
        warn(context.faults, levels, tuple(blocks), model)
        system = System(
            self.spec.name or "system", self.spec.about or "", source, self.spec, context.graph,
            tuple(context.dims.items()), levels, tuple(blocks), model,
            tuple(context.rules.values()), tuple(context.faults.warnings),
            tuple(dict.fromkeys(context.unsupported)),
        )  # fmt: skip
        return with_level_graph(system)

    def _dims(self) -> None:
        places: dict[str, Span] = {}
        for dim in self.spec.dims:
            if dim.name in places:
                self.context.faults.error(
                    "NL0302", f"dim `{dim.name}` is declared twice", dim.span, "again",
                    "each dim has a name of its own", (places[dim.name], "first here"),
                )  # fmt: skip
                continue
            places[dim.name] = dim.span
            if dim.name in ("in", "out", "tokens"):
                self.context.faults.error(
                    "NL0303", f"`{dim.name}` cannot be the name of a dim", dim.span,
                    "after `over =` this name is reserved", "choose another name",
                )  # fmt: skip
            later = [d for d in self.spec.dims if d.name not in places and d is not dim]
            for other in later:
                if mentions(dim.value, {other.name}):
                    self.context.faults.error(
                        "NL0413", f"unknown dim `{other.name}`", dim.value.span,
                        "declared further below",
                        f"a dim is made of dims above it: write `{other.name}` first",
                        (other.span, f"`{other.name}`"),
                    )  # fmt: skip
            if any(mentions(dim.value, {other.name}) for other in later):
                self.context.dims[dim.name] = 1
                continue
            try:
                self.context.dims[dim.name] = self.context.positive(dim.value, f"dim `{dim.name}`")
            except Bad:
                self.context.dims[dim.name] = 1

    def _names(self) -> None:
        """Levels, rules and blocks share one space."""
        places: dict[str, tuple[str, Span]] = {}
        tables: tuple[tuple[str, tuple[tree.Level | tree.Rule | tree.Block, ...]], ...] = (
            ("level", self.spec.levels),
            ("rule", self.spec.rules),
            ("block", self.spec.blocks),
        )
        for what, items in tables:
            for item in items:
                own = "this name is reserved" if item.name in RESERVED else None
                if what == "block":
                    own = own or taken(item.name)
                if own is not None:
                    self.context.faults.error(
                        "NL0303", f"`{item.name}` cannot be the name of a {what}", item.span,
                        own, "choose another name",
                    )  # fmt: skip
                elif item.name in places:
                    before, place = places[item.name]
                    self.context.faults.error(
                        "NL0302", f"`{item.name}` is declared twice", item.span,
                        f"again, as a {what}", "levels, rules and blocks share one space of names",
                        (place, f"first as a {before}"),
                    )  # fmt: skip
                    continue
                places[item.name] = (what, item.span)
                match item:
                    case tree.Rule(name=name):
                        self.context.rules[name] = item
                        check_names(self.context, item)
                    case tree.Block(name=name):
                        self.context.blocks[name] = item

    def _task_needs_model(self) -> None:
        for block in self.done.values():
            for memory in block.memories:
                if memory.is_task:
                    self.context.faults.error(
                        "NL0710", f"`{memory.name}` learns from the task, but there is no model",
                        memory.span, "the task's loss is the model's", "write `model { ... }`",
                    )  # fmt: skip


def resolve(spec: tree.Spec, source: Source, library: Mapping[str, tree.Rule]) -> System:
    """Resolve a spec whose `use` clauses have been brought in already.

    `library` holds the shipped rules, by name.
    """
    found = Resolver(Context(), spec, library)
    try:
        return found.resolve(source)
    except Bad as bad:
        raise SpecError(found.context.faults.errors) from bad
