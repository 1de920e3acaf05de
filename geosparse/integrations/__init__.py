"""Where plans meet other programs: lm-evaluation-harness, serving engines, model folders and export formats."""
