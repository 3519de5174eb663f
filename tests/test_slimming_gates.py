"""Gates of "dynamic_slimming": they start as their plan, learn together, and keep to their numbers of patches."""

import copy
from dataclasses import replace

import pytest
import torch
from small_slimming import DEPTH, PATCHES, noise, uneven_vit
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import DataLoader, TensorDataset

from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.reducers.base import divergence
from common.reducers.dynamic_slimming import NEXT, masked
from common.slimming import SlimmingPlan, calibrate_thresholds, fit_gates
from common.slimming.gates import standardised
from common.tokens import Tokens
from common.training.accelerator import progress


@pytest.fixture
def vit():
    return uneven_vit()


@pytest.fixture
def x():
    return noise()


def gated(vit, **options):
    return reduce_tokens(vit, "dynamic_slimming", keep_rate=0.5, **options).eval()


@pytest.mark.parametrize("gate", ["token", "mean"])
def test_gates_learn_the_order_of_the_scores_and_nothing_else_learns(vit, x, gate):
    torch.manual_seed(0)
    model = gated(vit, gate=gate)
    before = copy.deepcopy(vit.state_dict())
    losses = fit_gates(model, x, target="significance", epochs=15, lr=3e-3, batch_size=8)
    assert len(losses) == 15 and losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_stopped_training_goes_on_as_if_it_had_not_been(vit, x, tmp_path, monkeypatch):
    """Killed in the third of four epochs: it goes on from the second, and ends bit for bit the same."""
    torch.manual_seed(0)
    _, model = planned(vit)
    whole = fit_gates(model, x, epochs=4, batch_size=8)
    torch.manual_seed(0)
    _, stopped = planned(vit)
    seen = []

    def killed(*args, **kwargs):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return progress(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("common.slimming.gates.progress", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_gates(stopped, x, epochs=4, batch_size=8, output_dir=tmp_path)
    _, again = planned(vit)
    left = []
    monkeypatch.setattr(
        "common.slimming.gates.progress", lambda *args, **kwargs: left.append(1) or progress(*args, **kwargs)
    )
    assert fit_gates(again, x, epochs=4, batch_size=8, output_dir=tmp_path) == whole and len(left) == 2
    wanted = model.reducer.gates.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in again.reducer.gates.state_dict().items())
    _, other = planned(vit)
    with pytest.raises(UsageError, match=r"was made with lr=0\.01, this run has 0\.02"):
        fit_gates(other, x, epochs=4, batch_size=8, lr=0.02, output_dir=tmp_path)


def test_targets_are_standardised_logarithms():
    scores = torch.tensor([[1e-8, 1e-4, 1.0]])
    torch.testing.assert_close(standardised(scores), torch.tensor([[-1.0, 0.0, 1.0]]))


def test_thresholds_keep_the_same_number_on_average_but_not_in_every_image(vit, x):
    torch.manual_seed(0)
    model = gated(vit, budget="threshold")
    with pytest.raises(UsageError, match="budget 'threshold' has no thresholds yet"):
        model(x)
    fit_gates(model, x, epochs=2, batch_size=8)
    calibrate_thresholds(model, x, batch_size=7)
    _, trace = model.trace(x)
    for layer, count in model.reducer.counts.items():
        found = trace.num_tokens[layer].double()
        assert found.mean().item() == pytest.approx(count, abs=0.05) and found.std() > 0
    with torch.inference_mode():
        torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]), rtol=0, atol=1e-4)


def test_a_plan_gives_the_dynamic_model_its_numbers(vit, x):
    plan, model = planned(vit)
    _, trace = model.trace(x)
    assert [trace.num_tokens[layer][0].item() for layer in range(DEPTH)] == [64, 39, 29, 19, 4, 0]
    assert sorted(model.reducer.gates) == ["1", "2", "3", "4"]
    with pytest.raises(UsageError, match=r"keep_rate=0\.5 must stay 1\.0"):
        reduce_tokens(vit, "dynamic_slimming", plan=plan, keep_rate=0.5)


def test_a_gate_that_is_the_score_chooses_by_the_score(vit, x):
    """The straight-through factor changes no number; the highest gates are kept."""
    model = gated(vit).train()
    logits = model(x)
    model.eval()
    found, trace = model.trace(x)
    torch.testing.assert_close(logits, found, rtol=0, atol=1e-5)
    first = model.reducer.blocks[0]
    highest = trace.scores[first].topk(32).indices.sort().values
    assert torch.equal(highest, torch.stack([row.nonzero()[:, 0] for row in trace.kept(first)]))


@pytest.mark.parametrize(("given", "said"), [("vit", "VisionTransformer"), ("topk", "TopK")])
def test_what_has_no_gates_is_refused(vit, x, given, said):
    with pytest.raises(UsageError, match=f"{said} has no gates; allowed: a model reduced by dynamic_slimming"):
        fit_gates(vit if given == "vit" else reduce_tokens(vit, given, keep_rate=0.5), x)


def test_gates_learn_the_same_from_a_tensor_and_a_loader(vit, x):
    pairs = TensorDataset(x, torch.arange(len(x)))
    found = []
    for images in (x, pairs, DataLoader(pairs, batch_size=3)):
        torch.manual_seed(0)  # of the gates
        found.append(fit_gates(gated(vit), images, epochs=1))
    assert found[0] == found[1] == found[2]
    with pytest.raises(UsageError, match="images of type str are not allowed; give a tensor"):
        fit_gates(gated(vit), "photos/")


