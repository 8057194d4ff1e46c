"""Models whose parts learn from the task while they read, as emitted code runs them.

A model that is made on `OnlineModel` has, beside what is here:

    read_piece(tokens, state)      some tokens, with what learns as it is
    read_ahead(tokens, state)      what comes before all that learns, which read_piece then is given
    read_step(tokens, state)       one token, so
    first_state(batch, like)       the state of its modules before the first token
    window_loss(logits, targets)   its objective, summed over a window
    learners, online_levels        what learns and when
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.attention
from nlc.codegen.library_opened import Opened, settle
from torch import Tensor, nn


class Learner(NamedTuple):
    """A memory that learns from the task, or that begins as a copy of one that does.

    It is called `memory` in the module `instance`, and moves after each `window` tokens, unless it
    is a copy, which moves by itself (`moves`); after `anew` tokens it goes back to its start.
    `through` says whether outer gradients pass through the gradient in its update, `asks` how often
    that asks for the gradient once more, at another value.
    """

    instance: str
    memory: str
    window: int
    moves: bool = True
    anew: int = 0
    copies: bool = False
    through: bool = True
    asks: int = 0


class OnlineModel(nn.Module):
    """A model whose parts learn from the task while it reads, also at inference.

    A window is read; its loss, the sum over its tokens, is differentiated in what learns at the end
    of such windows, at the values it had when the window began, and the rule moves it. The target
    of a window's last token is the next token, so that update waits until it comes.

    The state is that of the modules, `LEVEL.start`, what it was when the level's present window
    began, and `tokens.recent`, the tokens since the slowest one's start.
    """

    learners: tuple[Learner, ...] = ()
    online_levels: tuple[tuple[str, int], ...] = ()

    @property
    def window_lengths(self) -> list[int]:
        """How many tokens are read before something moves or begins anew, the fewest first."""
        return sorted({at.window for at in self.learners})

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Any]:
        """Give the state before the first token, placed and typed as `like`."""
        now = self.first_state(batch, like)
        recent = torch.zeros(batch, 0, dtype=torch.int64, device=like.device)
        return {
            **now,
            "tokens.recent": recent,
            **{f"{name}.start": now for name, _ in self.online_levels},
        }

    def forward(self, tokens: Tensor, state: dict[str, Any] | None = None) -> Any:
        """Run a whole sequence: tokens [B, T]."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self(tokens.clone(), state)
        if state is None:
            state = self.initial_state(tokens.shape[0], next(self.parameters()))
        if tokens.shape[1] == 0:
            outputs, _ = self.read_piece(tokens, modules_of(state))
            return outputs, state
        pieces, moved = [], False
        while tokens.shape[1]:
            state = self.arrive_at(tokens[:, :1], state, moved)
            done, moved = state["position"], False
            length = self.whole_window(done, tokens.shape[1])
            if length:
                part = tokens[:, : length + 1]
                outputs, now = self.learn_here(part, modules_of(state), length)
                moved = True
            else:
                length = min(
                    tokens.shape[1], self.window_lengths[0] - done % self.window_lengths[0]
                )
                outputs, now = self.read_piece(tokens[:, :length], modules_of(state))
                outputs = as_tuple(outputs)
            recent = torch.cat([state["tokens.recent"], tokens[:, :length]], dim=1)
            state = {**state, **now, "tokens.recent": recent}
            pieces.append(outputs)
            tokens = tokens[:, length:]
        whole = tuple(torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
        return (whole[0] if len(whole) == 1 else whole), state

    def step(self, tokens: Tensor, state: dict[str, Any] | None = None) -> Any:
        """Run one token: tokens [B]."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self.step(tokens.clone(), state)
        if state is None:
            state = self.initial_state(tokens.shape[0], next(self.parameters()))
        state = self.arrive_at(tokens[:, None], state, False)
        outputs, now = self.read_step(tokens, modules_of(state))
        recent = torch.cat([state["tokens.recent"], tokens[:, None]], dim=1)
        return outputs, {**state, **now, "tokens.recent": recent}

    def arrive_at(self, token: Tensor, state: dict[str, Any], moved: bool) -> dict[str, Any]:
        """Do what waits for a token [B, 1]: updates, unless they are made, and new windows."""
        done = state["position"]
        ends = [window for window in self.window_lengths if done % window == 0]
        if not ends:
            return state
        now = modules_of(state)
        waiting = [(window, name) for name, window in self.online_levels if done % window == 0]
        if waiting and done and not moved:
            # read the longest window that ends here again, from where it began
            longest, name = max(waiting)
            tokens = torch.cat([state["tokens.recent"][:, -longest:], token], dim=1)
            _, now = self.learn_here(tokens, state[f"{name}.start"], longest)
        for window in reversed(ends):
            now = self.begin_window(now, window)
        starts = {f"{n}.start": now for n, window in self.online_levels if window in ends}
        recent = state["tokens.recent"]
        if ends[-1] == self.window_lengths[-1]:
            recent = recent[:, :0]
        return {**state, **now, **starts, "tokens.recent": recent}

    def whole_window(self, done: int, tokens: int) -> int:
        """Find the longest window that begins here, whose last target is among the tokens.

        0 where there is none, or where a longer one, that began before, ends with it.
        """
        fits = [w for w in self.window_lengths if done % w == 0 and w < tokens]
        if not fits or any((done + fits[-1]) % w == 0 for w in self.window_lengths if w > fits[-1]):
            return 0
        return fits[-1]

    def learn_here(
        self, tokens: Tensor, now: dict[str, Any], window: int
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Read a window that lies in no longer one, and learn from it."""
        ahead, now = self.read_ahead(tokens[:, :-1], now)
        if torch.is_grad_enabled():
            return self.learn_window(tokens, now, window, ahead)
        parameters = [p for p in self.parameters() if p.requires_grad and p.is_leaf]
        try:
            # what then has a gradient depends on the points of a window
            for parameter in parameters:
                parameter.requires_grad_(False)
            return self.learn_window(tokens, now, window, ahead)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def read_ahead(self, tokens: Tensor, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Run what comes before all that learns; nothing, where the model does not say what."""
        return None, state

    def learn_window(
        self,
        tokens: Tensor,
        now: dict[str, Any],
        window: int,
        ahead: Any,
        around: tuple[Opened, ...] = (),
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Read a window and learn from it: tokens [B, window + 1], the last one a target alone.

        `ahead` is what has run for these tokens, as `read_ahead` gives it.

        Gives what the model gives, and the state in which all that learns at the end of this
        window, or of those inside it, has moved. `around` are the longer windows it lies in.
        """
        outer = torch.is_grad_enabled() and not around
        keep = bool(around) or outer
        kept = outer or any(opened.kept for opened in around)
        # whether a gradient is differentiated again, by what is outside or by a longer window
        twice = kept or any(map(self.is_deep, self.window_lengths[:-1]))
        mine = Opened(kept, twice)
        opened = (*around, mine)
        deep = self.is_deep(window) and keep
        with torch.enable_grad():
            begun = self.begin_window(now, window, mine)
            outputs, now = self.read_window(tokens, begun, window, ahead, opened, keep)
            settle((mine,), deep, keep)
            grads = [mine.gradients()]
            for turn in range(max((at.asks for at in self.movers(window)), default=0)):
                again = Opened(kept, twice)
                there = self.ask_window(begun, now, window, mine, grads, turn)
                there = self.begin_window(there, window, again, anew=False)
                self.read_window(tokens, there, window, ahead, (again,), keep)
                settle((again,), deep, keep)
                grads.append(again.gradients())
            now = self.move_window(now, window, mine, grads)
        if not keep:
            outputs, now = detached(outputs), detached(now)
        return outputs, now

    def read_window(
        self,
        tokens: Tensor,
        now: dict[str, Any],
        window: int,
        ahead: Any,
        opened: tuple[Opened, ...],
        keep: bool,
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Read a window, with what learns from it as it is; its losses go to those `opened`."""
        place = self.window_lengths.index(window)
        if place == 0:
            with attention_kernels(keep and any(map(self.is_deep, self.window_lengths))):
                extra = () if ahead is None else (ahead,)
                outputs, now = self.read_piece(tokens[:, :-1], now, *extra)
            outputs = as_tuple(outputs)
            loss = self.window_loss(outputs[0], tokens[:, 1:], *outputs[1:])
            for one in opened:
                one.losses.append(loss)
            if not opened[-1].kept and not carries(now, opened, self.is_deep(window)):
                outputs = detached(outputs)
                settle(opened, deep=False, keep=False)
            return outputs, now
        inner = self.window_lengths[place - 1]
        pieces = []
        for at in range(0, window, inner):
            part, done = tokens[:, at : at + inner + 1], cut_out(ahead, at, inner)
            piece, now = self.learn_window(part, now, inner, done, opened)
            pieces.append(piece)
        return tuple(torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True)), now

    def begin_window(
        self, now: dict[str, Any], window: int, opened: Opened | None = None, anew: bool = True
    ) -> dict[str, Any]:
        """Begin a window: what goes back to its start does, what learns becomes a point.

        Where it does not begin `anew` but once more, what learns is not set back.
        """
        done = now["position"]
        for at in self.learners:
            if at.window != window:
                continue
            own = part_of(now, at.instance)
            back = (at.copies and done == 0) or (at.anew and done and done % at.anew == 0)
            if back and (anew or not at.moves):
                own = getattr(self.get_submodule(at.instance), f"restart_{at.memory}")(own)
            if at.moves and opened is not None:
                own = {**own, at.memory: opened.point_of(own[at.memory])}
            now = with_part(now, at.instance, own)
        return now

    def ask_window(
        self,
        begun: dict[str, Any],
        now: dict[str, Any],
        window: int,
        opened: Opened,
        grads: list[list[Any]],
        turn: int,
    ) -> dict[str, Any]:
        """Give the state in which a window begins once more: what moves with it is where it asks.

        What asks for nothing, or no more, is as it was at first.
        """
        there = begun
        for at, value, *slopes in zip(self.movers(window), opened.values, *grads, strict=True):
            own = {**part_of(now, at.instance), at.memory: value}
            if turn < at.asks:
                ask = getattr(self.get_submodule(at.instance), f"ask{turn + 1}_{at.memory}")
                value = ask(*slopes, own, now["position"])
            own = {**part_of(there, at.instance), at.memory: value}
            there = with_part(there, at.instance, own)
        return there

    def move_window(
        self, now: dict[str, Any], window: int, opened: Opened, grads: list[list[Any]]
    ) -> dict[str, Any]:
        """Move what learns at the end of a window by the gradients of its loss."""
        for at, value, *slopes in zip(self.movers(window), opened.values, *grads, strict=True):
            module = self.get_submodule(at.instance)
            own = {**part_of(now, at.instance), at.memory: value}
            learn = getattr(module, f"learn_{at.memory}")
            own = learn(*slopes[: at.asks + 1], own, now["position"])
            now = with_part(now, at.instance, own)
        return now

    def movers(self, window: int) -> list[Learner]:
        """List what moves at the end of such windows."""
        return [at for at in self.learners if at.window == window and at.moves]

    def is_deep(self, window: int) -> bool:
        """Say whether outer gradients pass through the gradients of such windows."""
        return any(at.through for at in self.movers(window))


def cut_out(ahead: Any, at: int, count: int) -> Any:
    """Give some tokens of what has run ahead."""
    if isinstance(ahead, tuple):
        return tuple(cut_out(part, at, count) for part in ahead)
    return None if ahead is None else ahead[:, at : at + count]


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """Give one result as a tuple too."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def modules_of(state: dict[str, Any]) -> dict[str, Any]:
    """Give the state of the modules alone."""
    return {
        name: value
        for name, value in state.items()
        if not (name == "tokens.recent" or name.endswith(".start"))
    }


def part_of(state: dict[str, Any], path: str) -> dict[str, Any]:
    """Give the state of an instance by its place."""
    for name in path.split("."):
        state = state[name]
    return state


def with_part(state: dict[str, Any], path: str, own: dict[str, Any]) -> dict[str, Any]:
    """Give a state in which an instance has another one."""
    name, _, rest = path.partition(".")
    return {**state, name: with_part(state[name], rest, own) if rest else own}


def carries(now: dict[str, Any], opened: tuple[Opened, ...], deep: bool) -> bool:
    """Say whether what comes after depends on the points of windows that are being read.

    Where nothing does, each piece can be differentiated in all of them as soon as it is read.
    """
    if len(opened) > 1 and (deep or any(len(one.losses) > 1 for one in opened)):
        return True
    points = {id(point) for one in opened for point in one.points}
    known = [value for one in opened for value in tensors_of(one.values)]
    rest = [value for value in tensors_of(now) if id(value) not in points]
    return any(value.requires_grad for value in (*known, *rest))


def tensors_of(value: Any) -> list[Tensor]:
    """List the tensors of a state."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [tensor for part in value for tensor in tensors_of(part)]
    return [value] if isinstance(value, Tensor) else []


def attention_kernels(deep: bool) -> Any:
    """Choose attention's kernels: of those of torch, one alone can be differentiated twice."""
    every = torch.nn.attention.SDPBackend
    quick = [] if deep else [every.FLASH_ATTENTION, every.EFFICIENT_ATTENTION]
    return torch.nn.attention.sdpa_kernel([*quick, every.MATH])


def detached(value: Any) -> Any:
    """Cut a state from the graph that it was made in."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {name: detached(part) for name, part in value.items()}
    return tuple(map(detached, value)) if isinstance(value, tuple) else value
