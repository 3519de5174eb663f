"""Explainers over a dataset: what is measured, how it is compared, what is kept on disk, and the tables made of it."""

from dataclasses import replace

import pytest
import torch
import yaml
from scipy.stats import ttest_rel

from common import load_dataset
from common.data.base import LabelledDataset
from common.errors import UsageError
from common.explain import Mutex, create_explainer
from common.explain.base import Explainer, Explanation
from common.explain.explanations import Explanations, Quality
from common.explain.images import class_names, imagenet_files, output_names
from common.explain.metrics import insertion_deletion
from common.explain.mutex import MASKS
from common.models.factory import create_backbone
from common.results import read_run, read_runs, write_run
from common.setup import Setup
from common.studies.explain import heatmap_rows, image_rows, pictures
from common.studies.explain_benchmark import (
    ExplainBenchmark,
    explainer_rows,
    mask_rows,
    parameter_rows,
    reduced_rows,
)
from common.training.metrics import means_with_errors

NUMBER = 6
STEPS = (0, 20, 60, 100)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "val", img_size=32, limit=NUMBER)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_backbone("vit_digits").eval()


def explanations(model, digits, batch_size=4, folder="", **given):
    setup = Setup.around(
        model, {"val_set": digits}, backbone="vit_digits", batch_size=batch_size, folder=str(folder), device="cpu"
    )
    return Explanations(setup, **{"steps": STEPS, **given})


@pytest.fixture(scope="module")
def found(model, digits):
    return explanations(model, digits)


def test_published_areas_rank_pixels_and_go_up_to_100(model, digits):
    found = explanations(model, digits, areas="published", baseline="zero")
    images, explanation = digits.stack(), found.explain("mutex")
    given = {"steps": STEPS, "ranking": "pixel", "parity": True}
    curves = insertion_deletion(found.model, images, explanation.heatmaps, explanation.labels, 0 * images, **given)
    torch.testing.assert_close(found.quality("mutex").insertion_auc, curves.insertion_auc)
    rows = image_rows(found, "mutex")
    assert [row["areas"] for row in rows] == ["published"] * NUMBER
    torch.testing.assert_close(torch.tensor([row["deletion_auc"] for row in rows]), curves.deletion_auc / 100)
    with pytest.raises(UsageError, match="unknown areas 'percent'; allowed: published, unit"):
        explanations(model, digits, areas="percent")


def quality(insertion, deletion):
    curve = torch.zeros(len(insertion), 2)
    return Quality(torch.tensor([0.0, 1.0]), curve, curve, torch.tensor(insertion), torch.tensor(deletion))


def test_the_most_probable_classes_are_explained(model, digits, found):
    expected = model(digits.stack()).softmax(1).max(1)
    assert found.labels.tolist() == expected.indices.tolist()
    torch.testing.assert_close(found.probabilities, expected.values, rtol=0, atol=1e-6)


def test_all_images_are_explained_for_what_is_predicted(model, digits, found):
    whole = found.explain("mutex")
    torch.testing.assert_close(whole.heatmaps, Mutex(model)(digits.stack(), found.labels).heatmaps, rtol=0, atol=1e-5)
    assert whole.labels.tolist() == found.labels.tolist()
    assert whole.masks.shape == (NUMBER, 54, 8, 8)
    assert found.seconds("mutex") > 0


def test_gradients_are_those_of_a_single_call(model, digits, found):
    expected = create_explainer("chefer", model)(digits.stack(), found.labels).heatmaps
    torch.testing.assert_close(found.explain("chefer").heatmaps, expected, rtol=0, atol=1e-5)
    assert not found.explain("chefer").heatmaps.is_inference()


def test_a_quality_does_not_depend_on_the_batches(model, digits):
    whole, parts = (explanations(model, digits, batch_size=size).quality("rollout") for size in (NUMBER, 1))
    for name in ("insertion", "deletion", "insertion_auc", "deletion_auc", "pointing", "mass"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name), rtol=0, atol=1e-5)
    assert whole.shares.tolist() == pytest.approx([0, 13 / 64, 38 / 64, 1])


def test_an_unknown_baseline_is_refused_before_anything_runs(model, digits):
    with pytest.raises(UsageError, match="unknown baseline 'white'; allowed: black, "):
        explanations(model, digits, baseline="white")


