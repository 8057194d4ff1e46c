"""The level graph: components, edges and the order of Nested Learning's definition 2."""

from __future__ import annotations

import subprocess
import sys

import nlc
from nlc.ir.system import System

HEAD = """
system small
dims { d = 8, heads = 2, d_k = 4, d_v = 4 }
level now always
level fast every 1 token
level slow every 1 step, optimizer adamw(lr = 1e-3)
"""
WEIGHTS = """
  weights W_q, W_k : linear(d -> heads*d_k)
  weights W_v : linear(d -> heads*d_v)
  weights W_o : linear(heads*d_v -> d)
  weights W_b, W_a : linear(d -> heads, bias)
  q, k, v = unit(W_q(x)), unit(W_k(x)), W_v(x)
  beta, alpha = sigmoid(W_b(x)), sigmoid(W_a(x))
"""


def block(body: str) -> System:
    return nlc.parse(f"{HEAD}\nblock mixer(x[d]) -> out[d] {{\n{WEIGHTS}{body}\n}}\n")


def edges(system: System, kind: str) -> set[tuple[str, str]]:
    return {(e.source, e.target) for e in system.edges if e.kind == kind}


DELTA = """
  memory M : linear(d_k -> d_v) at fast { key k; value v; update sgd(lr = beta) }
  out = W_o(rmsnorm(M(q)))
"""
MOMENTUM = """
  memory M : linear(d_k -> d_v) at fast {
    key k; value v; update titans(lr = beta, momentum = 0.9, decay = alpha); init learned
  }
  out = W_o(rmsnorm(M(q)))
"""


def test_weights_generate_keys_values_and_gates() -> None:
    system = block(DELTA)
    made = {e.source: e.reason for e in system.edges if e.kind == "generates"}
    assert made == {
        "mixer.W_k": "makes the keys of M",
        "mixer.W_v": "makes the values of M",
        "mixer.W_b": "makes the gates of M",
    }


def test_what_is_written_out_in_a_memory_has_the_same_edges_as_what_is_named_first() -> None:
    named, written = (
        block(f"""
  {streams}
  memory M : linear(d_k -> d_v) at fast {{ key {key}; value {value}; update sgd(lr = {lr}) }}
  out = W_o(rmsnorm(M(q)))
""")
        for streams, key, value, lr in (
            ("key2, value2, lr2 = unit(W_k(x)), W_v(x), sigmoid(W_b(x))", "key2", "value2", "lr2"),
            ("", "unit(W_k(x))", "W_v(x)", "sigmoid(W_b(x))"),
        )
    )
    assert named.edges == written.edges
    made = {e.source: e.role for e in written.edges if e.kind == "generates"}
    assert made == {"mixer.W_k": "keys", "mixer.W_v": "values", "mixer.W_b": "gates"}


def test_in_a_model_what_makes_the_stream_does_not_make_the_keys() -> None:
    system = nlc.parse(f"""{HEAD}
block mixer(x[d]) -> out[d] {{ {WEIGHTS}
  memory M : linear(d_k -> d_v) at fast {{ key unit(W_k(x)); value W_v(x); update sgd(lr = beta) }}
  out = W_o(rmsnorm(M(q)))
}}
model {{
  vocab 16
  x[d] = embed(tokens)
  repeat 3 {{ x = x + mixer(rmsnorm(x)) }}
  logits = unembed(rmsnorm(x))
}}
""")
    made = {e.source for e in system.edges if e.kind == "generates"}
    assert made == {"mixer.W_k", "mixer.W_v", "mixer.W_b"}


def test_a_memory_is_read_and_the_query_gets_the_gradient() -> None:
    system = block(DELTA)
    assert edges(system, "reads") == {("mixer.M", "mixer.W_o")}
    assert edges(system, "backprop") == {("mixer.M", "mixer.W_q")}


def test_momentum_is_faster_than_its_memory() -> None:
    system = block(MOMENTUM)
    assert system.component("mixer.M.S").rank < system.component("mixer.M").rank
    assert ("mixer.M.S", "mixer.M") in edges(system, "optimises")
    assert ("mixer.M", "mixer.M.S") in edges(system, "reads")
    assert system.level("fast").components == ("mixer.M.S", "mixer.M")


