"""python -m scripts.inspect_data: every data set that we read can be looked at, in one file that needs no other."""

from __future__ import annotations

import json
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess_data.dataset_viewer.contact_sheet import moments, select_varied
from preprocess_data.dataset_viewer.sources import ConversationSource, ProcessedSource, RawSource, open_source
from preprocess_data.dataset_viewer.stats import Facts, sparkline
from scripts import inspect_data
from tests.data.builders import edit_index, processed_split, raw_split


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return raw_split(tmp_path / "X" / "training", range(10, 40), [(10, 19), (15, 30), (31, 31)])


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    folder = tmp_path / "llava"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (30, 20), "red").save(folder / "images" / "a.jpg")
    turns = [{"from": "human", "value": "<image>\nWhat is <b>this</b>?"}, {"from": "gpt", "value": "A & B\nor C."}]
    records = [{"id": 7, "image": "images/a.jpg", "conversations": turns}, {"conversations": turns}]
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(records))
    return folder


class Page(HTMLParser):
    """Checks that tags close, and collects what the page says and shows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.texts.append(data)


def inspect(path: Path, out: Path, *options: str) -> Page:
    assert inspect_data.main([str(path), "--out", str(out), *options]) == 0
    return Page(out)


def test_raw_zipped_and_processed_splits_show_the_same_episodes(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "X.zip", "w") as packed:
        for path in raw.rglob("*"):
            packed.write(path, path.relative_to(tmp_path))
    from preprocess_data import process_calvin

    process_calvin.main(["--source-split-dir", str(raw), "--output-dir", str(tmp_path / "processed")])
    shown = [open_source(path) for path in (raw, tmp_path / "X.zip" / "X" / "training", tmp_path / "processed")]
    assert [type(source) for source in shown] == [RawSource, RawSource, ProcessedSource]
    for number in range(3):
        views = [source.episode(number) for source in shown]
        assert len({(view.title, view.length, view.cameras) for view in views}) == 1
        for view in views[1:]:
            np.testing.assert_allclose(view.actions, views[0].actions, atol=1e-6)
            last = view.length - 1
            np.testing.assert_array_equal(view.image("rgb_gripper", last), views[0].image("rgb_gripper", last))
    assert "sentence 1" in capsys.readouterr().out + shown[0].episode(1).title


def test_the_page_holds_everything_and_asks_for_nothing(raw: Path, tmp_path: Path) -> None:
    page = inspect(raw, tmp_path / "page.html", "--moments", "5")
    assert "https://" not in page.source
    assert "http://" not in page.source
    addresses = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    addresses += re.findall(r"url\(([^)]{1,40})", page.source)
    assert addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    articles = [attrs for tag, attrs in page.tags if tag == "article"]
    assert len(articles) == 3
    assert articles[0]["data-times"] == "0,2,4,7,9"
    assert articles[2]["data-times"] == "0"  # an episode of one frame
    assert sum(tag == "title" for tag, _ in page.tags) == 1 + 3 * 7  # of the page, and of every curve
    assert sum((attrs.get("class") or "").startswith("film") for _, attrs in page.tags) == 6  # two cameras
    for text in ("sentence 0", "task_0 · frames 10 to 19", "3 of 3 episodes", "gripper"):
        assert text in page.texts


def test_conversations_are_shown_as_they_were_said(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = inspect(llava, tmp_path / "page.html")
    assert "What is <b>this</b>?" in page.texts  # escaped, not bold
    assert "A & B\nor C." in page.texts
    assert sum(tag == "img" for tag, _ in page.tags) == 1
    assert "1 records without an image" in capsys.readouterr().out
    assert inspect_data.main([str(llava / "llava_v1_5_mix665k.json"), "--text"]) == 0
    assert "2 records, 4 turns" in capsys.readouterr().out


def test_a_frame_that_cannot_be_shown_is_named_and_the_others_are_shown(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (raw / "episode_0000031.npz").write_bytes(b"")
    assert inspect_data.main([str(raw), "--out", str(tmp_path / "page.html")]) == 2  # its action was sampled
    assert "episode_0000031.npz cannot be read" in capsys.readouterr().err
    root = processed_split(tmp_path / "split", [4, 5])
    (root / "frame_6.npz").write_bytes(b"")
    assert inspect_data.main([str(root), "--out", str(tmp_path / "page.html"), "--moments", "5"]) == 1
    said = capsys.readouterr()
    assert "not shown: " in said.err
    assert "frame_6.npz cannot be read" in said.err
    page = Page(tmp_path / "page.html")
    assert "do thing 0" in page.texts
    assert any("frame_6.npz cannot be read" in text for text in page.texts)


def test_episodes_are_chosen_by_number_task_and_words(raw: Path, tmp_path: Path) -> None:
    titles = {"sentence 0", "sentence 1", "sentence 2"}

    def shown(*options: str) -> set[str]:
        heads = re.findall(r"<h3>(.*?)</h3>", inspect(raw, tmp_path / "page.html", *options).source)
        return titles & set(heads)

    assert shown("--episodes", "2", "0") == {"sentence 2", "sentence 0"}
    assert shown("--task", "task_1") == {"sentence 1"}
    assert shown("--search", "ENCE 2") == {"sentence 2"}
    assert len(shown("--count", "1")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--episodes", "3"), "--episodes 3: .* has 0 to 2"),
        (("--count", "0"), "--count must be at least 1"),
        (("--moments", "0"), "--moments must be at least 1"),
        (("--task", "fly"), "has no episode with --task 'fly'"),
    ],
)
def test_an_impossible_wish_is_one_line(
    raw: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert inspect_data.main([str(raw), *options]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert said.count("\n") == 1


def test_what_is_no_data_set_is_told_what_would_be(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no data set .*; did you mean .*X/training"):
        open_source(tmp_path / "X")
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        open_source(tmp_path / "nothing")


def test_facts_count_what_is_there(tmp_path: Path, llava: Path) -> None:
    root = processed_split(tmp_path / "split", [4, 5])

    def actions(episodes: list[dict[str, list[dict[str, list[float]]]]]) -> None:
        for frame in episodes[0]["frames"] + episodes[1]["frames"]:
            frame["rel_action"] = [0.5, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
        episodes[1]["frames"][0]["rel_action"][0] = 3.0

    edit_index(root, actions)
    facts = Facts.of(ProcessedSource(root))
    assert (facts.episodes, facts.moments, facts.lengths.tolist()) == (2, 9, [4, 5])
    assert facts.histogram.sum(axis=1).tolist() == [8, *[9] * 6]
    assert facts.outside.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert facts.histogram[1, 0] == facts.histogram[6, -1] == facts.histogram[2, 20] == 9
    np.testing.assert_allclose([facts.mean[0], facts.deviation[0]], [7 / 9, np.std([0.5] * 8 + [3.0])])
    assert "1 OUTSIDE" in facts.text()
    assert "2 records" in Facts.of(ConversationSource(llava)).text()
    assert sparkline(np.array([0, 1, 100])) == " ▁█"


def test_episodes_on_a_page_are_of_many_tasks_and_from_all_over(tmp_path: Path) -> None:
    raw = raw_split(tmp_path / "training", range(60), [(n, n + 1) for n in range(58)])
    source = RawSource(raw)
    chosen = select_varied(source, 10)
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen)
    tasks = [label.task for label in source.labels()]
    assert sum(tasks[number] == "task_0" for number in chosen) == 5
    assert select_varied(source, 100) == list(range(58))
    assert moments(100, 3) == [0, 50, 99] or moments(100, 3) == [0, 49, 99]
    assert moments(2, 9) == [0, 1]
