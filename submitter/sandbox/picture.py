"""A generated picture that looks enough like a photograph to be worth upscaling."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageChops, ImageDraw, ImageFilter


def test_picture(width: int = 640, height: int = 480, *, seed: int = 7, format: str = "JPEG") -> bytes:
    """
    Return an evening landscape as JPEG (or another Pillow *format*), the same bytes for the same arguments.

    Sky, sun, hazy hills, water and grain: soft gradients and fine detail side by side.
    """
    chance = random.Random(seed)
    horizon = int(height * chance.uniform(0.52, 0.62))
    scene = _gradient(width, height, [(24, 38, 84), (142, 96, 128), (250, 178, 112), (255, 222, 168)], until=horizon)
    _sun(scene, chance, horizon)
    for depth in range(4):
        _hill(scene, chance, horizon, depth)
    _water(scene, chance, horizon)
    _grain(scene, chance)
    out = io.BytesIO()
    scene.save(out, format, **({"quality": 90} if format in {"JPEG", "WEBP"} else {}))
    return out.getvalue()


test_picture.__test__ = False  # type: ignore[attr-defined]  # pytest collects names that begin with test


def _gradient(width: int, height: int, stops: list[tuple[int, int, int]], *, until: int) -> Image.Image:
    column = Image.new("RGB", (1, len(stops)))
    column.putdata(stops)
    sky = column.resize((width, max(until, 1)), Image.Resampling.BICUBIC)
    scene = Image.new("RGB", (width, height), stops[-1])
    scene.paste(sky, (0, 0))
    return scene


def _sun(scene: Image.Image, chance: random.Random, horizon: int) -> None:
    radius = max(scene.width // 14, 2)
    x, y = int(scene.width * chance.uniform(0.3, 0.7)), horizon - int(radius * 1.2)
    glow = Image.new("RGB", scene.size)
    draw = ImageDraw.Draw(glow)
    for spread, light in ((4, 40), (2, 70), (1, 160)):
        reach = radius * spread
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(light, light * 3 // 4, light // 2))
    glow = glow.filter(ImageFilter.GaussianBlur(radius / 2))
    scene.paste(ImageChops.add(scene, glow))


def _hill(scene: Image.Image, chance: random.Random, horizon: int, depth: int) -> None:
    base = horizon - (3 - depth) * scene.height // 24
    tone = (88 - depth * 20, 72 - depth * 12, 104 - depth * 18)
    steps = 6 + depth * 5
    ridge: list[tuple[float, float]] = [
        (scene.width * step / steps, base - chance.uniform(0, scene.height / (9 + depth * 3)))
        for step in range(steps + 1)
    ]
    mask = Image.new("L", scene.size)
    ImageDraw.Draw(mask).polygon([(0, horizon), *ridge, (scene.width, horizon)], fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(max(3 - depth, 0)))
    scene.paste(Image.new("RGB", scene.size, tone), (0, 0), mask)


def _water(scene: Image.Image, chance: random.Random, horizon: int) -> None:
    depth = scene.height - horizon
    mirror = scene.crop((0, 0, scene.width, horizon)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    mirror = mirror.resize((scene.width, depth)).filter(ImageFilter.GaussianBlur(2))
    scene.paste(Image.blend(mirror, Image.new("RGB", mirror.size, (20, 30, 60)), 0.35), (0, horizon))
    draw = ImageDraw.Draw(scene)
    for _ in range(scene.width // 4):
        y = horizon + int(depth * chance.random() ** 1.5)
        x, length = chance.randrange(scene.width), 2 + (y - horizon) // 6
        light = chance.randrange(60, 190)
        draw.line((x, y, x + length, y), fill=(light, light * 4 // 5, light * 3 // 4))


def _grain(scene: Image.Image, chance: random.Random) -> None:
    tile = Image.frombytes("L", (128, 128), chance.randbytes(128 * 128))
    grain = Image.new("L", scene.size)
    for x in range(0, scene.width, 128):
        for y in range(0, scene.height, 128):
            grain.paste(tile, (x, y))
    noise = grain.point([value // 20 for value in range(256)]).convert("RGB")
    scene.paste(ImageChops.subtract(ImageChops.add(scene, noise), Image.new("RGB", scene.size, (6, 6, 6))))
