"""Read the geometry of a robot description (URDF) and of its meshes, as pybullet loads them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from policy_rollout.desk.rotation import matrix_of

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Link:
    """A link at joint position 0.

    `origin` (3,), `rotation` (3, 3): its frame in the frame of the body. `axis` (3,) is the direction of its joint in
    the body's frame, `travel` the joint's upper limit in metres, `parts` the vertices (N, 3) of its collision shapes in
    the body's frame, one array for each named part of a mesh (pybullet makes each of them convex).
    """

    origin: Array
    rotation: Array
    axis: Array
    travel: float
    parts: tuple[Array, ...]

    @property
    def points(self) -> Array:
        """All vertices (N, 3) in the body's frame."""
        return np.concatenate([np.zeros((0, 3)), *self.parts])

    def local(self, points: Array) -> Array:
        """Return points (N, 3) of the body's frame in the frame of the link."""
        return np.asarray((points - self.origin) @ self.rotation)


def read_links(urdf: Path, search: Path, scale: float = 1.0) -> dict[str, Link]:
    """Return the links of a description, by name, enlarged by `scale`.

    `search`: the folder of meshes whose names are not relative to the description. Raises ``ValueError`` naming the
    file if a description or a mesh cannot be read.
    """
    try:
        root = ElementTree.parse(urdf).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise ValueError(f"{urdf} cannot be read: {error}") from error
    joints = {str(_child(joint, "child").get("link")): joint for joint in root.iter("joint")}
    elements = {str(element.get("name")): element for element in root.findall("link")}
    frames: dict[str, tuple[Array, Array]] = {}

    def frame(name: str) -> tuple[Array, Array]:
        if name not in frames:
            joint = joints.get(name)
            if joint is None:
                frames[name] = np.zeros(3), np.eye(3)
            else:
                origin, rotation = frame(str(_child(joint, "parent").get("link")))
                shift, turn = _pose(joint)
                frames[name] = origin + rotation @ shift, rotation @ turn
        return frames[name]

    links = {}
    for name, element in elements.items():
        origin, rotation = frame(name)
        joint = joints.get(name)
        direction = _vector(joint, "axis", "xyz") if joint is not None else np.zeros(3)
        limit = None if joint is None else joint.find("limit")
        travel = 0.0 if limit is None else float(limit.get("upper", 0.0))
        parts = tuple((part @ rotation.T + origin) * scale for part in _collision_parts(element, urdf, search))
        links[name] = Link(origin * scale, rotation, rotation @ direction, travel * scale, parts)
    return links


def read_box(urdf: Path, scale: float = 1.0) -> tuple[float, float, float]:
    """Return the edge lengths of a body that is one box. Raises ``ValueError`` naming the file otherwise."""
    try:
        boxes = list(ElementTree.parse(urdf).getroot().iterfind("link/collision/geometry/box"))
    except (ElementTree.ParseError, OSError) as error:
        raise ValueError(f"{urdf} cannot be read: {error}") from error
    if len(boxes) != 1:
        raise ValueError(f"{urdf} has {len(boxes)} collision boxes; a block has one")
    x, y, z = (float(v) * scale for v in boxes[0].get("size", "").split())
    return x, y, z


def read_parts(file: Path) -> list[Array]:
    """Return the vertices (N, 3) of each part of a Wavefront OBJ file, or of a binary STL file as one part.

    Raises ``ValueError`` naming the file.
    """
    try:
        if file.suffix.lower() == ".stl":
            content = file.read_bytes()
            (count,) = struct.unpack_from("<I", content, 80)
            triangles = np.frombuffer(
                content, np.dtype([("n", "<f4", 3), ("v", "<f4", (3, 3)), ("_", "<u2")]), count, 84
            )
            return [np.asarray(triangles["v"], np.float64).reshape(-1, 3)]
        parts: list[list[list[float]]] = [[]]
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("o ", "g ")):
                parts.append([])
            elif line.startswith("v "):
                parts[-1].append([float(v) for v in line.split()[1:4]])
        return [np.array(part, np.float64).reshape(-1, 3) for part in parts if part]
    except (OSError, ValueError, struct.error) as error:
        raise ValueError(f"the mesh {file} cannot be read: {error}") from error


def _collision_parts(link: ElementTree.Element, urdf: Path, search: Path) -> list[Array]:
    parts = []
    for collision in link.findall("collision"):
        shift, turn = _pose(collision)
        for mesh in collision.iter("mesh"):
            name = mesh.get("filename", "").removeprefix("package://")
            file = urdf.parent / name
            parts += [part @ turn.T + shift for part in read_parts(file if file.is_file() else search / name)]
        for box in collision.iter("box"):
            half = np.array([float(v) for v in box.get("size", "").split()]) / 2
            corners = half * (np.indices((2, 2, 2)).reshape(3, 8).T * 2 - 1)
            parts.append(corners @ turn.T + shift)
    return parts


def _pose(element: ElementTree.Element) -> tuple[Array, Array]:
    return _vector(element, "origin", "xyz"), matrix_of(_vector(element, "origin", "rpy"))


def _vector(element: ElementTree.Element, child: str, attribute: str) -> Array:
    found = element.find(child)
    text = "" if found is None else found.get(attribute, "")
    return np.array([float(v) for v in text.split()]) if text else np.zeros(3)


def _child(element: ElementTree.Element, name: str) -> ElementTree.Element:
    found = element.find(name)
    if found is None:
        raise ValueError(f"a {element.tag} of a robot description has no {name}")
    return found
