"""Every suite of kvbench on small sets: that it runs, checks what it moves, and writes what scripts read."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

FIELDS = {"name", "unit", "median", "min", "max", "n", "ceiling", "ceiling_name", "ratio"}
SUITE_SECONDS = 240

# A figure of each suite that must be there, and bounds that only a broken measurement leaves.
EXPECTED = {
    "index": {"index/acquire/2048": (5, 1e5), "index/reserve_commit_evict/2048": (20, 1e5), "index/memory/dram+nvme": (64, 400)},
    "store": {"store/acquire/2048": (0.02, 2000), "store/hash/256": (0.02, 10), "store/get/2MiB": (0.02, 100),
              "store/get/64KiB": (0.02, 100), "store/put/2MiB": (0.02, 100), "store/verify/2MiB": (0.1, 200),
              "store/idle_cpu/10s": (0, 100)},
    "nvme": {"nvme/read/1MiB": (0.001, 100), "nvme/write/1MiB": (0.001, 100), "nvme/write_amplification/1MiB": (1, 3),
             "nvme/load/2MiB": (0.001, 100), "nvme/restart_first_hit/1536": (1, 60000)},
}


@pytest.fixture(scope="module")
def kvbench(bin_dir):
    if not (bin_dir / "kvbench").exists():
        pytest.skip(f"kvbench not built in {bin_dir}")
    return bin_dir / "kvbench"


def run(kvbench, *arguments):
    command = [str(kvbench), *[str(word) for word in arguments]]
    return subprocess.run(command, capture_output=True, text=True, timeout=SUITE_SECONDS, check=False)


def measure(kvbench, folder, suite, *options):
    """Runs a suite with --quick. Returns its JSON and the text of its plot."""
    json_path, plot_path = folder / f"{suite}.json", folder / f"{suite}.svg"
    done = run(kvbench, suite, "--quick", "--work", folder, "--json", json_path, "--plot", plot_path, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(json_path.read_text())
    for name in (result["name"] for result in report["results"]):
        assert name in done.stdout, "the table shows every figure"
    return report, plot_path.read_text(), done


def check_shape(report, suite):
    assert report["suite"] == suite
    assert {"machine", "commit", "build", "results"} <= set(report)
    assert report["machine"]["cores"] >= 1 and report["machine"]["cpu"]
    assert re.fullmatch(r"unknown|[0-9a-f]{7,40}(-dirty)?", report["commit"])
    names = [result["name"] for result in report["results"]]
    assert len(names) == len(set(names))
    for result in report["results"]:
        assert FIELDS <= set(result)
        assert re.fullmatch(suite + r"/[a-z0-9_]+/[A-Za-z0-9+]+(/redis)?", result["name"])
        assert result["n"] >= 1 and 0 <= result["min"] <= result["median"] <= result["max"], result
        assert (result["ceiling"] is None) == (result["ceiling_name"] is None) == (result["ratio"] is None)
        if result["ratio"] is not None:
            share = result["median"] / result["ceiling"]
            assert result["ratio"] == pytest.approx(share if result["better"] == "higher" else 1 / share)


def check_bounds(report):
    values = {result["name"]: result["median"] for result in report["results"]}
    for name, (low, high) in EXPECTED[report["suite"]].items():
        assert low <= values[name] <= high, f"{name} is {values[name]}"


def check_plot(text, report):
    picture = xml.fromstring(text)
    drawn = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert all(result["name"] in drawn for result in report["results"])


@pytest.mark.parametrize("suite", ["index", "store", "nvme"])
def test_suite(kvbench, disk_folder, suite):
    # A socket path has at most 103 bytes: the folder must be near the root.
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        report, plot, done = measure(kvbench, folder, suite)
        check_shape(report, suite)
        check_bounds(report)
        check_plot(plot, report)
        assert report["quick"] and "MISSED" not in done.stdout, "quick figures are not judged"
        left = sorted(path.name for path in folder.iterdir())
        assert left == [f"{suite}.json", f"{suite}.svg"], "a suite leaves nothing behind"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_store_says_that_redis_was_not_measured(kvbench, tmp_path):
    done = run(kvbench, "store", "--versus", "redis=unix:/nonexistent.sock", "--quick")
    assert done.returncode == 1 and "/nonexistent.sock" in done.stderr


def test_redis_is_measured_on_the_same_work(kvbench):
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    server = subprocess.Popen(["redis-server", "--port", "0", "--unixsocket", str(folder / "redis.sock"), "--save", "",
                               "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if (folder / "redis.sock").exists():
                break
            server.poll()
            import time
            time.sleep(0.05)
        report, _, _ = measure(kvbench, folder, "store", "--versus", f"redis=unix:{folder / 'redis.sock'}")
        check_shape(report, "store")
        names = {result["name"] for result in report["results"]}
        assert {"store/get/2MiB/redis", "store/put/64KiB/redis", "store/get_over_redis/256KiB"} <= names
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_ttft_of_a_random_model(kvbench, bin_dir):
    missing = [name for name in ("kvengine", "engine_prefill_bench") if not (bin_dir / name).exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)} not built in {bin_dir}")
    root = Path(__file__).resolve().parents[2]
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        subprocess.run([sys.executable, str(root / "tools" / "make_model"), "--tokenizer", "--out", str(folder / "model")], check=True,
                       capture_output=True, timeout=120)
        report, plot, _ = measure(kvbench, folder, "ttft", "--model", folder / "model")
        check_shape(report, "ttft")
        check_plot(plot, report)
        names = {result["name"] for result in report["results"]}
        assert {f"ttft/{source}/128" for source in ("cold", "gpu", "dram", "nvme")} <= names
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("arguments, problem", [
    (["nosuch"], "nosuch"),
    ([], "no suite is given"),
    (["store", "--set-size", "12"], 'size "12"'),
    (["store", "--set-size", "1KiB"], "16MiB"),
    (["store", "--versus", "mongo=unix:/x"], "redis=unix:PATH"),
    (["index", "--repeats", "0"], "--repeats"),
    (["ttft"], "--model"),
    (["nvme", "--work", "/nonexistent"], "/nonexistent"),
])
def test_wrong_usage_is_refused(kvbench, arguments, problem):
    done = run(kvbench, *arguments)
    assert done.returncode == 2 and problem in done.stderr and done.stdout == ""


def test_help_shows_an_example_for_each_suite(kvbench):
    for arguments in ([], ["store"], ["index"], ["nvme"], ["ttft"]):
        done = run(kvbench, *arguments, "--help")
        assert done.returncode == 0 and "Example" in done.stdout
