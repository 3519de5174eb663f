"""Models with fewer tokens learn from the unreduced one, whatever the labels and the classes of the head."""

import torch
from small_training import Pictures, config, lively, small_vit

from common.models.reduced import reduce_tokens
from common.training import train
from common.training.distillation import in_the_heads_classes, relabelled


class Subset(Pictures):
    """Pictures whose classes are three of ImageNet's."""

    def __init__(self, n):
        super().__init__(n)
        self.imagenet_indices = [7, 2, 900]


def test_the_model_comes_closer_to_its_teacher():
    model = reduce_tokens(lively(), "idle_mlp", score_threshold=0.5, hidden=8, context="cls")
    teacher = reduce_tokens(lively(), "none").eval()
    images = Pictures(24).stack()
    model.reducer.keep_target = 0.5

    def distance():
        with torch.inference_mode():
            return (model.eval()(images) - teacher(images)).square().mean().item()

    start = distance()
    settings = config(epochs=10, lr=2e-3, label_weight=0.0)
    list(train(model, Pictures(24), Pictures(12), settings, teacher=teacher))
    assert distance() < 0.5 * start


def test_labels_weigh_nothing_where_they_shall_not():
    """Without labels and without a teacher nothing moves."""
    model = reduce_tokens(small_vit(), "idle_topk", keep_rate=0.5, cut_weight=0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(train(model, Pictures(8), Pictures(4), config(label_weight=0.0)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_classes_of_a_larger_head():
    data, wide = Subset(6), small_vit(num_classes=1000)
    seen = relabelled(data, 1000)
    assert seen.labels.tolist() == [[7, 2, 900][label] for label in data.labels.tolist()]
    assert seen[3][1] == seen.labels[3] and seen.classes[7] == "cock" and seen.num_classes == 1000
    assert relabelled(data, 3) is data
    model = reduce_tokens(wide, "idle_topk", keep_rate=0.5)
    pair = in_the_heads_classes(model, (data, data))
    assert [part.labels.tolist() for part in pair] == [seen.labels.tolist()] * 2
    assert len(list(train(model, *pair, config(batch_size=3), teacher=reduce_tokens(wide, "none")))) == 2
