"""Unit tests of the Python tools: check_includes, the main job's rows, and how tools/test counts."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys

import pytest
import test_groups as groups
from conftest import ROOT
from mainjob import rows

pytestmark = pytest.mark.unit


def load_script(name):
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / "tools" / "dev" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


check_includes = load_script("check_includes")


@pytest.mark.parametrize(("path", "included"), [
    ("kvstore/store/store.cc", "tiers/tier.h"), ("kvstore/store/store.cc", "kvstore/index/prefix_index.h"),
    ("kvstore/store/store.cc", "kvstore/store/moves.h"), ("tiers/dram/dram_tier.cc", "tiers/tier.h"),
    ("tiers/nvme/nvme_tier.cc", "transfer/io_uring/file_mover.h"), ("engine_adapter/connector/a.cc", "engine_adapter/llama/b.h"),
    ("engine_adapter/llama/a.cc", "engine_adapter/paging/b.h"), ("engine_adapter/connector/a.cc", "kvstore/client/client.h"),
    ("tools/kvbench/a.cc", "kvstore/store/store.h"),
    ("kvstore/client/client.cc", "kvstore/v1/kvstore.pb.h"), ("kvstore/index/a_test.cc", "tests/support/faulty_tier.h"),
    ("kvstore/base/a.cc", "absl/time/time.h"), ("tests/sim/a.cc", "kvstore/daemon/config.h")])
def test_an_include_downwards_passes(path, included):
    assert check_includes.check_edge(path, included) is None


@pytest.mark.parametrize(("path", "included"), [
    ("kvstore/base/a.h", "kvstore/index/b.h"), ("kvstore/index/a.cc", "kvstore/policy/b.h"), ("kvstore/store/a.cc", "kvstore/service/b.h"),
    ("tiers/dram/a.cc", "tiers/nvme/b.h"), ("tiers/tier.cc", "tiers/dram/b.h"), ("transfer/memory/a.cc", "transfer/io_uring/b.h"),
    ("engine_adapter/paging/a.cc", "engine_adapter/llama/b.h"), ("engine_adapter/llama/a.cc", "engine_adapter/connector/b.h"),
    ("engine_adapter/tokenizer/a.cc", "engine_adapter/paging/b.h"), ("engine_adapter/llama/a.cc", "kvstore/store/store.h"),
    ("kvstore/client/a.cc", "tiers/tier.h"), ("kvstore/store/a.cc", "kvstore/v1/kvstore.pb.h"), ("kvstore/store/a.cc", "tests/support/b.h"),
    ("tools/kvctl/a.cc", "tools/kvbench/b.h"), ("kernels/a.cc", "kvstore/base/b.h"), ("kvstore/base/a.cc", "clock.h")])
def test_an_include_sideways_or_upwards_is_refused(path, included):
    assert check_includes.check_edge(path, included)


@pytest.mark.parametrize(("path", "line", "is_bad"), [
    ("kvstore/store/a.cc", "getenv(\"X\");", True), ("kvstore/daemon/a.cc", "std::getenv(\"X\");", False),
    ("tools/kvctl/target.cc", "std::getenv(\"X\");", False), ("tools/kvctl/main.cc", "secure_getenv(\"X\");", True),
    ("kvstore/store/a.cc", "// TO" "DO: later", True), ("kvstore/store/a.cc", "// TO" "DO(#12): later", False),
    ("kvstore/store/a.cc", "// FIX" "ME", True), ("tools/a.py", "# FIX" "ME", True)])
def test_words_that_must_not_be_in_the_code(tmp_path, path, line, is_bad):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(f"// a\n{line}\n")
    done = subprocess.run([sys.executable, ROOT / "tools" / "dev" / "check_includes", "--root", tmp_path], capture_output=True,
                          text=True, check=False)
    assert done.returncode == (1 if is_bad else 0)
    assert done.stdout.startswith(f"{path}:2: ") == is_bad


COLD = {"prompt_tokens": 100, "reused_tokens": 0, "reused_by_tier": {}, "bytes_loaded": 0, "ttft_ms": 2000.0, "output_ids": [1, 2],
        "load_failures": {}}
WARM = {**COLD, "reused_tokens": 96, "reused_by_tier": {"gpu": 0, "dram": 96, "nvme": 0}, "bytes_loaded": 5000, "ttft_ms": 100.0}


def test_a_warm_row_has_the_fields_of_the_contract():
    assert rows.warm_row("dram", WARM, COLD).to_json() == {
        "source": "dram", "reused_tokens": 96, "bytes_moved": 5000, "ttft_ms": 100.0, "speedup": 20.0, "same_tokens": True}


@pytest.mark.parametrize(("source", "change", "said"), [
    ("dram", {"output_ids": [1, 3]}, "other tokens"), ("nvme", {}, "nothing came from nvme"),
    ("dram", {"reused_by_tier": {"dram": 90, "nvme": 6}}, "elsewhere"), ("dram", {"load_failures": {"DATA_LOSS": 1}}, "loads failed"),
    ("gpu", {"reused_by_tier": {}}, "nothing came from gpu")])
def test_a_row_that_does_not_show_what_it_claims_fails(source, change, said):
    assert said in rows.warm_row(source, {**WARM, **change}, COLD).failed


def test_a_cold_row_that_reused_anything_fails():
    assert rows.cold_row(COLD).failed == ""
    assert "reused" in rows.cold_row(WARM).failed


def test_the_table_lines_up_and_says_why_rows_are_skipped():
    text = rows.render([rows.cold_row(COLD), rows.warm_row("dram", WARM, COLD), rows.Row("peer", skipped="not built")])
    lines = text.splitlines()
    assert lines[1].index("2,000 ms") + len("2,000 ms") == lines[2].index("100 ms") + len("100 ms")
    assert lines[3] == "peer    skipped: not built"


def gtest_report(path, cases):
    suite = [{"name": name, "status": "RUN", "result": result, **({"failures": [{}]} if bad else {})} for name, result, bad in cases]
    path.write_text(json.dumps({"testsuites": [{"name": "S", "testsuite": suite}]}))


def junit_report(path, cases):
    rows_ = "".join(f'<testcase name="{name}" status="{status}"/>' for name, status in cases)
    path.write_text(f'<testsuite tests="{len(cases)}">{rows_}</testsuite>')


def test_ctest_counts_the_cases_of_googletest(tmp_path):
    gtest_report(tmp_path / "a_test.json", [("One", "COMPLETED", False), ("Two", "COMPLETED", True), ("Three", "SKIPPED", False)])
    junit_report(tmp_path / "ctest.junit", [("a_test", "fail"), ("plain", "run")])
    outcome = groups.count_ctest("unit", tmp_path / "ctest.junit", tmp_path)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (2, 1, 1)
    assert "failed: a_test: S.Two" in outcome.notes


def test_a_program_that_crashed_counts_as_failed(tmp_path):
    gtest_report(tmp_path / "b_test.json", [("One", "COMPLETED", False)])
    (tmp_path / "c_test.json").write_text('{"testsui')
    junit_report(tmp_path / "ctest.junit", [("b_test", "fail"), ("c_test", "fail"), ("d_test", "fail")])
    outcome = groups.count_ctest("unit", tmp_path / "ctest.junit", tmp_path)
    assert (outcome.passed, outcome.failed) == (1, 3)


def test_pytest_counts_failures_errors_and_skips(tmp_path):
    (tmp_path / "p.xml").write_text(
        '<testsuites><testsuite><testcase classname="m" name="a"/><testcase classname="m" name="b"><failure/></testcase>'
        '<testcase classname="m" name="c"><error/></testcase><testcase classname="m" name="d"><skipped message="no gpu"/></testcase>'
        '</testsuite></testsuites>')
    outcome = groups.count_pytest("python", tmp_path / "p.xml")
    assert (outcome.passed, outcome.failed, outcome.skipped) == (1, 2, 1)
    assert "skipped: m.d: no gpu" in outcome.notes


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    marker = tmp_path / "pid"
    code = groups.run_bounded(["bash", "-c", f"sleep 1000 & echo $! > {marker}; wait"], 0.5)
    assert code is None
    pid = marker.read_text().strip()
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False).stdout.strip()
    assert state == "" or state.startswith("Z")
