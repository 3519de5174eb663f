"""K-Medoids and DPC-KNN: literal loops over images and clusters, closed-form examples, gradients, traces."""

import math

import pytest
import timm
import torch
from backbones import images, make
from counting import operators

from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.reducers.clustering import largest_first, nearest_center, squared_distances
from common.reducers.dpcknn import log_density, log_peak, weighted_means
from common.reducers.kmedoids import cheapest_members, cluster, cost_within, farthest_points
from common.tokens import Tokens
from references import kmedoids_by_loops


def line(*positions):
    """Distances (1, n, n) between points on a line."""
    points = torch.tensor(positions, dtype=torch.float32)[None, :, None]
    return squared_distances(points).sqrt()


def entering(vit, x, layer=3):
    """Tokens that enter block ``layer`` of the untouched model, and the attention maps of the block before."""
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    for blk in vit.blocks[: layer - 1]:
        x = blk(x)
    blk = vit.blocks[layer - 1]
    b, n, _ = x.shape
    q, k, _ = blk.attn.qkv(blk.norm1(x)).reshape(b, n, 3, blk.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return blk(x), (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def assert_rebuilt_by_hand(name, build, **options):
    """Block 3 runs on CLS and on ``build(reducer, patches, members, center)`` of each cluster of the trace."""
    vit = make("vit")
    x = images(vit)
    tokens, _ = entering(vit, x)
    model = reduce_tokens(vit, name, keep_rate=0.4, **options).eval()
    _, trace = model.trace(x, cls_at=(3,))
    for image, (clusters, centers) in enumerate(zip(trace.assignment[3], trace.origin[3], strict=True)):
        patches = tokens[image, 1:]
        members = [(clusters == k).nonzero()[:, 0] for k in range(len(centers))]
        merged = [build(model.reducer, patches, m, c) for m, c in zip(members, centers, strict=True)]
        after = vit.blocks[3](torch.stack([tokens[image, 0], *merged])[None])[0, 0]
        torch.testing.assert_close(trace.cls[3][image], after.detach(), rtol=1e-4, atol=1e-5)


class TestDistances:
    def test_are_those_of_differences(self):
        x = torch.randn(3, 20, 192) * 2 + 5
        expected = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        squared = squared_distances(x)
        torch.testing.assert_close(squared.sqrt(), expected, rtol=1e-5, atol=1e-4)
        assert torch.equal(squared, squared.mT) and (squared.diagonal(dim1=1, dim2=2) == 0).all()

    def test_a_common_offset_costs_no_digits(self):
        x = torch.randint(-3, 4, (2, 9, 5)).float()
        assert torch.equal(squared_distances(x + 4096), squared_distances(x))
        assert torch.equal(squared_distances(x), (x[:, :, None] - x[:, None]).square().sum(-1))

    def test_nearest_center_breaks_ties_by_order_and_keeps_centers_apart(self):
        # token 1 is as near to 0 as to 2; tokens 3 and 4 are the same point, both centres
        clusters = nearest_center(line(0, 1, 2, 9, 9), torch.tensor([[2, 0, 4, 3]]))
        assert clusters.tolist() == [[1, 0, 0, 3, 2]]

    def test_largest_first_breaks_ties_by_position(self):
        assert largest_first(torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0]]), 4).tolist() == [[1, 3, 2, 4]]


