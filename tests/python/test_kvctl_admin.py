"""status, tiers, open, namespaces, ls, evict, clear, verify, drain, config, completion: shapes, options and refusals."""

import json
import subprocess
import time

import pytest
from conftest import BLOCK_TOKENS, PAGE_BYTES, SLICE_BYTES, SLICES, SPEC_FLAGS

NOTHING_MATCHED, USAGE, FAILED = 3, 2, 1
TIER_FIELDS = {"tier", "capacity_bytes", "used_bytes", "pages", "hit_pages", "read_bytes", "write_bytes", "evicted_pages",
               "in_flight", "state"}
COMMANDS = ("status", "tiers", "open", "namespaces", "put", "get", "match", "ls", "evict", "clear", "quota", "verify", "drain", "resume", "config",
            "completion")


def test_status_has_the_fields_of_the_contract(kvctl):
    status = kvctl.json("status")
    assert {"health", "version", "uptime_s", "degraded", "sessions", "tiers"} <= set(status)
    assert status["health"] in ("serving", "degraded", "draining")
    assert (status["health"] == "degraded") == bool(status["degraded"])
    assert status["uptime_s"] >= 0 and status["version"]
    assert [tier["tier"] for tier in status["tiers"]] == ["dram", "nvme"]


def test_tiers_count_what_was_put_and_hit(kvctl, namespace, make_prompt, tmp_path):
    before = {tier["tier"]: tier for tier in kvctl.json("tiers")["tiers"]}
    assert all(TIER_FIELDS <= set(tier) for tier in before.values())
    prompt = make_prompt(6, 20)
    kvctl("put", namespace, *prompt.put_arguments())
    kvctl("get", namespace, "--tokens", prompt.tokens_path, "--out", tmp_path / "out")
    after = {tier["tier"]: tier for tier in kvctl.json("tiers")["tiers"]}
    assert after["dram"]["pages"] - before["dram"]["pages"] == 6
    assert after["dram"]["hit_pages"] - before["dram"]["hit_pages"] == 6
    assert after["dram"]["used_bytes"] - before["dram"]["used_bytes"] >= 6 * PAGE_BYTES
    assert after["dram"]["capacity_bytes"] >= 60 << 20


def test_open_prints_the_fingerprint_and_is_idempotent(kvctl):
    first = kvctl.json("open", "twice", *SPEC_FLAGS)
    assert first["namespace"] == "twice" and len(first["fingerprint"]) == 32 and first["page_bytes"] == PAGE_BYTES
    assert kvctl.json("open", "twice", *SPEC_FLAGS) == first


def test_a_name_that_means_another_spec_is_refused(kvctl):
    kvctl("open", "taken", *SPEC_FLAGS)
    other = [*SPEC_FLAGS]
    other[3] = "r2"
    assert kvctl.error("open", "taken", *other, code=FAILED)["code"] == "ALREADY_EXISTS"


def test_each_field_of_the_spec_changes_the_fingerprint(kvctl, tmp_path):
    base = {"model": "m", "revision": "r", "adapter": "a", "dtype": "bf16", "layout": "hnd", "layout_version": 1, "numerics": "n",
            "block_tokens": 16, "slices": 4, "slice_bytes": 4096, "tensor_size": 2, "tensor_rank": 0, "pipeline_size": 2,
            "pipeline_rank": 0, "context_size": 2, "context_rank": 0, "salt": "s"}
    changed = {"layout_version": 2, "block_tokens": 32, "slices": 8, "slice_bytes": 8192, "tensor_size": 3, "tensor_rank": 1,
               "pipeline_size": 3, "pipeline_rank": 1, "context_size": 3, "context_rank": 1}

    def fingerprint(name, fields):
        path = tmp_path / "spec.toml"
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items()))
        return kvctl.json("open", name, "--spec", path)["fingerprint"]

    seen = {fingerprint("spec-base", base)}
    for key in base:
        seen.add(fingerprint(f"spec-{key}", {**base, key: changed.get(key, "other")}))
    assert len(seen) == len(base) + 1


