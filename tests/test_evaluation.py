"""What an evaluation notes about every image, and the file it is kept in."""

import json
import math
import tracemalloc

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from backbones import make
from counting import python_calls

from common.data.base import LabelledDataset
from common.data.transforms import Normalisation
from common.errors import UsageError
from common.evaluation import Record, Setting, Stage, evaluate_model, export_json, run_key
from common.evaluation.evaluate import image_losses, stage_blocks
from common.evaluation.names import full_name, model_name
from common.evaluation.record import PER_IMAGE, cls_path, peek
from common.models.reduced import reduce_tokens
from common.reducers import Method, list_reducers, reducer_class
from common.tokens import Tokens
from references import record_of

BATCH = 3
REDUCERS = sorted(name for name in list_reducers() if not (name == "none" or reducer_class(name).reads_prefix_only))
REDUCING = [name for name in REDUCERS if not reducer_class(name).idles]
IDLING = [name for name in REDUCERS if reducer_class(name).idles]
SELECTING = [name for name in REDUCERS if reducer_class(name).selects]
PRUNING = {"diffrate", "ppt"}  # and merging
CLUSTERING = [name for name in REDUCERS if reducer_class(name).clusters]
VARIANTS = ["l2:contiguous=true", "tome:parity=true", "kmedoids:equal_weight=true"]


class Noise(LabelledDataset):
    """Random images, the same every time, with given labels."""

    def __init__(self, labels, num_classes, imagenet_indices=None):
        norm = Normalisation((0.5,) * 3, (0.5,) * 3)
        ids = [f"image-{i}.png" for i in range(len(labels))]
        super().__init__("noise", list(map(str, range(num_classes))), labels, norm, imagenet_indices, ids)
        self.images = torch.randn(len(labels), 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def __getitem__(self, index):
        return self.images[index], self.labels[index] if self.multi_label else int(self.labels[index])


def noise(num_classes=1000):
    return Noise(torch.tensor([3, 1, 4, 1, 5, 2, 6]), num_classes)


def reduced(text, family="cls-avg", keep_rate=0.6):
    method = Method.parse(text)
    keep_rate = 1.0 if "contiguous" in text or method.name == "none" else keep_rate
    return reduce_tokens(make(family), method.name, keep_rate=keep_rate, **dict(method.options)).eval()


def evaluated(text, dataset=None, **options):
    """Record of a four-block ViT on seven images of 4 x 4 patches, in three batches."""
    given = {"batch_size": BATCH, "method": text, "backbone": "vit_tiny_patch16_224", "device": "cpu", **options}
    return evaluate_model(reduced(text), dataset or noise(), **given)


def some_record(**changes):
    values = {
        "setting": Setting("run", "kmedoids", "deit_tiny_patch16_224", "noise", "", 0.5, (1,), (32, 32), (2, 2)),
        "image_ids": ("a.png", "b.png"),
        "targets": np.array([7, 3], dtype=np.int32),
        "predictions": np.array([[7, 1], [0, 3]], dtype=np.int32),
        "loss": np.array([0.5, 1.25], dtype=np.float32),
        "accuracy": {"top1": 50.0, "top5": 100.0},
        "params": 5_717_416,
        "stages": {1: Stage(np.array([2, 2]), np.array([[0, 3], [2, 1]]), np.array([[0, 0, 1, 1], [1, 1, 0, 0]]))},
    }
    return Record(**{**values, **changes})


def assert_same(a: Record, b: Record):
    assert (a.setting, a.image_ids, a.accuracy, a.params) == (b.setting, b.image_ids, b.accuracy, b.params)
    for name in ("targets", "predictions", "loss"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)
    assert a.stages.keys() == b.stages.keys()
    for block, stage in a.stages.items():
        assert stage.parts().keys() == b.stages[block].parts().keys()
        for name, part in stage.parts().items():
            np.testing.assert_array_equal(part, b.stages[block].parts()[name])


def test_losses_predictions_and_accuracy_are_of_each_image():
    data = noise()
    record = evaluated("none", data)
    logits = reduced("none")(data.images).detach()
    np.testing.assert_allclose(record.loss, F.cross_entropy(logits, data.labels, reduction="none"), rtol=1e-5)
    assert record.predictions.tolist() == logits.topk(5).indices.tolist()
    assert record.targets.tolist() == data.labels.tolist()
    assert record.image_ids == tuple(f"image-{i}.png" for i in range(7))
    assert record.params == sum(p.numel() for p in make("cls-avg").parameters())
    assert record.stages == {} and record.setting.reduction_loc == ()


def test_accuracy_counts_hits_among_the_first_and_the_first_five():
    data = noise()
    best = reduced("none")(data.images).topk(6).indices
    data.labels = torch.stack([best[0, 0], best[1, 0], best[2, 1], *best[3:6, 4], best[6, 5]])  # ranks 1 1 2 5 5 5 6
    accuracy = evaluated("none", data).accuracy
    assert accuracy == pytest.approx({"top1": 100 * 2 / 7, "top5": 100 * 6 / 7})


def test_losses_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    torch.testing.assert_close(image_losses(logits, torch.tensor([0, 1])), torch.tensor([2.0, 4.0]).log())
    # -log(1/2) twice; -log(3/4) and -log(1/2), averaged over the two classes
    expected = torch.tensor([math.log(2), (math.log(4 / 3) + math.log(2)) / 2])
    torch.testing.assert_close(image_losses(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]])), expected)