class TestKMedoids:
    @pytest.mark.parametrize("parity", [False, True])
    def test_scatter_form_is_the_loop_form(self, parity):
        x = torch.randn(4, 50, 16)
        weight = torch.rand(4, 50) + 0.1
        distance, start = squared_distances(x).sqrt(), largest_first(weight, 13)
        for iterations in (1, 3):
            found = cluster(distance, weight, start, iterations, parity=parity)
            expected = kmedoids_by_loops(distance, weight, start, iterations, parity)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])

    @pytest.mark.parametrize(("parity", "start", "iteration"), [(False, 7, 21), (True, 7, 18)])
    def test_operators_grow_with_the_iterations_alone(self, parity, start, iteration):
        """As many for 2 images with 5 clusters as for 16 with 137; no table is larger than that of the distances."""
        for shape, clusters in (((2, 20), 5), ((16, 196), 137)):
            x, weight = torch.randn(*shape, 8), torch.rand(shape)
            distance, centers = squared_distances(x).sqrt(), largest_first(weight, clusters)
            for iterations in (1, 2, 3):
                found = operators(cluster, distance, weight, centers, iterations, parity=parity)
                assert found.calls.total() == start + iteration * iterations
                assert found.largest <= distance.numel()

    def test_the_objectives_on_a_line(self):
        """Two clusters, {0, 1, 2} at 0, 2, 3 and {3, 4} at 10, 14, all weights 1.

        Within the cluster the middle one costs least, 2 + 1; of a pair, which ties, it is the first. Summed over all
        tokens it is the last of the first cluster, 3 + 1 + 7 + 11, drawn to the other one.
        """
        distance, clusters = line(0, 2, 3, 10, 14), torch.tensor([[0, 0, 0, 1, 1]])
        weight = torch.ones(1, 5)
        assert cost_within(distance, weight, clusters).tolist() == [[5, 3, 4, 4, 4]]
        assert cheapest_members(cost_within(distance, weight, clusters), clusters, 2).tolist() == [[1, 3]]
        assert distance.sum(-1).tolist() == [[29, 23, 22, 29, 41]]
        assert cheapest_members(distance.sum(-1), clusters, 2).tolist() == [[2, 3]]

    def test_parity_prefers_light_tokens_and_the_default_is_drawn_to_heavy_ones(self):
        """One cluster at 0, 1, 2 whose last token weighs 10."""
        distance, weight = line(0, 1, 2), torch.tensor([[1.0, 1.0, 10.0]])
        start = torch.tensor([[2]])
        assert cost_within(distance, weight, torch.zeros(1, 3, dtype=torch.long)).tolist() == [[21, 11, 3]]
        assert cluster(distance, weight, start, 3)[0].tolist() == [[2]]
        assert (weight * distance.sum(-1)).tolist() == [[3, 2, 30]]
        assert cluster(distance, weight, start, 3, parity=True)[0].tolist() == [[1]]

    def test_parity_differs_in_the_objective_only(self):
        """Same start, same clusters of the start, other medoids: on a line by hand, and in a model."""
        distance, weight = line(0, 1, 5, 6), torch.ones(1, 4)
        both = [cluster(distance, weight, torch.tensor([[0, 3]]), 1, parity=parity) for parity in (False, True)]
        assert both[0][0].tolist() == [[0, 2]] and both[1][0].tolist() == [[1, 2]]
        assert torch.equal(both[0][1], both[1][1])
        vit = make("vit")
        traces = []
        for parity in (False, True):
            model = reduce_tokens(vit, "kmedoids", keep_rate=0.5, parity=parity).eval()
            traces.append(model.trace(images(vit))[1])
        one, other = traces
        assert torch.equal(one.scores[3], other.scores[3]) and not torch.equal(one.origin[3], other.origin[3])

    def test_no_cluster_is_ever_empty(self):
        """Half of the tokens are duplicates of the others, or all are the same: medoids stay distinct."""
        x = torch.randn(5, 12, 8)
        for points in (torch.cat([x, x], dim=1), torch.zeros(5, 24, 8)):
            distance = squared_distances(points).sqrt()
            for weight, start in (
                (torch.ones(5, 24), torch.arange(15).expand(5, -1)),
                (torch.ones(5, 24), farthest_points(distance, 15)),
            ):
                assert all(len(set(row.tolist())) == 15 for row in start)
                for parity in (False, True):
                    centers, clusters = cluster(distance, weight, start, 3, parity=parity)
                    assert all(len(set(row.tolist())) == 15 for row in centers)
                    assert all(set(row.tolist()) == set(range(15)) for row in clusters)
                    assert torch.equal(clusters.gather(1, centers), torch.arange(15).expand(5, -1))

    def test_farthest_points_go_by_the_nearest_chosen_one(self):
        """At 0, 4, 5, 6, 20: first 5, the nearest to all; then 20, then 0; then 4 or 6, both 1 away: the first."""
        assert farthest_points(line(0, 4, 5, 6, 20), 5).tolist() == [[2, 4, 0, 1, 3]]

    def test_not_a_number_costs_no_crash(self):
        """A diverged model shall give NaN, not an index out of range."""
        distance = torch.full((1, 6, 6), float("nan"))
        centers, _ = cluster(distance, torch.ones(1, 6), torch.tensor([[0, 1, 2]]), 2)
        assert ((centers >= 0) & (centers < 6)).all()

    def test_weights_are_what_attention_brings(self):
        vit = make("vit")
        x = images(vit)
        tokens, attention = entering(vit, x)
        received = attention.sum((1, 2))[:, 1:]
        model = reduce_tokens(vit, "kmedoids", keep_rate=0.5).eval()
        _, trace = model.trace(x)
        torch.testing.assert_close(trace.scores[3], received.detach(), rtol=1e-4, atol=1e-5)
        distance = torch.cdist(tokens[:, 1:], tokens[:, 1:], compute_mode="donot_use_mm_for_euclid_dist")
        start = largest_first(received, 8)
        centers, clusters = kmedoids_by_loops(distance, received, start, 3, parity=False)
        assert torch.equal(trace.origin[3], centers) and torch.equal(trace.assignment[3], clusters)

    @pytest.mark.parametrize("options", [{}, {"parity": True}, {"equal_weight": True}], ids=str)
    def test_medoids_go_on_as_they_are(self, options):
        assert_rebuilt_by_hand("kmedoids", lambda reducer, patches, members, center: patches[center], **options)

    def test_each_stage_reads_its_own_attention(self):
        """In neighbouring blocks too: what block 3 carries is of the tokens that block 3 left."""
        vit = make("vit")
        model = reduce_tokens(vit, "kmedoids", keep_rate=(10, 6, 3), reduction_loc=(3, 4, 11)).eval()
        _, trace = model.trace(images(vit))
        assert [trace.num_tokens[layer].tolist() for layer in (2, 3, 4, 10, 11)] == [[n] * 3 for n in (16, 10, 6, 6, 3)]
        assert sorted(trace.scores) == [3, 4, 11]
        held = trace.assignment[3]
        for image in range(3):
            for token in range(10):
                assert trace.scores[4][image][held[image] == token].unique().numel() == 1

    def test_gradients_flow_through_medoids_only(self):
        model = reduce_tokens(make("vit"), "kmedoids", keep_rate=(5,), reduction_loc=(3,)).train()
        x, received = torch.randn(2, 17, 192, requires_grad=True), torch.rand(2, 16, requires_grad=True)
        merged = model.reducer.before_block(Tokens(x, 1, (4, 4), carry={"received": received}), 3)
        merged.patches.square().sum().backward()
        reached = x.grad.abs().sum(-1) > 0
        assert not reached[:, 0].any() and reached.sum(1).tolist() == [5, 5]
        torch.testing.assert_close(x.grad[reached].view(2, 5, -1).sum(1), 2 * merged.patches.sum(1))
        assert received.grad is None and merged.carry == {}

    def test_refusals(self):
        vit = make("vit")
        with pytest.raises(UsageError, match=r"reduction_loc=\[0, 3\] is not allowed, allowed: blocks from 1 on"):
            reduce_tokens(vit, "kmedoids", keep_rate=0.5, reduction_loc=(0, 3))
        with pytest.raises(UsageError, match="cluster_iters=0 is not allowed; give a whole number >= 1"):
            reduce_tokens(vit, "kmedoids", keep_rate=0.5, cluster_iters=0)
        reduce_tokens(vit, "kmedoids", keep_rate=1.0, reduction_loc=(0, 3))  # nothing to drop there
        model = reduce_tokens(vit, "kmedoids", keep_rate=0.5, reduction_loc=(0, 3), equal_weight=True).eval()
        assert model.trace(images(vit))[1].num_tokens[0].tolist() == [8] * 3


