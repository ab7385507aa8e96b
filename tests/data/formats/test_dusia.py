"""DUSIA: counts of the real files against a second count, frames cut out of a video, and lists that do not fit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from converting import convert, refused, write

from rebalance.data import dataset

WIDTH, HEIGHT = 64, 48  # of the small video


def count_again(folder: Path) -> dict[str, Counter[str]]:
    """Boxes of each split and species, by regular expressions and not by an XML reader."""
    found = {}
    texts = {path.stem: path.read_text("utf-8") for path in (folder / "cvat").glob("*.xml")}
    tracks = {
        name: re.findall(r'<track [^>]*label="([^"]*)"[^>]*>(.*?)</track>', text, re.S) for name, text in texts.items()
    }
    for split, kind in (("train", "trainkf"), ("val", "valfull"), ("test", "testfull")):
        wanted = {(line[:-8], int(line[-7:])) for line in (folder / f"lists/{kind}.txt").read_text("utf-8").split()}
        count: Counter[str] = Counter()
        for name, found_tracks in tracks.items():
            for label, body in found_tracks:
                boxes = re.findall(r'frame="(\d+)" outside="(\d)".*?ytl="([\d.]+)".*?ybr="([\d.]+)"', body)
                single = len(boxes) == 2 and boxes[1][1] == "1"
                for frame, outside, _, lower in boxes:
                    kept = outside == "0" and single == (split != "train") and float(lower) > 540
                    count[label.lower()] += kept and (name, int(frame)) in wanted
        found[split] = count
    return found


def test_counts_of_the_real_files(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "dusia"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    made = convert("dusia", tmp_path, source=folder)
    again = count_again(folder)
    for split, count in again.items():
        told = made.manifest["splits"][split]
        assert told["classes"] == {name: count[name] for name in made.names}
        lines = [path.read_text("utf-8").splitlines() for path in (made.folder / f"labels/{split}").glob("*.txt")]
        assert Counter(made.names[int(line.split()[0])] for file in lines for line in file) == +Counter(told["classes"])
    assert [made.manifest["splits"][split]["images"] for split in again] == [510, 112, 236]
    assert [made.manifest["splits"][split]["boxes"] for split in again] == [728, 543, 956]
    assert len(made.manifest["missing"]) == 858  # the videos are not here
    source = dataset.load(made.folder / "data.yaml")
    assert len(source.names) == 10


def xml(*tracks: str, width: int = WIDTH) -> str:
    size = f"<original_size><width>{width}</width><height>{HEIGHT}</height></original_size>"
    return f"<annotations><meta><task>{size}</task></meta>{''.join(tracks)}</annotations>"


def track(label: str, *boxes: str) -> str:
    return f'<track id="0" label="{label}">{"".join(boxes)}</track>'


def shot(label: str, frame: int, *corners: float) -> str:
    """A shape: a box that is gone on the next frame."""
    return track(label, box(frame, *corners), box(frame + 1, *corners, outside=1))


def box(frame: int, *corners: float, outside: int = 0) -> str:
    left, top, right, bottom = corners
    return f'<box frame="{frame}" outside="{outside}" xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}"></box>'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A video of 30 frames, whose lower half is as bright as the number of the frame says, and its annotations."""
    folder = tmp_path / "dusia"
    folder.mkdir()
    video = cv2.VideoWriter(str(folder / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    assert video.isOpened()
    for number in range(30):
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        image[HEIGHT // 2 :] = 8 * number
        video.write(image)
    video.release()
    write(folder / "trainkf.txt", "film_0000003\nfilm_0000005\nfilm_0000007\n")
    write(folder / "valfull.txt", "film_0000020\n")
    write(folder / "testfull.txt", "film_0000021\nfilm_0000022\n")
    long = track("Squat lobster", *(box(n, n, 20, n + 10, 34) for n in range(2, 23)), box(23, 0, 0, 9, 40, outside=1))
    high = track("Basket star", *(box(n, 0, 0, 10, 24) for n in range(5, 9)))
    write(
        folder / "film.xml",
        xml(long, high, shot("UI laced sponge", 20, 8, 30, 24, 48), shot("UI laced sponge", 3, 1, 30, 9, 40)),
    )
    return folder


def test_training_has_tracks_and_the_others_have_shapes_of_the_lower_half(source: Path, tmp_path: Path) -> None:
    made = convert("dusia", tmp_path, source=source)
    half = HEIGHT / 2
    assert made.boxes("train/film_0000003.jpg", WIDTH, half) == [("squat lobster", 3, 0, 13, 10)]
    assert made.boxes("val/film_0000020.jpg", WIDTH, half) == [("ui laced sponge", 8, 6, 24, 24)]
    assert made.boxes("test/film_0000021.jpg", WIDTH, half) == []  # looked at, nothing there
    assert made.manifest["left_out"] == {"boxes above the cut": 2}


def test_frames_are_the_right_ones_without_their_upper_half(source: Path, tmp_path: Path) -> None:
    made = convert("dusia", tmp_path, source=source)
    for split, number in (("train", 3), ("train", 7), ("val", 20), ("test", 22)):
        image = cv2.imread(str(made.folder / f"images/{split}/film_{number:07d}.jpg"))
        assert image.shape == (HEIGHT // 2, WIDTH, 3)
        assert abs(float(image[4:].mean()) - 8 * number) < 3
    assert made.manifest["missing"] == []
    assert (made.folder / "preview.jpg").is_file()


def test_without_its_video_a_frame_is_listed_and_its_labels_are_there(source: Path, tmp_path: Path) -> None:
    (source / "film.avi").unlink()
    made = convert("dusia", tmp_path, source=source)
    assert len(made.manifest["missing"]) == 6
    assert made.boxes("train/film_0000003.jpg", WIDTH, HEIGHT / 2) == [("squat lobster", 3, 0, 13, 10)]
    assert not (made.folder / "images/train").joinpath("film_0000003.jpg").exists()


def test_a_killed_run_is_continued(source: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from rebalance.data.formats import video\n"
        "from rebalance.cli.main import main\n"
        "save, left = video._save, [4]\n"
        "def die(image, path):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    save(image, path)\n"
        "video._save = die\n"
        f"main(['convert', 'dusia', 'source={source}', 'out={tmp_path / 'out'}'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out").exists()
    [partial] = tmp_path.glob(".out.*.partial")
    kept = {path.name: path.stat().st_ino for path in partial.rglob("*.jpg")}
    assert len(kept) == 3
    (partial / "images/train/stale.jpg").write_bytes(b"")
    made = convert("dusia", tmp_path, source=source)
    assert not partial.exists()
    assert len(made.images()) == 6
    now = {path.name: path.stat().st_ino for path in (made.folder / "images").rglob("*.jpg")}
    assert {name: now[name] for name in kept} == kept  # not cut again
    whole = convert("dusia", tmp_path, out="whole", source=source)
    assert whole.manifest == {**made.manifest, "origin": whole.manifest["origin"]}


def test_frames_beyond_the_end_of_a_video_are_listed(source: Path, tmp_path: Path) -> None:
    write(source / "testfull.txt", "film_0000021\nfilm_0000031\n")
    made = convert("dusia", tmp_path, source=source)
    assert made.manifest["missing"] == ["test/film_0000031.jpg"]
    assert made.manifest["left_out"]["frames that their video does not have"] == 1


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("valfull.txt", "film_0000020\nfilm-21\n", "valfull.txt, line 2: 'film-21' is not <video>_<frame>"),
        ("valfull.txt", "film_0000003\n", "film_0000003 is named before"),
        ("valfull.txt", None, "has no valfull.txt in it"),
        ("film.xml", xml(width=1920), "film.avi is 64×48 pixels, its annotations are for 1920×48"),
        ("film.xml", xml(track("a", box(3, 9, 30, 2, 40))), "film.xml, line 1: the box ends before it begins"),
        ("film.xml", xml(track("a", '<box frame="3" outside="0"></box>')), "film.xml, line 1: <box> has no xtl="),
        ("film.xml", "<annotations></annotations>", "film.xml: <original_size>"),
        ("film.avi", "no video", "film.avi: OpenCV cannot open this video"),
    ],
)
def test_what_does_not_fit_is_named(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], file: str, text: str | None, says: str
) -> None:
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    if text is None:
        (source / file).unlink()
    else:
        write(source / file, text)
    assert says in refused("dusia", tmp_path, capfd, source=source)
