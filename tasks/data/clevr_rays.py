"""Pictures of made-up CLEVR scenes, by ray tracing: exact outlines, occlusion, shadows, matt and metal surfaces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.data.clevr_world import COLOURS, FOCAL, LEAST_PIXELS, Array, Camera, Thing, World

Mask = NDArray[np.bool_]

GROUND = np.array([0.58, 0.58, 0.57])
AMBIENT = 0.28
POWERS = (80.0, 26.0, 23.0)  # of the key, the fill and the back lamp
BREADTH = 80.0  # added to the square of a lamp's distance: light of a broad lamp falls off slowly
DIFFUSE = {"rubber": 1.0, "metal": 0.45}
GLOSS = {"rubber": (0.06, 6), "metal": (0.9, 60)}  # strength and exponent of the highlight
MIRROR = {"rubber": 0.0, "metal": 0.5}
NEAR = 1e-4  # of a shadow ray's length, within which a surface does not shade itself
FLATTEST = 0.02  # downward slope of a ray, so that the ground ends before the horizon
EDGE = 0.04  # difference from a neighbour beyond which a pixel is sampled again
SUBPIXELS = np.array([[-0.25, -0.25], [-0.25, 0.25], [0.25, -0.25], [0.25, 0.25]])
COARSE = (60, 80)  # the picture in which visibility is decided, whatever is drawn


def rays(camera: Camera, rows: Array, columns: Array, height: int, width: int) -> Array:
    """Return directions (3, N) through points of a picture, of length 1 along the camera's axis."""
    scale = FOCAL * max(height, width)
    right, up = (columns - width / 2) / scale, (height / 2 - rows) / scale
    return camera.axes.T @ np.stack([right, up, np.ones_like(right)])


def centres(height: int, width: int) -> tuple[Array, Array]:
    """Return rows (N,) and columns (N,) of the centres of all pixels."""
    rows, columns = np.mgrid[:height, :width].reshape(2, -1) + 0.5
    return rows, columns


def nearest(things: Sequence[Thing], origin: Array, directions: Array) -> tuple[Array, NDArray[np.intp]]:
    """Return how far along each ray (3, N) the first thing is, infinity for none; and which, -1 for none."""
    distance = np.full(directions.shape[1], np.inf)
    which = np.full(directions.shape[1], -1)
    squares = np.einsum("in,in->n", directions, directions)
    for number, thing in enumerate(things):
        offset = thing.centre - origin
        along = offset @ directions
        near = np.flatnonzero((along > 0) & (along * along > (offset @ offset - thing.reach**2) * squares))
        enter = _enter(thing, origin, directions[:, near])
        closer = enter < distance[near]
        distance[near[closer]] = enter[closer]
        which[near[closer]] = number
    return distance, which


def _enter(thing: Thing, origin: Array, directions: Array) -> Array:
    """Return how far along each ray a thing begins; infinity where it is missed."""
    turn = _turn(thing)
    start = turn @ (origin - thing.centre) / thing.radius
    along = turn @ directions / thing.radius
    if thing.shape == "sphere":
        spans = [_round(start, along)]
    elif thing.shape == "cylinder":
        spans = [_round(start[:2], along[:2]), _slab(start[2], along[2])]
    else:
        spans = [_slab(start[axis], along[axis]) for axis in range(3)]
    enter, leave = spans[0]
    for begin, end in spans[1:]:
        enter, leave = np.maximum(enter, begin), np.minimum(leave, end)
    return np.where((enter < leave) & (enter > 0), enter, np.inf)


def _turn(thing: Thing) -> Array:
    """The rotation from the world's axes to the thing's."""
    cosine, sine = np.cos(thing.turn), np.sin(thing.turn)
    return np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])


def _round(start: Array, along: Array) -> tuple[Array, Array]:
    """Where rays enter and leave the unit sphere, or the unit circle of two coordinates."""
    square, product = np.einsum("in,in->n", along, along), start @ along
    under = product * product - square * (start @ start - 1)
    root = np.sqrt(np.maximum(under, 0))
    missed = under <= 0
    return np.where(missed, np.inf, (-product - root) / square), np.where(missed, -np.inf, (root - product) / square)


def _slab(start: float, along: Array) -> tuple[Array, Array]:
    """Where rays enter and leave the space between -1 and 1 of one coordinate."""
    slope = np.where(along == 0, 1e-12, along)
    one, other = (-1 - start) / slope, (1 - start) / slope
    return np.minimum(one, other), np.maximum(one, other)


def _normals(thing: Thing, points: Array) -> Array:
    """Return unit normals (3, N) at points (3, N) of a thing's surface."""
    turn = _turn(thing)
    local = turn @ (points - thing.centre[:, None]) / thing.radius
    if thing.shape == "cube":
        axis = np.abs(local).argmax(axis=0)
        local = np.where(np.arange(3)[:, None] == axis, np.sign(local), 0)
    elif thing.shape == "cylinder":
        lid = np.abs(local[2]) > np.hypot(local[0], local[1])
        local = np.where(lid, [[0], [0], [1]] * np.sign(local[2]), local * [[1], [1], [0]])
    normals: Array = turn.T @ (local / np.linalg.norm(local, axis=0))
    return normals


