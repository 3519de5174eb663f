"""Losses against formulas written out, and which of them a training uses."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_training import HALF, ManyLabels, Pictures, config, small_vit
from timm.models.deit import VisionTransformerDistilled

from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.training import asymmetric_loss, distillation_loss, train
from common.training.losses import Objective, check_teacher, make_criterion, teach

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 0.0, 4.0]])


def test_asymmetric_loss_written_out():
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    expected = 0.0
    for row, truth in zip(LOGITS.tolist(), targets.tolist(), strict=True):
        for z, y in zip(row, truth, strict=True):
            p = 1 / (1 + math.exp(-z))
            q = min(1 - p + 0.05, 1)
            expected -= math.log(p) if y else (1 - q) ** 4 * math.log(q)
    assert asymmetric_loss(LOGITS, targets).item() == pytest.approx(expected, rel=1e-5)


def test_asymmetric_loss_forgets_easy_negatives_and_stays_finite():
    assert asymmetric_loss(torch.tensor([[-4.0]]), torch.zeros(1, 1)).item() == 0.0  # p < 0.05
    extreme = asymmetric_loss(torch.tensor([[-200.0, 200.0]]), torch.tensor([[1.0, 0.0]]))
    assert extreme.item() == pytest.approx(-math.log(1e-8) - 0.95**4 * math.log(0.05), rel=1e-4)


def test_asymmetric_loss_has_gradient_through_the_focus():
    z = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: asymmetric_loss(logits, torch.zeros_like(logits)), z)


def test_smoothing_and_soft_targets():
    labels = torch.tensor([0, 2])
    log_p = LOGITS.log_softmax(1)
    smooth = make_criterion(config(smoothing=0.1), multi_label=False)(LOGITS, labels)
    expected = -(0.9 * log_p[range(2), labels] + 0.1 * log_p.mean(1)).mean()
    assert smooth.item() == pytest.approx(expected.item(), rel=1e-6)
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])
    mixed = make_criterion(config(mixup=0.8, smoothing=0.1), multi_label=False)(LOGITS, soft)
    assert mixed.item() == pytest.approx(-(soft * log_p).sum(1).mean().item(), rel=1e-6)


def test_binary_cross_entropy():
    labels = torch.tensor([0, 2])
    expected = F.binary_cross_entropy_with_logits(LOGITS, F.one_hot(labels, 3).float())
    single = make_criterion(config(loss="bce"), multi_label=False)(LOGITS, labels)
    several = make_criterion(config(loss="bce"), multi_label=True)(LOGITS, F.one_hot(labels, 3).float())
    assert single.item() == several.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "multi_label", "message"),
    [
        ({"loss": "asymmetric"}, False, "loss 'asymmetric' needs several labels per image"),
        ({"loss": "cross_entropy"}, True, "loss 'cross_entropy' needs one label per image"),
        ({"cutmix": 1.0}, True, "mixup and cutmix need one label per image"),
        ({"distillation": "hard"}, True, "distillation needs one label per image"),
    ],
)
def test_losses_that_do_not_fit_the_labels(changes, multi_label, message):
    with pytest.raises(UsageError, match=message):
        make_criterion(config(**changes), multi_label=multi_label)


# teachers


def test_distillation_losses_written_out():
    teacher = torch.tensor([[0.0, 1.0, 2.0], [1.0, -1.0, 0.0]])
    tau = 3.0
    p, q = (teacher / tau).softmax(1), (LOGITS / tau).softmax(1)
    expected = tau**2 * (p * (p / q).log()).sum(1).mean()
    assert distillation_loss(LOGITS, teacher, "soft", tau).item() == pytest.approx(expected.item(), rel=1e-5)
    hard = -LOGITS.log_softmax(1)[[0, 1], [2, 0]].mean()
    assert distillation_loss(LOGITS, teacher, "hard").item() == pytest.approx(hard.item(), rel=1e-6)


def distilled_vit():
    torch.manual_seed(0)
    return VisionTransformerDistilled(
        img_size=8, patch_size=2, embed_dim=16, depth=4, num_heads=2, num_classes=3, weight_init=""
    )


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("reducer", ["none", "topk"])
def test_distilled_vit_mixes_both_heads(kind, reducer):
    """(1 - alpha) of the labels on the class token, alpha of the teacher on the distillation token."""
    model = reduce_tokens(distilled_vit(), reducer, keep_rate=0.5 if reducer == "topk" else 1.0).train()
    settings = config(distillation=kind, distillation_alpha=0.3, distillation_tau=2.0, optimizer="sgd", lr=1e-9)
    teacher, data = reduce_tokens(small_vit(), "none").eval(), Pictures(4)
    model.set_distilled_training(True)
    own, other = model(data.images)
    model.set_distilled_training(False)
    taught = distillation_loss(other, teacher(data.images), kind, 2.0)
    expected = 0.7 * F.cross_entropy(own, data.labels) + 0.3 * taught
    _, epoch = train(model, data, data, settings, teacher=teacher)
    assert epoch.train_loss == pytest.approx(expected.item(), rel=1e-5)
    assert not model.distilled_training


def test_reducer_adds_its_own_loss_with_what_the_teacher_saw():
    model, teacher = reduce_tokens(small_vit(), "none"), reduce_tokens(small_vit(), "none").eval()
    seen = []

    def own(tokens, logits, taught):
        seen.append((tokens.patches.shape, logits.shape, taught))
        return logits.new_tensor(5.0)

    model.reducer.training_loss = own
    images, labels = Pictures(4).images, Pictures(4).labels
    taught = teach(teacher, images)
    loss = Objective(model, config(), multi_label=False)(images, labels, taught)
    assert loss.item() == pytest.approx(5 + F.cross_entropy(model(images), labels).item(), rel=1e-6)
    ((patches, logits, given),) = seen
    assert patches == (4, 16, 16) and logits == (4, 3)
    assert given.logits.shape == (4, 3) and given.patches.shape == (4, 16, 16) and given.prefix.shape == (4, 1, 16)
    assert not given.patches.requires_grad


def test_dynamicvit_learns_from_a_teacher_that_stays():
    torch.manual_seed(3)
    teacher = reduce_tokens(small_vit(), "none")
    before = [parameter.clone() for parameter in teacher.parameters()]
    model = reduce_tokens(small_vit(), "dynamicvit", keep_rate=0.5)
    data = Pictures(8)
    alone = list(train(reduce_tokens(small_vit(), "dynamicvit", keep_rate=0.5), data, data, config(lr=1e-9)))
    epochs = list(train(model, data, data, config(lr=1e-9), teacher=teacher))
    assert epochs[1].train_loss > alone[1].train_loss
    assert not teacher.training and all(map(torch.equal, before, teacher.parameters()))


def unreduced(**options):
    return reduce_tokens(small_vit(**options), "none")


@pytest.mark.parametrize(
    ("reducer", "changes", "teacher", "message"),
    [
        ("none", {"distillation": "soft"}, unreduced(), "needs a backbone with a distillation token"),
        ("none", {}, unreduced(), "nothing learns from the teacher"),
        ("dynamicvit", {}, small_vit(), "a teacher must come from create_model and be unreduced"),
        ("dynamicvit", {}, reduce_tokens(small_vit(), "topk", keep_rate=0.5), "must .* be unreduced"),
        ("dynamicvit", {}, unreduced(num_classes=7), "the teacher has 7 classes, the model 3"),
        ("dynamicvit", {}, unreduced(embed_dim=32), r"\(16, 32\), the model \(16, 16\); .* width"),
        ("dynamicvit", {}, unreduced(patch_size=4), r"\(4, 16\), the model \(16, 16\); .* patch size"),
    ],
)
def test_teachers_that_do_not_fit(reducer, changes, teacher, message):
    model = reduce_tokens(small_vit(), reducer, keep_rate=0.5 if reducer != "none" else 1.0)
    with pytest.raises(UsageError, match=message):
        check_teacher(model, teacher, config(**changes))


@pytest.mark.parametrize(
    ("classes", "val_set", "message"),
    [
        (10, Pictures(4), "the model has 10 outputs, dataset 'pictures' has 3 classes; give .*num_classes=3"),
        (3, ManyLabels(4), "one per image.* several per image.* do not have the same labels"),
    ],
)
def test_labels_that_do_not_fit(classes, val_set, message):
    with pytest.raises(UsageError, match=message):
        next(train(small_vit(num_classes=classes), Pictures(4), val_set, config()))


def test_the_asymmetric_loss_weighs_images_alike_in_passes_of_any_size():
    """Ten images in passes of 4, 4 and 2: descent follows the gradient of the sum of their losses over 3 passes."""
    model, data = small_vit(), ManyLabels(10)
    before = model.head.weight.detach().clone()
    whole = asymmetric_loss(model(data.images), data.labels)
    gradient = torch.autograd.grad(whole, model.head.weight)[0] / 3
    settings = {"optimizer": "momentum", "momentum": 0.0, "lr": 1e-3, "grad_accum_steps": 3}
    _, epoch = train(model, data, ManyLabels(2), config(**settings))
    torch.testing.assert_close(model.head.weight, before - 1e-3 * gradient)
    assert epoch.train_loss == pytest.approx(whole.item() / 10, rel=1e-5)


def test_distillation_without_a_teacher():
    with pytest.raises(UsageError, match="distillation 'hard' needs a teacher"):
        check_teacher(distilled_vit(), None, config(distillation="hard"))


def test_data_of_one_label_and_of_several():
    assert not Pictures(3).multi_label and ManyLabels(3).multi_label and ManyLabels(3).mean == HALF.mean
