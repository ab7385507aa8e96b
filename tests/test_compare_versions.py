from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from loaded_script import load

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "compare_versions.py"


@pytest.fixture(scope="module")
def script() -> Any:
    return load("compare_versions")


def dumped(script: Any, loss: float = 1.5) -> dict[str, Any]:
    """One case as it is kept."""
    tensor = script.digest(torch.tensor([loss, -0.0]))
    return {"cases": {"a": {"text": {"loss": "brl"}, "step": {"loss": tensor}}}, "models": {}, "refusals": {"x": "no"}}


def compared(script: Any, folder: Path, first: Any, second: Any) -> int:
    files = folder / "first.pt", folder / "second.pt"
    for file, content in zip(files, (first, second), strict=True):
        torch.save(content, file)
    return int(script.compare(*files, 20))


def test_a_digest_tells_the_last_bit_but_not_the_sign_of_zero(script: Any) -> None:
    x = torch.tensor([1.0, 0.0])
    assert script.digest(x)["sha"] == script.digest(torch.tensor([1.0, -0.0]))["sha"]
    assert script.digest(x)["sha"] != script.digest(torch.nextafter(x, torch.tensor(2.0)))["sha"]


def test_the_same_is_the_same(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(script, tmp_path, dumped(script), dumped(script, 1.5)) == 0
    assert capsys.readouterr().out == "1 cases, 0 models, 1 bad inputs: numbers differ in 0, texts in 0\n"


def test_numbers_that_differ_are_told(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(script, tmp_path, dumped(script), dumped(script, 1.75)) == 1
    told = capsys.readouterr().out
    assert "numbers differ: a\n  step loss: sums 1.5 and 1.75; at most 0.25 apart in a sample\n" in told
    assert told.endswith("numbers differ in 1, texts in 0\n")


def test_texts_that_differ_are_listed_and_no_failure(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = deepcopy(dumped(script))
    other["cases"]["a"]["text"]["loss"], other["refusals"]["x"] = "focal", "never"
    assert compared(script, tmp_path, dumped(script), other) == 0
    told = capsys.readouterr().out
    assert "1 texts differ (text loss): - brl + focal\n  e.g. a\n" in told
    assert "1 texts differ (refusal): - no + never\n  e.g. rebalance x\n" in told
    assert told.endswith("numbers differ in 0, texts in 2\n")
    assert script.wording("a b b", "b a b") == "the same words in another order"
    assert script.wording("a b b", "b c") == "- a b + c"


def test_a_case_that_one_side_lacks_is_a_difference(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared(script, tmp_path, dumped(script), {"cases": {}, "models": {}, "refusals": {}}) == 1
    assert "numbers differ: a\n  only in the first\n" in capsys.readouterr().out


def test_every_case_has_a_name_of_its_own(script: Any) -> None:
    names = [case.name for case in script.cases()]
    assert len(names) > 400
    assert len(set(names)) == len(names)
    assert len(set(script.BAD_INPUT)) == len(script.BAD_INPUT)


@pytest.mark.slow
def test_a_checkout_equals_itself(script: Any, tmp_path: Path) -> None:
    files = tmp_path / "first.pt", tmp_path / "second.pt"
    for file in files:
        options = ["--tree", str(ROOT), "--out", str(file), "--only", "^(yolov8n.yaml|fasterrcnn_tiny) nc=1"]
        subprocess.run([sys.executable, "-W", "ignore", str(SCRIPT), "dump", *options], check=True)
    assert script.compare(*files, 20) == 0
    kept = torch.load(files[0], weights_only=False)
    ran = [case for case in kept["cases"].values() if "refused" not in case["text"]]
    assert len(ran) > 20
    assert all(case["step 1"]["gradients"] for case in ran)
