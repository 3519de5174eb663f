"""Parts of a record that are not always there, and records of which only a part is read."""

import zipfile
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import torch
from test_evaluation import assert_same, evaluated, noise, reduced

from common.cost.counter import count_macs, mean_macs
from common.errors import UsageError
from common.evaluation import Record, Setting, Stage, evaluate_model
from common.evaluation.record import cls_path
from common.reducers import list_reducers
from common.tokens import GONE
from references import record_of

SCORING = ["topk", "evit", "ats", "dynamicvit", "dpcknn", "kmedoids", "tram", "idle_topk", "idle_mlp"]
SOFT = ["patchmerger", "sinkhorn", "sit"]
LIMIT = 300e6 / 50_000  # bytes per image: 6000


@pytest.mark.parametrize("text", SCORING)
def test_scores_are_those_of_the_trace(tmp_path, text):
    data, model = noise(), reduced(text)
    record = evaluated(text, data, scores=True)
    loaded = Record.load(record.save(tmp_path / "record.npz"))
    assert_same(loaded, record)
    _, trace = model.trace(data.images)
    assert loaded.setting.scored == model.reducer.scored != "" and loaded.setting.noted["scores"] == 1
    for block, stage in loaded.stages.items():
        assert stage.scores.dtype == np.float16 and stage.scores.shape == (7, 16)
        np.testing.assert_allclose(stage.scores, trace.scores[block], rtol=1e-3, atol=1e-4)
        gone = trace.assignment[block - 1] == GONE
        assert np.isnan(stage.scores[gone]).all() and np.isfinite(stage.scores[~gone]).all()
    assert all(stage.scores is None for stage in evaluated(text, data).stages.values())
    assert evaluated(text, data).setting.scored == ""


@pytest.mark.parametrize("text", ["topk", "evit"])
def test_what_is_kept_is_what_scores_highest(text):
    """In every stage no patch that goes, or is fused, has a higher score than one that stays."""
    for stage in evaluated(text, scores=True).stages.values():
        kept = np.array([np.isin(np.arange(16), row) for row in stage.kept])
        gone = ~kept if stage.fused is None else stage.fused
        for row, scores in enumerate(stage.scores.astype(float)):
            assert scores[kept[row]].min() >= np.nanmax(scores[gone[row]])


def test_methods_that_score_say_what_and_the_others_have_no_scores():
    for name in set(list_reducers()) - {"none", "patch_slimming", "dynamic_slimming"}:
        model = reduced(name)
        _, trace = model.trace(noise().images[:2])
        assert bool(trace.scores) == bool(model.reducer.scored), name
    assert reduced("topk:head_fusion=mean").reducer.scored == "CLS attention of the block, mean over heads"
    assert reduced("kmedoids:equal_weight=true").reducer.scored == ""
    record = evaluated("tome", scores=True)
    assert record.setting.scored == "" and all(stage.scores is None for stage in record.stages.values())


def test_scores_beyond_float16_are_limited(monkeypatch):
    monkeypatch.setattr("common.reducers.tram.weighted_in_degree", lambda adjacency: adjacency.sum(1) * 1e8)
    scores = np.concatenate([stage.scores for stage in evaluated("tram", scores=True).stages.values()])
    assert np.nanmax(scores) == np.finfo(np.float16).max and np.isfinite(scores[~np.isnan(scores)]).all()


@pytest.mark.parametrize("text", SOFT)
def test_soft_weights_are_the_product_of_the_stages(monkeypatch, tmp_path, text):
    """Of every patch the M tokens in which it weighs most, followed from stage to stage."""
    data, model, seen = noise(), reduced(text), []
    merged = type(model.embed(data.images)).merged

    def noted(tokens, patches, assignment, **how):
        seen.append(how["weights"])
        return merged(tokens, patches, assignment, **how)

    monkeypatch.setattr("common.tokens.Tokens.merged", noted)
    model.trace(data.images)
    record = evaluated(text, data, soft_weights=3)
    loaded = Record.load(record.save(tmp_path / "record.npz"))
    assert_same(loaded, record)
    product = torch.eye(16).expand(7, -1, -1)
    for weights, stage in zip(seen[:3], loaded.stages.values(), strict=True):
        product = weights @ product  # (7, K, 16)
        heaviest = product.topk(3, dim=1)
        assert stage.shares.dtype == np.float16 and stage.shares.shape == stage.holders.shape == (7, 16, 3)
        np.testing.assert_allclose(stage.shares, heaviest.values.transpose(1, 2), rtol=2e-3, atol=1e-6)
        taken = np.take_along_axis(product.transpose(1, 2).numpy(), stage.holders.astype(int), 2)
        np.testing.assert_allclose(taken, heaviest.values.transpose(1, 2), rtol=1e-5)
        sums = product.sum(1 if text == "sinkhorn" else 2)
        torch.testing.assert_close(sums, torch.ones_like(sums))
    assert evaluated(text, data).stages[1].shares is None


