"""Select the graphics device of CALVIN's images.

EGL and CUDA number devices differently, and a failing EGL ends the process: it is tested in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

PROBE = """
import ctypes, json, os, sys

def cuda_numbers():
    # CUDA's number of every EGL device (EGL_EXT_device_query, EGL_NV_device_cuda); None where it has none.
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    found = [egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglQueryDeviceAttribEXT")]
    if None in found:
        return []
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(found[0])
    number = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(found[1])
    devices, count = (ctypes.c_void_p * 32)(), ctypes.c_int()
    query(32, devices, ctypes.byref(count))
    found = []
    for device in devices[: count.value]:
        value = ctypes.c_ssize_t(-1)
        found.append(value.value if number(device, 0x323A, ctypes.byref(value)) else None)
    return found

wanted, device = json.loads(sys.argv[1]), None
if wanted is not None:
    numbers = cuda_numbers()
    if wanted in numbers:
        device = numbers.index(wanted)
        os.environ["EGL_VISIBLE_DEVICES"] = str(device)
import importlib.util
import pybullet
pybullet.connect(pybullet.DIRECT, options="--width=8 --height=8")
plugin = importlib.util.find_spec("eglRenderer")
if pybullet.loadPlugin(plugin.origin, "_eglRendererPlugin") < 0:
    sys.exit("the plugin eglRenderer cannot be loaded")
pybullet.getCameraImage(8, 8)
print()
print("FOUND " + json.dumps(device), flush=True)
os._exit(0)
"""


@dataclass(frozen=True)
class Graphics:
    """The renderer. `egl` False: TinyRenderer, on the CPU. `device`: EGL's number; None: the first that works."""

    egl: bool
    vendor: str = ""
    device: int | None = None

    @property
    def name(self) -> str:
        """The name in records: images of different names differ."""
        return f"egl ({self.vendor})" if self.egl else "tiny"


def find_graphics(cuda: int | None, env: Mapping[str, str] = os.environ) -> tuple[Graphics | None, str]:
    """Return the graphics of CUDA device `cuda` (None: any), and a problem in words (empty without one).

    The graphics are None if EGL does not work.
    """
    requested = None if cuda is None or "EGL_VISIBLE_DEVICES" in env else _physical(cuda, env)
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE, json.dumps(requested)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=dict(env),
            encoding="utf-8",
        )
    except subprocess.TimeoutExpired:
        return None, "EGL did not answer within two minutes"
    lines = probe.stdout.splitlines()
    found = [line.removeprefix("FOUND ") for line in lines if line.startswith("FOUND ")]
    if not found:
        message = (probe.stderr.strip().splitlines() or lines or ["nothing"])[-1]
        return None, f"EGL does not work here (exit code {probe.returncode}: {message})"
    vendor = next((line.partition("=")[2] for line in lines if line.startswith("GL_VENDOR=")), "unknown")
    device = json.loads(found[0])
    missing = cuda is not None and device is None and "EGL_VISIBLE_DEVICES" not in env
    return Graphics(True, vendor, device), f"CUDA device {cuda} has no EGL device" if missing else ""


def _physical(cuda: int, env: Mapping[str, str]) -> int | None:
    """Return the device number without CUDA_VISIBLE_DEVICES, which EGL ignores; None if it has other names."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return cuda
    names = [name.strip() for name in visible.split(",")]
    return int(names[cuda]) if cuda < len(names) and names[cuda].isdecimal() else None
