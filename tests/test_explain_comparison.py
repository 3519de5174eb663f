"""Explainers over a dataset: what is measured, how it is compared, what is kept on disk, and the tables made of it."""

from dataclasses import replace

import pytest
import torch
import yaml
from scipy.stats import ttest_rel

from common import load_dataset
from common.data.base import LabelledDataset
from common.errors import UsageError
from common.explain import Mutex, benchmark, create_explainer
from common.explain.base import Explanation
from common.explain.benchmark import Benchmark
from common.explain.comparison import Judgement, Quality, explain_all, judge, predictions
from common.explain.mutex import MASKS
from common.explain.panels import class_name, heatmap_rows, pictures, table_rows
from common.explain.studies import explainer_rows, mask_rows, parameter_rows, reduced_rows
from common.explain.subject import Subject, imagenet_files, open_subject, output_names
from common.models.factory import create_backbone
from common.results import read_run, write_run
from common.studies.explain_benchmark import ExplainBenchmark
from common.training.metrics import mean_and_error

NUMBER = 6
HOW = Judgement(steps=(0, 20, 60, 100), batch_size=4)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "val", img_size=32, limit=NUMBER)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_backbone("vit_digits").eval()


@pytest.fixture(scope="module")
def subject(model, digits):
    labels, probabilities = predictions(model, digits)
    return Subject("vit_digits", model, digits, labels, probabilities, output_names(10, digits))


def quality(insertion, deletion):
    curve = torch.zeros(len(insertion), 2)
    return Quality(torch.tensor([0.0, 1.0]), curve, curve, torch.tensor(insertion), torch.tensor(deletion))


def test_predictions_are_the_most_probable_classes(model, digits):
    labels, probabilities = predictions(model, digits, batch_size=4)
    images = torch.stack([digits[number][0] for number in range(NUMBER)])
    expected = model(images).softmax(1).max(1)
    assert labels.tolist() == expected.indices.tolist()
    torch.testing.assert_close(probabilities, expected.values, rtol=0, atol=1e-6)


def test_all_images_are_explained_for_the_labels_given(model, digits):
    labels = torch.arange(NUMBER)
    whole, seconds = explain_all(Mutex(model, batch_size=4), digits, labels)
    images = torch.stack([digits[number][0] for number in range(NUMBER)])
    torch.testing.assert_close(whole.heatmaps, Mutex(model)(images, labels).heatmaps, rtol=0, atol=1e-5)
    assert whole.labels.tolist() == labels.tolist()
    assert whole.masks.shape == (NUMBER, 54, 8, 8)
    assert seconds > 0


def test_a_judgement_does_not_depend_on_the_batches(model, digits, subject):
    explanation, _ = explain_all(create_explainer("rollout", model), digits, subject.labels)
    whole = judge(model, digits, explanation, replace(HOW, batch_size=NUMBER))
    parts = judge(model, digits, explanation, replace(HOW, batch_size=1))
    for name in ("insertion", "deletion", "insertion_auc", "deletion_auc", "pointing", "mass"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name), rtol=0, atol=1e-5)
    assert whole.shares.tolist() == pytest.approx([0, 13 / 64, 38 / 64, 1])