def test_several_labels_per_image():
    labels = torch.zeros(7, 1000)
    labels[torch.arange(7), torch.arange(7) % 3] = 1
    labels[0, 1] = 1
    record = evaluated("topk", data := Noise(labels, 1000))
    logits = reduced("topk")(data.images).detach()
    assert record.multi_label and record.predictions.dtype == np.float16 and record.targets.dtype == np.uint8
    np.testing.assert_allclose(record.predictions, logits.sigmoid(), atol=5e-4)
    np.testing.assert_array_equal(record.targets, labels)
    expected = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    np.testing.assert_allclose(record.loss, expected, rtol=1e-5)
    hits = torch.stack([labels[logits[:, c].argsort(descending=True), c] for c in range(3)])
    precision = hits.cumsum(1) / torch.arange(1, 8)
    by_class = (precision * hits).sum(1) / hits.sum(1)
    assert record.accuracy == {"map": pytest.approx(100 * by_class.sum().item() / 1000)}  # 997 classes count 0


def test_a_large_head_is_restricted_to_the_classes_of_the_dataset():
    indices = [10, 20, 30]
    data = Noise(torch.tensor([0, 1, 2, 0]), 3, imagenet_indices=indices)
    record = evaluated("none", data)
    logits = reduced("none")(data.images)[:, indices].detach()
    assert record.setting.classes == (10, 20, 30)
    np.testing.assert_allclose(record.loss, F.cross_entropy(logits, data.labels, reduction="none"), rtol=1e-5)
    assert record.predictions.tolist() == logits.topk(3).indices.tolist()
    assert evaluated("none", data, classes=(30, 20, 10)).predictions[:, 0].tolist() == (2 - logits.argmax(1)).tolist()
    for wrong in ((10, 20), (10, 20, 1000), (-1, 0, 1)):
        with pytest.raises(UsageError, match="give one output per class"):
            evaluated("none", data, classes=wrong)
    with pytest.raises(UsageError, match="the head has 1000 outputs"):
        evaluated("none", noise(10))


@pytest.mark.parametrize("text", [*REDUCING, *VARIANTS])
def test_stages_hold_what_the_trace_says(text):
    data, model = noise(), reduced(text)
    record = evaluated(text, data)
    traces = [model.trace(data.images[start : start + BATCH])[1] for start in range(0, 7, BATCH)]
    blocks = (0,) if text == "downsample" else (1, 2, 3)
    assert tuple(record.stages) == record.setting.reduction_loc == stage_blocks(model.reducer) == blocks
    for block, stage in record.stages.items():
        selected = torch.cat([trace.selected(block) for trace in traces])
        assert stage.num_tokens.tolist() == torch.cat([trace.num_tokens[block] for trace in traces]).tolist()
        assert (stage.kept is not None) == model.reducer.selects
        assert (stage.destination is not None) == model.reducer.clusters
        if stage.kept is not None:
            for row, mask in zip(stage.kept, selected, strict=True):
                assert sorted(row[row >= 0].tolist()) == mask.nonzero()[:, 0].tolist()
        if stage.destination is not None:
            np.testing.assert_array_equal(stage.destination, torch.cat([trace.destination[block] for trace in traces]))


