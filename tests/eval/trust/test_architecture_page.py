"""The page of model types, from a result of three types."""

from eval.trust.architecture_page import page


def test_every_type_stands_under_its_outcome():
    types = {
        "llama": {"outcome": "equal", "class": "LlamaForCausalLM", "errors": {"forward": 2e-7, "chunks": 4e-7}},
        "odd": {"outcome": "refused", "sentence": "It has no <heads> | at all."},
        "gone": {"outcome": "not run", "sentence": "It needs a package."},
    }
    counts = {"equal": 1, "refused": 1, "not run": 1}
    text = page({"types": types, "counts": counts, "provenance": {"transformers": "5.0"}})
    assert "Of 3 types: 1 equal, 1 refused, 1 not run, 0 different, 0 raw errors." in text
    assert "| llama | LlamaForCausalLM | 4e-07 |  |" in text
    assert "| odd | It has no &lt;heads> \\| at all. |" in text
    assert text.index("## Equal") < text.index("llama |") < text.index("## Refused") < text.index("odd |")
    assert "## Different" not in text
