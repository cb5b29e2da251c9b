"""Instructions: several phrasings of every task, in this project's own words.

Demonstrations are annotated with `TRAINING`; `HELD_OUT` has other phrasings, to measure how success depends on the
wording. No instruction is of two tasks. CALVIN's own instructions come from its validation annotations.
"""

from __future__ import annotations

import re

from policy_rollout.calvin.tasks import COLOURS, TASK_NAMES

Phrases = tuple[str, ...]
Pair = tuple[Phrases, Phrases]  # (training, held out)

# {c}: colour, {s}: side, {t}: direction of a rotation.
_ROTATE: Pair = (
    (
        "turn the {c} block to the {s}",
        "twist the {c} block {t}",
        "spin the {c} block around to the {s}",
        "give the {c} block a turn {t}",
        "make the {c} block face further {s}",
        "hold the {c} block and turn it {t}",
        "swivel the {c} block toward the {s}",
        "turn the {c} block {t} where it lies",
        "reorient the {c} block with a turn to the {s}",
    ),
    (
        "rotate {t} the block that is {c}",
        "the {c} block should point more to the {s}",
        "grip the {c} one and wind it {t}",
        "a quarter turn {t} for the {c} block, please",
    ),
)
_PUSH: Pair = (
    (
        "shove the {c} block to the {s}",
        "nudge the {c} block over to the {s}",
        "move the {c} block across the table to the {s}",
        "push the {c} block so it ends up further {s}",
        "bring the {c} block more to the {s}",
        "drive the {c} block {s}ward on the table",
        "with the gripper, sweep the {c} block to the {s}",
        "press against the {c} block until it has moved {s}",
        "let the {c} block travel to the {s}",
    ),
    (
        "shift the {c} block {s} without lifting it",
        "the {c} block belongs further to the {s}",
        "scoot the {c} one along the surface to the {s}",
        "glide the block that is {c} over to the {s} side",
    ),
)
_LIFT_TABLE: Pair = (
    (
        "pick the {c} block up off the table",
        "take the {c} block from the tabletop",
        "raise the {c} block above the table",
        "grab the {c} block lying on the table",
        "get hold of the {c} block on the table and raise it",
        "lift up the {c} block that lies on the table",
        "close the gripper on the {c} block and bring it up from the table",
        "collect the {c} block from the top of the table",
        "hoist the {c} block away from the table",
    ),
    (
        "fetch the {c} block that is on the table",
        "the {c} block should leave the table and hang in the gripper",
        "seize the {c} one on the desk surface and hold it in the air",
    ),
)
_LIFT_SLIDER: Pair = (
    (
        "pick the {c} block up inside the cabinet",
        "take the {c} block out of the sliding cabinet",
        "raise the {c} block that stands in the cabinet",
        "grab the {c} block behind the sliding door",
        "reach into the cabinet and lift the {c} block",
        "get the {c} block off the cabinet floor",
        "close the gripper on the {c} block in the cabinet and bring it up",
        "collect the {c} block from the compartment of the slider",
        "hoist the {c} block stored in the cabinet",
    ),
    (
        "fetch the {c} block that is in the cupboard",
        "the {c} block in the sliding compartment should come up with the gripper",
        "seize the {c} one next to the slider and hold it in the air",
    ),
)
_LIFT_DRAWER: Pair = (
    (
        "pick the {c} block up inside the drawer",
        "take the {c} block out of the open drawer",
        "raise the {c} block that lies in the drawer",
        "grab the {c} block at the bottom of the drawer",
        "reach into the drawer and lift the {c} block",
        "get the {c} block off the drawer floor",
        "close the gripper on the {c} block in the drawer and bring it up",
        "collect the {c} block from the drawer",
        "hoist the {c} block stored in the drawer",
    ),
    (
        "fetch the {c} block that was put in the drawer",
        "the {c} block should leave the drawer with the gripper",
        "seize the {c} one in the pulled out tray and hold it in the air",
    ),
)
_SLIDER: Pair = (
    (
        "slide the door to the {s}",
        "shift the sliding door over to the {s}",
        "move the cabinet door {s}ward",
        "pull the door handle to the {s}",
        "take the handle of the slider and bring it {s}",
        "shove the cabinet door to the {s}",
        "let the sliding door run to the {s}",
        "bring the slider to the {s} end",
        "draw the cabinet's door across to the {s}",
    ),
    (
        "the sliding panel belongs on the {s}",
        "uncover the other compartment by taking the door {s}",
        "glide the panel of the cabinet to its {s} stop",
    ),
)
_LIGHT: Pair = (  # {l} the light, {d} what works it, {o} on or off; {w} and {e} the way to do it
    (
        "switch {o} the {l}",
        "switch the {l} {o}",
        "make the {l} go {o}",
        "{w} so that the {l} goes {o}",
        "turn the {l} {o} now",
        "get the {l} to turn {o}",
        "use the {d} and turn the {l} {o}",
        "reach for the {d} to put the {l} {o}",
        "the {d} controls the {l}: set it to {o}",
    ),
    (
        "I want the {l} {o}",
        "{e} until the {l} is {o}",
        "please see to it that the {l} is {o}",
    ),
)

