"""Which attention operator stands in a compiled graph, and that the model answers as eager does."""

from pathlib import Path

import pytest
import torch
from transformers import StaticCache

from srrc.models_zoo import families


@pytest.mark.parametrize(("length", "op"), [(3, "decode_attention"), (80, "prefill_attention")])
def test_a_static_cache(length: int, op: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = families.tiny("llama").model
    ids = torch.randint(0, 200, (2, length), generator=torch.Generator().manual_seed(0))

    def caches() -> list[StaticCache]:
        return [StaticCache(config=model.config, max_cache_len=128) for _ in range(2)]

    with torch.no_grad():
        ours, eagers = caches()
        expected = model.forward(input_ids=ids, past_key_values=eagers).logits
        model.forward(input_ids=ids, past_key_values=ours)  # makes the cache's tensors
        ours.reset()
        model.compile(backend="srr", dynamic=False, options={"strict": True, "dump_dir": tmp_path})
        torch.testing.assert_close(model(input_ids=ids, past_key_values=ours).logits, expected)
    (stage,) = tmp_path.rglob("*_lower_dense.py")
    assert f"srr.{op}" in stage.read_text()
    for layer, other in zip(ours.layers, eagers.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys)