def test_a_gate_in_the_last_block_is_refused():
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=10)
    model = reduce_tokens(vit, "dynamic_slimming", keep_rate=0.5)  # in blocks 1, 2 and 3
    with pytest.raises(UsageError, match=r"a gate in block 3, the last one.*allowed: reduction_loc with blocks 0 to 2"):
        fit_gates(model, torch.rand(4, 3, 32, 32))
    model = reduce_tokens(vit, "dynamic_slimming", keep_rate=0.5, reduction_loc=(1, 2))
    assert len(fit_gates(model, torch.rand(4, 3, 32, 32), epochs=1)) == 1


def planned(vit, lengths=(65, 40, 30, 20, 5, 1), **options):
    """Gates of a plan of ``lengths`` that keeps the first patches."""
    plan = SlimmingPlan.of_patches([range(length - 1) for length in lengths], PATCHES)
    return plan, reduce_tokens(vit, "dynamic_slimming", plan=plan, **options).eval()


@pytest.mark.parametrize("gate", ["token", "mean"])
def test_gates_of_a_plan_start_as_the_plan(vit, x, gate):
    plan, model = planned(vit, gate=gate)
    expected, traced = reduce_tokens(vit, "patch_slimming", plan=plan).eval().trace(x)
    found, trace = model.trace(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert all(torch.equal(trace.kept(layer), traced.kept(layer)) for layer in range(DEPTH))
    assert model.reducer.caution() == "", "what stays is not random"
    threshold = reduce_tokens(vit, "dynamic_slimming", plan=plan, gate=gate, budget="threshold").eval()
    calibrate_thresholds(threshold, x)
    torch.testing.assert_close(threshold(x), expected, rtol=0, atol=1e-5)


def test_the_masks_of_training_change_no_number(vit, x):
    """What is left out is seen in its own block and by nobody after it, whether masked or gone."""
    _, model = planned(vit)
    torch.manual_seed(0)
    for gate in model.reducer.gates.values():
        torch.nn.init.normal_(gate.gate.last.weight)  # so that every image keeps other patches
    expected, trace = model.trace(x)
    assert len({tuple(kept.tolist()) for kept in trace.kept(2)}) > 1
    model.reducer.train()
    torch.testing.assert_close(model(x).detach(), expected, rtol=0, atol=1e-4)


def test_the_policy_has_the_gradient_of_a_sigmoid_around_the_last_that_stays():
    tokens = Tokens(torch.zeros(1, 5, 2), 1, (2, 2))
    scores = torch.tensor([[2.0, 0.0, 1.0, -1.0]], requires_grad=True)
    policy = masked(tokens, scores, 2).carry[NEXT]
    assert policy.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    (gradient,) = torch.autograd.grad(policy.sum(), scores)
    slope = torch.sigmoid(torch.tensor([[1.0, -1.0, 0.0, -2.0]]))
    torch.testing.assert_close(gradient, slope * (1 - slope))


def test_a_patch_that_went_early_learns_what_later_blocks_miss():
    """Patch 1 is gone, but the next gate scores it above the last that stays: there it would have stayed."""
    first = torch.tensor([[1.0, -1.0, 1.0, 1.0]], requires_grad=True)
    tokens = masked(Tokens(torch.zeros(1, 5, 2), 1, (2, 2)), first, 3)
    tokens = replace(tokens, policy=tokens.carry[NEXT])
    policy = masked(tokens, torch.tensor([[0.0, 2.0, 1.0, -3.0]]), 2).carry[NEXT]
    assert policy.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    gradient = torch.autograd.grad(policy[0, 1] + policy[0, 3], first)[0]
    assert gradient[0, 1] > 0.1 and gradient[0, 3] == 0


def test_gates_find_what_the_plan_leaves_out(vit):
    """In each image one of two patches says which image it is; the plan keeps neither."""
    generator, pictures = torch.Generator().manual_seed(3), torch.zeros(64, 3, 32, 32)
    for number in range(64):
        row = 28 if number % 2 else 24
        pictures[number, :, row : row + 4, 28:32] = 4 * torch.randn(3, 4, 4, generator=generator)
    expected, apart = reduce_tokens(vit, "none").eval()(pictures).detach(), {}
    for target, epochs in (("output", 0), ("output", 20), ("significance", 20)):
        torch.manual_seed(0)
        _, model = planned(vit, lengths=(17, 17, 17, 17, 17, 1))
        losses = fit_gates(model, pictures, target=target, epochs=epochs, lr=1e-2)
        logits, trace = model.trace(pictures)
        assert len(losses) == epochs and trace.num_tokens[0].unique().tolist() == [16]
        apart[target, epochs] = divergence(logits, expected).item()
    print(apart)
    assert apart["output", 20] < 0.2 * apart["output", 0]


@pytest.mark.parametrize(
    ("keep_rate", "acting"),
    [((0.5, 0.5, 0.25), [0, 2]), ((1.0, 0.5, 0.5), [1]), ("0.5@0 0.5@2", [0]), ((8, 8, 4), [0, 2])],
)
def test_blocks_that_drop_nothing_have_no_gate_in_training_either(keep_rate, acting):
    """Where all patches are still there, because those that were dropped before are only masked."""
    vit = VisionTransformer(img_size=64, patch_size=16, embed_dim=32, depth=4, num_heads=2, num_classes=10)
    blocks = None if isinstance(keep_rate, str) else (0, 1, 2)
    model = reduce_tokens(vit, "dynamic_slimming", keep_rate=keep_rate, reduction_loc=blocks)
    assert [int(layer) for layer in model.reducer.gates] == acting
    images = torch.rand(2, 3, 64, 64)
    model.train()(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.reducer.gates.parameters())
    fit_gates(model, torch.rand(8, 3, 64, 64), epochs=1, batch_size=4)
    assert model.eval()(images).shape == (2, 10)