_SINGLE: dict[str, Pair] = {
    "open_drawer": (
        (
            "pull the drawer open",
            "draw the drawer out",
            "pull out the drawer by its handle",
            "take the drawer handle and pull it toward you",
            "slide the drawer out of the desk",
            "open up the drawer below the table",
            "get the drawer open",
            "bring the drawer all the way out",
            "hook the drawer's handle and draw it out",
        ),
        (
            "I need to get at what is in the drawer",
            "extend the tray under the tabletop",
            "tug on the lower handle until the drawer is out",
        ),
    ),
    "close_drawer": (
        (
            "push the drawer shut",
            "shut the drawer",
            "slide the drawer back in",
            "push the drawer back into the desk",
            "bring the drawer in until it is closed",
            "press on the front of the drawer to shut it",
            "get the drawer closed",
            "put the drawer back under the table",
            "shove the drawer all the way in",
        ),
        (
            "the drawer should not stay out",
            "retract the tray under the tabletop",
            "make the drawer disappear below the desk again",
        ),
    ),
    "place_in_slider": (
        (
            "put the block you hold into the cabinet",
            "set the held block down in the cabinet",
            "lay the block in your gripper inside the sliding cabinet",
            "place what you are holding behind the sliding door's opening",
            "drop the block off in the cabinet",
            "let go of the block inside the cabinet",
            "leave the held block in the compartment of the slider",
            "bring the block in the gripper to the cabinet and release it",
            "stow the block in the cabinet",
        ),
        (
            "the block in the hand belongs in the cupboard",
            "deposit what you carry in the sliding compartment",
            "park the carried block next to the slider",
        ),
    ),
    "place_in_drawer": (
        (
            "put the block you hold into the drawer",
            "set the held block down in the drawer",
            "lay the block in your gripper inside the drawer",
            "place what you are holding in the open drawer",
            "drop the block off in the drawer",
            "let go of the block above the drawer",
            "leave the held block in the drawer",
            "bring the block in the gripper to the drawer and release it",
            "stow the block in the drawer",
        ),
        (
            "the block in the hand belongs in the tray below",
            "deposit what you carry in the drawer",
            "park the carried block inside the pulled out drawer",
        ),
    ),
    "push_into_drawer": (
        (
            "push the block over the edge into the drawer",
            "sweep the block off the table into the drawer",
            "shove the block until it drops into the drawer",
            "knock the block from the table into the open drawer",
            "move the block on the table so that it tumbles into the drawer",
            "nudge the block into the drawer without picking it up",
            "drive the block off the tabletop and into the drawer",
            "press against the block until it lands in the drawer",
            "brush the block down into the drawer",
        ),
        (
            "let the block on the desk topple into the tray",
            "scoot the block over the rim so it ends in the drawer",
            "without grasping, get the block from the tabletop down into the drawer",
        ),
    ),
    "stack_block": (
        (
            "put the block you hold on top of another block",
            "set the held block down on another block",
            "build a tower with the block in your gripper",
            "place what you are holding onto a second block",
            "lay the block in the gripper on top of one on the table",
            "make a stack out of the block you hold and another one",
            "balance the held block on another block",
            "release the block when it sits on another block",
            "pile the held block onto one of the others",
        ),
        (
            "the block in the hand should end up above its neighbour, resting on it",
            "use the carried block as the second floor of a tower",
            "deposit what you carry on a different block",
        ),
    ),
    "unstack_block": (
        (
            "take the upper block off the lower one",
            "take the tower of blocks apart",
            "pick the top block off the stack",
            "get the block on top down from the other block",
            "separate the two blocks that sit on each other",
            "clear the block that is on top of the stack",
            "knock the upper block off the stack",
            "pull the top block away from the one below it",
            "undo the stack of blocks",
        ),
        (
            "no block should rest on another any more",
            "dismantle the pile",
            "free the bottom block from the one above it",
        ),
    ),
}