def test_the_heaviest_token_of_the_first_stage_is_where_the_patch_goes():
    for text in SOFT:
        stage = evaluated(text, soft_weights=1).stages[1]
        np.testing.assert_array_equal(stage.holders[..., 0], stage.destination)
    few = evaluated("sinkhorn", soft_weights=100).stages[3]
    assert few.holders.shape == (7, 16, 3)  # there are no more tokens
    np.testing.assert_allclose(few.shares.astype(float).sum(2), 1, atol=2e-3)


def test_hard_merging_and_pruning_have_no_soft_weights():
    for text in ("tome", "kmedoids", "topk"):
        assert all(stage.shares is None for stage in evaluated(text, soft_weights=2).stages.values())


def test_fused_patches_of_evit():
    """A patch is kept, in the new fused token, or in an earlier one that was kept: exactly one of these."""
    data, model = noise(), reduced("evit")
    record, (_, trace) = evaluated("evit", data), model.trace(data.images)
    earlier = np.zeros((7, 16), dtype=bool)
    for block, stage in record.stages.items():
        kept = np.array([np.isin(np.arange(16), row) for row in stage.kept])
        last = (trace.assignment[block] == stage.num_tokens[0] - 1).numpy()
        np.testing.assert_array_equal(stage.fused, last)
        assert not (kept & stage.fused).any()
        earlier |= stage.fused
        assert (kept | earlier).all()
    assert (record.stages[1].fused.sum(1) == 16 - 9).all()  # floor(16 x 0.6) are kept
    assert evaluated("topk", data).stages[1].fused is None


def test_nothing_is_fused_where_nothing_is_dropped():
    """At a rate of one per stage the last token is a patch like the others."""
    vit_images = noise().images
    model = reduced("evit", keep_rate=(1.0, 1.0, 0.5))
    _, trace = model.trace(vit_images)
    assert not trace.fused(1).any() and trace.fused(3).sum(1).tolist() == [8] * 7


def test_size_cost_and_time_of_the_model():
    record = evaluated("topk", seed=4)
    assert (record.setting.depth, record.setting.width, record.setting.seed) == (4, 192, 4)
    assert record.gmac == count_macs(reduced("topk"), 64).total / 1e9
    assert evaluated("ats").gmac == mean_macs(reduced("ats"), noise().images) / 1e9
    made = datetime.fromisoformat(record.setting.versions["date"])
    assert made.tzinfo is not None and made.microsecond == 0
    assert timedelta(0) <= datetime.now(timezone.utc) - made < timedelta(minutes=5)
    assert evaluated("topk").setting.seed is None


