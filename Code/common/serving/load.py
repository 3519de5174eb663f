"""Latency and throughput of models that several clients ask at once, measured in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from threading import Barrier
from time import perf_counter
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.benchmark.candidates import Candidate, checked_rate, counted_on, models_of
from common.benchmark.engines import engine_called
from common.benchmark.identity import assert_identity
from common.cost.allocator import keep_freed_memory
from common.cost.throughput import summary
from common.devices import torch_device
from common.models.factory import create_backbone
from common.options import Count, Many, NonNegative, checked
from common.reducers import Method
from common.serving.queue import BatchQueue

ServingRuntime = Literal["eager", "onnxruntime"]  # those that take batches of any size without compiling each anew
Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Load:
    """How requests come, and how they are answered.

    Attributes:
        clients: threads, each of which sends its next image when it has the logits of its last one (closed loop).
        requests: of all of them together, at least one of each.
        max_batch, max_wait_ms: of :class:`common.serving.BatchQueue`.
    """

    clients: int
    requests: int
    max_batch: int
    max_wait_ms: float

    @property
    def each(self) -> int:
        """Requests of one client."""
        return -(-self.requests // self.clients)


@dataclass(frozen=True)
class Answered:
    """One round.

    Attributes:
        latencies: seconds of each request, from sending it to its answer.
        seconds: from the first request to the last answer.
        mean_batch: images of a batch.
    """

    latencies: Sequence[float]
    seconds: float
    mean_batch: float


@checked
def compare_load(
    backbone: str,
    methods: Sequence[str],
    keep_rates: Sequence[float | str],
    *,
    img_size: Count | None = None,
    clients: Many[Count] = (1, 4, 16),
    max_batch: Count = 8,
    max_wait_ms: NonNegative = 2.0,
    requests: Count = 64,
    rounds: Count = 3,
    runtime: ServingRuntime = "eager",
    device: str | None = None,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Ask reduced models and the unreduced one about single images from several threads at once.

    Each model is called image by image, and by batches of what waits (:class:`common.serving.BatchQueue`); all of them
    in turn, round by round. In every round each client sends an image that is not timed first.

    Args:
        backbone, methods, keep_rates, img_size, runtime, device, seed: see :func:`common.benchmark.compare_all`.
        clients, requests: see :class:`Load`; one load for each number of clients.
        max_batch, max_wait_ms: of the batches.
        rounds: how often each model has each load.

    Returns:
        For each number of clients, image by image and then by batches, a row of the unreduced model and of each other:
        runtime, img_size, clients, requests, max_batch, max_wait_ms, method, options, keep_rate, gmac, p50_ms, p95_ms
        and p99_ms (of the latencies of all rounds), mean_batch, and the fields of
        :class:`common.cost.throughput.Throughput`: images per second, and these over the unreduced model's under the
        same load in the same round.

    Raises:
        UsageError: bad input, or a model that the runtime does not take.
    """
    where, parsed = torch_device(device), [Method.parse(method) for method in methods]
    rates = [checked_rate(rate, [(runtime, "float32", 1)]) for rate in keep_rates]
    engine = engine_called(runtime)
    engine.check("float32", where)
    torch.manual_seed(seed)
    vit = create_backbone(backbone, num_classes=10, img_size=img_size).eval()
    images = torch.randn(max(clients), 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(seed))
    models = models_of(vit, parsed, rates, lambda: images, batch_size=1, dtype="float32", device=str(where))
    assert_identity(vit, images[:1])
    candidates = counted_on(where, vit, models)
    with torch.inference_mode():
        calls = [engine.ready(each.model, images[:1].to(where), "float32")[0] for each in candidates]
    answers = [partial(_answer, call, where) for call in calls]
    kinds = [(1, 0.0), *([(max_batch, max_wait_ms)] if max_batch > 1 else [])]
    loads = [Load(count, requests, *kind) for count, kind in product(clients, kinds)]
    found = in_turn(answers, images, loads, rounds)
    condition = {"runtime": runtime, "img_size": images.shape[2]}
    return [{**condition, **row} for load in loads for row in _rows(load, candidates, found[load])]


def _rows(
    load: Load, candidates: Sequence[Candidate], found: Sequence[Sequence[Answered]]
) -> Iterator[dict[str, object]]:
    """The rows of one load; the first of ``candidates`` is the unreduced model."""
    images = load.clients * load.each
    whole = [each.seconds for each in found[0]]
    for candidate, rounds in zip(candidates, found, strict=True):
        yield {
            "clients": load.clients,
            "requests": images,
            "max_batch": load.max_batch,
            "max_wait_ms": load.max_wait_ms,
            "method": candidate.method.name,
            "options": candidate.method.options_text,
            "keep_rate": candidate.keep_rate,
            "gmac": candidate.costs["gmac"],
            **percentiles([seconds for each in rounds for seconds in each.latencies]),
            "mean_batch": float(np.mean([each.mean_batch for each in rounds])),
            **asdict(summary([each.seconds for each in rounds], whole, images)),
        }


def _answer(call: Call, where: torch.device, images: Tensor) -> Tensor:
    """Logits (B, classes) that are there, on CPU."""
    return call(images.to(where)).cpu()


def in_turn(
    models: Sequence[Call], images: Tensor, loads: Sequence[Load], rounds: int
) -> dict[Load, list[list[Answered]]]:
    """What each load gives, for each of ``models`` a list of the rounds; the models have a load one after the other."""
    keep_freed_memory()
    found = {load: [[] for _ in models] for load in loads}
    for _, load in product(tqdm(range(rounds), desc="rounds", leave=False), loads):
        for model, own in zip(models, found[load], strict=True):
            own.append(answered(model, images, load))
    return found


def answered(model: Call, images: Tensor, load: Load) -> Answered:
    """One round of ``load``: client i asks about ``images[i]``, again and again."""
    ready, sizes = Barrier(load.clients), []

    def counted(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return model(images)

    queue = BatchQueue(counted, max_batch=load.max_batch, max_wait_ms=load.max_wait_ms)
    with queue.answering(), ThreadPoolExecutor(load.clients) as threads:
        clients = [threads.submit(_ask, queue, images[i], load.each, ready) for i in range(load.clients)]
        times = np.concatenate([client.result() for client in clients])  # (requests, 2)
    latencies = (times[:, 1] - times[:, 0]).tolist()
    return Answered(latencies, float(times[:, 1].max() - times[:, 0].min()), float(np.mean(sizes)))


def _ask(queue: BatchQueue, image: Tensor, times: int, ready: Barrier) -> list[tuple[float, float]]:
    """When each request of one client was sent and answered, after one that does not count."""
    try:
        queue.submit(image).result()
    finally:
        ready.wait()  # whatever the model raises is raised by the client, once all have started
    found = []
    for _ in range(times):
        start = perf_counter()
        queue.submit(image).result()
        found.append((start, perf_counter()))
    return found


def percentiles(latencies: Sequence[float]) -> dict[str, float]:
    """Milliseconds that a half, 95 and 99 % of ``latencies``, in seconds, do not exceed.

    >>> percentiles([each / 1000 for each in range(101)])
    {'p50_ms': 50.0, 'p95_ms': 95.0, 'p99_ms': 99.0}
    """
    found = np.quantile(latencies, (0.5, 0.95, 0.99)) * 1e3
    return dict(zip(("p50_ms", "p95_ms", "p99_ms"), found.tolist(), strict=True))
