"""Vision-language wrappers: the language part is sparse, the vision tower stays as it is, or a refusal says why."""

import pytest
import torch
import transformers

import geosparse as gs

from ..tiny import SHAPE, tokens

VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
IMAGE, PATCHES = 5, 4
# fp32 rounding through two layers; another token kept moves logits by 1e-2 and more.
TOLERANCE = 2e-5


def llava():
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**VISION),
            text_config=transformers.LlamaConfig(**SHAPE),
            image_token_index=IMAGE,
        )
    )


def gemma3():
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**SHAPE, sliding_window=16).to_dict(),
        vision_config=dict(VISION),
        mm_tokens_per_image=PATCHES,
        image_token_index=IMAGE,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def ready(make):
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "language_model" in name and any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            parameter.mul_(8.0)
    return model


def prompt(model, length=40):
    """Token ids with an image after the third, and the image."""
    ids = tokens(1, length).clamp_min(10)
    ids[:, 3 : 3 + PATCHES] = IMAGE
    arguments = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    if type(model).__name__.startswith("Gemma3"):
        arguments["token_type_ids"] = (ids == IMAGE).long()
    return arguments


@pytest.mark.parametrize("make", [llava, gemma3])
def test_the_language_part_is_sparse_and_the_vision_tower_as_it_was(make):
    model = ready(make)
    arguments = prompt(model)
    vision = model.config.vision_config._attn_implementation
    with torch.no_grad():
        dense = model(**arguments).logits
        with gs.sparsified(model, gs.Plan.uniform(model, 40)):
            assert model.config.vision_config._attn_implementation == vision
            assert (model(**arguments).logits - dense).abs().max() <= TOLERANCE * dense.abs().max()
        with gs.sparsified(model, gs.Plan.uniform(model, 3, "centroid", selector="lowbit")) as receipt:
            sparse = model(**arguments).logits
            assert torch.equal(receipt.kept, receipt.planned)
            step = model(**arguments, use_cache=True).past_key_values
            assert model(input_ids=torch.tensor([[9]]), past_key_values=step).logits.isfinite().all()
        assert (sparse - dense).abs().max() > 100 * TOLERANCE * dense.abs().max()
        assert torch.equal(model(**arguments).logits, dense)
    assert model.config.vision_config._attn_implementation == vision


def test_a_prefix_that_sees_both_ways_is_refused_by_name():
    text = SHAPE | {"model_type": "gemma"}
    vision = VISION | {"model_type": "siglip_vision_model"}
    config = transformers.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=48)
    model = ready(lambda: transformers.PaliGemmaForConditionalGeneration(config))
    before = model.config._attn_implementation
    with pytest.raises(gs.GeosparseError, match=r"GemmaAttention .* is not supported: its attention is not causal"):
        gs.Plan.uniform(model, 4)
    assert model.config._attn_implementation == before
