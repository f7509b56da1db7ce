"""How the programs were built: what an attacker who found a memory error would still have to get past."""

import shutil
import subprocess

import pytest
from conftest import ROOT


def test_the_programs_are_hardened(bin_dir):
    done = subprocess.run([ROOT / "tools" / "dev" / "check_hardening", bin_dir], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kvstored: ok" in done.stdout and "kvctl: ok" in done.stdout


def test_a_program_without_protection_is_found(bin_dir, tmp_path):
    """The check itself: a program built with none of it."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    source = tmp_path / "weak.c"
    source.write_text("int main(void) { return 0; }\n")
    flags = ["-O0", "-no-pie", "-fno-stack-protector", "-fcf-protection=none", "-Wl,-z,norelro", "-Wl,-z,lazy", "-Wl,-z,execstack"]
    subprocess.run(["gcc", *flags, source, "-o", tmp_path / "weak"], timeout=60, check=True)
    source.unlink()
    done = subprocess.run([ROOT / "tools" / "dev" / "check_hardening", tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    for missing in ("position-independent", "read-only relocations", "bound at start", "stack protector", "fortified", "branch targets",
                    "executable stack"):
        assert missing in done.stdout, done.stdout