@pytest.mark.parametrize(
    ("text", "keep_rate"), [*((name, 0.6) for name in IDLING), ("idle_mlp:score_threshold=0.5", 1)]
)
def test_stages_of_idling_hold_who_was_computed_in_each_block(tmp_path, text, keep_rate):
    """From the first stage on, or wherever thresholds decide; images may differ in number, all patches stay."""
    data, model = noise(), reduced(text, keep_rate=float(keep_rate))
    for predictor in getattr(model.reducer, "predictors", {}).values():
        torch.nn.init.normal_(predictor.own.weight)
    record = evaluate_model(model, data, batch_size=BATCH, method=text, backbone="vit_tiny_patch16_224", device="cpu")
    _, trace = model.trace(data.images)
    assert tuple(record.stages) == ((1, 2, 3) if keep_rate < 1 else (0, 1, 2, 3))
    loaded = Record.load(record.save(tmp_path / "record.npz"))
    assert_same(loaded, record)
    for block, stage in loaded.stages.items():
        np.testing.assert_array_equal(stage.computed, trace.active[block], strict=True)
        assert (stage.num_tokens == 16).all() and stage.kept is None and stage.destination is None
        if keep_rate < 1:
            assert (stage.computed.sum(1) == int(16 * 0.6**block + 1e-9)).all()
    if keep_rate == 1:
        assert any(len(set(stage.computed.sum(1))) > 1 for stage in loaded.stages.values())


@pytest.mark.parametrize("text", [*CLUSTERING, "tome:parity=true"])
def test_every_token_goes_to_one_of_the_next_stage(tmp_path, text):
    """The JSON's maps: as long as the stage before has tokens, and composed they say who holds each patch.

    -1 = dropped, by methods that also prune.
    """
    data, model = noise(), reduced(text)
    record = evaluated(text, data)
    _, trace = model.trace(data.images)
    exported = json.loads(export_json(record, tmp_path / "x.json").read_text(encoding="utf-8"))
    for image, name in enumerate(record.image_ids):
        composed, length = list(range(16)), 16
        for block, stage in record.stages.items():
            moved = exported[name][f"Stage-{block}"]["Assignment_Maps"]
            least = -1 if text in PRUNING else 0
            assert len(moved) == length and least <= min(moved) <= max(moved) < stage.num_tokens[image]
            composed = [-1 if token == -1 else moved[token] for token in composed]
            length = stage.num_tokens[image]
            assert composed == trace.assignment[block][image].tolist() == record.assignment(block)[image].tolist()


@pytest.mark.parametrize("text", ["patchmerger", "sinkhorn", "sit"])
def test_soft_merging_sends_tokens_that_hold_no_patch_on_too(monkeypatch, text):
    """A token goes where its weight is largest, also one that no patch goes to in the stage before."""
    decided, empty, merged = [], 0, Tokens.merged

    def noted(tokens, patches, assignment, **how):
        decided.append(assignment)
        return merged(tokens, patches, assignment, **how)

    monkeypatch.setattr(Tokens, "merged", noted)
    record = evaluated(text)
    for place, (block, stage) in enumerate(record.stages.items()):
        of_batches = decided[:9][place::3]  # of three batches; then multiply-accumulates are counted
        np.testing.assert_array_equal(stage.destination, torch.cat(of_batches))
        used = [len(set(patches)) for patches in record.assignment(block).tolist()]
        empty += (stage.num_tokens - used).sum()
    assert empty > 0


def test_a_record_of_a_dynamic_size_has_the_size_of_its_images():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, dynamic_img_size=True, depth=4)
    data = noise()
    data.images = data.images[..., :48]
    model = reduce_tokens(vit, "topk", keep_rate=0.5)
    record = evaluate_model(model, data, batch_size=3, method="topk", backbone="vit_tiny_patch16_224", device="cpu")
    assert (record.setting.img_size, record.setting.grid_size, record.setting.num_patches) == ((64, 48), (4, 3), 12)
    assert record.stages[1].kept.shape == (7, 6)


def test_a_dropped_patch_stays_dropped():
    stages = {
        1: Stage(np.array([2]), destination=np.array([[0, 1, -1, 0]])),
        2: Stage(np.array([1]), destination=np.array([[-1, 0]])),
    }
    first = {name: getattr(some_record(), name)[:1] for name in ("image_ids", *PER_IMAGE)}
    record = some_record(stages=stages, **first)
    assert record.assignment(1).tolist() == [[0, 1, -1, 0]] and record.assignment(2).tolist() == [[-1, 0, -1, -1]]


