"""Run by an interpreter that has ``lerobot``: python lerobot_oracle.py {read|write} FOLDER RESULT.npz

read: what LeRobotDataset makes of a data set. write: a data set made by LeRobotDataset, and what went into it.
"""

import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def read(folder: Path) -> dict[str, np.ndarray]:
    data = LeRobotDataset("local/oracle", root=folder)
    items = [data[i] for i in range(len(data))]
    found = {
        key: np.stack([np.asarray(item[key]) for item in items])
        for key in items[0]
        if key != "task" and not isinstance(items[0][key], str)
    }
    return found | {
        "tasks": np.array([item["task"] for item in items]),
        "lengths": np.array(data.meta.episodes["length"]),
    }


def write(folder: Path) -> dict[str, np.ndarray]:
    features = {
        "observation.images.top": {"dtype": "image", "shape": (20, 24, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }
    data = LeRobotDataset.create("local/oracle", 10, features, root=folder, use_videos=False)
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (7, 7)).astype(np.float32)
    images = rng.integers(0, 256, (7, 20, 24, 3), dtype=np.uint8)
    for episode, frames in enumerate((range(4), range(4, 7))):
        for i in frames:
            data.add_frame(
                {
                    "observation.images.top": images[i],
                    "observation.state": np.zeros(8, dtype=np.float32),
                    "action": action[i],
                    "task": f"task {episode}",
                }
            )
        data.save_episode()
    data.finalize()
    return {"action": action, "pictures": images}


if __name__ == "__main__":
    made = {"read": read, "write": write}[sys.argv[1]](Path(sys.argv[2]))
    np.savez(sys.argv[3], **made)
