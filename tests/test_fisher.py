"""What a patch that idles would cost the output, by the gradients of the model that computes everything."""

from __future__ import annotations

import pytest
import torch
from backbones import images, make

from common.cost.closed_form import Shape
from common.cost.counter import mean_macs
from common.data import load_dataset, make_loader
from common.idling.budget import solve_thresholds
from common.models.factory import create_model
from common.models.reduced import reduce_tokens
from common.reducers import similarity
from common.reducers.base import NO_SIGNALS
from common.reducers.idling import Idling
from common.reducers.similarity import fisher
from common.tokens import Gate

STEP = 3e-3


class Dimmed(Idling):
    """One patch goes through one block all but a small step."""

    def needs(self, layer, tokens):
        return NO_SIGNALS if layer == self.layer else None

    def select_queries(self, tokens, signals, layer):
        gate = torch.ones_like(tokens.patches[..., 0])
        gate[:, self.patch] -= STEP
        return tokens, Gate(gate, "all")


@pytest.mark.parametrize("family", ["vit", "dinov2-registers", "cls-avg"])
def test_where_idle_patches_are_seen_it_is_the_divergence_of_a_small_step(family, monkeypatch):
    """KL(p || p of the dimmed patch) / step^2, up to one factor of each image, over all classes."""
    monkeypatch.setattr(similarity, "CLASSES", 5)
    vit = make(family)
    vit.reset_classifier(5)
    torch.nn.init.normal_(vit.head.weight, std=0.1)
    vit = vit.double()
    x, last = images(vit, batch=2).double(), len(vit.blocks) - 1
    lost = fisher(vit, reduce_tokens(vit, "none").embed(x), seen=True)  # (B, P, blocks)
    assert lost.mean((1, 2)).tolist() == pytest.approx([1, 1])

    dimmed, cells = reduce_tokens(vit, "idle_random"), [(0, 1), (0, 5), (last - 1, 1), (last - 1, 5)]
    dimmed.reducer.__class__ = Dimmed
    with torch.inference_mode():
        log_p, found = vit(x).log_softmax(-1), []
        for dimmed.reducer.layer, dimmed.reducer.patch in cells:
            found.append((log_p.exp() * (log_p - dimmed(x).log_softmax(-1))).sum(-1))
    ratio = torch.stack([lost[:, patch, layer] for layer, patch in cells], 1) / torch.stack(found, 1)  # (B, 4)
    torch.testing.assert_close(ratio / ratio[:, :1], torch.ones_like(ratio), rtol=0.03, atol=0)


def test_where_idle_patches_are_not_seen_their_keys_count_too():
    """In the last block a patch has no way to the CLS token but its key."""
    vit = make("vit")
    tokens = reduce_tokens(vit, "none").embed(images(vit))
    seen, hidden = (fisher(vit, tokens, seen=each) for each in (True, False))
    assert (seen[..., -1] == 0).all() and (hidden[..., -1] > 0).all()


def test_it_is_had_while_nothing_is_differentiated_and_leaves_no_gradient():
    vit = make("vit")
    model = reduce_tokens(vit, "idle_oracle", tau=0.5, influence="fisher", attention="standard")
    with torch.inference_mode():
        assert model(images(vit)).shape == (3, 1000)
    assert all(parameter.grad is None for parameter in vit.parameters())


@pytest.mark.parametrize("last_block", ["whole", "cls"])
def test_without_re_entry_who_idles_never_returns_and_thresholds_cost_what_they_should(last_block):
    loader = make_loader(load_dataset("digits", "val", img_size=32, limit=16), 16, shuffle=False, seed=0)
    ((x, _),) = loader
    options = {
        "score_threshold": 0.5,
        "hidden": 4,
        "attention": "standard",
        "re_entry": False,
        "last_block": last_block,
    }
    model = create_model("vit_digits", reducer="idle_mlp", **options)
    torch.nn.init.normal_(model.reducer.predictors["2"].out.weight, std=2.0)  # blocks that disagree
    solve_thresholds(model.eval(), loader, 0.3)
    _, trace = model.trace(x)
    active = torch.stack(trace.active)  # (blocks, B, P)
    assert (active[1:] <= active[:-1]).all() and not active[-1].all()
    assert mean_macs(model, x) / Shape.of(model).unreduced == pytest.approx(0.7, abs=0.01)
