"""Filmed chains and predicted frames, each with what became of its chain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from policy_rollout.closed_loop.interface import ChainRecord
from policy_rollout.compare import Side
from policy_rollout.reporting.markup import Html, el, join
from policy_rollout.reporting.media import IMAGES, VIDEOS, Medium, Room, media_in
from policy_rollout.reports.results import Results


def film_section(sides: Sequence[Side], room: Room) -> Html | None:
    """Every film, of several sides beside each other where they filmed the same chain."""
    found = [
        (side.name, run, medium)
        for side in sides
        for run in side.runs
        for medium in media_in(run.folder / VIDEOS, (".gif", ".mp4"))
    ]
    if not found:
        return None
    # Chain by chain, so that a page that runs out of room has whole pairs.
    found.sort(key=lambda shown: (shown[2].chain is None, shown[2].chain or 0))
    cards = []
    for chain, of_chain in groupby(found, key=lambda shown: shown[2].chain):
        films = [_film(name, run, medium, room, len(sides) > 1) for name, run, medium in of_chain]
        if len(sides) == 1:
            cards += films
        else:
            head = el("h3", "Films" if chain is None else f"Chain {chain}")
            cards.append(el("article", head, el("div", *films, class_="films")))
    kind = "cards clips pairs" if len(sides) > 1 else "cards clips"
    return join([el("h2", "Filmed chains"), el("div", *cards, class_=kind)])


def _film(name: str, run: Results, medium: Medium, room: Room, beside: bool) -> Html:
    record = next((chain for chain in run.chains if chain.index == medium.chain), None)
    outcome = medium.title if record is None else f"{record.completed} of {len(record.tasks)}"
    shown = room.show(medium, f"film of chain {medium.chain}, {name}: {outcome}")
    tasks = None if record is None else _tasks(record)
    if beside:
        return el("figure", shown, el("figcaption", f"{name}: {outcome}"), tasks)
    title = medium.title if record is None else f"Chain {record.index}: {outcome}"
    return el("article", shown, el("h3", title), tasks)


def _tasks(chain: ChainRecord) -> Html:
    rows = []
    for place, task in enumerate(chain.tasks):
        state = "done" if place < chain.completed else "failed" if place < len(chain.steps) else "never"
        steps = f"{chain.steps[place]} steps" if place < len(chain.steps) else ""
        rows.append(el("li", task.replace("_", " "), el("span", steps), class_=state))
    return el("ol", *rows, class_="tasks")


def image_section(sides: Sequence[Side], room: Room) -> Html | None:
    """What the policy saw, expected and then found."""
    cards = [
        el("article", room.show(medium, medium.title), el("p", _caption(side, sides, medium), class_="note"))
        for side in sides
        for run in side.runs
        for medium in media_in(run.folder / IMAGES, (".png",))
    ]
    if not cards:
        return None
    note = "From left to right: what the policy saw, what it expected, what it then found."
    head = [el("h2", "Predicted and true frames"), el("p", note, class_="note")]
    return join([*head, el("div", *cards, class_="cards clips frames")])


def _caption(side: Side, sides: Sequence[Side], medium: Medium) -> str:
    return f"{side.name}: {medium.title}" if len(sides) > 1 else medium.title
