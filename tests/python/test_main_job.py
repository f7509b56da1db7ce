"""The main job on the real model, with a shorter text: every tier gives the tokens of the cold run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MODEL = Path(os.environ.get("KVSTORE_MODEL_DIR", ROOT / "build" / "models" / "smollm2"))
LICENSE = Path("/usr/share/common-licenses/GPL-2")


@pytest.mark.timeout(400)
def test_every_tier_gives_the_tokens_of_the_cold_run(bin_dir, tmp_path, disk_folder):
    if not (bin_dir / "kvengine").exists():
        pytest.skip(f"kvengine is not built in {bin_dir}")
    if not (MODEL / "config.json").exists():
        pytest.skip(f"no model in {MODEL}")
    text = tmp_path / "text.txt"
    text.write_text(LICENSE.read_text()[:4000])
    out = tmp_path / "table.json"
    command = [sys.executable, ROOT / "tools" / "main_job", "--bin", bin_dir, "--model", MODEL, "--text", text, "--max-tokens", "8",
               "--work", disk_folder / "main_job", "--json", out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads(out.read_text())
    assert [row["source"] for row in table["rows"]] == ["cold", "gpu", "dram", "nvme", "peer", "shared"]
    shown = [row for row in table["rows"] if "skipped" not in row]
    assert [row["source"] for row in shown] == ["cold", "gpu", "dram", "nvme"]
    assert all(row["same_tokens"] for row in shown)
    # All whole blocks but what must be computed for the first token.
    assert all(row["reused_tokens"] >= table["prompt_tokens"] - 32 for row in shown[1:])
    assert [row["bytes_moved"] > 0 for row in shown] == [False, False, True, True]
    assert table["machine"]["cores"] >= 1
