"""Observers of a forward pass: every method does the same when it is looked at."""

from contextlib import suppress

import pytest
import torch
from backbones import images, make, reducing

from common.models.observe import Observer, attention_layers, observing, untouched
from common.models.reduced import reduce_tokens
from common.reducers import Reducer, list_reducers, reducer_class

FLAGS = {name for name, value in vars(Reducer).items() if isinstance(value, bool)}


def reduced(reducer):
    vit = make("vit")
    return reduce_tokens(vit, reducer, **reducing(vit, reducer, 0.5)).eval()


@pytest.mark.parametrize("name", [name for name in list_reducers() if not reducer_class(name).idles])
@torch.inference_mode()
def test_a_method_does_the_same_when_its_attention_is_seen(name):
    model = reduced(name)
    x = images(model)
    logits, layers = attention_layers(model, x)
    torch.testing.assert_close(logits, model(x), rtol=0, atol=1e-5)
    assert len(layers) == len(model.blocks)  # those in which the method rests too
    lengths = [1 + int(count.max()) for count in model.trace(x)[1].num_tokens]
    assert all(later.attention.shape[-1] <= length for later, length in zip(layers[1:], lengths, strict=False))


@pytest.mark.parametrize("name", [name for name in list_reducers() if reducer_class(name).idles])
@torch.inference_mode()
def test_a_method_that_idles_does_the_same_when_its_choices_are_seen(name):
    model, seen = reduced(name), {}
    x = images(model)
    signals = {"idle_topk": "cls_logits"}.get(name, "output")
    observed = observing(model, lambda layer, tokens, signals, choice: seen.update({layer: choice}), {signals})
    torch.testing.assert_close(observed(x), model(x), rtol=0, atol=1e-5)
    assert list(seen) == list(model.reducer.blocks)
    assert [choice.index.shape[1] for choice in seen.values()] == [8] * 3 + [4] * 3 + [2] * 3


@pytest.mark.parametrize("name", list_reducers())
def test_an_observer_says_of_itself_what_the_method_does(name):
    reducer = reduced(name).reducer
    observer = Observer(make("vit"), reducer, print, frozenset(), resting=False)
    assert {flag: getattr(observer, flag) for flag in FLAGS} == {flag: getattr(reducer, flag) for flag in FLAGS}
    assert (observer.blocks, observer.pools_mean) == (reducer.blocks, reducer.pools_mean)
    assert observer.schedule is reducer.schedule


def test_an_untouched_model_is_as_it_was():
    vit = make("vit").train()
    vit.head.eval().weight.requires_grad_(False)
    vit.norm.bias.grad = gradient = torch.ones_like(vit.norm.bias)
    with suppress(ZeroDivisionError), untouched(vit):
        assert not any(module.training for module in vit.modules())
        assert not any(parameter.requires_grad for parameter in vit.parameters())
        raise ZeroDivisionError
    assert vit.training and not vit.head.training and vit.norm.bias.grad is gradient
    assert [name for name, p in vit.named_parameters() if not p.requires_grad] == ["head.weight"]