def literal_dpcknn(x, k_neighbors, count):
    """Centres and clusters of the tokens ``x`` (n, D), in float64, token by token."""
    x = x.double()
    length, dim = x.shape
    d = torch.stack([(x - row).square().sum(-1).sqrt() for row in x]) / dim**0.5
    rho = torch.stack([(-row.sort().values[:k_neighbors].square().mean()).exp() for row in d])
    delta = torch.stack([d[i][rho > rho[i]].min() if (rho > rho[i]).any() else d.max() for i in range(length)])
    centers = (rho * delta).argsort(descending=True)[:count]
    clusters = d[centers].argmin(0)
    clusters[centers] = torch.arange(count)
    return centers, clusters


class TestDpcKnn:
    def test_is_its_definition(self):
        vit = make("vit")
        x = images(vit)
        tokens, _ = entering(vit, x)
        _, trace = reduce_tokens(vit, "dpcknn", keep_rate=0.5).eval().trace(x)
        for image in range(len(x)):
            centers, clusters = literal_dpcknn(tokens[image, 1:], 5, 8)
            assert torch.equal(trace.origin[3][image], centers)
            assert torch.equal(trace.assignment[3][image], clusters)

    def test_peaks_on_a_line(self):
        """At 0, 1, 2, 8, 9 with two neighbours, the token itself and the next, at 1: all densities are exp(-1/2).

        The lower position counts as denser: token 0 is the densest and takes the largest distance, 9; the others are
        1, 1, 6 and 1 away from a denser one.
        """
        squared = line(0, 1, 2, 8, 9).square()
        density = log_density(squared, 2)
        assert density.tolist() == [[-0.5] * 5]
        expected = torch.tensor([[9.0, 1, 1, 6, 1]]).log() - 0.5
        torch.testing.assert_close(log_peak(squared, density), expected)
        assert largest_first(log_peak(squared, density), 4).tolist() == [[0, 3, 1, 2]]

    def test_fewer_tokens_than_neighbours(self):
        squared = line(0, 1, 3).square()
        assert torch.equal(log_density(squared, 99), log_density(squared, 3))
        torch.testing.assert_close(log_density(squared, 3), -torch.tensor([[10.0, 5, 13]]) / 3)

    def test_densities_do_not_underflow(self):
        """Tokens 1e4 apart: every exp(-mean) is 0 in any float, but the order of densities is known."""
        x = torch.tensor([0.0, 1e4, 2.1e4, 9e4, 9.5e4])[None, :, None]
        squared = squared_distances(x)
        density = log_density(squared, 2)
        assert (density.double().exp() == 0).all()
        assert density[0].argsort(descending=True).tolist()[:2] == [3, 4]
        score = log_peak(squared, density)
        assert score.isfinite().all() and largest_first(score, 2).tolist() == [[3, 4]]

    def test_scale_of_the_tokens_up_to_the_ends_of_float32(self):
        x = torch.randn(2, 30, 8)
        for scale in (1e-15, 1e15):
            squared = squared_distances(x * scale)
            score = log_peak(squared, log_density(squared, 5))
            assert not score.isnan().any()

    def test_duplicates_are_told_apart_by_position(self):
        squared = torch.zeros(2, 6, 6)
        assert largest_first(log_peak(squared, log_density(squared, 5)), 4).tolist() == [[0, 1, 2, 3]] * 2

    def test_is_deterministic(self):
        vit = make("vit")
        model, x = reduce_tokens(vit, "dpcknn", keep_rate=0.5).eval(), images(vit)
        first = model.trace(x)[1]
        torch.manual_seed(99)
        second = model.trace(x)[1]
        assert all(torch.equal(a, b) for a, b in zip(first.origin, second.origin, strict=True))

    def test_means_are_weighted_within_clusters(self):
        x = torch.tensor([[[0.0], [4.0], [10.0]]], requires_grad=True)
        log_weight = torch.tensor([[0.0, math.log(3), 500.0]], requires_grad=True)  # exp(500) is inf in float32
        means = weighted_means(x, log_weight, torch.tensor([[1, 1, 0]]), 2)
        torch.testing.assert_close(means, torch.tensor([[[10.0], [3.0]]]))  # (1 * 0 + 3 * 4) / 4
        means[0, 1, 0].backward()
        torch.testing.assert_close(x.grad[0, :, 0], torch.tensor([0.25, 0.75, 0.0]))
        torch.testing.assert_close(log_weight.grad, torch.tensor([[-0.75, 0.75, 0.0]]))  # share times (x - mean)

    def test_gradients_are_exact(self):
        x = torch.randn(2, 6, 3, dtype=torch.double, requires_grad=True)
        log_weight = torch.randn(2, 6, dtype=torch.double, requires_grad=True)
        clusters = torch.tensor([[0, 1, 2, 0, 0, 1], [2, 2, 2, 1, 0, 0]])
        assert torch.autograd.gradcheck(lambda a, b: weighted_means(a, b, clusters, 3), (x, log_weight))

    def test_clusters_become_learned_means(self):
        def build(reducer, patches, members, center):
            layer = reducer.log_weights["3"]
            weight = (patches[members] @ layer.weight[0] + layer.bias).exp()
            return (weight[:, None] * patches[members]).sum(0) / weight.sum()

        assert_rebuilt_by_hand("dpcknn", build)

    def test_clusters_become_plain_means(self):
        assert_rebuilt_by_hand(
            "dpcknn", lambda reducer, patches, members, center: patches[members].mean(0), equal_weight=True
        )

    def test_weights_learn_and_the_decision_does_not(self):
        vit = make("vit").train()
        model = reduce_tokens(vit, "dpcknn", keep_rate=0.6).train()
        model(images(vit)).square().sum().backward()
        for layer in ("3", "6", "9"):
            linear = model.reducer.log_weights[layer]
            assert linear.weight.grad.abs().sum() > 0
            # the bias cancels in the mean
            torch.testing.assert_close(linear.bias.grad, torch.zeros(1), rtol=0, atol=1e-4)

    def test_refusals(self):
        with pytest.raises(UsageError, match="k_neighbors=1 is not allowed; give a whole number >= 2"):
            reduce_tokens(make("vit"), "dpcknn", keep_rate=0.5, k_neighbors=1)