@pytest.mark.parametrize(("toml", "said"), [
    ("block_size = 16", "block_size is not a key"), ("model = 3", "model must be a string"), ("model =", "spec.toml:1"),
    ("dtype = 'a'\nkv_dtype = 'b'", "two names"), ("block_tokens = -1", "negative")])
def test_a_bad_spec_file_is_refused_with_key_and_line(kvctl, tmp_path, toml, said):
    (tmp_path / "spec.toml").write_text(toml)
    error = kvctl.error("open", "bad", "--spec", tmp_path / "spec.toml", code=USAGE)
    assert error["code"] == "INVALID_ARGUMENT" and said in error["message"]


@pytest.mark.parametrize(("flag", "value"), [
    ("--block-tokens", 0), ("--block-tokens", 65537), ("--slices", 0), ("--slices", 1025), ("--slice-bytes", "1GiB"), ("--model", "m" * 257)])
def test_a_spec_out_of_range_is_refused_by_the_daemon(kvctl, flag, value):
    flags = [*SPEC_FLAGS]
    flags[flags.index(flag) + 1] = value
    assert kvctl.error("open", "out-of-range", *flags, code=USAGE)["code"] == "INVALID_ARGUMENT"


def test_spec_file_and_flags_exclude_each_other(kvctl, tmp_path):
    (tmp_path / "spec.toml").write_text("model = 'm'")
    kvctl.error("open", "both", "--spec", tmp_path / "spec.toml", "--model", "m", code=USAGE)


def test_namespaces_show_bytes_by_tier_and_hide_the_salt(kvctl, tmp_path, make_prompt):
    (tmp_path / "spec.toml").write_text("model='salted'\ndtype='bf16'\nblock_tokens=16\nslices=4\nslice_bytes=4096\nsalt='very-secret'\n")
    opened = kvctl("--json", "open", "salted", "--spec", tmp_path / "spec.toml").stdout
    prompt = make_prompt(3, 21)
    kvctl("put", "salted", *prompt.put_arguments())
    shown = kvctl("--json", "namespaces").stdout
    row = next(row for row in json.loads(shown)["namespaces"] if row["name"] == "salted")
    assert row["bytes_by_tier"]["dram"] >= 3 * PAGE_BYTES and row["bytes_by_tier"]["gpu"] == 0
    assert row["is_open"] and row["page_bytes"] == PAGE_BYTES and row["spec"]["num_slices"] == SLICES
    assert row["spec"]["slice_bytes"] == SLICE_BYTES and row["spec"]["has_salt"]
    assert "very-secret" not in opened + shown + kvctl("namespaces").stdout


def test_a_namespace_can_be_named_by_its_fingerprint(kvctl, namespace, make_prompt):
    prompt = make_prompt(2, 22)
    kvctl("put", namespace, *prompt.put_arguments())
    fingerprint = next(row["fingerprint"] for row in kvctl.json("namespaces")["namespaces"] if row["name"] == namespace)
    assert kvctl.json("match", fingerprint, "--tokens", prompt.tokens_path)["matched_blocks"] == 2
    assert len(kvctl.json("ls", fingerprint)["blocks"]) == 2


def test_ls_lists_blocks_with_their_parents(kvctl, namespace, make_prompt):
    kvctl("put", namespace, *make_prompt(5, 23).put_arguments())
    blocks = sorted(kvctl.json("ls", namespace)["blocks"], key=lambda block: block["block_index"])
    assert [block["block_index"] for block in blocks] == [0, 1, 2, 3, 4]
    assert blocks[0]["parent"] is None
    assert [block["parent"] for block in blocks[1:]] == [block["hash"] for block in blocks[:-1]]
    assert all("dram" in block["tiers"] and block["bytes"] >= PAGE_BYTES and block["pins"] == 0 for block in blocks)
    assert len(kvctl.json("ls", namespace, "--limit", 2)["blocks"]) == 2
    assert kvctl.json("ls", namespace, "--tier", "gpu")["blocks"] == []


