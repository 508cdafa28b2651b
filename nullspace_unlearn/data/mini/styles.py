"""How each domain draws a figure: one function a domain, on the same parts.

A style gets the figure in pixels of a square canvas and returns a picture of that canvas; the
caller scales it down, which smooths the edges.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from nullspace_unlearn.data.mini.colours import from_hsv, luminance, mix, paint, shade, stretch
from nullspace_unlearn.data.mini.geometry import Colour, Part, Points, densify
from nullspace_unlearn.data.mini.textures import clouds, gradient, grain, scenery, to_image

Rng = np.random.Generator
Pen = ImageDraw.ImageDraw


def _rgb(colour: Colour) -> tuple[int, int, int]:
    r, g, b = (int(min(255, max(0, c))) for c in colour)
    return (r, g, b)


def _flat(points: Points) -> list[float]:
    return points.ravel().tolist()


def _fill(pen: Pen, part: Part, colour: tuple[int, int, int] | int) -> None:
    if part.width:
        pen.line(_flat(part.points), fill=colour, width=max(1, round(part.width)), joint="curve")
    else:
        pen.polygon(_flat(part.points), fill=colour)


def photo(figure: list[Part], side: int, rng: Rng) -> Image.Image:
    """Lit, shaded and textured, in a natural place, slightly blurred and noisy."""
    sky = from_hsv(rng.uniform(0.52, 0.66), rng.uniform(0.05, 0.45), rng.uniform(0.55, 0.95))
    ground = (
        from_hsv(rng.uniform(0.18, 0.36), rng.uniform(0.25, 0.55), rng.uniform(0.25, 0.55)),
        from_hsv(rng.uniform(0.05, 0.13), rng.uniform(0.1, 0.45), rng.uniform(0.3, 0.7)),
        from_hsv(rng.random(), 0.06, rng.uniform(0.3, 0.6)),
    )[rng.integers(3)]
    place = scenery(side, sky, ground, rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.35), rng)
    backdrop = to_image(place)
    pen = ImageDraw.Draw(backdrop)
    for _ in range(int(rng.integers(0, 7))):  # things out of focus behind
        x, y, r = (
            rng.uniform(0, side),
            rng.uniform(0.2, 0.75) * side,
            rng.uniform(0.05, 0.18) * side,
        )
        tone = mix(mix(ground, sky, rng.random()), paint(rng), 0.25)
        pen.ellipse((x - r, y - r * 1.2, x + r, y + r), fill=_rgb(shade(tone, 0.8)))
    points = np.concatenate([part.points for part in figure])
    left, bottom = points[:, 0].min(), points[:, 1].max()
    right = points[:, 0].max()
    thin = 0.03 * side
    pen.ellipse((left, bottom - thin, right, bottom + thin), fill=_rgb(shade(ground, 0.35)))
    backdrop = backdrop.filter(ImageFilter.GaussianBlur(side * rng.uniform(0.012, 0.03)))

    front, mask = backdrop.copy(), Image.new("L", (side, side))
    pen, cut = ImageDraw.Draw(front), ImageDraw.Draw(mask)
    for part in figure:
        tone = shade(stretch(part.fill, 0.8, 0.9), rng.uniform(0.9, 1.08))
        if part.outline and not part.width:  # the seam between parts
            pen.polygon(_flat(part.points), fill=_rgb(tone), outline=_rgb(shade(tone, 0.55)))
        else:
            _fill(pen, part, _rgb(tone))
        _fill(cut, part, 255)
    # A soft bump under the figure's outline, lit from one side, rounds it.
    bump = np.asarray(mask.filter(ImageFilter.GaussianBlur(side * 0.06)), dtype=np.float32) / 255
    slope_y, slope_x = np.gradient(bump)
    angle = rng.uniform(-2.6, -0.5)
    light = 1 - side * 0.11 * (slope_x * np.cos(angle) + slope_y * np.sin(angle))
    light += 0.07 * clouds(side, side // 6, rng) + 0.07 * clouds(side, 4, rng)
    solid = (np.asarray(mask, dtype=np.float32) / 255)[..., None]
    lit = np.asarray(front, dtype=np.float32)
    lit *= 1 + solid * (np.clip(light, 0.35, 1.6)[..., None] - 1)
    blur = rng.uniform(0.004, 0.012) * side
    lit = np.asarray(to_image(lit).filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    exposure = rng.uniform(0.75, 1.15) * (1 + rng.uniform(-0.06, 0.06, 3))
    lit = lit * exposure.astype(np.float32)
    lit += (grain(side, rng) * rng.uniform(4, 16))[..., None]
    return to_image(lit)


def _wobble(points: Points, closed: bool, amount: float, rng: Rng) -> Points:
    line = densify(points, amount * 4, closed)
    t = np.linspace(0, 1, len(line))[:, None]
    waves = np.sin(2 * np.pi * (t * rng.uniform(1, 6, 2) + rng.random(2)))
    return line + amount * (0.6 * waves + 0.3 * rng.standard_normal(line.shape))


def sketch(figure: list[Part], side: int, rng: Rng) -> Image.Image:
    """Dark, wobbly, repeated strokes on light paper; dark parts hatched or smudged grey."""
    warm = rng.uniform(0, 14)
    level = rng.uniform(222, 252)
    paper = (level, level - warm * 0.4, level - warm)
    ink = shade((70, 66, 64), rng.uniform(0.2, 1.2))
    field = gradient(side, paper, paper)
    field += (3 * grain(side, rng) + rng.uniform(1, 4) * clouds(side, 6, rng))[..., None]
    page = to_image(field)
    pen = ImageDraw.Draw(page)
    amount = rng.uniform(0.004, 0.009) * side
    width = max(1, round(rng.uniform(0.008, 0.02) * side))
    repeats = int(rng.integers(1, 3))
    smudged, hatched = rng.random() < 0.4, rng.random() < 0.7
    lean = rng.uniform(0.5, 1.2)
    stencil = None
    for part in figure:
        closed = not part.width
        dark = luminance(part.fill) < 0.38
        if closed:
            grey = mix(paper, ink, 0.25 + 0.3 * dark) if smudged else paper
            pen.polygon(_flat(part.points), fill=_rgb(grey))
            if hatched and dark and part.outline:
                stencil = stencil or _hatching(side, lean, width)
                where = Image.new("1", (side, side))
                ImageDraw.Draw(where).polygon(_flat(part.points), fill=1)
                page.paste(
                    _rgb(ink), mask=Image.composite(stencil, Image.new("1", (side, side)), where)
                )
        for _ in range(repeats if part.outline else 1):
            stroke = _wobble(part.points, closed, amount, rng)
            thick = width if part.width < 0.03 * side else max(width, round(part.width * 0.45))
            pen.line(_flat(stroke), fill=_rgb(shade(ink, rng.uniform(0.8, 1.3))), width=thick)
    if rng.random() < 0.5:  # a few strokes for the ground
        y = max(part.points[:, 1].max() for part in figure)
        for _ in range(int(rng.integers(1, 4))):
            x = np.sort(rng.uniform(0, side, 2))
            line = _wobble(np.array([[x[0], y], [x[1], y]]), False, amount, rng)
            pen.line(_flat(line), fill=_rgb(ink), width=width)
    return page


def _hatching(side: int, lean: float, width: int) -> Image.Image:
    # Parallel strokes over the whole page; each hatched part lets its own share through.
    stencil = Image.new("1", (side, side))
    pen = ImageDraw.Draw(stencil)
    for x in np.arange(-side, side * 2, side * 0.045):
        pen.line((x, 0, x + side * lean, side), fill=1, width=width)
    return stencil


def painting(figure: list[Part], side: int, rng: Rng) -> Image.Image:
    """Brush strokes of saturated, smeared colour over figure and background, on canvas."""
    hue = rng.random()
    top = from_hsv(hue, rng.uniform(0.3, 0.75), rng.uniform(0.45, 0.95))
    bottom = from_hsv(hue + rng.uniform(0.1, 0.5), rng.uniform(0.35, 0.8), rng.uniform(0.3, 0.8))
    scene = to_image(scenery(side, top, bottom, rng.uniform(0.35, 0.8), 0.15, rng))
    scene = _brush(scene, 170, 0.13 * side, 0.065 * side, 13, rng)
    pen = ImageDraw.Draw(scene)
    dark = rng.uniform(0.3, 0.6)
    for part in figure:
        tone = stretch(mix(part.fill, top, 0.12), 1.3, 1.0)
        if part.outline and not part.width:
            pen.line(_flat(np.concatenate([part.points, part.points[:1]])),
                     fill=_rgb(shade(tone, dark)), width=max(1, round(0.018 * side)))  # fmt: skip
        _fill(pen, part, _rgb(tone))
    scene = _brush(scene, 300, 0.065 * side, 0.028 * side, 13, rng)
    # Smear along a slow field, then let the weave and the ridges of paint catch the light.
    pull = (clouds(side, 9, rng) * 0.012 * side, clouds(side, 9, rng) * 0.012 * side)
    rows, columns = np.indices((side, side))
    rows = np.clip(rows + pull[0], 0, side - 1).astype(np.intp)
    columns = np.clip(columns + pull[1], 0, side - 1).astype(np.intp)
    smeared = np.asarray(scene, dtype=np.float32)[rows, columns]
    weave = np.arange(side) * (2 * np.pi / (side * 0.047))
    relief = 0.05 * (np.sin(weave)[:, None] * np.sin(weave)[None]) + 0.05 * clouds(
        side, side // 4, rng
    )
    varnish = np.array([1.04, 1.0, rng.uniform(0.84, 0.98)], np.float32)
    return to_image(smeared * (1 + relief.astype(np.float32))[..., None] * varnish)


def _brush(scene: Image.Image, count: int, length: float, width: float, jitter: float,
           rng: Rng) -> Image.Image:  # fmt: skip
    # Each stroke carries the colour found under its middle, unevenly mixed.
    side = scene.width
    at = rng.uniform(0, side, (count, 2))
    colours = np.asarray(scene)[at[:, 1].astype(int), at[:, 0].astype(int)].astype(np.float64)
    colours += rng.normal(0, jitter, (count, 1)) + rng.normal(0, jitter * 0.4, (count, 3))
    angles = rng.uniform(0, np.pi) + rng.normal(0, 0.7, count)
    half = (
        np.stack([np.cos(angles), np.sin(angles)], 1)
        * (length * rng.uniform(0.3, 0.6, count))[:, None]
    )
    ends = np.concatenate([at - half, at + half], 1).tolist()
    fills = np.clip(colours, 0, 255).astype(int).tolist()
    widths = np.maximum(1, width * rng.uniform(0.6, 1.3, count)).round().astype(int).tolist()
    painted = scene.copy()
    pen = ImageDraw.Draw(painted)
    for line, fill, thick in zip(ends, fills, widths, strict=True):
        pen.line(line, fill=tuple(fill), width=thick)
    return painted


def cartoon(figure: list[Part], side: int, rng: Rng) -> Image.Image:
    """Flat bright fills inside bold black outlines, on a plain or simple background."""
    hue = rng.random()
    back = from_hsv(hue, rng.uniform(0.1, 0.6), rng.uniform(0.85, 1.0))
    page = Image.new("RGB", (side, side), _rgb(back))
    pen = ImageDraw.Draw(page)
    kind = rng.random()
    if kind < 0.3:
        green = from_hsv(rng.uniform(0.22, 0.4), 0.6, 0.85)
        pen.rectangle((0, rng.uniform(0.55, 0.8) * side, side, side), fill=_rgb(green))
        if rng.random() < 0.6:
            x, y, r = rng.uniform(0.1, 0.9) * side, 0.12 * side, 0.1 * side
            pen.ellipse((x - r, y - r, x + r, y + r), fill=(255, 225, 60))
    elif kind < 0.45:
        for i in range(0, 12, 2):  # rays
            a, b = np.array([i, i + 1]) * np.pi / 6 + hue
            far = side * np.array([np.cos(a), np.sin(a), np.cos(b), np.sin(b)])
            pen.polygon(
                [side / 2, side / 2, *(far + side / 2).tolist()], fill=_rgb(shade(back, 0.85))
            )
    elif kind < 0.6:
        step, r = 0.16 * side, rng.uniform(0.025, 0.05) * side
        for x in np.arange(step / 2, side, step).tolist():
            for y in np.arange(step / 2, side, step).tolist():
                pen.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(shade(back, 0.88)))
    elif kind < 0.75:
        r = 0.46 * side
        pen.ellipse((side / 2 - r, side / 2 - r, side / 2 + r, side / 2 + r),
                    fill=_rgb(from_hsv(hue + 0.4, 0.35, 1.0)))  # fmt: skip
    bold = rng.uniform(0.022, 0.036) * side
    black = (12, 10, 14)
    for part in figure:
        tone = stretch(part.fill, 1.35, 1.15)
        if part.width:
            if part.outline:
                ring = Part(part.points, part.fill, part.width + 1.5 * bold)
                _fill(pen, ring, black)
            _fill(pen, part, _rgb(tone))
        else:
            pen.polygon(_flat(part.points), fill=_rgb(tone))
            if part.outline:
                edge = _flat(np.concatenate([part.points, part.points[:2]]))
                pen.line(edge, fill=black, width=round(bold), joint="curve")
    return page


STYLES: dict[str, Callable[[list[Part], int, Rng], Image.Image]] = {
    "photo": photo,
    "sketch": sketch,
    "painting": painting,
    "cartoon": cartoon,
}