@pytest.mark.parametrize("name", ["kmedoids", "dpcknn"])
def test_autocast_changes_neither_decision_nor_tokens(name):
    reducer = reduce_tokens(make("vit"), name, keep_rate=(5,), reduction_loc=(3,)).eval().reducer
    patches = torch.arange(16).expand(2, -1)
    tokens = Tokens(
        torch.randn(2, 17, 192), 1, (4, 4), carry={"received": torch.rand(2, 16)}, assignment=patches, origin=patches
    )
    with torch.inference_mode():
        exact = reducer.before_block(tokens, 3)
        with torch.autocast("cpu", torch.bfloat16):
            rough = reducer.before_block(tokens, 3)
    assert torch.equal(rough.assignment, exact.assignment) and torch.equal(rough.origin, exact.origin)
    assert torch.equal(rough.x, exact.x) and rough.x.dtype == torch.float32


@pytest.mark.parametrize("rate", [0.9, 0.7, 0.5, 0.25])
@pytest.mark.parametrize(("size", "expected"), [("tiny", 579), ("small", 1155), ("base", 2307)])
def test_extra_parameters(size, expected, rate):
    """K-Medoids has none, DPC-KNN three Linear(D, 1), or none with equal weights."""
    with torch.device("meta"):
        vit = timm.create_model(f"vit_{size}_patch16_224")

        def extra(name, **options):
            return sum(p.numel() for p in reduce_tokens(vit, name, keep_rate=rate, **options).reducer.parameters())

        assert extra("dpcknn") == expected
        assert extra("dpcknn", equal_weight=True) == extra("kmedoids") == extra("kmedoids", equal_weight=True) == 0