@pytest.mark.parametrize("name", ["kmedoids", "dpcknn"])
def test_a_cluster_holds_its_centre(name):
    record = evaluated(name)
    for block, stage in record.stages.items():
        tokens = np.arange(stage.kept.shape[1])
        assert (np.take_along_axis(record.assignment(block), stage.kept.astype(int), axis=1) == tokens).all()


def test_tokens_without_a_patch_have_no_index():
    """EViT has one fused token; ATS pads images that keep fewer tokens than others."""
    for stage, fused in zip(evaluated("evit").stages.values(), (1, 2, 3), strict=True):
        missing = (stage.kept < 0).sum(1)
        assert (missing >= 1).all() and (missing <= fused).all() and (stage.kept[:, -1] == -1).all()
        assert (stage.num_tokens == stage.kept.shape[1]).all()
    stages = evaluated("ats:sampler=random").stages.values()
    assert any(len(set(stage.num_tokens)) > 1 for stage in stages)
    for stage in stages:
        np.testing.assert_array_equal((stage.kept >= 0).sum(1), stage.num_tokens)
        assert stage.kept.shape[1] == stage.num_tokens.max()
        assert all((np.diff(row[row >= 0]) > 0).all() for row in stage.kept)


def test_cls_tokens_of_blocks(tmp_path):
    data, model = noise(), reduced("topk")
    record = evaluated("topk", data, cls_at=(1, 3))
    _, trace = model.trace(data.images, cls_at=(1, 3))
    assert list(record.cls) == [1, 3]
    for block, tokens in record.cls.items():
        assert tokens.dtype == np.float16 and tokens.shape == (7, 192)
        np.testing.assert_allclose(tokens, trace.cls[block], rtol=1e-3, atol=1e-3)
    path = record.save(tmp_path / "run.npz")
    assert peek(path) == (record.setting, (1, 3))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.cls.npz", "run.npz"]
    assert Record.load(path).cls == {}
    for block, tokens in Record.load(path, with_cls=True).cls.items():
        np.testing.assert_array_equal(tokens, record.cls[block], strict=True)
    cls_path(path).unlink()
    assert len(Record.load(path)) == 7
    with pytest.raises(UsageError, match=r"no record of CLS tokens 1 in '.*run.cls.npz'"):
        Record.load(path, with_cls=True)
    record.save(path)
    evaluated("topk", data).save(path)
    assert not cls_path(path).exists()


def test_cls_tokens_are_refused_where_there_are_none():
    with pytest.raises(UsageError, match="there is no CLS token"):
        evaluate_model(
            reduced("tome", "simple-vit"),
            noise(),
            batch_size=2,
            method="tome",
            backbone="simple_vit_tiny_patch16_160",
            cls_at=(1,),
            device="cpu",
        )
    with pytest.raises(UsageError, match="there is no CLS token"):
        evaluated("patchmerger:parity=true", cls_at=(1,))
    with pytest.raises(UsageError, match="allowed: blocks 0 to 3"):
        evaluated("topk", cls_at=(1, 11))


def test_bad_input_is_refused_before_anything_is_computed():
    with pytest.raises(UsageError, match="not what the model was made with: TopK"):
        evaluate_model(reduced("topk"), noise(), batch_size=2, method="evit", backbone="vit_tiny_patch16_224")
    with pytest.raises(UsageError, match="mixed_precision"):
        evaluated("topk", mixed_precision="int8")
    with pytest.raises(UsageError, match="fp16"):
        evaluated("topk", mixed_precision="fp16")


def test_numbers_that_are_not_finite_are_refused_with_the_image():
    data = noise()
    data.images[4] = float("nan")
    with pytest.raises(FloatingPointError, match=r"output of image 'image-4.png' is not finite"):
        evaluated("none", data)
    model = reduced("none")
    with torch.no_grad():
        model.blocks[3].mlp.fc2.bias.fill_(1e6)  # too large for float16, while the final norm makes it harmless
    with pytest.raises(FloatingPointError, match=r"CLS token \(float16\) after block 3 of image 'image-0.png'"):
        evaluate_model(
            model,
            noise(),
            batch_size=2,
            method="none",
            backbone="vit_tiny_patch16_224",
            cls_at=(1, 3),
            device="cpu",
        )


