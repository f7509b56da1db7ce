"""The systemd unit."""

import re
import shutil
import subprocess

import pytest
from conftest import ROOT

UNIT = ROOT / "packaging" / "kvstored.service"
EXPOSURE_MAX = 2.0


@pytest.mark.unit
def test_the_unit_is_rated_safe():
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", UNIT], capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"Overall exposure level for kvstored\.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found.group(1)) <= EXPOSURE_MAX, done.stdout


@pytest.mark.unit
def test_the_unit_has_no_unknown_key(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "kvstored.service"
    unit.write_text(UNIT.read_text().replace("/usr/bin/kvstored", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert "kvstored.service" not in done.stderr, done.stderr
