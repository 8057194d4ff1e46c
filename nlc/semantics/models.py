"""A model: how blocks stack. Lines run in order and may reassign.

In: `tree.Model`. Out: `ir.Model`. Each call of a block is an instance with parameters of its own.
"""

from __future__ import annotations

from typing import Any

from nlc.ir.expr import Expr, postorder
from nlc.ir.shape import Axis, Shape, show
from nlc.ir.system import Call, Equation, Initial, Map, Model, Part, Repeat, Step, Weight
from nlc.semantics.assignments import as_is
from nlc.semantics.context import Bad, Context
from nlc.semantics.functions import RESERVED
from nlc.semantics.names import numbered, taken
from nlc.semantics.scopes import StreamScope
from nlc.semantics.values import Struct, Value
from nlc.source import Span
from nlc.syntax import tree


class ModelScope(StreamScope):
    """The equations of a model: streams assigned so far, blocks, `embed` and `unembed`."""

    owner: ModelResolver

    def known_names(self) -> list[str]:
        return [*self.owner.env, *self.context.blocks, *self.owner.shared, *self.context.dims]

    def find(self, name: tree.Name) -> Value | None:
        if name.id in self.owner.env:
            found: Value | None = self.owner.env[name.id]
            if found is None:
                raise Bad(name.id)
            return found
        if name.id in self.owner.later:
            self.context.fail(
                "NL0708", f"`{name.id}` has no value yet", name.span, "read here",
                "lines of a model run in order; an input of a block that may be missing has a "
                "default: `block f(x[d], y[d] = x)`", (self.owner.later[name.id], "assigned later"),
            )  # fmt: skip
        return None

    def special(self, name: str, call: tree.Call) -> Value | None:
        if name in self.owner.broken:
            raise Bad(name)
        if name in self.owner.shared:
            results = self.owner.call_block(name, call, 1)
            value: Value = results[0]
            return value
        if name == "embed":
            embedded: Value = self.owner.embed(call)
            return embedded
        if name == "unembed":
            logits: Value = self.owner.unembed(call)
            return logits
        return super().special(name, call)


