"""How systems are planned: from the equations alone, and always something that can run."""

from __future__ import annotations

import pytest

from nlc.ir.expr import postorder
from nlc.ir.schedule import BlockPlan, ChunkLoop, Parallel, Run, TokenLoop, Windows, steps_of
from nlc.ir.system import Call, Equation, Update
from nlc.passes.explicit import explicit
from nlc.passes.plan import plan
from tests.references import (
    features_chunk,
    features_entries,
    features_memory,
    features_slots,
    features_times,
    features_update,
    features_window,
    probes_slots,
    probes_window,
)
from tests.references.features import FEATURES
from tests.references.probes import PROBES
from tests.references.specs import block, resolve

TITANS = """
rule titans(lr, momentum, decay) {
  state S = 0
  S = momentum * S - lr * grad
  self = (1 - decay) * self + S
}
"""
PLAIN = "rule plain(lr) { self = self - lr * grad }\n"
GATE = "  weights W_b : linear(d -> heads, bias)\n  b = sigmoid(W_b(x))\n"


def memory(update: str, name: str = "M", form: str = "linear(d_k -> d_v)", pair: str = "k, v",
           more: str = "") -> str:  # fmt: skip
    key, value = pair.split(", ")
    return f"""  memory {name} : {form} at fast {{
    key {key}
    value {value}
    {more}
    update {update}
  }}
"""


def planned(body: str, rules: str = "", chunk: str = "") -> BlockPlan:
    return plan(resolve(block(GATE + body, rules, chunk))).block("mixer")


def kinds(found: BlockPlan) -> list[str]:
    return [type(stage).__name__ for stage in found.stages]


@pytest.mark.parametrize(
    ("gate", "kept"),
    [
        ("exp(-0.6 * sigmoid(w))", "RelativeGates"),
        ("0.5 + 0.5 * sigmoid(w)", "RelativeGates"),
        ("sigmoid(w)", "ChannelGates"),
        ("1 + exp(w)", "ChannelGates"),
    ],
)
def test_channel_gates_are_factored_only_where_it_is_proved_safe(gate: str, kept: str) -> None:
    body = f"  w = W_k(x)\n  g = {gate}\n"
    update = "{ M = M @ diag(g) + outer(v, k) }"
    found = planned(body + memory(update) + "  out = W_o(M(q))\n").schedule("M")
    keeping = found.keeping("weight")
    assert keeping.gates == kept
    assert ("factored" if kept == "RelativeGates" else "direct") in keeping.reason


def test_the_schedule_does_not_depend_on_how_a_rule_is_written():
    ways = {
        "{ self = self - b * grad }": "",
        "{ self = self - b * outer(self(key) - value, key) }": "",
        "{ self = self @ (1 - b * outer(k, k)) + b * outer(v, k) }": "",
        "{ e = self @ k - v; self = self + outer(e, -b * k) }": "",
        "plain(lr = b)": PLAIN,
    }
    for update, rules in ways.items():
        found = planned(memory(update) + "  out = W_o(M(q))\n", rules)
        assert found.schedule("M").kind == "tile-solve", update
        assert kinds(found) == ["Parallel", "Run", "Parallel"]


@pytest.mark.parametrize(
    ("update", "kind"),
    [
        ("{ self = self + outer(v, k) }", "tile-scan"),
        ("{ self = b * self + outer(v, k) }", "tile-scan"),
        ("{ S = b * self; self = S - 0.1 * grad(at = S) }", "tile-solve"),
        ("{ self = self + 0.1 * outer(v, k - transpose(self) @ v) }", "tile-solve"),
        ("{ when b > 0.5 { self = self - b * grad } }", "tile-solve"),
        ("{ self = tanh(self - b * grad) }", "sequential"),
        ("{ self = self / max(norm(self, over = (in, out)), 1) + outer(v, k) }", "sequential"),
        ("{ self = 0.9 * self }", "sequential"),
    ],
)
def test_kinds(update, kind):
    assert planned(memory(update) + "  out = W_o(M(q))\n").schedule("M").kind == kind


def test_a_chunk_makes_the_writes_known():
    body = memory("{ self = self - b * grad }") + "  out = W_o(M(q))\n"
    assert planned(body).schedule("M").kind == "tile-solve"
    assert planned(body, chunk="4").schedule("M").kind == "tile-scan"


def test_what_keeps_a_memory_from_a_tile_is_said():
    found = planned(memory("{ self = tanh(self) + outer(v, k) }") + "  out = W_o(M(q))\n")
    assert "`tanh` of the running state" in found.schedule("M").reason
    [(_, form)] = found.schedule("M").forms
    assert form.hint and form.span.text.startswith("tanh")


