"""One line from a picture to an answer, whichever way the model is stored.

Example:
    >>> from overlock_mm import Predictor  # doctest: +SKIP
    >>> predictor = Predictor('model.onnx')  # doctest: +SKIP
    >>> result = predictor('picture.jpg')  # doctest: +SKIP
    >>> result.boxes, result.names  # doctest: +SKIP
    >>> result.draw().save('drawn.png')  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from overlock_mm.runtime.pictures import sources_of
from overlock_mm.runtime.results import Result
from overlock_mm.runtime.video import VIDEO_SUFFIXES, Video


class Predictor:
    """A detector, segmentor or classifier that is called with pictures.

    Args:
        model: An exported file, ``.onnx`` or ``.xml``, which runs without torch; or a config, for
            which ``weights`` are needed, and the OpenMMLab library of its task.
        weights: A checkpoint of the config.
        device: ``'cpu'``, ``'cuda'``, ``'cuda:1'``, ...; for OpenVINO its own names, such as
            ``'gpu'``.
        batch_size: Pictures that run together, where their inputs have one size. It changes no
            result.
        threads: Threads of an exported file's runtime; None leaves them to the runtime.
        engine: ``'onnxruntime'`` or ``'openvino'``; None goes by the suffix of the file.
        precision: What OpenVINO computes in: ``'f32'``, or ``'bf16'`` or ``'f16'`` where the device
            has it. In ONNX Runtime it is that of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The runtime, or a library that the config needs, is not installed.
        ValueError: The file is not one of ours, the weights are of another model, or there is no
            such device.
    """

    def __init__(
        self,
        model: str | Path,
        weights: str | Path | None = None,
        *,
        device: str = 'cpu',
        batch_size: int = 1,
        threads: int | None = None,
        engine: str | None = None,
        precision: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {batch_size}.')
        self.batch_size = batch_size
        path = Path(model)
        if weights is not None and path.suffix in ('.onnx', '.xml'):
            raise ValueError(f'{path} holds its weights: Predictor({str(path)!r}).')
        if weights is not None:
            from overlock_mm.analysis.config_model import ConfigModel

            self.model: Any = ConfigModel(model, weights, device)
        elif path.suffix == '.py':
            raise ValueError(f'{path} is a config: Predictor({str(path)!r}, weights).')
        else:
            from overlock_mm.runtime.file_model import FileModel

            self.model = FileModel(path, device, threads, engine, precision)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the labels."""
        return self.model.description.classes

    @property
    def channels(self) -> int:
        """Channels of a picture; three are red, green and blue."""
        return self.model.description.channels

    def __call__(self, source: Any, progress: bool = False) -> Any:
        """Predict pictures.

        Args:
            source: A path, folder, pattern such as ``'pictures/*.jpg'``, array [H, W, C] (three
                channels are red, green and blue), Pillow image, or a list of these; or a video,
                all of whose results are kept in memory, unlike those of :meth:`stream`.
            progress: Show a bar.

        Returns:
            A :class:`~overlock_mm.runtime.Detections`, :class:`~overlock_mm.runtime.Segmentation`
            or :class:`~overlock_mm.runtime.Classification`; a list of them for all but a single
            picture.

        Raises:
            FileNotFoundError: A path leads nowhere.
            ValueError: A picture cannot be read or does not fit the model, or there is none.
            ImportError: OpenCV, which reads video, is not installed.
        """
        sources: Any
        if _is_video(source):
            video = Video(source)
            sources, count, single = video, video.count, False
        else:
            sources, single = sources_of(source)
            count = len(sources)
        results = list(self._run(sources, _bar(count) if progress else None))
        return results[0] if single else results

    def stream(self, source: Any) -> Iterator[Result]:
        """Results one after the other: of the frames of a video, or of any number of pictures.

        Args:
            source: A video or its path, or what a call takes, or an iterator over arrays.

        Raises:
            ImportError: OpenCV, which reads video, is not installed.
            FileNotFoundError: A path leads nowhere.
            ValueError: Something cannot be read.
        """
        if _is_video(source):
            return self._run(Video(source))
        if isinstance(source, (Iterator, Video)):
            return self._run(source)
        return self._run(iter(sources_of(source)[0]))

    def _run(
        self, sources: Iterable[Any], seen: Callable[[int], None] | None = None
    ) -> Iterator[Result]:
        remaining = iter(sources)
        while batch := list(islice(remaining, self.batch_size)):
            images = [self.model.load(source) for source in batch]
            names = [str(source) if isinstance(source, (str, Path)) else None for source in batch]
            yield from self.model.predict(images, names)
            if seen is not None:
                seen(len(batch))


def _is_video(source: Any) -> bool:
    return isinstance(source, (str, Path)) and Path(source).suffix.lower() in VIDEO_SUFFIXES


def _bar(total: int) -> Callable[[int], None]:
    """Counts pictures on the terminal's last line."""
    done = 0

    def seen(count: int) -> None:
        nonlocal done
        done += count
        end = '\n' if done == total else ''
        print(f'\r{done} of {total} pictures', end=end, flush=True)

    return seen