def _fill(pair: Pair, **words: str) -> Pair:
    training, held_out = (tuple(phrase.format(**words) for phrase in phrases) for phrases in pair)
    return training, held_out


def _all() -> dict[str, Pair]:
    pairs = dict(_SINGLE)
    rotations = {"left": "counterclockwise", "right": "clockwise"}
    for colour in COLOURS:
        for side, rotation in rotations.items():
            pairs[f"rotate_{colour}_block_{side}"] = _fill(_ROTATE, c=colour, s=side, t=rotation)
            pairs[f"push_{colour}_block_{side}"] = _fill(_PUSH, c=colour, s=side)
        for place, pair in (("table", _LIFT_TABLE), ("slider", _LIFT_SLIDER), ("drawer", _LIFT_DRAWER)):
            pairs[f"lift_{colour}_block_{place}"] = _fill(pair, c=colour)
    for side in rotations:
        pairs[f"move_slider_{side}"] = _fill(_SLIDER, s=side)
    for state, lever in (("on", "move the lever up"), ("off", "move the lever down")):
        pairs[f"turn_{state}_lightbulb"] = _fill(
            _LIGHT, o=state, l="yellow lamp", d="switch lever", w=lever, e="work the lever"
        )
        pairs[f"turn_{state}_led"] = _fill(
            _LIGHT, o=state, l="green light", d="push button", w="tap the button", e="work the button"
        )
    return {task: pairs[task] for task in TASK_NAMES}


TRAINING: dict[str, Phrases] = {task: pair[0] for task, pair in _all().items()}
HELD_OUT: dict[str, Phrases] = {task: pair[1] for task, pair in _all().items()}

_FILLERS = frozenset(("a", "an", "and", "it", "its", "now", "please", "that", "the", "then", "this", "to", "your"))
_MIN_OVERLAP = 0.6
"""Smallest Dice coefficient of two sets of words at which a sentence is close to a phrasing."""


def validation_instruction(task: str) -> str:
    """Return the instruction of `task` in benchmark runs: the first training phrasing."""
    if task not in TRAINING:
        raise ValueError(f"unknown task {task!r}; allowed are {', '.join(TASK_NAMES)}")
    return TRAINING[task][0]


def closest_task(sentence: str) -> str | None:
    """Return the task with the phrasing that shares the most words with ``sentence``; None if no phrasing is close."""
    given = _words(sentence)
    overlap = {
        task: max(
            _overlap(given, _words(phrase)) for phrase in (task.replace("_", " "), *TRAINING[task], *HELD_OUT[task])
        )
        for task in TASK_NAMES
    }
    best = max(overlap, key=lambda task: overlap[task])
    return best if overlap[best] >= _MIN_OVERLAP else None


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", text.lower())) - _FILLERS


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the Dice coefficient of two sets."""
    return 2 * len(one & other) / max(len(one) + len(other), 1)