def test_evict_removes_copies_but_never_the_last(kvctl, daemon, namespace, make_prompt, tmp_path):
    prompt = make_prompt(6, 24)
    kvctl("put", namespace, *prompt.put_arguments())
    daemon.wait_until("written to NVMe", lambda: len(kvctl.json("ls", namespace, "--tier", "nvme")["blocks"]) == 6)
    assert kvctl.json("evict", namespace, "--tier", "dram") == {"blocks": 6, "skipped_blocks": 0}
    assert kvctl.json("match", namespace, "--tokens", prompt.tokens_path)["by_tier"] == {"gpu": 0, "dram": 0, "nvme": 6}
    assert kvctl.json("evict", namespace, "--tier", "nvme") == {"blocks": 0, "skipped_blocks": 6}
    found = kvctl.json("get", namespace, "--tokens", prompt.tokens_path, "--out", tmp_path / "out")
    assert found["by_tier"]["nvme"] == 6
    assert (tmp_path / "out").read_bytes() == prompt.data


def test_clear_forgets_and_gives_a_new_epoch(kvctl, namespace, make_prompt):
    prompt = make_prompt(3, 25)
    kvctl("put", namespace, *prompt.put_arguments())
    first = kvctl.json("clear", namespace)
    assert first["namespace"] == namespace
    assert kvctl.json("match", namespace, "--tokens", prompt.tokens_path, code=NOTHING_MATCHED)["matched_blocks"] == 0
    assert kvctl.json("clear", namespace)["epoch"] > first["epoch"]
    assert kvctl.json("put", namespace, *prompt.put_arguments())["stored_blocks"] == 3


def test_verify_checks_every_page(kvctl, daemon, namespace, make_prompt):
    kvctl("put", namespace, *make_prompt(4, 26).put_arguments())
    daemon.wait_until("written to NVMe", lambda: len(kvctl.json("ls", namespace, "--tier", "nvme")["blocks"]) == 4)
    pages = {tier["tier"]: tier["pages"] for tier in kvctl.json("tiers")["tiers"]}
    assert kvctl.json("verify", "--tier", "dram") == {"checked": pages["dram"], "bad": 0, "repaired": 0}
    assert kvctl.json("verify")["checked"] == pages["dram"] + pages["nvme"]


def test_config_names_every_value_and_its_source(kvctl, daemon):
    values = {value["key"]: value for value in kvctl.json("config")["values"]}
    assert values["tier.dram.bytes"]["source"].startswith("file ")
    assert values["policy.evict"]["source"] == "default"
    assert daemon.target in values["server.listen"]["value"]


@pytest.mark.parametrize("arguments", [("--tier", "tape"), ("--limit", 0), ("--limit", 10001), ("--limit", "x"), ("--what",)])
def test_a_wrong_option_is_wrong_usage(kvctl, namespace, arguments):
    assert kvctl.error("ls", namespace, *arguments, code=USAGE)["code"] == "INVALID_ARGUMENT"


def test_human_output_is_aligned_and_without_colour(kvctl, namespace, make_prompt):
    kvctl("put", namespace, *make_prompt(2, 27).put_arguments())
    for command in (("status",), ("tiers",), ("namespaces",), ("ls", namespace), ("config",), ("verify",)):
        out = kvctl(*command).stdout
        assert out.endswith("\n") and "\x1b" not in out and "\t" not in out
    header, first = kvctl("tiers").stdout.splitlines()[:2]
    assert header.index("STATE") == first.index("serving")
    assert "MiB" in first


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(bin_dir, command):
    done = subprocess.run([bin_dir / "kvctl", command, "--help"], capture_output=True, text=True, timeout=20, check=True)
    assert "Example:\n" in done.stdout and "kvctl" in done.stdout.split("Example:")[1]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(bin_dir, shell):
    script = subprocess.run([bin_dir / "kvctl", "completion", shell], capture_output=True, text=True, timeout=20, check=True).stdout
    assert all(command in script for command in COMMANDS)
    prefix = "-l " if shell == "fish" else "--"
    assert prefix + "tokens" in script and prefix + "json" in script