class ModelResolver:
    """Resolves the model."""

    def __init__(self, context: Context, written: tree.Model, resolver: Any):
        self.context = context
        self.graph = context.graph
        self.written = written
        self.resolver = resolver
        self.env: dict[str, Value | None] = {}
        self.later: dict[str, Span] = {}
        self.shared: dict[str, str] = {}
        self.shared_calls: dict[str, Span] = {}
        # how often the streams of a shared instance have been made
        self.results: dict[str, int] = {}
        # shared names at fault
        self.broken: set[str] = set()
        # streams that an earlier pass of a repeat has not made yet, as blocks expect them
        self.expected: dict[str, tuple[Shape, Span]] = {}
        self.weights: dict[str, Weight] = {}
        self.steps: list[Step] = []
        self.counts: list[dict[str, int]] = [{}]
        self.depth = 0
        # how often what is being read runs for each token
        self.passes = 1
        self.left: tree.Target | None = None
        self.tied = False
        self.vocab = 256
        self.width: Shape | None = None
        self.repeats: list[int] = [0]
        self.loop_names: list[set[str]] = []
        self.scope = ModelScope(context, self)

    def resolve(self) -> Model | None:
        """Resolve the model; None after a fault."""
        places = dict(self.written.clauses)
        is_bytes = isinstance(self.written.vocab, tree.Name) and self.written.vocab.id == "bytes"
        try:
            if self.written.vocab is None:
                self.context.fail(
                    "NL0707", "the model has no vocabulary", self.written.span, "the model",
                    "write `vocab bytes`, or `vocab N`",
                )  # fmt: skip
            if not is_bytes:
                self.vocab = self.context.positive(self.written.vocab, "the vocabulary")
        except Bad:
            return None
        self.env["tokens"] = self._leaf("tokens", (), self.written.span)
        self._collect(self.written.equations)
        self._run(self.written.equations)
        logits = self.env.get("logits")
        if "logits" not in self.env and not self.context.faults.errors:
            self.context.faults.error(
                "NL0703", "the model does not assign `logits`", self.written.span, "the model",
                "end with `logits = unembed(rmsnorm(x))`",
            )  # fmt: skip
        if not isinstance(logits, Expr):
            return None
        if [axis.size for axis in logits.shape] != [self.vocab]:
            self.context.faults.error(
                "NL0709", "the logits are not one number per token of the vocabulary",
                self._place("logits"), f"this is {show(logits.shape)}",
                f"the vocabulary has {self.vocab} tokens: end with `logits = unembed(rmsnorm(x))`",
            )  # fmt: skip
            return None
        objective = self._objective(places.get("objective"))
        if objective is None:
            return None
        position = self._uses_position(self.steps)
        return Model(
            self.vocab, is_bytes, tuple(self.weights.values()), tuple(self.steps), objective,
            self.tied, (), position, self.written.span,
        )  # fmt: skip

    def _leaf(self, name: str, shape: Shape, span: Span) -> Expr:
        return self.graph.make("stream", name=name, shape=shape, span=span)

    def _uses_position(self, steps: list[Step]) -> bool:
        for step in steps:
            if isinstance(step, Repeat) and self._uses_position(list(step.steps)):
                return True
            exprs = [step.value] if isinstance(step, Equation) else []
            exprs += [e for _, e in step.inputs] if isinstance(step, Call) else []
            if any(node.op == "position" for node in postorder(exprs)):
                return True
        return False

    def _collect(self, statements: tuple[tree.Stmt, ...]) -> None:
        for statement in statements:
            match statement:
                case tree.Assign(targets=targets):
                    for target in targets:
                        self.later.setdefault(target.path[0], target.span)
                case tree.Repeat(body=body):
                    self._collect(body)

    def _place(self, name: str) -> Span:
        """Where a stream is assigned last."""
        waiting, span = list(self.written.equations), self.written.span
        while waiting:
            match waiting.pop(0):
                case tree.Repeat(body=body):
                    waiting = [*body, *waiting]
                case tree.Assign(targets=targets):
                    span = next((t.span for t in targets if t.path[0] == name), span)
                case _:
                    pass
        return span

    def _objective(self, span: Span | None) -> Expr | None:
        self.env["targets"] = self._leaf("targets", (), self.written.span)
        logits = self.env["logits"]
        assert isinstance(logits, Expr)
        targets = self.env["targets"]
        assert isinstance(targets, Expr)
        if self.written.objective is None:
            return self.graph.make("cross_entropy", logits, targets, span=self.written.span)
        try:
            return self.scope.scalar(self.written.objective, "the objective of a model")
        except Bad:
            return None

    # ---- statements ------------------------------------------------------------------------

    def _run(self, statements: tuple[tree.Stmt, ...]) -> None:
        for statement in statements:
            try:
                match statement:
                    case tree.Assign():
                        self._assign(statement)
                    case tree.Repeat():
                        self._repeat(statement)
                    case tree.Share(name=name, block=block):
                        self._share(name, block, statement.span)
                    case _:
                        self.context.fail(
                            "NL0703", "this does not belong in a model", statement.span,
                            "in a model", "a model holds equations, `repeat` and `share`",
                        )  # fmt: skip
            except Bad:
                if isinstance(statement, tree.Assign):
                    for target in statement.targets:
                        self.env[target.path[0]] = None
                elif isinstance(statement, tree.Share):
                    self.broken.add(statement.name)

    def _share(self, name: str, block: str, span: Span) -> None:
        if block not in self.context.blocks:
            self.context.unknown("block", block, span, list(self.context.blocks), "NL0306")
        own = "this name is reserved" if name in RESERVED else taken(name)
        if own is not None:
            self.context.fail(
                "NL0303", f"`{name}` cannot be the name of a shared block", span, own,
                "choose another name",
            )  # fmt: skip
        if name in self.shared or name in self.context.blocks or name in self.env:
            self.context.fail(
                "NL0302", f"`{name}` is declared twice", span, "again",
                "a shared instance needs a name of its own",
            )  # fmt: skip
        self.shared[name] = block

    def _repeat(self, statement: tree.Repeat) -> None:
        count = self.context.repeats(statement.count, self.passes)
        index = self.repeats[-1]
        self.repeats[-1] += 1
        name = "repeat" if index == 0 else f"repeat_{index}"
        outer, self.steps = self.steps, []
        before = dict(self.env)
        self.counts.append({})
        self.repeats.append(0)
        self.loop_names.append(self._assigned(statement.body))
        self.depth += 1
        self.passes *= count
        self._run(statement.body)
        self.passes //= count
        self.depth -= 1
        self.loop_names.pop()
        self.repeats.pop()
        self.counts.pop()
        outer.append(Repeat(name, count, tuple(self.steps), statement.span))
        self.steps = outer
        for stream, (shape, span) in self.expected.items():
            made = self.env.get(stream)
            if isinstance(made, Expr) and [a.name for a in made.shape] != [a.name for a in shape]:
                self.context.fail(
                    "NL0702", f"`{stream}` does not come back as the block takes it", span,
                    f"the block takes {show(shape)}", f"the next pass gives {show(made.shape)}",
                    (self._place(stream), f"made here, {show(made.shape)}"),
                )  # fmt: skip
        self.expected.clear()
        for stream, old in before.items():
            new = self.env[stream]
            if isinstance(old, Expr) and isinstance(new, Expr) and new.shape != old.shape:
                self.context.fail(
                    "NL0407", f"`{stream}` changes its shape inside the repeat", statement.span,
                    f"from {show(old.shape)} to {show(new.shape)}",
                    "each pass must leave the shape as it found it",
                )  # fmt: skip

    def _assigned(self, body: tuple[tree.Stmt, ...]) -> set[str]:
        found: set[str] = set()
        for statement in body:
            if isinstance(statement, tree.Assign):
                found |= {target.path[0] for target in statement.targets}
            elif isinstance(statement, tree.Repeat):
                found |= self._assigned(statement.body)
        return found

    def _assign(self, statement: tree.Assign) -> None:
        for target in statement.targets:
            name = target.path[0]
            if len(target.path) > 1 or name in RESERVED or name in ("tokens", "targets"):
                self.context.fail(
                    "NL0303", f"`{'.'.join(target.path)}` cannot be assigned", target.span,
                    "this name is reserved", "choose another name",
                )  # fmt: skip
            if name in self.context.blocks or name in self.shared:
                self.context.fail(
                    "NL0302", f"`{name}` is a block", target.span, "and a stream here",
                    "choose another name for the stream",
                )  # fmt: skip
        self.left = statement.targets[0] if len(statement.targets) == 1 else None
        values = self._values(statement)
        for target, value in zip(statement.targets, values, strict=True):
            if isinstance(value, Struct):
                raise Bad(target.path[0])
            shape = value.shape
            if target.shape is not None:
                shape = self.context.shape(target.shape)
                if len(shape) != len(value.shape) or not all(
                    a.fits(b) for a, b in zip(shape, value.shape, strict=True)
                ):
                    self.context.fail(
                        "NL0407", f"`{target.path[0]}` does not have the declared shape",
                        target.span, f"written {show(shape)}", as_is(target.path[0], value.shape),
                        (value.span, f"this is {show(value.shape)}"),
                    )  # fmt: skip
            name = target.path[0]
            self.steps.append(Equation(name, value, statement.span.text, statement.span))
            self.env[name] = self._leaf(name, shape, target.span)

    def _values(self, statement: tree.Assign) -> list[Any]:
        targets, values = statement.targets, statement.values
        if len(targets) == len(values):
            return [self.scope.value(v) for v in values]
        if len(values) == 1 and isinstance(values[0], tree.Call):
            call = values[0]
            name = call.function.id if isinstance(call.function, tree.Name) else ""
            if name in self.context.blocks or name in self.shared:
                return list(self.call_block(name, call, len(targets)))
        self.context.fail(
            "NL0309", f"{len(targets)} names and {len(values)} values", statement.span,
            "left and right do not pair up",
            "write as many values as names, or one call with several results",
        )  # fmt: skip

    # ---- embed, unembed, blocks ------------------------------------------------------------

    def embed(self, call: tree.Call) -> Expr:
        """`x[d] = embed(tokens)`: the width comes from the left side."""
        if len(call.arguments) != 1 or call.keywords:
            self.context.fail(
                "NL0309", "`embed` takes the tokens", call.span, "written otherwise",
                "x[d] = embed(tokens)",
            )  # fmt: skip
        tokens = self.scope.plain(call.arguments[0])
        if self.left is None or self.left.shape is None or len(self.left.shape) != 1:
            self.context.fail(
                "NL0706", "`embed` has no width", call.span,
                "it takes its width from the left side", "write `x[d] = embed(tokens)`",
            )  # fmt: skip
        (width,) = self.context.shape(self.left.shape)
        if "embed" in self.weights:
            self.context.fail(
                "NL0706", "the tokens are embedded twice", call.span, "a second `embed`",
                "embed once and use the stream again",
            )  # fmt: skip
        vocab = Axis("vocab", self.vocab)
        part = Part("weight", (vocab, width), Initial("normal", 0.02))
        map = Map(
            "table", (), (width,), (vocab, width), (part,), text=f"table(vocab -> {width.name})"
        )
        self.weights["embed"] = Weight(
            "embed", map, self.resolver.model_level(call.span), span=call.span
        )
        self.width = (width,)
        table = self.graph.make("param", name="embed.weight", shape=part.shape, span=call.span)
        return self.graph.make("lookup", table, tokens, span=call.span)

    def unembed(self, call: tree.Call) -> Expr:
        """`unembed(x)`, with weights of its own unless `tied`."""
        words = [a.id for a in call.arguments[1:] if isinstance(a, tree.Name)]
        if (
            not call.arguments
            or call.keywords
            or words not in ([], ["tied"])
            or (len(words) != len(call.arguments) - 1)
        ):
            self.context.fail(
                "NL0309", "`unembed` takes a stream, and perhaps the word `tied`", call.span,
                "written otherwise", "logits = unembed(x) or logits = unembed(x, tied)",
            )  # fmt: skip
        x = self.scope.plain(call.arguments[0])
        if not x.shape:
            self.scope.need_rank(x, 1, call.arguments[0].span)
        width = x.shape[-1]
        vocab = Axis("vocab", self.vocab)
        if words:
            self.tied = True
            if self.width is None or not self.width[0].fits(width):
                self.context.fail(
                    "NL0706", "`tied` needs an embedding of the same width", call.span,
                    f"this stream is {show(x.shape)}", "embed first: `x[d] = embed(tokens)`",
                )  # fmt: skip
            name = "embed.weight"
        else:
            if "unembed" in self.weights:
                self.context.fail(
                    "NL0706", "the model unembeds twice", call.span, "a second `unembed`",
                    "unembed once",
                )  # fmt: skip
            part = Part("weight", (vocab, width), Initial("uniform", float(width.size)))
            map = Map("linear", (width,), (vocab,), (width, vocab), (part,),
                      text=f"linear({width.name} -> vocab)")  # fmt: skip
            level = self.resolver.model_level(call.span)
            self.weights["unembed"] = Weight("unembed", map, level, span=call.span)
            name = "unembed.weight"
        weight = self.graph.make("param", name=name, shape=(vocab, width), span=call.span)
        return self.graph.make("matvec", weight, x, span=call.span)

    def call_block(self, name: str, call: tree.Call, count: int) -> list[Expr]:
        """Call a block: a new instance, or a shared one."""
        results: list[Expr] = self.resolver.call(self, self.scope, name, call, count)
        return results

    def instance(self, name: str, call: tree.Call, has_memory: bool) -> tuple[str, bool]:
        """Name the instance of a call: `mixer`, `mixer_1`, or the shared name."""
        if name in self.shared:
            if has_memory and (name in self.shared_calls or self.depth):
                self.context.fail(
                    "NL0705", f"`{name}` holds a memory and is called more than once per token",
                    call.span, "called again" if name in self.shared_calls else "inside a repeat",
                    "an instance with a memory is updated once per token; call the block itself "
                    "for a separate instance",
                    *(((self.shared_calls[name], "first here"),)
                      if name in self.shared_calls else ()),
                )  # fmt: skip
            self.shared_calls[name] = call.span
            return name, True
        return numbered(name, self.counts[-1], {*self.context.blocks, *self.shared}), False

    def missing(self, argument: tree.Expr) -> str | None:
        """Say how an argument without a value stands: "omit", or "maybe" (made in a later pass)."""
        if not isinstance(argument, tree.Name) or argument.id in self.env:
            return None
        if argument.id not in self.later:
            return None
        if any(argument.id in names for names in self.loop_names):
            return "maybe"
        return "omit"

    def add_call(self, call: Call) -> None:
        """Note a call."""
        self.steps.append(call)

    def fresh(self, name: str, shape: Shape, span: Span) -> Expr:
        """A stream that a later line makes, as a block expects it."""
        self.expected[name] = (shape, span)
        return self._leaf(name, shape, span)

    def shifted(self, value: Expr, n: int, span: Span) -> Expr:
        """Streams of a model have no past."""
        self.context.fail(
            "NL0703", "`shift` does not belong in a model", span, "in a model",
            "write it in a block",
        )  # fmt: skip