@pytest.mark.parametrize("text", ["kmedoids", "dpcknn"])
@pytest.mark.parametrize("family", ["vit", "simple-vit"])
def test_counts_and_identity(text, family):
    """Every token stands for a cluster around a patch of its own; with nothing to drop timm's logits come out."""
    vit = make(family)
    x = images(vit)
    with torch.inference_mode():
        torch.testing.assert_close(reduce_tokens(vit, text, keep_rate=1.0).eval()(x), vit(x), rtol=0, atol=1e-5)
    _, trace = reduce_tokens(vit, text, keep_rate=0.7).eval().trace(x)
    assert trace.num_tokens[-1].tolist() == [5] * 3  # of 16
    assert trace.kept(-1).all() and (trace.selected(-1).sum(1) == 5).all()
    for layer in range(len(vit.blocks)):
        own = trace.assignment[layer].gather(1, trace.origin[layer])
        assert torch.equal(own, torch.arange(own.shape[1]).expand_as(own))  # a centre is in its own cluster


def test_a_count_that_drops_nothing_of_the_native_size_drops_of_a_larger_image():
    """16 of 16 patches at 64 px, 16 of 36 at 96 px."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, dynamic_img_size=True, depth=4).eval()
    for text in ("kmedoids", "dpcknn"):
        model = reduce_tokens(vit, text, keep_rate=(16, 4), reduction_loc=(1, 2)).eval()
        for side, counts in ((64, [16, 16, 4, 4]), (96, [36, 16, 4, 4])):
            _, trace = model.trace(torch.randn(1, 3, side, side))
            assert [tokens.item() for tokens in trace.num_tokens] == counts
    with pytest.raises(UsageError, match="kmedoids reads the attention of the block before"):
        reduce_tokens(vit, "kmedoids", keep_rate=(16, 4), reduction_loc=(0, 2))
