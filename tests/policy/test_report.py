"""`python -m policy_rollout.report`: an evaluation as one HTML file."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from common.image_grid import write_png
from common.statistics import Interval
from common.video import write_gif
from policy_rollout import report
from policy_rollout.closed_loop import records
from policy_rollout.closed_loop.records import merge_results
from policy_rollout.reports.html_report import BOTTOM, HEIGHT, TOP, rate_chart, steps_histogram
from policy_rollout.reports.results import read_results
from tests.policy.results_file import TASKS, drawn, write

VOID = {"meta", "img", "br", "hr", "source"}


class Page(HTMLParser):
    """Elements with their attributes, and text; fails where an element is closed that was not opened last."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + " "

    def all(self, tag: str, class_: str | None = None) -> list[dict[str, str | None]]:
        return [a for name, a in self.elements if name == tag and class_ in (None, a.get("class"))]


def film(folder: Path, chain: int, shade: int = 0) -> Path:
    file = folder / "videos" / f"chain_{chain:04d}_2_done.gif"
    write_gif(file, [np.full((8, 8, 3), shade + i, np.uint8) for i in (0, 100)])
    return file


def main(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert report.main([str(a) for a in argv]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_the_page_is_whole_and_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", drawn(0, 0.7))
    film(folder, 3)
    page = Page(report.write_report(folder))
    assert {"html", "head", "body", "main", "svg", "table", "style", "title"} <= {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, name)
    assert "url(" not in page.source
    assert "@import" not in page.source
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy


def test_its_figures_are_those_of_the_results(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", drawn(0, 0.7))
    stored = json.loads((folder / "results.json").read_text())
    text = Page(report.write_report(folder)).text
    mean = stored["average_length"]
    assert f"{mean['value']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]" in text
    for rate in [*stored["success_rates"], *stored["per_task"].values()]:
        assert f"{100 * rate['value']:.0f} % [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]" in text
    for row in stored["per_task"].values():
        assert f"of {row['tried']}" in text
    assert "checkpoint_sha256" in text
    assert "benchmark.renderer" in text


def test_what_else_the_results_tell_is_shown(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", drawn(0, 0.7))
    content = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**content, "versions": {"torch": "2.13.7"}, "wall": 12}))
    text = re.sub(r"\s+", " ", Page(report.write_report(folder)).text)
    assert "versions.torch 2.13.7" in text
    assert "wall 12" in text


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    nasty = '"><script>alert(1)</script>&amp;'
    folder = write(tmp_path / "<b>mine", drawn(0, 0.7), **{nasty: nasty, "note": {"<i>": "<u>"}})
    content = json.loads((folder / "results.json").read_text())
    for record in content["records"]:
        record["tasks"][0] = nasty
    (folder / "results.json").write_text(json.dumps(content))
    film(folder, 0).rename(folder / "videos" / "<img src=x onerror=y>.gif")
    page = Page(report.write_report(folder))
    assert not {"script", "b", "u"} & {tag for tag, _ in page.elements}
    assert [a.get("onerror") for a in page.all("img")] == [None]
    assert nasty in page.text


def test_films_and_images_are_inside_byte_for_byte(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", drawn(0, 0.7))
    files = [film(folder, 11), film(folder, 2)]
    (folder / "videos" / "chain_0003.mp4").write_bytes(b"not really a film")
    (folder / "videos" / ".chain_0004.gif").write_bytes(b"being written")
    image = folder / "input_predict_truth" / "chain_0002_task_1_step_0010.png"
    write_png(image, np.zeros((4, 12, 3), np.uint8))
    page = Page(report.write_report(folder))
    inside = [base64.b64decode((a["src"] or "").split(",")[1]) for a in page.all("img")]
    assert inside == [files[1].read_bytes(), files[0].read_bytes(), image.read_bytes()]
    (video,) = page.all("video")
    assert (video["src"] or "").startswith("data:video/mp4;base64,")
    done = drawn(0, 0.7)[11]
    assert f"Chain 11: {done} of 5" in page.text


def test_what_does_not_fit_is_linked_and_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", drawn(0, 0.7))
    files = [film(folder, chain) for chain in range(4)]
    size = files[0].stat().st_size
    page = Page(report.write_report(folder, megabytes=2.5 * size / 1e6))
    assert len(page.all("img")) == 2
    assert [a["href"] for a in page.all("a")] == [f"videos/{file.name}" for file in files[2:]]
    assert "2 videos and images did not fit" in page.text


def test_a_missing_or_broken_result_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "results.json does not exist" in error
    with pytest.raises(FileNotFoundError):
        report.write_report(tmp_path)


def test_an_evaluation_of_one_chain_in_which_nothing_succeeded_has_a_page(tmp_path: Path) -> None:
    page = Page(report.write_report(write(tmp_path / "mine", [0])))
    assert "0.00 [0.00, 3.97]" in page.text, "one chain proves little"
    assert "nan" not in page.source


def test_several_evaluations_are_compared_and_their_films_paired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ar, bd = write(tmp_path / "ar", drawn(0, 0.5)), write(tmp_path / "bd", drawn(1, 0.9), checkpoint_sha256="b" * 64)
    for chain in (1, 4):
        film(ar, chain, 1), film(bd, chain, 9)
    last = main(capsys, ar, bd)
    assert last.startswith(f"written to {ar / 'comparison.html'} (0.")
    page = Page(ar / "comparison.html")
    assert "bd is better than ar by " in page.text
    films = [base64.b64decode((a["src"] or "").split(",")[1]) for a in page.all("img")]
    wanted = [next(folder.glob(f"videos/*{chain:04d}*")).read_bytes() for chain in (1, 4) for folder in (ar, bd)]
    assert films == wanted
    assert len(page.all("div", "s1")) == len(TASKS)  # the second has a colour in every row and chart
    charts = re.findall(r"<figure><figcaption>.*?</figure>", page.source, re.DOTALL)
    assert len(charts) == 4
    assert all("var(--s0)" in chart and "var(--s1)" in chart for chart in charts)
    write(tmp_path / "short", drawn(1, 0.9, 10))
    assert report.main([str(ar), str(tmp_path / "short")]) == 2
    assert report.main([str(ar), str(tmp_path / "short"), "--common", "--output", str(tmp_path / "x.html")]) == 0


# --- charts ----------------------------------------------------------------------------------------------------------


def test_a_rate_is_drawn_at_its_height_with_its_interval() -> None:
    rates = [Interval(0.9, 0.8, 0.95), Interval(float("nan"), 0, 1), Interval(0.25, 0.1, 0.4)]
    chart = rate_chart({"mine": rates}, ["1", "2", "3"], "title")
    zero, one = HEIGHT - BOTTOM, TOP
    assert one < zero < HEIGHT  # up is more

    def height(rate: float) -> float:
        return zero + rate * (one - zero)

    dots = re.findall(r"<title>mine: ([\d.]+) % [^<]*</title>.*?<use [^>]* y=\"([\d.]+)\"", chart, re.DOTALL)
    assert [float(rate) for rate, _ in dots] == [90, 25]
    assert [float(y) for _, y in dots] == pytest.approx([height(0.9), height(0.25)], abs=0.01)
    lines = [
        re.findall(r"[ML] [\d.]+ ([\d.]+)", path) for path in re.findall(r'<path d="([^"]*)" style="fill: none', chart)
    ]
    drawn = [pytest.approx([float(y) for y in line], abs=0.01) for line in lines]
    for low, high in ((0.8, 0.95), (0.1, 0.4), (0.9, 0.25)):  # intervals, and the line between the points
        assert [height(low), height(high)] in drawn
    assert chart == rate_chart({"mine": rates}, ["1", "2", "3"], "title")


def test_every_try_is_in_the_histogram_of_steps_once() -> None:
    tries = [(True, 1), (True, 20), (True, 21), (True, 360), (False, 360), (False, 360)]
    drawing = steps_histogram({"mine": tries}, 360, "title")
    told = dict(re.findall(r"<title>mine, ([\w ]+) steps: ([\d.]+) %</title>", drawing))
    assert len(told) == 19
    shown = {place: float(share) for place, share in told.items() if share != "0.0"}
    assert shown == pytest.approx({"20": 33.3, "40": 16.7, "360": 16.7, "not done": 33.3})


def test_instructions_that_were_cut_are_shown_in_report_comparison_and_merged_results(tmp_path: Path) -> None:
    mine, other = write(tmp_path / "mine", drawn(0, 0.7)), write(tmp_path / "other", drawn(1, 0.7))
    file = mine / "results.json"
    told = {"act_step": 10, "cut_instructions": ["push the <red> block far to the left"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "policy_from": told}), encoding="utf-8")
    note = "1 instructions cut to dataset.preprocessing.max_seq_length, such as 'push the <red> block far to the left'"
    assert note in Page(report.write_report(mine)).text
    assert "cut to" not in Page(report.write_report(other)).text
    report.main([str(mine), str(other), "--output", str(tmp_path / "both.html"), "--anyway"])
    assert note in Page(tmp_path / "both.html").text
    for folder in (mine, other):
        records.claim(folder, json.loads(file.read_text())["settings"])
        for row in json.loads((folder / "results.json").read_text())["records"][:3] if folder is mine else ():
            records.append(folder, "one", records.chain_of(row))
    merge_results([mine, other], tmp_path / "all")
    assert json.loads((tmp_path / "all" / "results.json").read_text())["policy_from"] == told


def test_the_title_states_environment_policy_step_limit_and_date(tmp_path: Path) -> None:
    for name, settings, environment, limit in (
        ("a", {}, "Desk, scene D (not CALVIN)", "360 control steps per task"),
        ("b", {"ep_len": 60}, "Desk, scene D (not CALVIN)", "60 control steps per task, not CALVIN's 360"),
        ("c", {"benchmark": {"name": "calvin"}}, "CALVIN simulator", "360 control steps per task"),
        ("d", {"benchmark": None, "ep_len": None}, "Environment not recorded", "step limit not recorded"),
    ):
        folder = write(tmp_path / name, [1, 2], **settings)
        file = folder / "results.json"
        content = json.loads(file.read_text())
        today = content["date"]
        file.write_text(json.dumps({**content, "policy_from": {"checkpoint": f"/runs/{name}/checkpoint-7"}}))
        stated = f"policy {name}/checkpoint-7 · {limit} · 2 chains · {today}"
        source = html.unescape(Page(report.write_report(folder)).source)
        assert f"<title>{environment} · {stated}</title>" in source
        assert f"<h1>{environment}\n<small>{stated}</small>" in source


def test_without_a_date_in_the_results_it_is_that_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, [1]) / "results.json"
    content = json.loads(file.read_text())
    del content["date"]
    file.write_text(json.dumps(content))
    os.utime(file, (0, 0))
    assert read_results(tmp_path).date == datetime.fromtimestamp(0).strftime("%Y-%m-%d")


