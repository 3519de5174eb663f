"""Results that come in batches, gathered in one tensor."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Rows:
    """At most ``count`` rows, copied batch by batch into one CPU tensor that is allocated once.

    Small tensors kept from every batch would hold on to the heap around them: the process would grow by about a batch
    of images each time. Rows (n, k) of a batch narrower than others are filled up with ``padding``.
    """

    def __init__(self, count: int, padding: int | None = None) -> None:
        self._count, self._padding = count, padding
        self._seen, self._all = 0, None

    def add(self, batch: Tensor) -> None:
        if self._all is None:
            self._all = batch.new_empty(self._count, *batch.shape[1:], device="cpu")
        if self._padding is not None:
            wider = batch.shape[1] - self._all.shape[1]
            self._all = F.pad(self._all, (0, max(wider, 0)), value=self._padding)
            batch = F.pad(batch, (0, max(-wider, 0)), value=self._padding)
        self._all[self._seen : self._seen + len(batch)] = batch
        self._seen += len(batch)

    @property
    def rows(self) -> Tensor:
        return self._all[: self._seen]
