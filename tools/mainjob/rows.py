"""The rows of the main job's table: what each shows, and when one counts as failed."""

from dataclasses import dataclass

SOURCES = ("cold", "gpu", "dram", "nvme", "peer", "shared")


@dataclass
class Row:
    source: str
    reused_tokens: int = 0
    bytes_moved: int = 0
    ttft_ms: float = 0.0
    speedup: float = 0.0
    same_tokens: bool = False
    skipped: str = ""
    failed: str = ""

    def to_json(self):
        if self.skipped:
            return {"source": self.source, "skipped": self.skipped}
        out = {"source": self.source, "reused_tokens": self.reused_tokens, "bytes_moved": self.bytes_moved,
               "ttft_ms": round(self.ttft_ms, 3), "speedup": round(self.speedup, 2), "same_tokens": self.same_tokens}
        return {**out, "failed": self.failed} if self.failed else out


def cold_row(result):
    row = Row("cold", result["reused_tokens"], result["bytes_loaded"], result["ttft_ms"], 1.0, True)
    if result["reused_tokens"]:
        row.failed = f"a cold run reused {result['reused_tokens']} tokens"
    elif not result["output_ids"]:
        row.failed = "no tokens came out"
    return row


def warm_row(source, result, cold):
    """A run that should have found the prompt in `source`; `cold` is the result of the cold run."""
    row = Row(source, result["reused_tokens"], result["bytes_loaded"], result["ttft_ms"])
    row.speedup = cold["ttft_ms"] / max(result["ttft_ms"], 1e-6)
    row.same_tokens = result["output_ids"] == cold["output_ids"]
    by_tier = result["reused_by_tier"]
    elsewhere = {tier: count for tier, count in by_tier.items() if tier != source and count}
    if not row.same_tokens:
        row.failed = "other tokens than cold"
    elif not by_tier.get(source):
        row.failed = f"nothing came from {source}" + (f" but from {elsewhere}" if elsewhere else "")
    elif elsewhere:
        row.failed = f"some came from elsewhere: {elsewhere}"
    elif any(result.get("load_failures", {}).values()):
        row.failed = f"loads failed: {result['load_failures']}"
    if row.failed:
        row.failed += "".join(f"; {name}: {result[name]}" for name in ("load_failures", "said") if result.get(name))
    return row


def format_bytes(count):
    if count == 0:
        return "0"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def cells(row):
    if row.skipped:
        return [row.source, f"skipped: {row.skipped}"]
    return [row.source, f"{row.reused_tokens:,}", format_bytes(row.bytes_moved), f"{row.ttft_ms:,.0f} ms", f"{row.speedup:.1f}x",
            "yes" if row.same_tokens else "NO"]


def render(rows):
    lines = [["source", "tokens reused", "bytes moved", "TTFT", "speed-up", "same tokens as cold"]] + [cells(row) for row in rows]
    widths = [max(len(line[i]) for line in lines if len(line) > 2) for i in range(6)]
    widths[0] = max(len(line[0]) for line in lines)
    out = []
    for line in lines:
        if len(line) == 2:
            out.append(f"{line[0]:<{widths[0]}}  {line[1]}")
        else:
            out.append(f"{line[0]:<{widths[0]}}  " + "  ".join(f"{cell:>{widths[i + 1]}}" for i, cell in enumerate(line[1:])))
    out += [f"{row.source} FAILED: {row.failed}" for row in rows if row.failed]
    return "\n".join(line.rstrip() for line in out)
