"""Memory of one pass: what is counted, and that no method takes more than the unreduced model."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from backbones import VARIANTS, reducing

from common.cost.memory import peak_bytes
from common.models.reduced import reduce_tokens
from common.reducers import Method, list_reducers


def test_what_is_alive_together_is_added_and_what_was_freed_is_not():
    x = torch.zeros(1000)  # float32

    def two_of_three(x):
        kept = x + 1
        (x + 2).sum()
        return kept + (x + 3)

    numbers = 64  # bytes; of Python, as tensors
    assert peak_bytes(lambda x: x + 1, x) == pytest.approx(4000, abs=numbers)
    assert peak_bytes(two_of_three, x) == pytest.approx(12000, abs=numbers)  # what is kept, the third, and their sum
    assert peak_bytes(two_of_three, x) == peak_bytes(two_of_three, x)


@cache
def backbone():
    torch.manual_seed(1)
    return timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=10).eval()


@cache
def unreduced() -> int:
    return peak_bytes(backbone(), torch.zeros(4, 3, 224, 224))


@pytest.mark.parametrize("text", [*list_reducers(), *VARIANTS])
def test_no_method_takes_more_memory_than_the_unreduced_model(text):
    method = Method.parse(text)
    model = reduce_tokens(backbone(), method.name, **reducing(backbone(), method.name, 0.5), **dict(method.options))
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert peak_bytes(model.eval(), images) / unreduced() <= 1.02
