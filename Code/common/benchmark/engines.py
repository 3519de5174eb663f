"""What runs the models that are timed: PyTorch as it is, torch.compile, or onnxruntime on exported files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from torch import Tensor, nn

from common.cost.throughput import seconds_of
from common.devices import DTYPES
from common.errors import UsageError
from common.exporting import export
from common.onnx_int8 import quantised
from common.onnx_sessions import open_onnx, require_onnx

Call = Callable[[Tensor], object]  # images (B, 3, H, W) -> logits (B, classes)


class Eager:
    """Models as they are.

    Attributes:
        name: of the runtime.
        told: how a model runs on it, behind "does not run".
        dtypes: number formats that it has.
        in_torch: PyTorch runs the models, and knows what memory they take.
    """

    name, told, in_torch = "eager", "", True
    dtypes = tuple(DTYPES)

    def check(self, dtype: str, device: torch.device) -> None:
        """Refuse what it cannot run, before anything is computed.

        Raises:
            UsageError: it has no ``dtype``, or does not run on ``device``.
        """
        if dtype not in self.dtypes:
            raise UsageError(f"dtype {dtype!r} is not for runtime {self.name!r}; allowed: {', '.join(self.dtypes)}")

    def comparison(self) -> AbstractContextManager:
        """Around all passes of models that are compared with each other."""
        return nullcontext()

    def ready(self, model: nn.Module, images: Tensor, dtype: str) -> tuple[Call, float | None]:
        """What is timed in place of ``model``, after a first pass, and the seconds it took to make that; None = it is
        ``model`` itself."""
        model(images)
        return model, None


class Compiled(Eager):
    """Models by torch.compile, for images of one shape.

    Args:
        backend: of torch.compile.
    """

    name, told = "compiled", " compiled"

    def __init__(self, backend: str = "inductor") -> None:
        self.backend = backend

    @contextmanager
    def comparison(self) -> Iterator[None]:
        """All models run through the same few functions, each of which is compiled for every model and block."""
        torch.compiler.reset()
        import torch._dynamo as dynamo  # takes seconds

        try:
            with dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=100_000):
                yield
        finally:
            torch.compiler.reset()

    def ready(self, model: nn.Module, images: Tensor, dtype: str) -> tuple[Call, float | None]:
        compiled = torch.compile(model, dynamic=False, backend=self.backend)
        seconds = seconds_of(compiled, images)
        compiled(images)  # some remember what the first pass found, and are compiled anew
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(images)
        return compiled, seconds


class Onnxruntime(Eager):
    """Models as files for any number of images, each of which was tried to give the model's logits.

    A model is exported once, whatever the batches; so one of these serves one set of models.
    """

    name, told, in_torch = "onnxruntime", " on onnxruntime", False
    dtypes = ("float32", "int8")

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="onnx-")
        self._files: dict[nn.Module, tuple[Path, float]] = {}

    def check(self, dtype: str, device: torch.device) -> None:
        super().check(dtype, device)
        if device.type != "cpu":
            raise UsageError(f"runtime 'onnxruntime' on {device}; allowed: cpu")
        require_onnx("runtime 'onnxruntime'")

    def ready(self, model: nn.Module, images: Tensor, dtype: str) -> tuple[Call, float | None]:
        file, exporting = self._exported(model)
        start = perf_counter()
        run = open_onnx(quantised(file) if dtype == "int8" else file)
        seconds = exporting + perf_counter() - start
        run(images)
        return run, seconds

    def _exported(self, model: nn.Module) -> tuple[Path, float]:
        """The file of ``model``, and the seconds that its export took."""
        if model not in self._files:
            start, path = perf_counter(), Path(self._folder.name, f"{len(self._files)}.onnx")
            with torch.inference_mode(False):
                self._files[model] = export(model, path), perf_counter() - start
        return self._files[model]


def engine_called(name: str, *, backend: str = "inductor") -> Eager:
    """The engine of the runtime ``name``, see :data:`common.devices.Runtime`."""
    return {"eager": Eager, "compiled": partial(Compiled, backend), "onnxruntime": Onnxruntime}[name]()