def test_heat_on_the_ink_alone_is_all_in_the_box(model, digits, subject):
    boxes = [digits.box(number) for number in range(NUMBER)]
    heat = torch.zeros(NUMBER, 8, 8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        heat[number, -(-y0 // 4) : y1 // 4, -(-x0 // 4) : x1 // 4] = 1
    found = judge(model, digits, Explanation(heat, subject.labels), HOW)
    assert found.mass.tolist() == pytest.approx([1.0] * NUMBER)
    assert found.pointing.tolist() == pytest.approx([1.0] * NUMBER)


def test_a_summary_is_means_and_their_standard_errors():
    found = quality([0.2, 0.4, 0.9], [0.3, 0.3, 0.3]).summary()
    assert found["n_images"] == 3
    assert found["insertion_auc"] == pytest.approx(0.5)
    assert found["insertion_auc_sem"] == pytest.approx(0.20816660)  # 0.3605551 / sqrt(3)
    assert found["deletion_auc_sem"] == pytest.approx(0.0)
    assert found["pointing"] is None and found["mass_sem"] is None


def test_one_image_has_no_standard_error():
    mean, error = mean_and_error(torch.tensor([0.25]))
    assert mean == 0.25
    assert error != error


def test_a_gain_is_positive_where_more_is_inserted_and_less_deleted():
    better, worse = quality([0.8, 0.7, 0.9], [0.1, 0.2, 0.2]), quality([0.5, 0.6, 0.4], [0.3, 0.5, 0.2])
    gain = better.gain_over(worse)
    assert gain["insertion_gain"] == pytest.approx(0.3)
    assert gain["deletion_gain"] == pytest.approx(0.5 / 3)
    assert gain["insertion_p"] == pytest.approx(ttest_rel([0.8, 0.7, 0.9], [0.5, 0.6, 0.4]).pvalue, rel=1e-4)
    assert worse.gain_over(better)["insertion_gain"] == pytest.approx(-0.3)


@pytest.fixture
def done(monkeypatch):
    """What was really computed: "explain" for explanations of all images, "judge" for their insertion and deletion."""
    calls = []

    def noted(name, function):
        return lambda *given: calls.append(name) or function(*given)

    monkeypatch.setattr(benchmark, "explain_all", noted("explain", explain_all))
    monkeypatch.setattr(benchmark, "judge", noted("judge", judge))
    return calls


@pytest.mark.parametrize("keeps", [True, False])
def test_explanations_are_made_once_and_judged_only_when_asked_for(subject, tmp_path, done, keeps):
    bench = Benchmark(subject, HOW, folder=tmp_path if keeps else None)
    first = bench.explain("rollout")
    assert done == ["explain"]
    quality = bench.quality("rollout")
    assert done == ["explain", "judge"]
    assert bench.quality("rollout") == quality and bench.explain("rollout").seconds == first.seconds > 0
    expected = judge(subject.model, subject.dataset, first.explanation, HOW)
    assert torch.equal(quality.deletion_auc, expected.deletion_auc) and torch.equal(quality.mass, expected.mass)
    assert done == ["explain", "judge"]


def test_what_was_made_is_read_and_anything_else_made(subject, tmp_path, done):
    text, bench = "mutex:min_cut=0.1", Benchmark(subject, HOW, folder=tmp_path)
    first, quality = bench.explain(text), bench.quality(text)
    done.clear()
    again = replace(bench)
    assert again.explain(text).seconds == first.seconds
    for part, kept in ((quality, again.quality(text)), (first.explanation, again.explain(text).explanation)):
        assert all(torch.equal(vars(part)[name], vars(kept)[name]) for name in vars(part))
    assert not done
    again.quality("mutex:min_cut=0.2")
    torch.manual_seed(1)
    changed = replace(subject, model=create_backbone("vit_digits"))
    for other in (changed, replace(subject, labels=(subject.labels + 1) % 10)):
        replace(bench, subject=other).quality(text)
    assert done == ["explain", "judge"] * 3
    replace(bench, how=replace(HOW, baseline="blur")).quality(text)
    assert done == ["explain", "judge"] * 3 + ["judge"]  # what is not shown has no say in an explanation


def test_damaged_explanations_are_refused(subject, tmp_path):
    bench = Benchmark(subject, HOW, folder=tmp_path)
    bench.explain("random")
    (path,) = tmp_path.glob("random-*.npz")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UsageError, match="damaged"):
        replace(bench).explain("random")


@pytest.fixture(scope="module")
def bench(subject):
    return Benchmark(subject, HOW)


def test_random_is_what_all_gains_are_over(bench):
    rows = list(explainer_rows(bench, ["random", "tram"], num_sensitive=2))
    assert "insertion_gain" not in rows[0]
    difference = rows[1]["insertion_auc"] - rows[0]["insertion_auc"]
    assert rows[1]["insertion_gain"] == pytest.approx(difference, abs=1e-6)
    assert rows[0]["max_sensitivity"] > rows[1]["max_sensitivity"] > 0  # noise is another at every call


def test_the_study_of_masks_uses_those_of_one_run(bench, subject):
    rows = {row["masks"]: row for row in mask_rows(bench)}
    assert len(rows) == 1 + 3 + 2 + 9
    whole = bench.explain("mutex")
    assert rows["all"]["insertion_auc"] == pytest.approx(bench.quality("mutex").insertion_auc.mean().item(), abs=1e-6)
    chosen = [number for number, mask in enumerate(MASKS) if mask[1] == "in"]
    masks, confidences = whole.explanation.masks[:, chosen].flatten(2), whole.explanation.confidences[:, chosen]
    heat = torch.zeros(NUMBER, 64)
    for image in range(NUMBER):
        for patch in range(64):
            seen = masks[image, :, patch]
            heat[image, patch] = confidences[image][seen].mean() if seen.any() else 0.0
    expected = judge(subject.model, subject.dataset, Explanation(heat.view(-1, 8, 8), subject.labels), HOW)
    assert rows["degree=in"]["deletion_auc"] == pytest.approx(expected.deletion_auc.mean().item(), abs=1e-3)
    assert rows["statistic=max"] != rows["aggregation=max"]


def test_parameters_are_varied_one_at_a_time(bench):
    rows = list(parameter_rows(bench, {"min_cut": [0.0, 0.5], "token_ratio": [0.9]}))
    assert [(row["part"], row["options"]) for row in rows] == [
        ("min_cut", "min_cut=0.0"),
        ("min_cut", "min_cut=0.5"),
        ("token_ratio", "token_ratio=0.9"),
    ]


def test_reduced_models_are_asked_about_their_own_predictions(bench, digits, tmp_path):
    rows = list(reduced_rows(bench, ["topk:head_fusion=mean"], 0.25, ["mutex", "random"]))
    assert {(row["reducer"], row["keep_rate"]) for row in rows} == {("topk:head_fusion=mean", 0.25)}
    reduced = bench.reduced("topk:head_fusion=mean", 0.25).subject
    assert reduced.model.reducer.schedule.keep_rate == 0.25
    assert reduced.labels.tolist() == predictions(reduced.model, digits)[0].tolist()
    given = {"backbone": "vit_digits", "dataset": "digits", "img_size": 32, "profile": "test"}
    path = write_run(rows, ExplainBenchmark, tmp_path / "a.csv", **given)
    assert read_run(path, ExplainBenchmark)["n_images"].tolist() == [NUMBER, NUMBER]


def test_examples_show_what_was_measured(subject, bench, tmp_path):
    rows = heatmap_rows(bench, "mutex:min_cut=0.1")
    assert [row.class_name for row in rows] == [str(int(label)) for label in subject.dataset.labels]
    assert all(picture.min() >= 0 and picture.max() <= 1 for picture in pictures(subject))
    assert pictures(subject)[0].shape == (32, 32, 3)
    table = table_rows(bench, "mutex:min_cut=0.1")
    assert (table[0]["method"], table[0]["options"]) == ("mutex", "min_cut=0.1")
    assert table[2]["insertion_auc"] == pytest.approx(rows[2].insertion_auc)


def test_a_head_of_imagenet_has_its_names(subject):
    class Part(LabelledDataset):
        name, multi_label, num_classes = "part", False, 10
        imagenet_indices, labels = list(range(10)), torch.tensor([9, 0])

        def __init__(self):
            pass

    names = output_names(1000, Part())
    assert (len(names), names[0], names[9], names[999]) == (1000, "tench", "ostrich", "toilet tissue")
    assert class_name(replace(subject, dataset=Part(), names=names), 0) == "ostrich"


class Files:
    name = "imagenet"
    image_ids = ("n01/ILSVRC2012_val_00000002.JPEG", "n01/ILSVRC2012_val_00042426.JPEG")


def test_a_published_list_names_files_counted_from_one(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump([42426, 2]))
    assert imagenet_files(path, Files()) == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "no image ILSVRC2012_val_00000001 .1 of 2"),
        ("a: 1", "no list of images"),
        ("[1", "not readable as YAML"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(text, message, tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        imagenet_files(path, Files())


def test_a_subject_is_the_images_asked_for(tmp_path):
    chosen = open_subject("vit_digits", "", "digits", img_size=32, recipe="pretrained", images=[7, 3])
    assert chosen.dataset.image_ids == ["val-7", "val-3"]
    with pytest.raises(UsageError, match=r"images \[400\] are not allowed; allowed: places 0 to 359"):
        open_subject("vit_digits", "", "digits", img_size=32, recipe="pretrained", images=[400])
