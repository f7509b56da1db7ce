#!/usr/bin/env python3
"""Makes references.json: what transformers computes in fp32 for the cases of tests/support/engine_reference.py.

Needs tests/engines/requirements.txt. Stored per prompt: greedy tokens, for the first and the last step every 8th logit, and the RMS error of
transformers in bf16 against fp32, which the gate is measured in. Also the digest of each model's weights, so that a changed generator is noticed.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "engines")]
import engine_reference as er  # noqa: E402
import hugging_face  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

STRIDE = 8


def main():
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for case in er.CASES:
            model_dir = er.make_model(case, folder)
            exact, rounded = (hugging_face.load(model_dir, dtype) for dtype in ("float32", "bfloat16"))
            prompts = []
            for length in case.prompt_lengths:
                prompt_ids = er.prompt(length, case.vocab)
                ids, logits = hugging_face.greedy(exact, prompt_ids, er.OUTPUT_TOKENS)
                error = er.rms(hugging_face.logits_along(rounded, prompt_ids, ids) - logits)
                top = [sorted(row)[-2:] for row in logits.tolist()]
                prompts.append({
                    "length": length,
                    "output_ids": ids,
                    "margins": [round(high - low, 4) for low, high in top],
                    "bf16_rms": round(error, 6),
                    "first_logits": [round(x, 4) for x in logits[0][::STRIDE].tolist()],
                    "last_logits": [round(x, 4) for x in logits[-1][::STRIDE].tolist()],
                })
            digest = json.loads((model_dir / "manifest.json").read_text())["files"]["model.safetensors"]
            cases.append({"name": case.name, "weights_sha256": digest, "prompts": prompts})
            print(case.name, [p["bf16_rms"] for p in prompts], flush=True)
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, eager attention"
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    er.GOLDEN.write_text(f'{{"made_by":"{made_by}","logit_stride":{STRIDE},"cases":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
