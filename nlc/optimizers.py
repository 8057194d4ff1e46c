"""The rules of a system as optimizers: resolved, and what they cannot do.

In: a system. Out: an `OptimizerRule` for each rule, and faults NL0806 for levels whose optimizer
cannot move what lives there. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator

from nlc.diagnostics import Diagnostic, Faults
from nlc.ir.rule import RANKS, Ask, Kind, OptimizerRule, flat
from nlc.ir.system import Level, System
from nlc.library import shipped_rules
from nlc.semantics.motions import optimizer_rule
from nlc.source import Span
from nlc.syntax import tree

KINDS: dict[int, Kind] = {rank: kind for kind, rank in RANKS.items()}
ARTICLES: dict[Kind, str] = {"matrix": "a matrix", "vector": "a vector", "scalar": "a number"}


def rule_as_optimizer(system: System, rule: tree.Rule) -> OptimizerRule:
    """Resolve a rule as an optimizer."""
    return optimizer_rule(system, shipped_rules(), rule)


def rules_to_emit(system: System) -> list[OptimizerRule]:
    """List a package's rules: those of levels, and of the spec where they can be optimizers."""
    names: dict[str, tree.Rule] = {}
    for level in system.levels:
        if level.period.unit == "steps" and level.optimizer is not None:
            names[level.optimizer.rule] = level.optimizer.definition
    used = set(names)
    for rule in system.rules:
        if rule.span.source is system.source:
            names.setdefault(rule.name, rule)
    found = [(name, rule_as_optimizer(system, rule)) for name, rule in names.items()]
    return [rule for name, rule in found if name in used or rule.motions]


def optimizer_faults(system: System) -> list[Diagnostic]:
    """Find the levels of steps whose optimizer cannot move what lives there."""
    faults = Faults()
    for level in system.levels:
        if level.period.unit == "steps" and level.optimizer is not None:
            _look_at(faults, system, level)
    return faults.found


def refuse_rule(faults: Faults, rule: OptimizerRule, kind: Kind, what: str, span: Span) -> None:
    """Say why a rule cannot move parameters of a kind."""
    reason = rule.faults[kind][0]
    place = next((label for label in reason.labels if label.primary), None)
    others = () if place is None else ((place.span, place.text),)
    name = rule.rule.name
    if rule.motions:
        title, text = f"the optimizer `{name}` cannot move {what}", f"{what} is {ARTICLES[kind]}"
        others = () if place is None else ((place.span, f"{reason.title}: {place.text}"),)
    else:
        title, text = f"the rule `{name}` cannot be an optimizer", reason.title
    faults.error("NL0806", title, span, text, reason.hint or "use another optimizer there", *others)


def _look_at(faults: Faults, system: System, level: Level) -> None:
    assert level.optimizer is not None
    rule = rule_as_optimizer(system, level.optimizer.definition)
    span = level.optimizer.span
    seen: set[Kind] = set()
    for what, rank in _living(system, level):
        kind = KINDS[min(rank, 2)]
        if kind in rule.motions or kind in rule.as_rows or kind in seen:
            continue
        # what is wrong for all kinds is said once
        seen |= {kind} if rule.motions else set(KINDS.values())
        refuse_rule(faults, rule, kind, f"`{what}`", span)
    asks = any(isinstance(a, Ask) for m in rule.motions.values() for a in flat(m.actions))
    if asks and level.period.count > 1:
        faults.error(
            "NL0806", f"the optimizer `{rule.rule.name}` takes gradients at other values", span,
            f"`{level.name}` acts {level.period}, with the sum of {level.period.count} gradients",
            "the data of earlier steps are gone then: use it at a level `every 1 step`",
        )  # fmt: skip


def _living(system: System, level: Level) -> Iterator[tuple[str, int]]:
    """List what a level's optimizer moves, with the number of its own axes."""
    slow = next((lv for lv in system.levels if lv.period.unit == "steps"), None)
    weights = [weight for block in system.blocks for weight in block.weights]
    weights += system.model.weights if system.model is not None else ()
    for weight in weights:
        if weight.level == level.name:
            for part in weight.map.parts:
                name = f"{weight.name}.{part.name}" if part.name else weight.name
                yield name, len(part.shape)
    if slow is None or slow.name != level.name:
        return
    for block in system.blocks:
        for memory in block.memories:
            for own, variable in memory.learned_states():
                for part in variable.parts:
                    words = (memory.name, own, part.name)
                    yield ".".join(word for word in words if word), len(part.shape)
