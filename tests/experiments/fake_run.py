"""Stands in for a training: `fake_run.py <plan> <run folder> --watch` does what the plan says for the run's id.

ok: writes a record; fail: writes a failed one; die: is killed after a line of log; quit: ends with code 7, no record;
hang: sleeps until somebody ends it; brood: the same with a process that it has started, which does not go politely;
half: writes half a record and is killed; odd: writes a record that cannot be. A list of these: one for each attempt.
`--val` leaves test out. With "score": a host flag, that is what the detector reaches, and is written epoch by epoch.
`--check` answers with the plan's entry "check", if any; "told" is what it says of each run.
Everything it does is also a line in `<plan>.log`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

plan_path = Path(sys.argv[1])
plan = json.loads(plan_path.read_text("utf-8"))


def log(*words: object) -> None:
    with open(plan_path.with_suffix(".log"), "a", encoding="utf-8") as file:
        file.write(" ".join(map(str, words)) + "\n")


if "--check" in sys.argv:
    runs = [
        {"epochs": 100, "imgsz": 640, "batch": 16, "fetched": False, "unchecked": False, **plan.get("told", {})}
        | {key: value for key, value in run["host"].items() if key in ("epochs", "imgsz", "batch")}
        for run in json.load(sys.stdin)
    ]
    log("check")
    print("noise of the host\n" + json.dumps(plan.get("check", {"kind": None, "error": None, "runs": runs})))
    sys.exit()

folder = Path(sys.argv[2])
config = json.loads((folder / "config.json").read_text("utf-8"))
run = config["run"]
attempts = folder / "attempts"
attempt = int(attempts.read_text("utf-8")) if attempts.exists() else 0
attempts.write_text(str(attempt + 1), "utf-8")
steps = plan.get(run, "ok")
step = steps if isinstance(steps, str) else steps[min(attempt, len(steps) - 1)]
log("start", run, os.getpid(), os.environ["OMP_NUM_THREADS"], round(time.time(), 3), *sys.argv[3:])


def watch() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


threading.Thread(target=watch, daemon=True).start()
print(f"a line of log of {run}", flush=True)
if step == "half":
    (folder / "record.json").write_text('{"schema": 1, "status": "finished", "run"', "utf-8")
if step in ("die", "half"):
    os.kill(os.getpid(), signal.SIGKILL)
if step == "quit":
    sys.exit(7)
if step == "brood":
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        log("grandchild", process.pid)
        time.sleep(60)
if step == "hang":
    time.sleep(60)
if flag := plan.get("score"):
    reached = config["config"]["host"][flag]
    (folder / "train").mkdir(exist_ok=True)
    with open(folder / "train" / "results.csv", "w", encoding="utf-8") as file:
        print("epoch,metrics/mAP50-95(B)", file=file)
        for epoch in range(1, 1 + config["config"]["host"]["epochs"]):
            print(f"{epoch},{reached}", file=file, flush=True)
            time.sleep(plan.get("seconds", 0))
else:
    reached = 0.2
    time.sleep(plan.get("seconds", 0))
score = 0.5 - config["config"]["train"]["obj_drop"] / 10 if step != "odd" else 50
metrics = {"mAP50": score, "mAP75": 0.25, "mAP50-95": reached, "precision": 0.6, "recall": 1 / 3, "per_class": {}}
record = {
    "schema": 1,
    "run": run,
    "status": "finished" if step in ("ok", "odd") else "failed",
    "error": None if step in ("ok", "odd") else "ValueError: as planned",
    "config": config["config"],
    "varied": config["varied"],
    "loss_ran": {"loss": "drop", "head": "anchor"},
    "timings": {"train_seconds": 81.26, "images_per_second": 61.234} if step == "ok" else None,
    "peak_memory_mb": 912.34 if step == "ok" else None,
    "metrics": {"val": {**metrics, "mAP50": 0.9}, **({} if "--val" in sys.argv else {"test": metrics})}
    if step in ("ok", "odd")
    else None,
    "epochs": [],
    "samples": [],
}
(folder / ".record").write_text(json.dumps(record), "utf-8")
(folder / ".record").rename(folder / "record.json")
log("end", run, os.getpid(), step, round(time.time(), 3))
