"""What the classes look like: each a function from a random generator to the parts of a figure.

Figures face right and stand near y = 0.6; the pose (mirror, turn, size, place) comes later. Car,
truck and bus share paint, wheels and proportions on purpose, as do cat and dog: a model must look
at the shape to tell them apart, and erasing one of them tests what happens to its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nullspace_unlearn.data.mini.colours import (
    BLACK,
    GLASS,
    METAL,
    WHITE,
    fur,
    leaf,
    mix,
    paint,
    shade,
)
from nullspace_unlearn.data.mini.geometry import Colour, Part, box, curve, ellipse, polygon, turn

Rng = np.random.Generator
Figure = list[Part]


def _wheel(x: float, y: float, radius: float) -> Figure:
    return [
        Part(ellipse(x, y, radius, radius), BLACK),
        Part(ellipse(x, y, radius * 0.5, radius * 0.5, n=14), METAL, outline=False),
    ]


def _lamps(half: float, y: float) -> Figure:
    return [
        Part(ellipse(half * 0.95, y, 0.05, 0.05, n=10), (250, 225, 130), outline=False),
        Part(ellipse(-half * 0.96, y, 0.035, 0.05, n=10), (200, 40, 40), outline=False),
    ]


def car(rng: Rng) -> Figure:
    """A low body with a cabin on it, two wheels; saloon, hatchback or estate."""
    half, radius = rng.uniform(0.8, 0.95), rng.uniform(0.17, 0.24)
    sill = 0.5 - radius * 0.7
    belt = sill - rng.uniform(0.24, 0.34)
    roof = belt - rng.uniform(0.25, 0.36)
    rear = -half * rng.choice([0.62, 0.8, 0.93])
    front = half * rng.uniform(0.35, 0.55)
    body = paint(rng)
    cabin = polygon((rear, belt), (rear + 0.14, roof), (front - 0.3, roof), (front, belt))
    pillar = rng.uniform(-0.2, -0.05)
    low, high = belt - 0.01, roof + 0.06
    nose = belt + rng.uniform(0.04, 0.14)
    figure = [
        Part(cabin, shade(body, 0.95)),
        Part(
            polygon((rear + 0.1, low), (rear + 0.18, high), (pillar - 0.03, high), (pillar, low)),
            GLASS,
        ),
        Part(
            polygon((pillar + 0.04, low), (pillar + 0.04, high), (front - 0.32, high),
                    (front - 0.09, low)),
            GLASS,
        ),
        Part(
            polygon((-half, sill), (-half, belt + 0.05), (-half + 0.06, belt), (front, belt),
                    (half - 0.06, nose), (half, nose + 0.08), (half, sill)),
            body,
        ),
    ]  # fmt: skip
    figure += _lamps(half, nose + 0.1)
    for x in (-0.58, 0.6):
        figure += _wheel(x * half, 0.5, radius)
    return figure


def truck(rng: Rng) -> Figure:
    """A cab in front and a load behind it: a box, an open bed or a tank."""
    half, radius = rng.uniform(0.82, 0.98), rng.uniform(0.15, 0.21)
    sill = 0.5 - radius * 0.7
    gap = half * rng.uniform(0.25, 0.4)
    cab_top = sill - rng.uniform(0.5, 0.66)
    body, load = paint(rng), paint(rng)
    kind = rng.random()
    if kind < 0.6:
        top = min(cab_top - rng.uniform(0.02, 0.2), sill - 0.62)
        cargo = [Part(box(-half, top, gap - 0.06, sill - 0.03), load)]
        if rng.random() < 0.5:
            middle = (top + sill) / 2
            cargo.append(Part(box(-half, middle - 0.06, gap - 0.06, middle + 0.05), paint(rng),
                              outline=False))  # fmt: skip
    elif kind < 0.8:
        top = sill - rng.uniform(0.28, 0.4)
        heap = curve(
            (-half + 0.1, top), (-half * 0.5, top - 0.2), (0.0, top - 0.22), (gap - 0.1, top)
        )
        cargo = [
            Part(heap, shade((150, 115, 75), rng.uniform(0.6, 1.2))),
            Part(
                polygon((-half, top), (gap - 0.06, top), (gap - 0.1, sill), (-half + 0.06, sill)),
                load,
            ),
        ]
    else:
        middle, height = sill - 0.27, rng.uniform(0.22, 0.28)
        centre = (gap - 0.06 - half) / 2
        cargo = [Part(ellipse(centre, middle, (gap - 0.06 + half) / 2, height), load)]
    slope = rng.uniform(0.0, 0.16)
    figure = [
        Part(box(-half, sill - 0.08, half * 0.9, sill + 0.03), shade(BLACK, 1.6)),
        *cargo,
        Part(
            polygon((gap, cab_top), (half - 0.04 - slope, cab_top), (half, cab_top + 0.3),
                    (half, sill), (gap, sill)),
            body,
        ),
        Part(
            polygon((gap + 0.12, cab_top + 0.07), (half - 0.08 - slope, cab_top + 0.07),
                    (half - 0.08, cab_top + 0.29), (gap + 0.12, cab_top + 0.29)),
            GLASS,
        ),
    ]  # fmt: skip
    figure += _lamps(half, sill - 0.1)
    for x in (-0.76, -0.76 + 2.3 * radius / half, 0.66)[rng.integers(2) :]:
        figure += _wheel(x * half, 0.5, radius)
    return figure


def bus(rng: Rng) -> Figure:
    """One long box with a row of windows, or two rows, and a door at the front."""
    half, radius = rng.uniform(0.85, 0.98), rng.uniform(0.13, 0.19)
    sill = 0.5 - radius * 0.7
    decks = 2 if rng.random() < 0.25 else 1
    top = sill - (rng.uniform(0.85, 1.0) if decks == 2 else rng.uniform(0.55, 0.72))
    body = paint(rng)
    hull = polygon((-half, top + 0.07), (-half + 0.07, top), (half - 0.09, top),
                   (half, top + 0.12), (half, sill), (-half, sill))  # fmt: skip
    figure = [Part(hull, body)]
    if rng.random() < 0.6:
        figure.append(Part(box(-half, sill - 0.18, half, sill - 0.1), paint(rng), outline=False))
    count = int(rng.integers(4, 7))
    edges = np.linspace(-half + 0.06, half - 0.3, count + 1)
    for deck in range(decks):
        high = top + 0.1 + deck * 0.4
        low = high + (0.22 if decks == 2 else 0.27)
        for left, right in zip(edges[:-1], edges[1:], strict=True):
            figure.append(Part(box(left + 0.03, high, right - 0.03, low), GLASS))
    figure.append(
        Part(box(half - 0.27, sill - 0.46, half - 0.12, sill - 0.02), mix(GLASS, BLACK, 0.2))
    )
    figure += _lamps(half, sill - 0.09)
    for x in (-0.62, 0.52):
        figure += _wheel(x * half, 0.5, radius)
    return figure


def bicycle(rng: Rng) -> Figure:
    """Two spoked rings joined by a frame of thin tubes."""
    radius, span = rng.uniform(0.34, 0.42), rng.uniform(0.5, 0.58)
    y = 0.25
    frame = paint(rng)
    tube = rng.uniform(0.05, 0.075)
    rear, front, crank = (-span, y), (span, y), (-0.06, y + 0.04)
    seat, head = (-0.2, y - rng.uniform(0.45, 0.58)), (span - 0.14, y - rng.uniform(0.45, 0.56))
    figure: Figure = []
    for x, _ in (rear, front):
        rim = ellipse(x, y, radius, radius, n=22)
        figure.append(Part(np.concatenate([rim, rim[:1]]), BLACK, width=tube))
        for angle in np.arange(3) * np.pi / 3 + rng.uniform(0, 1):
            spoke = turn(polygon((-radius, 0), (radius, 0)), angle) + (x, y)
            figure.append(Part(spoke, METAL, width=0.018, outline=False))
    for a, b in (
        (rear, crank),
        (rear, seat),
        (crank, seat),
        (crank, head),
        (seat, head),
        (head, front),
    ):
        figure.append(Part(polygon(a, b), frame, width=tube))
    sx, sy = seat
    hx, hy = head
    figure.append(Part(polygon((sx, sy), (sx - 0.03, sy - 0.1)), METAL, width=tube))
    figure.append(Part(ellipse(sx - 0.04, sy - 0.12, 0.14, 0.045), BLACK))
    bar = rng.uniform(0.08, 0.16)
    figure.append(
        Part(
            curve((hx, hy), (hx - 0.03, hy - 0.14), (hx + bar, hy - 0.17), closed=False),
            BLACK,
            width=tube,
        )
    )
    figure.append(Part(ellipse(*crank, 0.08, 0.08, n=12), METAL))
    return figure


def _legs(
    rng: Rng, xs: tuple[float, ...], top: float, foot: float, width: float, coat: Colour
) -> Figure:
    # Far legs first and darker, each with its own stride.
    figure: Figure = []
    for i, x in enumerate(xs):
        tone = shade(coat, 0.7 if i % 2 == 0 else 0.95)
        step = rng.uniform(-0.09, 0.09)
        knee = (x + step * 0.2, (top + foot) / 2)
        figure.append(
            Part(
                curve((x, top), knee, (x + step, foot), closed=False, per_knot=3), tone, width=width
            )
        )
    return figure


def _eye(x: float, y: float, size: float, iris: Colour = WHITE) -> Figure:
    return [
        Part(ellipse(x, y, size, size, n=12), iris, outline=False),
        Part(ellipse(x, y, size * 0.55, size * 0.7, n=10), BLACK, outline=False),
    ]


def _dog_face(rng: Rng, coat: Colour) -> Figure:
    ear = shade(coat, rng.uniform(0.5, 0.75))
    muzzle = mix(coat, WHITE, rng.uniform(0.25, 0.6))
    drop = rng.uniform(0.3, 0.45)
    figure = [
        Part(curve((-0.3, 0.9), (-0.34, 0.35), (0.34, 0.35), (0.3, 0.9)), shade(coat, 0.9)),
        Part(curve((-0.5, -0.3), (-0.3, -0.62), (0.3, -0.62), (0.5, -0.3), (0.36, 0.32), (0.0, 0.5),
                   (-0.36, 0.32)), coat),
    ]  # fmt: skip
    for side in (-1, 1):
        figure.append(
            Part(curve((side * 0.36, -0.56), (side * 0.66, -0.5), (side * 0.74, drop - 0.2),
                       (side * 0.56, drop), (side * 0.46, -0.1)), ear)
        )  # fmt: skip
        figure += _eye(side * 0.2, -0.2, rng.uniform(0.075, 0.1), (235, 225, 205))
    if rng.random() < 0.5:
        figure.append(
            Part(curve((-0.1, 0.3), (0.1, 0.3), (0.08, 0.6), (-0.08, 0.6)), (225, 95, 110))
        )
    figure.append(Part(ellipse(0, 0.2, rng.uniform(0.24, 0.3), 0.22), muzzle))
    figure.append(Part(ellipse(0, 0.08, 0.12, 0.085, n=14), BLACK))
    figure.append(Part(polygon((0, 0.15), (0, 0.28)), BLACK, width=0.03))
    return figure


def _cat_face(rng: Rng, coat: Colour) -> Figure:
    tip = rng.uniform(-0.95, -0.8)
    figure = [
        Part(curve((-0.3, 0.9), (-0.36, 0.4), (0.36, 0.4), (0.3, 0.9)), shade(coat, 0.9)),
    ]
    for side in (-1, 1):
        figure.append(
            Part(polygon((side * 0.12, -0.5), (side * 0.5, tip), (side * 0.56, -0.15)), coat)
        )
        figure.append(
            Part(polygon((side * 0.24, -0.5), (side * 0.45, tip + 0.16), (side * 0.48, -0.3)),
                 (225, 150, 150), outline=False)
        )  # fmt: skip
    figure.append(Part(ellipse(0, -0.05, rng.uniform(0.56, 0.64), rng.uniform(0.48, 0.54)), coat))
    if rng.random() < 0.5:
        for x in (-0.12, 0.0, 0.12):
            figure.append(Part(polygon((x, -0.52), (x * 0.8, -0.3)), shade(coat, 0.55), width=0.05))
    iris = ((120, 180, 80), (220, 180, 60), (110, 170, 210))[rng.integers(3)]
    for side in (-1, 1):
        figure.append(Part(ellipse(side * 0.24, -0.12, 0.12, 0.1, n=14), iris))
        figure.append(Part(ellipse(side * 0.24, -0.12, 0.035, 0.09, n=10), BLACK, outline=False))
        for rise in (-0.05, 0.04, 0.13):
            whisker = polygon((side * 0.16, 0.18), (side * 0.8, 0.14 + rise * 2))
            figure.append(Part(whisker, BLACK, width=0.022, outline=False))
    figure.append(Part(ellipse(0, 0.2, 0.18, 0.12), mix(coat, WHITE, 0.6)))
    figure.append(Part(polygon((-0.07, 0.09), (0.07, 0.09), (0, 0.18)), (215, 120, 125)))
    return figure


def dog(rng: Rng) -> Figure:
    """Hanging ears, a long muzzle, a short raised tail; the whole animal or its face."""
    coat = fur(rng)
    if rng.random() < 0.35:
        return _dog_face(rng, coat)
    thick, foot = rng.uniform(0.19, 0.26), rng.uniform(0.6, 0.72)
    hx, hy = rng.uniform(0.5, 0.58), rng.uniform(-0.42, -0.28)
    reach = rng.uniform(0.2, 0.28)
    tail = curve((-0.52, 0.0), (-0.68, -0.15), (-0.7, rng.uniform(-0.5, -0.3)), closed=False)
    ear = shade(coat, rng.uniform(0.5, 0.7))
    figure = [Part(tail, coat, width=0.1)]
    figure += _legs(rng, (-0.32, -0.46, 0.3, 0.42), 0.15, foot, rng.uniform(0.1, 0.14), coat)
    figure += [
        Part(curve((-0.58, 0.05), (-0.4, 0.06 - thick), (0.35, 0.02 - thick), (0.56, 0.05),
                   (0.35, 0.1 + thick), (-0.1, 0.02 + thick), (-0.45, 0.08 + thick)), coat),
        Part(polygon((0.26, -0.1), (hx - 0.14, hy), (hx + 0.12, hy + 0.12), (0.54, 0.12)), coat,
             outline=False),
        Part(ellipse(hx + reach, hy + 0.08, 0.2, 0.1, 0.1), mix(coat, WHITE, 0.25)),
        Part(ellipse(hx, hy, 0.22, 0.19), coat),
        Part(ellipse(hx + reach + 0.18, hy + 0.04, 0.055, 0.05, n=10), BLACK, outline=False),
        Part(curve((hx - 0.12, hy - 0.16), (hx + 0.0, hy - 0.1), (hx - 0.02, hy + 0.2),
                   (hx - 0.16, hy + 0.18)), ear),
    ]  # fmt: skip
    figure += _eye(hx + 0.09, hy - 0.04, 0.045)
    return figure


def cat(rng: Rng) -> Figure:
    """Pointed ears, a short face with whiskers, a long tail; the whole animal or its face."""
    coat = fur(rng)
    if rng.random() < 0.35:
        return _cat_face(rng, coat)
    thick, foot = rng.uniform(0.17, 0.24), rng.uniform(0.56, 0.66)
    hx, hy = rng.uniform(0.48, 0.56), rng.uniform(-0.34, -0.2)
    lift = rng.uniform(-0.85, -0.6)
    bend = rng.uniform(-0.95, -0.8)
    tail = curve(
        (-0.5, 0.02), (-0.78, 0.05), (bend, (lift + 0.1) / 2), (bend + 0.2, lift), closed=False
    )
    figure = [Part(tail, coat, width=rng.uniform(0.07, 0.1))]
    figure += _legs(rng, (-0.3, -0.43, 0.28, 0.4), 0.15, foot, rng.uniform(0.09, 0.12), coat)
    figure.append(
        Part(curve((-0.56, 0.05), (-0.38, 0.04 - thick), (0.0, 0.1 - thick), (0.36, 0.02 - thick),
                   (0.54, 0.05), (0.34, 0.1 + thick), (-0.4, 0.1 + thick)), coat)
    )  # fmt: skip
    if rng.random() < 0.45:
        for x in (-0.35, -0.2, -0.05, 0.1):
            stripe = polygon((x, 0.07 - thick), (x + 0.03, 0.1))
            figure.append(Part(stripe, shade(coat, 0.55), width=0.05, outline=False))
    for x in (-0.13, 0.13):
        figure.append(Part(polygon((hx + x - 0.09, hy - 0.12), (hx + x * 1.3, hy - 0.38),
                                   (hx + x + 0.09, hy - 0.12)), shade(coat, 0.9)))  # fmt: skip
    figure.append(Part(ellipse(hx, hy, 0.25, 0.21), coat))
    for x in (-0.02, 0.14):
        figure += _eye(hx + x, hy - 0.04, 0.045, (170, 200, 90))
    figure.append(
        Part(ellipse(hx + 0.07, hy + 0.06, 0.03, 0.025, n=8), (215, 120, 125), outline=False)
    )
    for rise in (-0.04, 0.03, 0.1):
        for side in (-0.3, 0.36):
            whisker = polygon((hx + 0.07, hy + 0.08), (hx + side, hy + 0.08 + rise))
            figure.append(Part(whisker, BLACK, width=0.015, outline=False))
    return figure


def horse(rng: Rng) -> Figure:
    """A long face on a long neck with a mane, long legs and a hanging tail."""
    coat = fur(rng)
    mane = shade(coat, 0.45) if rng.random() < 0.75 else (225, 205, 160)
    thick, foot = rng.uniform(0.18, 0.23), rng.uniform(0.74, 0.86)
    hx, hy = rng.uniform(0.54, 0.66), rng.uniform(-0.72, -0.56)
    dip = rng.uniform(0.2, 0.32)
    figure = [
        Part(curve((-0.52, -0.08), (-0.74, 0.05), (-0.78, 0.45), (-0.66, 0.5), (-0.6, 0.1)), mane),
    ]
    figure += _legs(rng, (-0.3, -0.44, 0.24, 0.38), 0.1, foot, rng.uniform(0.085, 0.115), coat)
    figure += [
        Part(curve((-0.56, 0.0), (-0.4, -0.04 - thick), (0.0, 0.02 - thick), (0.36, -0.03 - thick),
                   (0.5, 0.05), (0.32, 0.06 + thick), (-0.1, 0.02 + thick), (-0.45, 0.04 + thick)),
             coat),
        Part(polygon((hx - 0.02, hy - 0.08), (hx + 0.02, hy - 0.24), (hx + 0.09, hy - 0.06)), coat),
        Part(polygon((0.12, -0.16), (hx - 0.14, hy - 0.04), (hx + 0.1, hy + 0.1), (0.5, 0.08)),
             coat),
        Part(curve((hx - 0.12, hy - 0.08), (hx + 0.06, hy - 0.1), (hx + 0.34, hy + dip - 0.02),
                   (hx + 0.28, hy + dip + 0.1), (hx + 0.02, hy + 0.16)), coat),
        Part(curve((hx, hy - 0.16), (hx - 0.12, hy - 0.02), (0.3, -0.1), (0.06, -0.14),
                   (hx - 0.3, hy + 0.14)), mane),
        Part(ellipse(hx + 0.28, hy + dip + 0.02, 0.025, 0.025, n=8), BLACK, outline=False),
    ]  # fmt: skip
    figure += _eye(hx + 0.08, hy + 0.01, 0.035)
    if rng.random() < 0.3:
        figure.append(
            Part(curve((-0.15, -0.2), (0.15, -0.2), (0.12, 0.05), (-0.12, 0.05)), paint(rng))
        )
    return figure


def bird(rng: Rng) -> Figure:
    """A round head with a beak, a wing and a fanned tail; perched or in flight."""
    coat = paint(rng)
    wing, belly = shade(coat, rng.uniform(0.55, 0.8)), mix(coat, WHITE, 0.45)
    beak: Colour = (235, 165, 50)
    plump = rng.uniform(0.24, 0.34)
    hx, hy = rng.uniform(0.42, 0.5), rng.uniform(-0.34, -0.22)
    long = rng.uniform(0.12, 0.24)
    tail = polygon((-0.4, -0.02), (-0.9, rng.uniform(-0.1, 0.1)), (-0.86, 0.24), (-0.35, 0.18))
    head = [
        Part(
            polygon((hx + 0.16, hy - 0.07), (hx + 0.18 + long, hy + 0.03), (hx + 0.14, hy + 0.1)),
            beak,
        ),
        Part(ellipse(hx, hy, 0.21, 0.2), coat),
        *_eye(hx + 0.07, hy - 0.04, 0.05),
    ]
    body = curve((-0.5, 0.06), (-0.1, 0.0 - plump), (0.4, -0.3), (0.56, -0.08), (0.3, 0.08 + plump),
                 (-0.15, 0.05 + plump))  # fmt: skip
    if rng.random() < 0.4:
        up = rng.uniform(-0.95, -0.75)
        near = curve((-0.2, 0.0), (-0.55, up), (-0.1, up + 0.15), (0.22, -0.02))
        far = curve((0.0, -0.1), (0.0, up - 0.02), (0.28, up + 0.2), (0.3, -0.1))
        return [
            Part(far, shade(wing, 0.8)),
            Part(tail, wing),
            Part(body, coat),
            *head,
            Part(near, wing),
        ]
    figure = []
    for x in (0.0, 0.16):
        figure.append(
            Part(polygon((x, 0.25), (x + 0.02, 0.66), (x + 0.14, 0.7)), beak, width=0.045)
        )
    figure += [
        Part(tail, wing),
        Part(body, coat),
        Part(ellipse(0.18, 0.14, 0.26, plump * 0.7, -0.3), belly, outline=False),
        *head,
        Part(curve((0.2, -0.14), (-0.1, -0.2), (-0.62, 0.12), (-0.1, 0.24), (0.16, 0.1)), wing),
    ]
    if rng.random() < 0.4:
        figure.append(Part(polygon((-1.0, 0.72), (1.0, 0.7)), (105, 75, 50), width=0.07))
    return figure


def fish(rng: Rng) -> Figure:
    """A lens with a forked tail, fins and one eye."""
    scales = paint(rng)
    fin = shade(scales, rng.uniform(0.6, 0.85)) if rng.random() < 0.6 else paint(rng)
    half, tall = rng.uniform(0.5, 0.62), rng.uniform(0.26, 0.44)
    tail = rng.uniform(0.26, 0.4)
    body = curve((-half, 0.0), (-half * 0.3, -tall), (half * 0.5, -tall * 0.8), (half + 0.2, 0.02),
                 (half * 0.5, tall * 0.8), (-half * 0.3, tall))  # fmt: skip
    figure = [
        Part(
            polygon(
                (-half + 0.1, 0.0), (-half - 0.32, -tail), (-half - 0.2, 0.0), (-half - 0.32, tail)
            ),
            fin,
        ),
        Part(
            curve((-half * 0.5, -tall * 0.7), (-0.2, -tall - 0.24), (half * 0.5, -tall * 0.7)), fin
        ),
        Part(curve((-0.1, tall * 0.8), (-0.2, tall + 0.18), (0.15, tall * 0.8)), fin),
        Part(body, scales),
    ]
    if rng.random() < 0.55:
        stripe = paint(rng)
        for x in np.linspace(-0.3, 0.2, int(rng.integers(2, 4))):
            h = tall * 0.8
            figure.append(
                Part(
                    curve((x, -h), (x + 0.08, 0), (x, h), closed=False),
                    stripe,
                    width=0.09,
                    outline=False,
                )
            )
    gill = curve(
        (half * 0.5, -tall * 0.5), (half * 0.36, 0.0), (half * 0.5, tall * 0.5), closed=False
    )
    figure += [
        Part(gill, shade(scales, 0.5), width=0.03, outline=False),
        Part(polygon((0.1, 0.06), (-0.14, 0.2), (-0.1, 0.0)), fin),
        *_eye(half * 0.82, -tall * 0.22, 0.075),
    ]
    return figure


def house(rng: Rng) -> Figure:
    """Walls under a pitched roof, with a door, windows and often a chimney."""
    half, top = rng.uniform(0.55, 0.78), rng.uniform(-0.15, 0.05)
    peak = top - rng.uniform(0.4, 0.62)
    wall, roof = mix(paint(rng), WHITE, rng.uniform(0.2, 0.7)), paint(rng)
    eave = half + rng.uniform(0.06, 0.16)
    figure: Figure = []
    if rng.random() < 0.6:
        x = half * rng.uniform(0.4, 0.6)
        figure.append(Part(box(x, peak + 0.02, x + 0.16, top), (150, 80, 65)))
    ridge = rng.choice([0.0, half * 0.55])
    figure += [
        Part(box(-half, top, half, 0.7), wall),
        Part(polygon((-eave, top + 0.04), (-ridge, peak), (ridge, peak), (eave, top + 0.04)), roof),
    ]
    door = rng.choice([-0.5, 0.0, 0.5]) * half
    figure.append(Part(box(door - 0.11, 0.26, door + 0.11, 0.7), shade(paint(rng), 0.7)))
    for x in (-0.56 * half, 0.0, 0.56 * half):
        if abs(x - door) > 0.25:
            w = rng.uniform(0.1, 0.14)
            figure.append(Part(box(x - w, top + 0.18, x + w, top + 0.42), GLASS))
            figure.append(
                Part(polygon((x, top + 0.18), (x, top + 0.42)), WHITE, width=0.03, outline=False)
            )
    return figure


def tree(rng: Rng) -> Figure:
    """A trunk with a round, lobed crown, or the tiers of a fir."""
    green, bark = leaf(rng), shade((110, 78, 52), rng.uniform(0.7, 1.3))
    w = rng.uniform(0.07, 0.13)
    trunk = Part(polygon((-w * 1.3, 0.9), (-w * 0.8, 0.1), (w * 0.8, 0.1), (w * 1.3, 0.9)), bark)
    if rng.random() < 0.4:
        tiers, wide = int(rng.integers(2, 5)), rng.uniform(0.45, 0.62)
        figure = [trunk]
        for i in range(tiers):
            low = 0.55 - i * 1.1 / tiers
            w = wide * (1 - 0.65 * i / tiers)
            figure.append(
                Part(polygon((-w, low), (0, low - 0.35 - 1.1 / tiers * 0.6), (w, low)), green)
            )
        return figure
    lobes = int(rng.integers(7, 11))
    rx, ry, y = rng.uniform(0.48, 0.68), rng.uniform(0.42, 0.58), rng.uniform(-0.4, -0.25)
    angles = np.linspace(0, 2 * np.pi, 2 * lobes, endpoint=False) + rng.uniform(0, 1)
    radii = np.where(np.arange(2 * lobes) % 2 == 0, 1.0, 0.84) * rng.uniform(0.92, 1.08, 2 * lobes)
    knots = np.stack([rx * radii * np.cos(angles), y + ry * radii * np.sin(angles)], axis=1)
    figure = [trunk, Part(curve(*map(tuple, knots), per_knot=3), green)]
    for _ in range(int(rng.integers(2, 5))):
        x, dy, r = rng.uniform(-0.5, 0.5) * rx, rng.uniform(-0.5, 0.5) * ry, rng.uniform(0.08, 0.2)
        tone = shade(green, rng.choice([0.8, 1.2]))
        figure.append(Part(ellipse(x, y + dy, r * 1.3, r, n=12), tone, outline=False))
    if rng.random() < 0.25:
        for x, dy in rng.uniform(-0.6, 0.6, (6, 2)):
            figure.append(Part(ellipse(x * rx, y + dy * ry, 0.06, 0.06, n=10), (210, 45, 40)))
    return figure


def flower(rng: Rng) -> Figure:
    """Petals around a disc on a stem with leaves."""
    petal, disc = paint(rng), shade((235, 190, 60), rng.uniform(0.4, 1.05))
    green = leaf(rng)
    count, y = int(rng.integers(5, 10)), rng.uniform(-0.4, -0.25)
    reach, centre = rng.uniform(0.3, 0.38), rng.uniform(0.13, 0.2)
    fat = reach * np.sin(np.pi / count) * rng.uniform(0.95, 1.35)
    lean = rng.uniform(-0.15, 0.15)
    figure = [
        Part(
            curve((lean, 0.95), (lean * 1.3, 0.4), (0.0, y), closed=False),
            green,
            width=rng.uniform(0.05, 0.08),
        ),
    ]
    for side in (-1, 1):
        if rng.random() < 0.85:
            at, rise = rng.uniform(0.4, 0.65), rng.uniform(0.1, 0.3)
            figure.append(
                Part(curve((lean, at + 0.15), (side * 0.22, at - rise * 0.7),
                           (side * 0.5, at - rise), (side * 0.3, at + 0.12)), green)
            )  # fmt: skip
    start = rng.uniform(0, 1)
    for i in range(count):
        a = start + 2 * np.pi * i / count
        x, dy = reach * np.cos(a), reach * np.sin(a)
        figure.append(Part(ellipse(x, y + dy, 0.24, max(fat, 0.09), a, n=14), petal))
    figure.append(Part(ellipse(0, y, centre, centre, n=16), disc))
    return figure


FIGURES: dict[str, Callable[[Rng], Figure]] = {
    "car": car,
    "truck": truck,
    "bus": bus,
    "bicycle": bicycle,
    "dog": dog,
    "cat": cat,
    "horse": horse,
    "bird": bird,
    "fish": fish,
    "house": house,
    "tree": tree,
    "flower": flower,
}
