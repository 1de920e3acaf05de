"""Write a model folder that carries its plan, and run it from there: no training, no change of the weights.

    python examples/export.py [MODEL] --out FOLDER

transformers loads the folder as before. The default model is SmolLM2-135M-Instruct from a Q4_1 file, unpacked to fp32.
"""

import argparse
import subprocess
import sys

import geosparse as gs


def main() -> None:
    parser = argparse.ArgumentParser(description="A model folder with its plan.")
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="folder, .gguf file, hub id or alias")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--length", type=int, default=1024, help="tokens per window")
    options = parser.parse_args()

    model, tokenizer = gs.load_model(options.model, dtype="float32")
    config = gs.ProfileConfig(length=options.length, windows=4)
    profile = gs.profile_model(model, tokenizer, gs.load_texts("pydoc:calibration"), config)
    plan_file = gs.make_plan(profile, mean_keep=32).save(f"{options.out}.plan.json")
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    command = ["export", str(plan_file), "--to", "hf", "--out", options.out]
    subprocess.run([sys.executable, "-m", "geosparse", *command], check=True)

    # What a user of the folder does.
    model, tokenizer = gs.load_model(options.out, dtype="float32")
    plan = gs.find_plan(options.out)
    with gs.sparsified(model, plan) as receipt:
        ids = tokenizer("Sparse attention keeps", return_tensors="pt")
        print(tokenizer.decode(model.generate(**ids, max_new_tokens=20, do_sample=False)[0]))
    print(f"density {receipt.density:.3f}")


if __name__ == "__main__":
    main()
