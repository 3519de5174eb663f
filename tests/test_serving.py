"""The queue that makes batches of single images, with a clock and models of the tests; and the test under load."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from common.errors import UsageError
from common.serving import BatchQueue, load
from common.serving.__main__ import main
from common.serving.load import Answered, Load, answered, compare_load, in_turn, percentiles
from common.serving.queue import Clock


class Time(Clock):
    """Stands still but for what a wait asks for; while one waits, images may come."""

    def __init__(self, coming=()):
        self.seconds, self.coming, self.queue = 0.0, list(coming), None

    def now(self):
        return self.seconds

    def wait(self, changed, seconds):
        assert seconds is not None, "it would wait forever"
        until = self.seconds + seconds
        if self.coming and self.coming[0][0] <= until:
            self.seconds, image = self.coming.pop(0)
            self.queue.submit(image)
        else:
            self.seconds = until


class Doubling:
    """Logits twice the pixels; remembers when it was called and with how many images. Refuses negative ones."""

    def __init__(self, time=None):
        self.time, self.calls = time or Time(), []

    def __call__(self, images):
        assert torch.is_inference_mode_enabled()
        self.calls.append((round(self.time.now(), 6), len(images)))
        if (images < 0).any():
            raise ArithmeticError("negative")
        return 2 * images.flatten(1)


def image(value):
    return torch.full((3, 1, 1), float(value))


def queue_of(coming=(), **how):
    time = Time(coming)
    model = Doubling(time)
    time.queue = BatchQueue(model, clock=time, **how)
    return time.queue, model


def test_a_lone_image_waits_as_long_as_it_may_and_no_longer():
    queue, model = queue_of(max_batch=4, max_wait_ms=5)
    logits = queue.submit(image(3))
    queue.run(queue.next_batch())
    assert model.calls == [(0.005, 1)] and logits.result(0).tolist() == [6, 6, 6]


def test_the_wait_counts_from_the_first_image_whatever_comes_after_it():
    """At 0, 2 and 4 ms: run at 5 ms with three; the next, of 6 ms, at 11 ms."""
    queue, model = queue_of([(0.002, image(1)), (0.004, image(2)), (0.006, image(3))], max_batch=8, max_wait_ms=5)
    queue.submit(image(0))
    queue.run(queue.next_batch())
    queue.submit(image(9))  # at 5 ms
    queue.run(queue.next_batch())
    assert model.calls == [(0.005, 3), (0.010, 2)]


def test_a_full_batch_is_run_at_once_and_none_is_larger():
    queue, model = queue_of([(0.001, image(5))], max_batch=2, max_wait_ms=10)
    answers = [queue.submit(image(value)) for value in range(5)]
    for _ in range(3):
        queue.run(queue.next_batch())
    assert model.calls == [(0, 2), (0, 2), (0.001, 2)]
    assert [each.result(0)[0].item() for each in answers] == [0, 2, 4, 6, 8]


def test_batches_of_one_never_wait():
    queue, model = queue_of(max_batch=1, max_wait_ms=50)
    for value in range(3):
        queue.submit(image(value))
        queue.run(queue.next_batch())
    assert model.calls == [(0, 1)] * 3


def test_what_the_model_raises_reaches_those_who_asked_and_nobody_else():
    queue, _ = queue_of(max_batch=2, max_wait_ms=0)
    answers = [queue.submit(image(value)) for value in (1, -1, 3, 4)]
    for _ in range(2):
        queue.run(queue.next_batch())
    for bad in answers[:2]:
        with pytest.raises(ArithmeticError, match="negative"):
            bad.result(0)
    assert [each.result(0)[0].item() for each in answers[2:]] == [6, 8]


def test_an_image_of_another_kind_spoils_no_answer_but_its_own():
    """Such as of another size, which no batch holds."""
    queue, model = queue_of(max_batch=5, max_wait_ms=0)
    given = [image(1), torch.full((3, 2, 2), 2.0), image(3), "a.png", image(4).double()]
    answers = [queue.submit(each) for each in given]
    queue.run(queue.next_batch())
    assert [answers[number].result(0)[0].item() for number in (0, 1, 2, 4)] == [2, 4, 6, 8]
    assert [len(answers[number].result(0)) for number in (0, 1)] == [3, 12] and len(model.calls) == 3
    with pytest.raises(TypeError):
        answers[3].result(0)


def test_who_waits_no_longer_gets_no_answer_and_spoils_none():
    """A client that gave up: its image is not computed, and the thread that answers the others lives on."""
    queue, model = queue_of(max_batch=4)
    gone, stays = queue.submit(image(1)), queue.submit(image(2))
    assert gone.cancel()
    queue.run(queue.next_batch())
    assert stays.result(0).tolist() == [4.0] * 3 and gone.cancelled()
    assert [count for _, count in model.calls] == [1]
    only = queue.submit(image(3))
    only.cancel()
    queue.run(queue.next_batch())
    assert len(model.calls) == 1, "a batch that nobody waits for is not computed"


@pytest.mark.parametrize("wrong", [lambda images: images.sum((0, 2, 3)), lambda images: (images, images)])
def test_a_model_that_gives_no_logits_for_each_image_is_everybodys_answer(wrong):
    queue = BatchQueue(wrong, max_batch=4, max_wait_ms=1)
    with queue.answering():
        for _ in range(2):  # and those who come after them get theirs
            answers = [queue.submit(image(value)) for value in range(4)]
            for answer in answers:
                with pytest.raises(ValueError, match="zip"):
                    answer.result(10)


def test_a_closed_queue_answers_what_waits_and_takes_nothing_more():
    queue, model = queue_of(max_batch=4, max_wait_ms=100)
    logits = queue.submit(image(1))
    queue.close()
    queue.run(queue.next_batch())
    assert model.calls == [(0, 1)] and logits.done() and queue.next_batch() == []
    with pytest.raises(RuntimeError, match="closed"):
        queue.submit(image(2))


def test_every_thread_gets_the_logits_of_its_own_images():
    """16 threads, 40 images each, some of which the model refuses together with those beside them: none is lost."""
    model = Doubling()

    def ask(queue, thread):
        values = [1000 * thread + number for number in range(40)]
        values[7] = -1
        asked = [(value, queue.submit(image(value))) for value in values]
        return [(value, each.exception() or each.result()) for value, each in asked]

    with BatchQueue(model, max_batch=4, max_wait_ms=0.5).answering() as queue, ThreadPoolExecutor(16) as threads:
        found = [pair for pairs in threads.map(lambda thread: ask(queue, thread), range(16)) for pair in pairs]
    answers = [(value, logits) for value, logits in found if isinstance(logits, torch.Tensor)]
    assert len(found) == 16 * 40 and len(answers) >= 16 * 40 - 16 * 4
    assert all(logits.tolist() == [2 * value] * 3 for value, logits in answers)
    assert sum(size for _, size in model.calls) == 16 * 40 and max(size for _, size in model.calls) <= 4


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_wait_ms": -1.0}])
def test_a_queue_refuses_what_it_cannot_be(wrong):
    with pytest.raises(UsageError, match="is not allowed"):
        BatchQueue(Doubling(), **wrong)


# under load


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [([7], (7, 7, 7)), (range(1, 102), (51, 96, 100)), ([0, 10], (5, 9.5, 9.9)), ([30, 10, 20], (20, 29, 29.8))],
)
def test_percentiles(milliseconds, expected):
    """Of 1 to 101 they are the numbers themselves; between two values on the straight line from one to the other."""
    found = percentiles([each / 1000 for each in milliseconds])
    assert list(found) == ["p50_ms", "p95_ms", "p99_ms"] and tuple(found.values()) == pytest.approx(expected)


@pytest.mark.parametrize(("clients", "requests", "each"), [(1, 5, 5), (4, 5, 2), (16, 3, 1)])
def test_every_client_sends_as_many_images(clients, requests, each):
    """And one before, which is not timed. Never more at once than there are clients: each waits for its answer."""
    model = Doubling()
    found = answered(model, torch.rand(16, 3, 1, 1), Load(clients, requests, max_batch=32, max_wait_ms=0.0))
    assert len(found.latencies) == clients * each and sum(size for _, size in model.calls) == clients * (each + 1)
    assert max(size for _, size in model.calls) <= clients and 0 < max(found.latencies) <= found.seconds
    assert found.mean_batch == pytest.approx(clients * (each + 1) / len(model.calls))


def test_one_failing_answer_fails_the_round():
    with pytest.raises(ArithmeticError, match="negative"):
        answered(Doubling(), -torch.ones(4, 3, 1, 1), Load(4, 8, max_batch=2, max_wait_ms=1.0))


def test_models_have_a_load_one_after_the_other_in_every_round(monkeypatch):
    log = []
    monkeypatch.setattr(load, "answered", lambda model, images, given: log.append((model, given.clients)))
    in_turn(["a", "b"], torch.zeros(0), [Load(1, 1, 1, 0.0), Load(4, 1, 1, 0.0)], rounds=2)
    assert log == [("a", 1), ("b", 1), ("a", 4), ("b", 4)] * 2


def test_rows(monkeypatch):
    """TRAM answers 6 images in 2, 2 and 1 s where the unreduced model takes 4: 2, 2 and 4 times as many a second."""
    seconds = {"none": [4, 4, 4] * 4, "tram": [2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1]}
    times = {name: iter(values) for name, values in seconds.items()}

    def fake(model, images, given):
        kind = "none" if type(model.args[0]).__name__ == "VisionTransformer" else "tram"
        return Answered([0.001 * (kind == "none")] * 6, next(times[kind]), float(given.max_batch))

    monkeypatch.setattr(load, "answered", fake)
    how = {"clients": (1, 3), "requests": 6, "max_batch": 4, "max_wait_ms": 1.0, "rounds": 3, "device": "cpu"}
    rows = compare_load("vit_digits", ["tram"], [0.5], **how)
    assert [(row["clients"], row["max_batch"], row["method"]) for row in rows] == [
        (clients, most, method) for clients in (1, 3) for most in (1, 4) for method in ("none", "tram")
    ]
    whole, tram = rows[:2]
    assert (whole["fps"], whole["speedup"], whole["p99_ms"], whole["requests"]) == (1.5, 1, pytest.approx(1), 6)
    assert (tram["fps"], tram["speedup"], tram["speedup_q3"], tram["p50_ms"]) == (3, 2, 3, 0)
    assert tram["gmac"] < whole["gmac"] and tram["rounds"] == 3 and tram["max_wait_ms"] == 0


def test_reduced_and_unreduced_models_answer(capsys):
    given = ["--backbone", "vit_digits", "--reducer", "topk", "--clients", "2", "--requests", "4", "--rounds", "1"]
    assert main([*given, "--device", "cpu"]) == 0
    header, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header[:4] == ["clients", "batch", "method", "keep"] and len(lines) == 4
    assert [line[:4] for line in lines] == [
        ["2", most, *model] for most in ("1", "8") for model in (("none", "1"), ("topk", "0.5"))
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--clients", "0"], "clients=[0] is not allowed; give a list, each a whole number >= 1"),
        (["--max-batch", "0"], "max_batch=0 is not allowed; give a whole number >= 1"),
        (["--max-wait-ms", "-1"], "max_wait_ms=-1.0 is not allowed; give a number >= 0"),
        (["--runtime", "compiled"], "unknown runtime 'compiled'; allowed: eager, onnxruntime"),
        (["--reducer", "trem"], "unknown reducer 'trem'"),
    ],
)
def test_bad_input_is_one_line_before_any_request(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(load, "in_turn", lambda *_: pytest.fail("asked before it was refused"))
    assert main(["--backbone", "vit_digits", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}") and len(err.splitlines()) == 1
