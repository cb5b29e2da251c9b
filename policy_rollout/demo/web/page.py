"""The page: the desk, and questions about images. Imports gradio."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from common.html import render
from common.image_grid import image_url
from policy_rollout.calvin.instructions import validation_instruction
from policy_rollout.demo.persistent_desk import attempt_of
from policy_rollout.demo.web.answers import TextModel
from policy_rollout.demo.web.play import Play, PredictingPolicy, SharedModel, Start, View
from policy_rollout.demo.web.sessions import Sessions
from policy_rollout.demo.web.settings import Choices
from policy_rollout.desk.layout import SCENES
from policy_rollout.text_generation.loading import sample_questions
from policy_rollout.text_generation.trace import Step

FOLDER = Path(__file__).parent
TITLE = "BlockDiff-VLA on the desk"
JPEG_QUALITY = 90
SAMPLES = 12
"""Bundled images to ask about."""
SECONDS_PER_FORWARD = 0.1
"""Least time for which the page shows each forward of an answer: small models are too fast to follow."""
SPEEDS = [("1×", 1.0), ("½×", 0.5), ("¼×", 0.25)]
"""Of the robot's own speed."""
WAYS = {"ar": "next token (ar)", "mdm": "masked diffusion (mdm)", "bd": "block diffusion (bd)"}
NO_TEXT_MODEL = """\
No text model is given. `make compare` trains one for each text objective in minutes; then start the page with

    python -m policy_rollout.demo --web \\
        --text-models ar=results/runs/ar_seed0,mdm=results/runs/mdm_seed0,bd=results/runs/bd_seed0"""