def test_half_precision_is_close():
    exact, half = evaluated("none"), evaluated("none", mixed_precision="bf16")
    assert 0 < np.abs(exact.loss - half.loss).max() < 0.01


@pytest.mark.parametrize("text", ["kmedoids", "ats", "tome"])
def test_a_record_survives_its_file(tmp_path, text):
    record = evaluated(text, name="a run", weights="timm", details={"best": {"epoch": 3}})
    assert_same(Record.load(record.save(tmp_path / "folder" / "record.npz")), record)
    assert set(record.setting.versions) == {"torch", "timm", "commit", "device", "date"}


def test_wide_grids_need_wider_integers(tmp_path):
    stage = Stage(np.array([300]), np.arange(300)[None], np.full((1, 900), -1))
    setting = Setting("run", "kmedoids", "vit", "noise", "", (0.5, 0.25), (1, 2), (480, 480), (30, 30))
    record = some_record(setting=setting, image_ids=("a",), stages={1: stage}, **one_row())
    loaded = Record.load(record.save(tmp_path / "record.npz"))
    assert_same(loaded, record)
    assert loaded.setting.num_patches == 900 and loaded.setting.keep_rate == (0.5, 0.25)


def one_row():
    record = some_record()
    return {name: getattr(record, name)[:1] for name in ("targets", "predictions", "loss")}


def test_parts_of_different_length_are_refused():
    with pytest.raises(UsageError, match=r"parts of \[2, 3\] rows"):
        some_record(loss=np.zeros(3, dtype=np.float32))


def test_files_that_are_no_record_are_refused_in_one_line(tmp_path):
    whole = some_record().save(tmp_path / "whole.npz").read_bytes()
    files = {
        "cut.npz": whole[: len(whole) // 2],
        "changed.npz": whole[:700] + bytes(b ^ 255 for b in whole[700:730]) + whole[730:],
        "empty.npz": b"",
        "text.npz": b"not an archive",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "other.npz", kind=np.frombuffer(json.dumps("holiday").encode(), dtype=np.uint8))
    for name in [*files, "foreign.npz", "array.npz", "other.npz", "missing.npz"]:
        with pytest.raises(UsageError, match=name) as caught:
            Record.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name in ("record.json", "record.cls.npz"):
        with pytest.raises(UsageError, match=r"NAME\.npz"):
            some_record().save(tmp_path / name)
    assert not list(tmp_path.glob(".*"))  # no temporary files


def test_records_are_small_and_read_as_arrays_not_image_by_image(tmp_path):
    """A tenth of the ImageNet validation set in a tenth of 70 MB; no Python runs for each of its images."""
    record = record_of(5000)
    path, few = record.save(tmp_path / "record.npz"), record_of(50).save(tmp_path / "few.npz")
    assert path.stat().st_size < 7e6
    assert_same(Record.load(path), record)
    calls = {file: python_calls(Record.load, file) for file in (path, few)}
    assert calls[path] - calls[few] < 500  # the file is read in pieces
    tracemalloc.start()
    loaded = Record.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    arrays = sum(array.nbytes for stage in loaded.stages.values() for array in stage.parts().values())
    assert arrays == 5000 * (2 * 3 + 2 * (176 + 158 + 142) + 2 * 3 * 196) and peak < 3 * arrays


def test_names_of_models_and_runs():
    small = "deit_small_patch16_224"
    assert run_key("topk", small, 0.9, (3, 6, 9)) == "topk_small_patch16_224-3_6_9-_0.9"
    assert run_key("none", f"{small}.fb_in1k", 1.0, ()) == "deit_small_patch16_224_local--_"
    assert run_key("none", small, 1.0, (3, 6, 9)) == "deit_small_patch16_224_local--_"
    assert run_key("l1", small, 0.5, (3, 6, 9)) == "heuristic_small_patch16_224-l1-3_6_9-_0.5"
    assert run_key("dynamicvit", small, (0.7, 0.5), (3, 6)) == "dyvit_small_patch16_224-3_6-_0.7_0.5"
    assert model_name("topk:head_fusion=mean", "vit_tiny_patch16_224") == "topk_vit_tiny_patch16_224"
    assert full_name("topk:head_fusion=mean", small) == "topk_small_patch16_224-head_fusion=mean"
    assert full_name("l2:contiguous=true", small) == "heuristic_small_patch16_224-l2-contiguous=true"
