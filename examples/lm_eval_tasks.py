"""Tasks of lm-evaluation-harness, dense and with a plan.

    python examples/lm_eval_tasks.py [MODEL] [--tasks niah_single_1] [--limit 5]

Needs the extra `lm-eval`. The default task needs no download. The default model is SmolLM2-135M-Instruct from a Q4_1
file, unpacked to fp32. The file is not called lm_eval.py: Python would then import it in the place of the harness.
"""

import argparse
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

import geosparse as gs
import geosparse.integrations.lm_eval  # lm-eval knows the model type `geosparse` from here on


def main() -> None:
    parser = argparse.ArgumentParser(description="lm-eval, dense and sparse.")
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="folder, .gguf file, hub id or alias")
    parser.add_argument("--tasks", default="niah_single_1", help="tasks of lm-eval, with commas")
    parser.add_argument("--limit", type=int, default=5, help="documents of each task")
    parser.add_argument("--length", type=int, default=1024, help="tokens per window of the profile")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a needle task's prompt")
    options = parser.parse_args()

    model, tokenizer = gs.load_model(options.model, dtype="float32")
    config = gs.ProfileConfig(length=options.length, windows=4)
    profile = gs.profile_model(model, tokenizer, gs.load_texts("pydoc:calibration"), config)
    with tempfile.TemporaryDirectory() as folder:
        plan = gs.make_plan(profile, mean_keep=64).save(Path(folder) / "plan.json")
        # Needle tasks load a tokenizer themselves.
        tokenizer.save_pretrained(folder)
        manager = TaskManager(metadata={"max_seq_lengths": [options.context], "tokenizer": folder})
        for name, more in (("dense", {}), ("sparse", {"plan": str(plan)})):
            found = lm_eval.simple_evaluate(
                model="geosparse",
                model_args={"pretrained": options.model, **more},
                tasks=options.tasks.split(","),
                limit=options.limit,
                task_manager=manager,
                bootstrap_iters=0,
            )
            for task, scores in found["results"].items():
                numbers = {key: value for key, value in scores.items() if isinstance(value, float) and value >= 0}
                print(name, task, numbers)


if __name__ == "__main__":
    main()