def complete(bin_dir, *words):
    script = subprocess.run([bin_dir / "kvctl", "completion", "bash"], capture_output=True, text=True, timeout=20, check=True).stdout
    setting = f"COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _kvctl; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-u", "-c", script + "\n" + setting], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.split()


def test_bash_completes_commands_flags_and_values(bin_dir):
    assert complete(bin_dir, "kvctl", "ver") == ["verify"]
    assert complete(bin_dir, "kvctl", "ls", "--l") == ["--limit"]
    assert complete(bin_dir, "kvctl", "ls", "--tier", "n") == ["nvme"]
    assert complete(bin_dir, "kvctl", "completion", "z") == ["zsh"]


def test_block_tokens_in_human_output(kvctl):
    assert f"{BLOCK_TOKENS} tokens" in kvctl("open", "human", *SPEC_FLAGS).stdout


def test_quota_shows_what_a_tenant_uses_to_the_byte(kvctl, namespace, make_prompt):
    prompt = make_prompt(6, 70)
    kvctl("put", namespace, *prompt.put_arguments())
    deadline = time.monotonic() + 20
    while any(tenant["moves"] for tenant in kvctl.json("quota")["tenants"]):
        assert time.monotonic() < deadline, "writes behind do not end"
        time.sleep(0.05)
    tenants = kvctl.json("quota")["tenants"]
    tiers = {tier["tier"]: tier["used_bytes"] for tier in kvctl.json("tiers")["tiers"]}
    for tier, used_bytes in tiers.items():
        assert sum(row["used_bytes"] for tenant in tenants for row in tenant["tiers"] if row["tier"] == tier) == used_bytes
    default = kvctl.json("quota", "default")["tenants"]
    assert [tenant["tenant"] for tenant in default] == ["default"] and default[0]["calls_max"] > 0
    assert {"sessions", "leases", "reservations", "moves", "calls", "call_bytes"} <= set(default[0])


def test_a_quota_below_what_is_used_is_reached_in_the_background(kvctl, namespace, make_prompt):
    prompt = make_prompt(12, 71)
    kvctl("put", namespace, *prompt.put_arguments())

    def dram(answer):
        return next(row for row in answer["tiers"] if row["tier"] == "dram")

    used = dram(kvctl.json("quota", "default")["tenants"][0])["used_bytes"]
    quota = used // 2
    answer = kvctl.json("quota", "default", "--tier", "dram", "--bytes", f"{quota}B")
    assert answer["is_durable"] and dram(answer)["quota_bytes"] == quota
    deadline = time.monotonic() + 20
    while dram(kvctl.json("quota", "default")["tenants"][0])["over_bytes"] > 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "none" in kvctl("quota", "default", "--tier", "dram", "--bytes", "none").stdout
    assert dram(kvctl.json("quota", "default")["tenants"][0])["quota_bytes"] == 0


def test_bad_quotas_are_refused(kvctl):
    assert kvctl.error("quota", "default", "--tier", "gpu", "--bytes", "1GiB", code=USAGE)["code"] == "INVALID_ARGUMENT"
    assert kvctl.error("quota", "default", "--tier", "dram", "--bytes", "0B", code=USAGE)["code"] == "INVALID_ARGUMENT"
    assert kvctl.error("quota", "default", "--tier", "dram", code=USAGE)["code"] == "INVALID_ARGUMENT"
    assert kvctl.error("quota", "no/tenant", "--tier", "dram", "--bytes", "1GiB", code=USAGE)["code"] == "INVALID_ARGUMENT"
    assert kvctl.error("quota", "nobody", code=FAILED)["code"] == "NOT_FOUND"
