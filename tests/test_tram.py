"""TRAM against an independent, literal transcription of its definition, and its golden tests."""

import pytest
import torch
from backbones import images, make

from common import attention
from common.models.reduced import reduce_tokens
from common.reducers.tram import weighted_in_degree
from common.tokens import top_in_order


def literal_tram(vit, x, counts, *, always_select):
    """The published algorithm step by step, all layers scored, full output projection; logits and index lists."""
    prefix, selected, running = vit.num_prefix_tokens, [], 0.0
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    for layer, blk in enumerate(vit.blocks):
        b, n, d = x.shape
        q, k, v = blk.attn.qkv(blk.norm1(x)).reshape(b, n, 3, blk.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        y = blk.attn.proj((attention @ v).transpose(1, 2).reshape(b, n, d))
        adjacency = attention.amax(1)[:, prefix:, prefix:]
        in_degree = adjacency.sum(1)
        running = running + (layer + 1) / 12 * (adjacency * in_degree[:, :, None]).sum(1)
        if always_select or counts[layer] < n - prefix:
            keep = running.topk(counts[layer]).indices.sort().values
            running = running.gather(1, keep)
            rows = torch.cat([torch.arange(prefix).expand(b, -1), keep + prefix], 1)[..., None].expand(-1, -1, d)
            x, y = x.gather(1, rows), y.gather(1, rows)
            selected.append(keep)
        x = x + y
        x = x + blk.mlp(blk.norm2(x))
    return vit.forward_head(vit.norm(x)), selected


@pytest.fixture(params=["vit", "simple-vit-12"])
def vit(request):
    if request.param == "vit":
        return make("vit")
    import timm

    torch.manual_seed(0)
    return timm.create_model("simple_vit_tiny_patch16_160", img_size=64, num_classes=10).eval()


COUNTS = [16] * 3 + [12] * 3 + [9] * 3 + [6] * 3


@torch.inference_mode()
def test_logits_equal_the_definition_with_and_without_the_skip(vit):
    """Golden tests 1 and 3: selecting everything at every layer is the same as skipping."""
    x = images(vit)
    logits = reduce_tokens(vit, "tram", keep_rate=(12, 9, 6))(x)
    for always_select in (False, True):
        torch.testing.assert_close(
            logits, literal_tram(vit, x, COUNTS, always_select=always_select)[0], rtol=0, atol=1e-5
        )


def test_weighted_in_degree_is_two_steps_of_the_power_iteration():
    a = torch.rand(4, 9, 9, dtype=torch.double)
    expected = a.mT @ a.mT @ torch.ones(9, 1, dtype=torch.double)
    torch.testing.assert_close(weighted_in_degree(a), expected[..., 0])


def test_accumulation_weights(monkeypatch):
    """Golden test 1: with the same adjacency in all layers the centrality grows by 1/12, 2/12, ... of it."""
    vit = make("vit")
    model = reduce_tokens(vit, "tram", keep_rate=(12, 9, 6)).eval()
    monkeypatch.setattr("common.reducers.tram.weighted_in_degree", lambda a: torch.ones(len(a), a.shape[-1]))
    _, trace = model.trace(images(vit, 1))
    growth = [trace.scores[layer].nan_to_num(0).max().item() for layer in sorted(trace.scores)]
    assert growth == pytest.approx([sum(range(1, layer + 2)) / 12 for layer in range(10)])


def test_layer_weights_follow_the_depth(monkeypatch):
    vit = make("vit-rectangle-depth7")
    model = reduce_tokens(vit, "tram", keep_rate=0.5).eval()
    monkeypatch.setattr("common.reducers.tram.weighted_in_degree", lambda a: torch.ones(len(a), a.shape[-1]))
    _, trace = model.trace(images(vit, 1))
    assert trace.scores[0].max().item() == pytest.approx(1 / 7)
    assert max(trace.scores) == 5  # stages 1, 3, 5 of depth 7: nothing is scored after the last


def test_absolute_lists_are_nested_and_increasing():
    """Golden test 7, against the composed relative lists of the literal algorithm."""
    vit = make("vit")
    x = images(vit)
    with torch.inference_mode():
        relative = literal_tram(vit, x, COUNTS, always_select=False)[1]
    _, trace = reduce_tokens(vit, "tram", keep_rate=(12, 9, 6)).eval().trace(x)
    absolute = torch.arange(16).expand(len(x), -1)
    for layer, keep in zip((3, 6, 9), relative, strict=True):
        absolute = absolute.gather(1, keep)
        assert (absolute.diff(dim=1) > 0).all()
        for image, expected in enumerate(absolute):
            assert trace.kept(layer)[image].nonzero()[:, 0].tolist() == expected.tolist()


def test_attention_sees_all_and_the_mlp_the_kept():
    """Golden test 5."""
    vit = make("vit")
    seen = {}
    for name in ("attn.qkv", "attn.proj", "mlp.fc1"):
        module = vit.blocks[3].get_submodule(name)
        module.register_forward_hook(lambda m, i, y, name=name: seen.__setitem__(name, y.shape[1]))
    reduce_tokens(vit, "tram", keep_rate=0.5)(images(vit))
    assert seen == {"attn.qkv": 17, "attn.proj": 9, "mlp.fc1": 9}


def test_scores_stop_after_the_last_reduction(monkeypatch):
    vit = make("vit")
    layers = []
    original = attention.mix_explicitly
    monkeypatch.setattr(attention, "mix_explicitly", lambda *a: layers.append(1) or original(*a))
    reduce_tokens(vit, "tram", keep_rate=0.5)(images(vit))
    assert len(layers) == 10
    layers.clear()
    reduce_tokens(vit, "tram", keep_rate=(8, 8, 8))(images(vit))
    assert len(layers) == 4
    layers.clear()
    reduce_tokens(vit, "tram", keep_rate=1.0)(images(vit))
    assert layers == []


def test_chunks_of_maps_change_nothing(monkeypatch):
    vit = make("vit")
    x, model = images(vit, 5), reduce_tokens(vit, "tram", keep_rate=0.5)
    whole = model(x)
    monkeypatch.setattr("common.attention.MAP_CHUNK_ELEMENTS", 2 * 3 * 17 * 17)
    torch.testing.assert_close(model(x), whole, rtol=0, atol=1e-6)


def test_top_in_order():
    assert top_in_order(torch.tensor([[0.1, 5.0, 3.0, 4.0]]), 2).tolist() == [[1, 3]]
