"""The zoo's real models do what they were trained for: the weights are where they belong."""

import math

import torch

from srrc import models_zoo


def test_smollm2_answers_a_question() -> None:
    model, tokenizer = models_zoo.load("smollm2-135m")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
    assert model.config.num_hidden_layers == 30
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_smollm2_loads_in_the_dtype_asked_for() -> None:
    model, _ = models_zoo.load("smollm2-135m", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_minilm_puts_like_sentences_together() -> None:
    model, tokenizer = models_zoo.load("minilm-l6")
    sentences = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Shares fell sharply on Monday."]
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    cat, kitten, shares = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert cat @ kitten > 0.6
    assert cat @ shares < 0.2


def test_whisper_has_its_weights_in_place() -> None:
    model, processor = models_zoo.load("whisper-tiny.en")
    # The encoder's positions are a formula, so a shifted or mislabelled archive would not match it.
    step = math.log(10000) / (192 - 1)
    angle = torch.outer(torch.arange(1500.0), torch.exp(-step * torch.arange(192.0)))
    positions = model.model.encoder.embed_positions.weight
    torch.testing.assert_close(positions, torch.cat([angle.sin(), angle.cos()], 1), atol=2e-3, rtol=0)
    # The decoder knows English, and hears in silence the " you" that this model is known for.
    features = processor.feature_extractor(
        torch.zeros(16000).numpy(), sampling_rate=16000, return_tensors="pt"
    )
    text = processor.tokenizer(" Ladies and gentlemen, thank you very", add_special_tokens=False).input_ids
    prompt = torch.tensor([[50257, 50362, *text]])
    with torch.no_grad():
        logits = model(input_features=features["input_features"], decoder_input_ids=prompt).logits
        heard = model.generate(features["input_features"])
    assert processor.tokenizer.decode(logits[0, -1].argmax()) == " much"
    assert processor.batch_decode(heard, skip_special_tokens=True) == [" you"]


def test_nanoguard_leaves_most_neurons_at_zero() -> None:
    model, tokenizer = models_zoo.load("nanoguard")
    assert tokenizer is None
    shares: list[float] = []
    for block in model.transformer["h"]:  # type: ignore[union-attr,index,operator]
        block.mlp.c_fc.register_forward_hook(
            lambda _m, _i, out: shares.append((out <= 0).float().mean().item())
        )
    with torch.no_grad():
        logits = model(torch.randint(0, 8192, (2, 64), generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 2)
    assert torch.isfinite(logits).all()
    assert min(shares) > 0.55, shares