def test_heat_on_the_ink_alone_is_all_in_the_box(digits, found):
    boxes = [digits.box(number) for number in range(NUMBER)]
    heat = torch.zeros(NUMBER, 8, 8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        heat[number, -(-y0 // 4) : y1 // 4, -(-x0 // 4) : x1 // 4] = 1
    quality = found.measure(Explanation(heat, found.labels))
    assert quality.mass.tolist() == pytest.approx([1.0] * NUMBER)
    assert quality.pointing.tolist() == pytest.approx([1.0] * NUMBER)


def test_a_summary_is_means_and_their_standard_errors():
    found = quality([0.2, 0.4, 0.9], [0.3, 0.3, 0.3]).summary()
    assert found["n_images"] == 3
    assert found["insertion_auc"] == pytest.approx(0.5)
    assert found["insertion_auc_sem"] == pytest.approx(0.20816660)  # 0.3605551 / sqrt(3)
    assert found["deletion_auc_sem"] == pytest.approx(0.0)
    assert found["pointing"] is None and found["mass_sem"] is None


def test_one_image_has_no_standard_error():
    found = means_with_errors(gain=torch.tensor([0.25]))
    assert found["gain"] == 0.25
    assert found["gain_sem"] != found["gain_sem"]


def test_a_gain_is_positive_where_more_is_inserted_and_less_deleted():
    better, worse = quality([0.8, 0.7, 0.9], [0.1, 0.2, 0.2]), quality([0.5, 0.6, 0.4], [0.3, 0.5, 0.2])
    gain = better.gain_over(worse)
    assert gain["insertion_gain"] == pytest.approx(0.3)
    assert gain["deletion_gain"] == pytest.approx(0.5 / 3)
    assert gain["insertion_p"] == pytest.approx(ttest_rel([0.8, 0.7, 0.9], [0.5, 0.6, 0.4]).pvalue, rel=1e-4)
    # differences 0.3, 0.1, 0.5: standard deviation 0.2
    assert gain["insertion_gain_sem"] == pytest.approx(0.2 / 3**0.5)
    assert worse.gain_over(better)["insertion_gain"] == pytest.approx(-0.3)


@pytest.fixture
def done(monkeypatch):
    """What was really computed: "explain" for explanations of a batch, "measure" for insertion and deletion."""
    calls = []

    def noted(name, function):
        return lambda *given: calls.append(name) or function(*given)

    monkeypatch.setattr(Explainer, "__call__", noted("explain", Explainer.__call__))
    monkeypatch.setattr(Explanations, "measure", noted("measure", Explanations.measure))
    return calls


@pytest.mark.parametrize("keeps", [True, False])
def test_explanations_are_made_once_and_measured_only_when_asked_for(model, digits, tmp_path, done, keeps):
    found = explanations(model, digits, NUMBER, folder=tmp_path if keeps else "")
    first, seconds = found.explain("rollout"), found.seconds("rollout")
    assert done == ["explain"]
    quality = found.quality("rollout")
    assert done == ["explain", "measure"]
    assert (
        torch.equal(found.quality("rollout").insertion, quality.insertion) and found.seconds("rollout") == seconds > 0
    )
    expected = found.measure(first)
    assert torch.equal(quality.deletion_auc, expected.deletion_auc) and torch.equal(quality.mass, expected.mass)
    assert done == ["explain", "measure", "measure"]


def test_what_was_made_is_read_and_anything_else_made(model, digits, tmp_path, done):
    text = "mutex:min_cut=0.1"
    first = explanations(model, digits, NUMBER, folder=tmp_path)
    explanation, quality = first.explain(text), first.quality(text)
    done.clear()
    again = explanations(model, digits, NUMBER, folder=tmp_path)
    assert again.seconds(text) == first.seconds(text)
    for part, kept in ((quality, again.quality(text)), (explanation, again.explain(text))):
        assert all(torch.equal(vars(part)[name], vars(kept)[name]) for name in vars(part))
    assert not done
    again.quality("mutex:min_cut=0.2")
    torch.manual_seed(1)
    for other in (
        explanations(create_backbone("vit_digits").eval(), digits, NUMBER, folder=tmp_path),
        explanations(model, digits, NUMBER, folder=tmp_path, images=[0, 2]),
        first.reduced("topk", 0.5),
    ):
        other.quality(text)
    assert done == ["explain", "measure"] * 4
    replace(first, baseline="blur").quality(text)
    assert done == ["explain", "measure"] * 4 + ["measure"]  # what is not shown has no say in an explanation


def test_damaged_explanations_are_refused(model, digits, tmp_path):
    explanations(model, digits, folder=tmp_path).explain("random")
    (path,) = tmp_path.glob("random-*.npz")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UsageError, match="damaged"):
        explanations(model, digits, folder=tmp_path).explain("random")


def test_random_is_what_all_gains_are_over(found):
    rows = list(explainer_rows(found, ["random", "tram"], num_sensitive=2))
    assert "insertion_gain" not in rows[0]
    difference = rows[1]["insertion_auc"] - rows[0]["insertion_auc"]
    assert rows[1]["insertion_gain"] == pytest.approx(difference, abs=1e-6)
    assert rows[0]["max_sensitivity"] > rows[1]["max_sensitivity"] > 0  # noise is another at every call
    assert rows[1]["max_sensitivity_sem"] > 0 and rows[1]["sparseness_sem"] > 0


def test_the_study_of_masks_uses_those_of_one_run(found):
    rows = {row["masks"]: row for row in mask_rows(found)}
    assert len(rows) == 1 + 3 + 2 + 9
    whole = found.explain("mutex")
    assert rows["all"]["insertion_auc"] == pytest.approx(found.quality("mutex").insertion_auc.mean().item(), abs=1e-6)
    chosen = [number for number, mask in enumerate(MASKS) if mask[1] == "in"]
    masks, confidences = whole.masks[:, chosen].flatten(2), whole.confidences[:, chosen]
    heat = torch.zeros(NUMBER, 64)
    for image in range(NUMBER):
        for patch in range(64):
            seen = masks[image, :, patch]
            heat[image, patch] = confidences[image][seen].mean() if seen.any() else 0.0
    expected = found.measure(Explanation(heat.view(-1, 8, 8), found.labels))
    assert rows["degree=in"]["deletion_auc"] == pytest.approx(expected.deletion_auc.mean().item(), abs=1e-3)
    assert rows["statistic=max"]["insertion_auc"] != rows["aggregation=max"]["insertion_auc"]


def test_parameters_are_varied_one_at_a_time(found):
    rows = list(parameter_rows(found, {"min_cut": [0.0, 0.5], "token_ratio": [0.9]}))
    assert {row["part"] for row in rows} == {"parameters"}
    assert [(row["parameter"], row["value"], row["options"]) for row in rows] == [
        ("min_cut", 0.0, "min_cut=0.0"),
        ("min_cut", 0.5, "min_cut=0.5"),
        ("token_ratio", 0.9, "token_ratio=0.9"),
    ]


def test_reduced_models_are_asked_about_their_own_predictions(found, digits, tmp_path):
    rows = list(reduced_rows(found, ["topk:head_fusion=mean"], 0.25, ["mutex", "random"]))
    assert {(row["reducer"], row["keep_rate"]) for row in rows} == {("topk:head_fusion=mean", 0.25)}
    reduced = found.reduced("topk:head_fusion=mean", 0.25)
    assert reduced.model.reducer.schedule.keep_rate == 0.25
    assert reduced.labels.tolist() == reduced.model(digits.stack()).argmax(1).tolist()
    path = tmp_path / "runs/explain_benchmark/a.csv"
    written = write_run(
        rows, ExplainBenchmark, path, image_ids=digits.image_ids, profile="test", **found.setup.conditions
    )
    assert read_run(written, ExplainBenchmark)["n_images"].tolist() == [NUMBER, NUMBER]
    kept = read_runs(tmp_path, ExplainBenchmark)
    assert kept["insertion_auc_by_image"].map(len).tolist() == [NUMBER, NUMBER]
    means = kept["insertion_auc_by_image"].map(lambda values: float(values.mean())).tolist()
    assert means == pytest.approx(kept["insertion_auc"].tolist(), abs=1e-6)


def test_examples_show_what_was_measured(found, digits):
    rows = heatmap_rows(found, "mutex:min_cut=0.1")
    assert [row.class_name for row in rows] == [str(int(label)) for label in digits.labels]
    assert all(picture.min() >= 0 and picture.max() <= 1 for picture in pictures(found))
    assert pictures(found)[0].shape == (32, 32, 3)
    table = image_rows(found, "mutex:min_cut=0.1")
    assert (table[0]["method"], table[0]["options"], table[0]["baseline"]) == ("mutex", "min_cut=0.1", "black")
    assert table[2]["insertion_auc"] == pytest.approx(rows[2].insertion_auc)
    assert [row["image"] for row in table] == list(digits.image_ids)


def test_a_head_of_imagenet_has_its_names():
    class Part(LabelledDataset):
        name, multi_label, num_classes = "part", False, 10
        imagenet_indices, labels = list(range(10)), torch.tensor([9, 0])

        def __init__(self):
            pass

    names = output_names(1000, Part())
    assert (len(names), names[0], names[9], names[999]) == (1000, "tench", "ostrich", "toilet tissue")
    assert class_names(1000, Part()) == ["ostrich", "tench"]


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


def test_images_are_those_asked_for():
    setup = Setup("vit_digits", "", "digits", img_size=32)
    assert Explanations(setup, [7, 3]).dataset.image_ids == ["val-7", "val-3"]
    assert len(Explanations(setup, 20).dataset) == 20
    with pytest.raises(UsageError, match=r"images \[400\] are not allowed; allowed: places 0 to 359"):
        Explanations(setup, [400]).labels  # noqa: B018