def test_few_chains_have_no_charts_and_the_page_states_the_number(tmp_path: Path) -> None:
    few, many, none = ([1, 0, 2] * 6, [1, 0, 2] * 7, [0] * 30)
    pages = [Page(report.write_report(write(tmp_path / str(len(done)), done))) for done in (few, many, none)]
    assert [len(page.all("figure")) for page in pages] == [0, 4, 0]
    told = "Charts are left out below 20 chains, and if no task was done."
    assert [told in page.text for page in pages] == [True, False, True]


def test_the_error_of_predicted_frames_stands_beside_that_of_the_present_frame(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", drawn(0, 0.7))
    images = folder / "input_predict_truth"
    for chain, errors in ((0, [(10.0, 4.0), (20.0, 2.0)]), (1, [(30.0, 6.0)])):
        write_png(images / f"chain_{chain:04d}_task_1.png", np.zeros((4, 12, 3), np.uint8))
        rows = [{"step": 5, "predicted": predicted, "present": present} for predicted, present in errors]
        (images / f"chain_{chain:04d}_task_1.json").write_text(json.dumps({"act_step": 10, "errors": rows}))
    write_png(images / "chain_0002_task_1.png", np.zeros((4, 12, 3), np.uint8))  # of an earlier version
    text = Page(report.write_report(folder)).text
    line = "mean pixel error: prediction 20.0, copy of the present frame 4.0 of 255"
    assert f"3 frames of the static camera: {line}." in text