def visible(world: World) -> bool:
    """Whether each object shows at least the least share of the picture."""
    height, width = COARSE
    _, which = nearest(world.things, world.camera.position, rays(world.camera, *centres(height, width), height, width))
    shown = np.bincount(which + 1, minlength=len(world.things) + 1)[1:]
    return bool((shown >= LEAST_PIXELS * height * width).all())


def render(world: World, spots: Array, height: int, width: int) -> Array:
    """Return the picture (height, width, 3), about 0 to 1; pixels at edges are sampled four times more.

    Args:
        spots: (S, 6), flat marks on the ground: position, radius, colour in 0..1.
    """
    rows, columns = centres(height, width)
    colours = _trace(world, spots, rays(world.camera, rows, columns, height, width))
    picture = colours.reshape(3, height, width)
    edge = np.zeros((height, width), dtype=bool)
    for axis in (1, 2):
        step = np.abs(np.diff(picture, axis=axis)).max(axis=0) > EDGE
        edge |= np.insert(step, 0, False, axis=axis - 1) | np.insert(step, step.shape[axis - 1], False, axis=axis - 1)
    chosen = np.flatnonzero(edge)
    if len(chosen):
        some_rows, some_columns = (values[chosen] + SUBPIXELS.T[k][:, None] for k, values in enumerate((rows, columns)))
        samples = _trace(world, spots, rays(world.camera, some_rows.ravel(), some_columns.ravel(), height, width))
        colours[:, chosen] = samples.reshape(3, len(SUBPIXELS), -1).mean(axis=1)
    return np.moveaxis(picture, 0, -1)


def _trace(world: World, spots: Array, directions: Array) -> Array:
    """Return the colours (3, N) that rays from the camera see."""
    origin = world.camera.position
    distance, which = nearest(world.things, origin, directions)
    ground = which < 0
    distance[ground] = origin[2] / np.maximum(-directions[2, ground], FLATTEST)
    points = origin[:, None] + distance * directions
    normals = np.repeat([[0.0], [0.0], [1.0]], directions.shape[1], axis=1)
    albedo = np.repeat(GROUND[:, None], directions.shape[1], axis=1)
    albedo[:, ground] = _painted(spots, points[:2, ground], albedo[:, ground])
    for number, thing in enumerate(world.things):
        mine = np.flatnonzero(which == number)
        normals[:, mine] = _normals(thing, points[:, mine])
        albedo[:, mine] = (np.array(COLOURS[thing.colour]) / 255)[:, None]
    metal = np.array([thing.material == "metal" for thing in world.things] + [False])[which]
    views = directions / np.linalg.norm(directions, axis=0)
    return _shade(world, points, normals, albedo, metal, views)


def _painted(spots: Array, places: Array, albedo: Array) -> Array:
    """Return the ground's colours (3, N) at places (2, N) with the spots on it, the last on top."""
    for x, y, radius, *colour in spots:
        inside = (places[0] - x) ** 2 + (places[1] - y) ** 2 < radius * radius
        albedo = np.where(inside, np.array(colour)[:, None], albedo)
    return albedo


def _shade(world: World, points: Array, normals: Array, albedo: Array, metal: Mask, views: Array) -> Array:
    """Return the light (3, N) from surfaces: ambient, diffuse and a highlight of each lamp, and on metal the sky."""
    diffuse = np.full(points.shape[1], AMBIENT)
    gloss = np.zeros(points.shape[1])
    mirrored = views - 2 * np.einsum("in,in->n", views, normals) * normals
    strength, exponent = (np.where(metal, *(GLOSS[name][part] for name in ("metal", "rubber"))) for part in (0, 1))
    solid = np.flatnonzero(points[2] > NEAR)
    for lamp, power in zip(world.lamps, POWERS, strict=True):
        away = points - lamp[:, None]
        square = np.einsum("in,in->n", away, away)
        facing = -np.einsum("in,in->n", away, normals)
        arriving = np.where(facing > 0, power / (square + BREADTH), 0)
        lit = np.flatnonzero(arriving)
        hit, _ = nearest(world.things, lamp, away[:, lit])
        arriving[lit[hit < 1 - NEAR]] = 0
        diffuse += arriving * facing / np.sqrt(square)
        toward = -np.einsum("in,in->n", away[:, solid], mirrored[:, solid]) / np.sqrt(square[solid])
        gloss[solid] += (arriving[solid] > 0) * strength[solid] * np.maximum(toward, 0) ** exponent[solid]
    sky = 0.25 + 0.5 * np.maximum(mirrored[2], 0)
    light = np.where(metal, DIFFUSE["metal"] * diffuse + MIRROR["metal"] * sky, DIFFUSE["rubber"] * diffuse)
    return albedo * light + gloss