def test_memories_that_read_one_another_run_one_after_the_other():
    body = memory("{ self = self - b * grad }")
    body += memory("{ self = 0.9 * self - 0.1 * grad }", "N", "linear(d_v -> d_v)", "M(q), v")
    found = planned(body + "  out = W_o(N(M(k)))\n")
    assert [s.kind for s in found.schedules] == ["tile-solve", "tile-solve"]
    assert [s.memory for s in found.stages if isinstance(s, Run)] == ["M", "N"]


def test_a_read_of_its_own_past_through_a_stream_runs_in_a_loop():
    body = "  s = prev(M)(q)\n" + memory("{ self = self - b * grad }", pair="k, s")
    found = planned(body + "  out = W_o(s)\n")
    assert found.schedule("M").kind == "sequential"
    assert "`s`" in found.schedule("M").reason
    [loop] = [stage for stage in found.stages if isinstance(stage, TokenLoop)]
    assert loop.memories == ("M",)


def test_what_does_not_wait_for_a_loop_stays_outside():
    found = planned(memory("{ self = tanh(self - b * grad) }") + "  out = W_o(silu(M(q)))\n")
    [loop] = [stage for stage in found.stages if isinstance(stage, TokenLoop)]
    names = {s.name for s in loop.steps if isinstance(s, Equation)}
    assert not names & {"q", "k", "v", "b", "out"}


def windows(body: str, levels: str) -> BlockPlan:
    return plan(resolve(block(GATE + body, PLAIN, levels=levels))).block("mixer")


BEAT = "level beat every 4 tokens\nlevel bar every 16 tokens\n"


def slow(name: str, level: str, pair: str = "k, v", form: str = "linear(d_k -> d_v)") -> str:
    return memory("plain(lr = 0.1)", name, form, pair).replace("at fast", f"at {level}")


def test_a_window_goes_over_its_tokens_at_once_and_nothing_else_is_cut():
    body = slow("M", "beat") + memory("plain(lr = 0.1)", "N", pair="unit(k), v")
    found = windows(body + "  out = W_o(silu(M(q)) + N(q))\n", BEAT)
    assert found.schedule("M").kind == "window" and "4 tokens" in found.schedule("M").reason
    [stage] = [stage for stage in found.stages if isinstance(stage, Windows)]
    assert (stage.memories, stage.length) == (("M",), 4)
    assert {s.name for s in steps_of(stage) if isinstance(s, Equation)} == {"M_read"}
    assert found.schedule("N").kind == "tile-solve"
    assert [s.memory for s in found.stages if isinstance(s, Run)] == ["N"]


def test_periods_that_do_not_read_one_another_are_windows_of_their_own():
    body = slow("M", "beat") + slow("N", "bar") + "  out = W_o(M(q) + N(q))\n"
    stages = [s for s in windows(body, BEAT).stages if isinstance(s, Windows)]
    assert [(s.memories, s.length) for s in stages] == [(("M",), 4), (("N",), 16)]


def test_what_a_window_makes_is_whole_for_what_comes_after_it():
    body = slow("B", "beat", "kk, q", "linear(d_k -> d_k)").replace("memory B", "memory B[heads]")
    body += "  kk = unit(B(k))\n" + memory("plain(lr = 0.1)", "A", pair="kk, v")
    found = windows(body + "  out = W_o(A(B(q)))\n", BEAT)
    [stage] = [stage for stage in found.stages if isinstance(stage, Windows)]
    assert {s.name for s in steps_of(stage) if isinstance(s, Equation)} >= {"kk", "B_read"}
    # the delta rule goes over the whole sequence
    assert found.schedule("A").kind == "tile-solve" and Run("A") in found.stages
    assert found.schedule("A").tile > 4


def test_a_memory_that_an_update_reads_whole_moves_in_its_windows_tile_by_tile():
    update = "{ self = self - 0.1 * grad + 0.1 * A }"
    body = memory("plain(lr = 0.1)", "A", pair="unit(k), v")
    body += memory(update, "B").replace("at fast", "at beat")
    found = windows(body + "  out = W_o(A(q) + B(q))\n", BEAT)
    [stage] = [stage for stage in found.stages if isinstance(stage, Windows)]
    assert stage.memories == ("B",) and Run("A") in stage.stages
    # no tile is longer than the window
    assert (found.schedule("A").kind, found.schedule("A").tile) == ("tile-solve", 4)


def test_loops_that_need_one_another_are_one():
    body = memory("{ self = tanh(self - b * grad) }", "M", "linear(d_k -> d_k)", "k, q")
    body += memory("{ self = tanh(self - b * grad) }", "N", "linear(d_k -> d_k)", "M(k), k")
    found = planned(body + "  out = W_o(sum(M(N(q))) * v)\n")
    [loop] = [stage for stage in found.stages if isinstance(stage, TokenLoop)]
    assert set(loop.memories) == {"M", "N"}