def test_a_seed_decides_what_is_drawn_whatever_torchs_state():
    model, given = reduced("ats:sampler=random"), {"method": "ats:sampler=random", "backbone": "vit_tiny_patch16_224"}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, other = (evaluate_model(model, noise(), batch_size=3, seed=seed, device="cpu", **given) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = evaluate_model(model, noise(), batch_size=3, seed=0, device="cpu", **given)
    np.testing.assert_array_equal(first.stages[1].kept, again.stages[1].kept)
    assert first.stages[1].num_tokens.tolist() != other.stages[1].num_tokens.tolist()


@pytest.fixture
def saved(tmp_path):
    record = evaluated("kmedoids", cls_at=(1, 3), name="run")
    return record, record.save(tmp_path / "record.npz")


def test_some_blocks(saved, monkeypatch):
    record, path = saved
    opened, read = [], zipfile.ZipFile.open

    def noted(file, name, *arguments, **options):
        opened.append(getattr(name, "filename", name))
        return read(file, name, *arguments, **options)

    monkeypatch.setattr(zipfile.ZipFile, "open", noted)
    part = Record.load(path, blocks=[2], with_cls=True)
    assert list(part.stages) == [2] and part.cls == {} and part.setting == record.setting
    np.testing.assert_array_equal(part.stages[2].kept, record.stages[2].kept)
    assert {"kept_2.npy", "header.npy", "loss.npy"} <= set(opened)
    assert not [name for name in opened if name.endswith(("_1.npy", "_3.npy"))]
    assert list(Record.load(path, blocks=[3], with_cls=True).cls) == [3]
    assert Record.load(path, blocks=[]).stages == {}
    with pytest.raises(UsageError, match=r"no blocks \[0, 11\]; allowed: \[1, 2, 3\]"):
        Record.load(path, blocks=[0, 2, 11])


def test_assignments_need_all_stages_up_to_theirs(saved):
    record, path = saved
    part = Record.load(path, blocks=[1, 2])
    np.testing.assert_array_equal(part.assignment(2), record.assignment(2))
    with pytest.raises(UsageError, match=r"loaded without blocks \[3\]"):
        part.assignment(3)
    with pytest.raises(UsageError, match="groups no patches"):
        evaluated("topk").assignment(2)


@pytest.mark.parametrize(
    ("images", "rows"),
    [
        (["image-5.png", "image-0.png"], [5, 0]),
        ([6, 2, 2], [6, 2, 2]),
        (np.array([1, 3]), [1, 3]),
        (slice(1, None, 3), [1, 4]),
        ([], []),
        (None, range(7)),
    ],
)
def test_some_images(saved, images, rows):
    record, path = saved
    part, rows = Record.load(path, images=images, with_cls=True), list(rows)
    assert part.image_ids == tuple(record.image_ids[row] for row in rows)
    assert part.accuracy == record.accuracy and part.gmac == record.gmac
    for name in ("targets", "predictions", "loss"):
        np.testing.assert_array_equal(getattr(part, name), getattr(record, name)[rows])
    np.testing.assert_array_equal(part.stages[3].destination, record.stages[3].destination[rows])
    np.testing.assert_array_equal(part.cls[1], record.cls[1][rows])
    np.testing.assert_array_equal(part.assignment(3), record.assignment(3)[rows])


@pytest.mark.parametrize("image", ["image-7.png", 7, -1, True, 1.5])
def test_an_image_that_is_not_there_is_named(saved, image):
    with pytest.raises(UsageError, match=f"no image {image!r}; it has 7, from 'image-0.png' to 'image-6.png'"):
        Record.load(saved[1], images=[0, image] if not isinstance(image, str) else [image])


def test_records_of_an_earlier_layout_are_refused(saved, monkeypatch):
    record, path = saved
    monkeypatch.setattr("common.evaluation.record.RECORD", "record of decisions 2")
    record.save(path)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="holds 'record of decisions 2'; allowed: 'record of decisions 3'"):
        Record.load(path)
    assert cls_path(path).exists()


def test_the_reference_s_key_is_a_part_of_the_whole_one():
    given = ("topk", "deit_small_patch16_224", "imagenette", "", 0.9, (3, 6, 9), (224, 224), (14, 14))
    setting = Setting("run", *given, seed=2)
    assert setting.run_key == "topk_small_patch16_224-3_6_9-_0.9"
    assert setting.key == "imagenette/seed-2/topk_small_patch16_224-3_6_9-_0.9"
    assert Setting("run", *given).key == "imagenette/topk_small_patch16_224-3_6_9-_0.9"


def synthetic(images, kind):
    """A record of random decisions at keep rate 0.9 on 196 patches, with all optional parts of its method."""
    rng, record, stages = np.random.default_rng(0), record_of(images), {}
    for block, stage in record.stages.items():
        count = stage.num_tokens[0]
        if kind == "soft":
            holders = rng.integers(0, count, (images, 196, 2), dtype=np.int16)
            shares = rng.random((images, 196, 2)).astype(np.float16)
            stages[block] = Stage(stage.num_tokens, destination=stage.destination, holders=holders, shares=shares)
        else:
            scores = rng.random((images, 196)).astype(np.float16)
            fused = rng.random((images, 196)) < 0.5
            stages[block] = Stage(stage.num_tokens, stage.kept, stage.destination, scores=scores, fused=fused)
    return Record(**{**vars(record), "stages": stages})


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        # a byte for each index: kept 176 + 158 + 142, destination 3 x 196, scores 2 x 3 x 196, fused 1 bit x 3 x 196
        ("hard", 476 + 588 + 1176 + 74),
        # destination 3 x 196, holders 2 x 3 x 196, shares 2 bytes x 2 x 3 x 196
        ("soft", 588 + 1176 + 2352),
    ],
)
def test_fifty_thousand_images_with_all_parts_stay_below_300_mb(tmp_path, kind, most):
    """By bytes per image: what random decisions need, and 10 % for ids, targets, predictions and losses."""
    path = synthetic(2000, kind).save(tmp_path / "record.npz")
    per_image = path.stat().st_size / 2000
    assert per_image < 1.1 * most < LIMIT