def test_a_learned_start_lives_with_the_weights() -> None:
    system = block(MOMENTUM)
    start = system.component("mixer.M.start")
    assert (start.level, start.kind, start.parameters) == ("slow", "start", 2 * 4 * 4)
    assert system.component("mixer.M").parameters == 0
    assert edges(system, "initialises") == {("mixer.M.start", "mixer.M")}


def test_the_moments_of_adam_are_one_level_above_the_weights() -> None:
    system = block(DELTA)
    moments = {system.component(f"slow.adamw.{name}").rank for name in "mvn"}
    assert len(moments) == 1
    assert moments.pop() < system.component("mixer.W_q").rank


def test_a_memory_that_another_needs_at_once_is_faster() -> None:
    two = """
  memory N : linear(d_k -> d_k) at fast {{ key k; value k; update sgd(lr = beta) }}
  k2 = {read}
  memory M : linear(d_k -> d_v) at fast {{ key k2; value v; update sgd(lr = alpha) }}
  out = W_o(rmsnorm(M(q)))
"""
    after, before = block(two.format(read="N(k)")), block(two.format(read="prev(N)(k)"))
    assert ("mixer.N", "mixer.M") in edges(after, "generates")
    assert after.component("mixer.N").rank < after.component("mixer.M").rank
    assert before.component("mixer.N").rank == before.component("mixer.M").rank


def test_a_memory_can_make_its_own_values() -> None:
    system = block("""
  memory M : linear(d_k -> d_v) at fast { key k; value prev(self)(k); update sgd(lr = beta) }
  out = W_o(rmsnorm(M(q) + v))
""")
    assert ("mixer.M", "mixer.M") in edges(system, "generates")


def test_always_is_faster_than_tokens_than_steps() -> None:
    system = block("""
  memory A : kernel(softmax) at now { key k; value v; init learned(3) }
  memory M : linear(d_k -> d_v) at fast { key k; value v; update sgd(lr = beta) }
  out = W_o(rmsnorm(M(q) + A(q)))
""")
    ranks = [system.component(f"mixer.{name}").rank for name in ("A", "M", "W_q")]
    assert ranks == sorted(set(ranks))
    assert system.component("mixer.A.pairs").parameters == 2 * 3 * 8
    assert all(c.name != "mixer.A.start" for c in system.components)


def test_blocks_pass_knowledge_across_a_model() -> None:
    system = nlc.parse(f"""{HEAD}
block mixer(x[d]) -> out[d] {{ {WEIGHTS} {DELTA} }}
model {{
  vocab 16
  x[d] = embed(tokens)
  repeat 3 {{ x = x + mixer(rmsnorm(x)) }}
  logits = unembed(rmsnorm(x))
}}
""")
    assert system.component("mixer.W_q").copies == 3
    back = {(e.source, e.target): e.across for e in system.edges if e.kind == "backprop"}
    assert back["mixer.W_q", "embed"]
    assert back["unembed", "mixer.W_o"]
    assert back["mixer.W_q", "mixer.W_o"], "the next pass gives its gradient to this one's output"
    assert not back["unembed", "embed"]


def test_the_graph_is_networkx_and_is_loaded_only_on_request() -> None:
    graph = block(MOMENTUM).graph
    assert graph.nodes["mixer.M"]["kind"] == "memory"
    assert graph.edges["mixer.M.S", "mixer.M"]["same_time"]
    code = "import nlc, sys; nlc.load('specs/deltanet.nl'); print('networkx' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_block_every_n_steps_is_a_slower_level_of_its_optimizer() -> None:
    text = HEAD.replace("adamw(lr = 1e-3)", "m3(lr = 1e-3, f = 5)")
    system = nlc.parse(f"{text}\nblock mixer(x[d]) -> out[d] {{\n{WEIGHTS}{DELTA}\n}}\n")
    periods = {n: system.component(f"slow.m3.{n}").period.count for n in ("M1", "V", "M2", "O2")}
    assert periods == {"M1": 1, "V": 1, "M2": 5, "O2": 5}
    rank = {c.name: c.rank for c in system.components}
    assert rank["slow.m3.M1"] < rank["mixer.W_q"] < rank["slow.m3.M2"] < rank["slow.m3.O2"]
    assert ("slow.m3.M2", "slow.m3.O2") in edges(system, "reads")
    assert ("slow.m3.O2", "mixer.W_q") in edges(system, "optimises")