@pytest.mark.parametrize("name, piece, kinds", [
    ("two memories that depend on each other, and one that only reads", 3, ["tile-scan"] * 2),
    ("memories of several chunks that make each other's keys", 2, ["tile-scan", "tile-solve"]),
    ("a memory that makes its own key and adds up what it sees", 4, ["tile-scan"]),
])  # fmt: skip
def test_what_hangs_together_through_chunk_starts_runs_through_chunks(name, piece, kinds):
    found = plan(resolve(FEATURES[name][0])).block("mixer")
    [loop] = [stage for stage in found.stages if isinstance(stage, ChunkLoop)]
    assert loop.chunk == piece
    schedules = [found.schedule(memory) for memory in loop.memories]
    assert [s.kind for s in schedules] == kinds
    assert all(s.by_chunks for s in schedules)
    assert all(s.tile <= piece for s in schedules if s.chunk > piece)


def test_chunks_with_nothing_in_common_run_token_by_token():
    text = FEATURES["memories of several chunks that make each other's keys"][0]
    for old, new in (("chunk 6", "chunk 5"), ("every 12", "every 5")):
        text = text.replace(old, new)
    found = plan(resolve(text)).block("mixer")
    assert [found.schedule(n).kind for n in "AB"] == ["sequential"] * 2


SYSTEMS = {name: text for name, (text, _) in FEATURES.items()} | dict(PROBES)
# these register their features when they are imported
assert features_chunk and features_memory and features_update
assert features_entries and features_slots and features_times and features_window
assert probes_slots and probes_window


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_step_runs_once_and_after_what_it_needs(name):
    system = resolve(SYSTEMS[name])
    for found in plan(system).blocks:
        whole = system.block(found.block)
        made: set[str] = {i.name for i in whole.inputs}
        moved: list[str] = []
        equations: list[str] = []
        for stage in found.stages:
            steps = steps_of(stage)
            inside = {s.memory for s in steps if isinstance(s, Update)}
            for step in steps:
                match step:
                    case Equation(name=stream, value=value):
                        exprs = [value]
                        equations.append(stream)
                    case Call(inputs=inputs):
                        exprs = [e for _, e in inputs]
                    case Update(memory=memory):
                        exprs = []
                        moved.append(memory)
                for node in postorder(exprs):
                    if node.op == "stream":
                        assert node.attr("name") in made
                    elif node.op in ("state", "attend") and node.attr("when") != "initial":
                        assert node.attr("memory") in {*moved, *inside}
                if isinstance(step, Equation):
                    made.add(step.name)
                elif isinstance(step, Call):
                    made.update(step.results)
            if isinstance(stage, Parallel):
                assert not inside
        assert sorted(moved) == sorted(m.name for m in whole.memories)
        assert len(set(equations)) == len(equations)
        written = {s.name for s in whole.steps if isinstance(s, Equation)}
        assert written <= set(equations)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_written_out_updates_hold_no_gradient_and_do_not_change_again(name):
    system = explicit(resolve(SYSTEMS[name]))
    again = explicit(system)
    for first, second in zip(system.blocks, again.blocks, strict=True):
        for memory, same in zip(first.memories, second.memories, strict=True):
            roots = [a.value for a in memory.update]
            assert not any(node.op in ("grad", "variable") for node in postorder(roots))
            assert roots == [a.value for a in same.update]
            lets = {id(n) for n in postorder(roots) if n.op == "let"}
            shown = {id(v) for s in memory.statements for _, v in s.values}
            # a frozen gradient is taken at values that were not written down
            assert lets <= shown or memory.frozen


@pytest.mark.parametrize("update, kind, ends", [
    ("S = 0.9 * S - grad; self = self + newton_schulz(S)", "scan", 0),
    ("S = 0.9 * S - tanh(grad); self = tanh(S)", "scan", 0),
    ("S = grad; every 4 tokens { self = unit(self + S) }", "scan", 4),
    # the end of a period within a chunk, and states that need each other's course
    ("S = grad; every 3 tokens { self = unit(self + S) }", "sequential", 0),
    ("S = tanh(S) - grad; self = self + S", "sequential", 0),
    ("S = S + tanh(self) - grad; self = self + tanh(S)", "sequential", 0),
])  # fmt: skip
def test_what_goes_through_a_chunk_entry_by_entry(update: str, kind: str, ends: int) -> None:
    body = "memory M : linear(d_k -> d_v) at fast {\nkey k\nvalue v\nstate S = 0\nupdate { %s }\n}"
    system = resolve(block(body % update + "\nout = W_o(M(q))", chunk="2"))
    (schedule,) = plan(system).blocks[0].schedules
    assert (schedule.kind, schedule.ends) == (kind, ends)
