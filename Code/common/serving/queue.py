"""A queue between the threads that ask about one image each and the one that runs the model."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Thread

import torch
from torch import Tensor

from common.options import Count, NonNegative, checked


class Clock:
    """The time in seconds, and waiting; tests have one of their own."""

    def now(self) -> float:
        return time.perf_counter()

    def wait(self, changed: Condition, seconds: float | None) -> None:
        """Until ``changed``, whose lock is held, is notified, or so many ``seconds`` at the most."""
        changed.wait(seconds)


@dataclass
class Request:
    """An image (3, H, W), when it came, and its logits (classes,) to be."""

    image: Tensor
    since: float
    logits: Future[Tensor] = field(default_factory=Future)


class BatchQueue:
    """Answers images in the order they come, several at once where several wait (dynamic batching).

    A batch is run when ``max_batch`` images are there, or ``max_wait_ms`` after the first of them came.
    ``max_batch=1`` is the model called image by image, one at a time.

    Args:
        model: images (B, 3, H, W) -> logits (B, classes); called by one thread only, in inference mode.
        max_batch: images of a batch at the most.
        max_wait_ms: for how long a batch waits for its second image and those after it.

    Example:
        >>> with BatchQueue(lambda images: images.amax((2, 3)), max_batch=4, max_wait_ms=1).answering() as queue:
        ...     queue.submit(torch.eye(3).expand(3, 3, 3)).result()
        tensor([1., 1., 1.])
    """

    @checked
    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        *,
        max_batch: Count = 8,
        max_wait_ms: NonNegative = 2.0,
        clock: Clock | None = None,
    ) -> None:
        self.model, self.max_batch, self.max_wait = model, max_batch, max_wait_ms / 1e3
        self._clock = clock or Clock()
        self._waiting: deque[Request] = deque()
        self._changed, self._closed = Condition(), False

    def submit(self, image: Tensor) -> Future[Tensor]:
        """The logits (classes,) to be of ``image`` (3, H, W); what the model raises is raised by their ``result()``.

        Raises:
            RuntimeError: nothing is answered any more.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the queue is closed")
            self._waiting.append(Request(image, self._clock.now()))
            self._changed.notify()
            return self._waiting[-1].logits

    def close(self) -> None:
        """Answer what waits, and nothing after it."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @contextmanager
    def answering(self) -> Iterator[BatchQueue]:
        """Inside, a thread runs the batches; it is done with all requests when the block is left."""
        thread = Thread(target=self._answer, name="batches", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.close()
            thread.join()

    def _answer(self) -> None:
        while batch := self.next_batch():
            self.run(batch)

    def next_batch(self) -> list[Request]:
        """Wait for the images of the next batch; none once the queue is closed and empty."""
        with self._changed:
            while (seconds := self._seconds_left()) != 0:
                self._clock.wait(self._changed, seconds)
            return [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]

    def _seconds_left(self) -> float | None:
        """Until the next batch is run; None = for as long as nothing comes."""
        if self._closed or len(self._waiting) >= self.max_batch:
            return 0
        return max(0, self._waiting[0].since + self.max_wait - self._clock.now()) if self._waiting else None

    def run(self, batch: list[Request]) -> None:
        """Answer the requests of one batch; those whose images are no tensors of one shape and kind, apart."""
        alike: dict[object, list[Request]] = defaultdict(list)
        for request in batch:
            if not request.logits.set_running_or_notify_cancel():
                continue  # whoever asked waits no longer
            alike[getattr(request.image, "shape", None), getattr(request.image, "dtype", None)].append(request)
        for requests in alike.values():
            self._run(requests)

    @torch.inference_mode()
    def _run(self, batch: list[Request]) -> None:
        """Answer requests together; what goes wrong with the model is the answer to each of them."""
        try:
            logits = self.model(torch.stack([request.image for request in batch]))
            answers = list(zip(batch, logits, strict=True))
        except Exception as error:
            for request in batch:
                request.logits.set_exception(error)
            return
        for request, own in answers:
            request.logits.set_result(own)
