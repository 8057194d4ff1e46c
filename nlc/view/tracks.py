"""The tracks of a channel: which net runs above which, so that few cross and none lies on another.

In: the nets of a channel with their places. Out: a number for each net's track, from the top.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.view.parts import Net, Touch

# ends closer than this are the same way
NEAR = 0.75
# two nets on one track are this far apart; and a net going up from one going down
CLEAR, BESIDE, TOO_NEAR = 12.0, 8.0, 4.9
# what it costs if one net lies on another
ON_ANOTHER = 1000.0

Nets = list[tuple[Net, list[Touch]]]


@dataclass
class Channel:
    """The nets between two lines: those within frames that end here, and the others.

    Tracks are numbered from 0, downwards.
    """

    inner: dict[Net, int] = field(default_factory=dict)
    outer: dict[Net, int] = field(default_factory=dict)


def channel_of(nets: Nets, number: int) -> Channel:
    """Find the tracks of a channel's nets."""
    bent = [(net, here) for net, here in nets if not is_straight(here)]
    ends = [n for n in bent if n[0].frame is not None and n[0].frame.last == number]
    return Channel(_tracks(ends), _tracks([n for n in bent if n not in ends]))


def is_straight(here: list[Touch]) -> bool:
    """Say whether a net just goes down through a channel."""
    xs = [t.x for t in here]
    return max(xs) - min(xs) < NEAR and {t.above for t in here} == {True, False}


@dataclass(frozen=True)
class Span:
    """A net in a channel: how far it reaches, and where it comes from above and from below."""

    net: Net
    low: float
    high: float
    up: tuple[float, ...]
    down: tuple[float, ...]


def _span(net: Net, here: list[Touch]) -> Span:
    xs = [t.x for t in here]
    up = tuple(t.x for t in here if t.above)
    return Span(net, min(xs), max(xs), up, tuple(t.x for t in here if not t.above))


def _tracks(nets: Nets) -> dict[Net, int]:
    """Order nets so that few cross and none lies on another, and number their tracks."""
    spans = sorted((_span(net, here) for net, here in nets), key=lambda span: span.low)
    found: dict[Net, int] = {}
    placed: list[Span] = []
    for span in _sorted_by_crossings(spans):
        # below every net that it overlaps or must not pass
        above = [
            found[other.net] for other in placed
            if (other.low - CLEAR < span.high and span.low < other.high + CLEAR)
            or _must_be_above(other, span)
        ]  # fmt: skip
        found[span.net] = max(above, default=-1) + 1
        placed.append(span)
    return found


def _crossings(upper: Span, lower: Span) -> int:
    """How often two nets cross in a channel, if the first runs above the second."""
    down = sum(lower.low <= x <= lower.high for x in upper.down)
    return down + sum(upper.low <= x <= upper.high for x in lower.up)


def _must_be_above(a: Span, b: Span) -> bool:
    """Say whether a net comes from above where another goes down."""
    return any(abs(x - y) < BESIDE for x in a.up for y in b.down)


def _sorted_by_crossings(spans: list[Span]) -> list[Span]:
    """Move each net to where it crosses the fewest others, until nothing gets better."""
    # the price of the one above the other
    price = [
        [
            0.0 if a is b else _crossings(a, b) + ON_ANOTHER * _must_be_above(b, a) for b in spans
        ]
        for a in spans
    ]  # fmt: skip
    order = list(range(len(spans)))
    for _ in spans:
        moved = False
        for net in list(order):
            now = order.index(net)
            rest = [other for other in order if other != net]
            # the price of standing before each of the rest, or behind all of them
            prices = [sum(price[net][other] for other in rest)]
            for other in rest:
                prices.append(prices[-1] + price[other][net] - price[net][other])
            best = min(range(len(prices)), key=lambda i: (prices[i], abs(i - now)))
            if prices[best] < prices[now]:
                order = [*rest[:best], net, *rest[best:]]
                moved = True
        if not moved:
            break
    return [spans[i] for i in order]


def on_another(nets: Nets, number: int) -> list[tuple[Touch, Touch]]:
    """Find where a net comes from above on the way of one that goes down from a higher track."""
    channel = channel_of(nets, number)
    found = []
    for net, here in nets:
        for other, there in nets:
            if net is other:
                continue
            a, b = _height(channel, net), _height(channel, other)
            if a is not None and b is not None and a < b:
                continue
            found += [
                (s, t) for s in here for t in there
                if s.above and not t.above and abs(s.x - t.x) < TOO_NEAR
            ]  # fmt: skip
    return found


def _height(channel: Channel, net: Net) -> tuple[int, int] | None:
    if net in channel.inner:
        return 0, channel.inner[net]
    return (1, channel.outer[net]) if net in channel.outer else None