def make_page(
    sessions: Sessions, model: SharedModel, text_models: Mapping[str, TextModel], choices: Choices
) -> gr.Blocks:
    """Return the page. Each browser page has its own play of ``sessions``, by gradio's session hash."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.Markdown(f"## {TITLE}\nModel: `{choices.model}`")
        with gr.Tab("Act"):
            _desk_tab(page, sessions, model, choices)
        with gr.Tab("Ask"):
            if text_models:
                _text_tab(text_models)
            else:
                gr.Markdown(NO_TEXT_MODEL)

        def leave(request: gr.Request) -> None:
            sessions.close(_key(request))

        page.unload(leave)
    return page


def _key(request: gr.Request) -> str:
    return str(request.session_hash)


def _view_html(view: View, model: SharedModel) -> str:
    policy = model.policy
    predicted = None if view.predicted is None else image_url(view.predicted, JPEG_QUALITY)
    predicts = isinstance(policy, PredictingPolicy)
    values = {"image": image_url(view.image, JPEG_QUALITY), "predicted": predicted, "predicts": predicts}
    return render(FOLDER / "view.html.j2", view=view, ahead=policy.act_step, **values)


def _instruction(text: str) -> str:
    """Return the instruction that was typed. Raises ``gr.Error`` if there is none."""
    if not text or not text.strip():
        raise gr.Error("The instruction is empty.", print_exception=False)
    return text.strip()


def _desk_tab(page: gr.Blocks, sessions: Sessions, model: SharedModel, choices: Choices) -> None:
    def play_of(request: gr.Request) -> Play:
        try:
            return sessions.get(_key(request))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def watch(play: Play) -> Iterator[str]:
        yield from (_view_html(view, model) for view in play.watch())
        if not play.alive:
            raise gr.Error("The desk ended with an error; the terminal has its text.", print_exception=False)

    def start(text: str, speed: float, scene: str, seed: float | None, request: gr.Request) -> Iterator[str]:
        attempt, play = attempt_of(_instruction(text)), play_of(request)
        play.speed = speed
        play.act(attempt, Start(scene, max(0, int(seed or 0)), attempt.closest_task))
        yield from watch(play)

    def instruct(text: str, speed: float, request: gr.Request) -> Iterator[str]:
        attempt, play = attempt_of(_instruction(text)), play_of(request)
        play.speed = speed
        play.act(attempt)
        yield from watch(play)

    def stop(request: gr.Request) -> None:
        play_of(request).stop()

    def show(request: gr.Request) -> str:
        return _view_html(play_of(request).view, model)

    with gr.Row():
        with gr.Column(scale=3):
            stage = gr.HTML(elem_id="stage")
        with gr.Column(scale=1, min_width=280):
            pairs = [(validation_instruction(task), validation_instruction(task)) for task in choices.tasks]
            task = gr.Dropdown(pairs, value=pairs[0][1], label="Task", elem_id="task")
            text = gr.Textbox(choices.instruction, label="Instruction", elem_id="instruction")
            begin = gr.Button("Start", variant="primary", elem_id="start")
            change = gr.Button("New instruction now", elem_id="instruct")
            end = gr.Button("Stop", variant="stop", elem_id="stop")
            speed = gr.Radio(SPEEDS, value=SPEEDS[-1][1], label="Speed", elem_id="speed")
            with gr.Row():
                scene = gr.Dropdown(list(SCENES), value=choices.scene, label="Scene", min_width=80)
                seed = gr.Number(choices.seed, label="Seed", precision=0, minimum=0, min_width=80)
            gr.Markdown(
                "The instruction is a task's name or any sentence. *Start* draws a random state of scene and seed in "
                "which the task is feasible. *New instruction now* keeps the state, also while the model acts."
            )
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    acting: dict[str, Any] = {**quiet, "concurrency_limit": None, "trigger_mode": "multiple"}
    task.input(lambda chosen: chosen, task, text, **quiet)
    gr.on([begin.click], start, [text, speed, scene, seed], stage, **acting)
    gr.on([change.click, text.submit], instruct, [text, speed], stage, **acting)
    end.click(stop, None, None, queue=False, **quiet)
    page.load(show, None, stage, **quiet)


def _text_tab(models: Mapping[str, TextModel]) -> None:
    samples = sample_questions(SAMPLES)

    def choose(event: gr.SelectData) -> tuple[int, str]:
        return event.index, samples[event.index][1]

    def ask(objective: str, number: int, question: str) -> Iterator[str]:
        if not question or not question.strip():
            raise gr.Error("The question is empty.", print_exception=False)
        image, known, reference = samples[number]
        reference = reference if question.strip() == known else ""
        shown: dict[str, Any] = {"question": question.strip(), "reference": reference, "cost": "", "tokens": []}
        yield render(FOLDER / "answer.html.j2", step=None, **shown)
        last: Step | None = None
        try:
            for step in models[objective].answer(image, question.strip()):
                if isinstance(step, str):
                    shown["cost"] = step
                else:
                    last, shown["tokens"] = step, step.rows[0]
                yield render(FOLDER / "answer.html.j2", step=last, **shown)
                time.sleep(SECONDS_PER_FORWARD)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Row():
        with gr.Column(scale=2):
            number = gr.State(0)
            gallery = gr.Gallery(
                [str(image) for image, _, _ in samples], columns=6, height=260, allow_preview=False, selected_index=0,
                show_label=False, elem_id="images", interactive=False, buttons=[],
            )  # fmt: skip
            answer = gr.HTML(elem_id="answer")
        with gr.Column(scale=1, min_width=280):
            ways = [(WAYS[name], name) for name in models]
            objective = gr.Radio(ways, value=ways[0][1], label="Text objective", elem_id="objective")
            question = gr.Textbox(samples[0][1], label="Question", elem_id="question")
            button = gr.Button("Ask", variant="primary", elem_id="ask")
            notes = [f"Note: {model.note}." for model in models.values() if model.note]
            gr.Markdown("\n\n".join([*notes, "Every forward of the network is shown; green tokens are new."]))
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gallery.select(choose, None, [number, question], **quiet)
    asking = [button.click, question.submit]
    gr.on(asking, ask, [objective, number, question], answer, concurrency_limit=None, **quiet)
