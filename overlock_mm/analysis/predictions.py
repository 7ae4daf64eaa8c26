"""Predictions for one's own pictures, through the inferencers of the OpenMMLab libraries."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, init_default_scope

from overlock_mm.analysis.networks import dataset_meta
from overlock_mm.analysis.views import task_of
from overlock_mm.checkpoint import check_compatible, read_checkpoint
from overlock_mm.datasets.checks import DataError
from overlock_mm.datasets.checks.loading import load_with_name
from overlock_mm.utils.config import innermost_dataset, load_config
from overlock_mm.utils.files import replacing
from overlock_mm.utils.images import read_image

VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')
#: Shortest side of a drawn picture; on smaller ones, labels would hide what they name.
_DRAWN_SIDE = 360
#: Longest side of an enlarged picture: a strip of one pixel would otherwise take gigabytes.
_LONGEST_DRAWN_SIDE = 2000


class Predictor:
    """A model with its test pipeline and its way of drawing.

    Args:
        cfg: The model's config.
        checkpoint: A checkpoint of exactly this model.
        device: Where it runs.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        CheckpointError: It cannot be read.
        CheckpointMismatchError: It belongs to another model.
    """

    def __init__(self, cfg: Config, checkpoint: str | Path, device: str) -> None:
        content = read_checkpoint(checkpoint)
        meta = dataset_meta(cfg, content.get('meta') or {})
        self.classes: list[str] = list(meta.get('classes', ()))
        self.palette: list[Any] = [tuple(color) for color in meta.get('palette', ())]
        if len(self.palette) < len(self.classes):
            # Any will do, as long as a class has the same in every picture.
            shape = (len(self.classes), 3)
            colors = np.random.default_rng(0).integers(40, 230, shape)
            self.palette = [tuple(map(int, color)) for color in colors]
        # Before the inferencer changes the pipeline.
        self.load = None if _loads_as_opencv(cfg) else TRANSFORMS.build(_first_transform(cfg))
        self.inferencer = self._inferencer(cfg, str(checkpoint), device)
        # The libraries only warn of tensors that do not fit.
        check_compatible(self.inferencer.model, content['state_dict'], str(checkpoint))

    def read(self, path: Path) -> np.ndarray:
        """A picture as the model takes it, [H, W, C]: uint8 BGR, or as its pipeline loads it.

        Raises:
            ValueError: It cannot be loaded.
        """
        if self.load is None:
            return read_image(path)
        image = load_with_name(self.load, {'img_path': str(path)})['img']
        return image if image.ndim == 3 else image[..., None]

    @abstractmethod
    def _inferencer(self, cfg: Config, checkpoint: str, device: str) -> Any:
        """The inferencer of the model's library."""

    @abstractmethod
    def predict(self, image: np.ndarray) -> tuple[Any, np.ndarray]:
        """What the model sees in a picture.

        Args:
            image: The result of :meth:`read`.

        Returns:
            Plain data for JSON, and the picture with the prediction drawn in, uint8 RGB, maybe
            enlarged.
        """

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)


class DetectionPredictor(Predictor):
    """Boxes and, where the detector has them, masks, from a score on.

    Args:
        score_threshold: Lowest score to report and draw.
    """

    def __init__(
        self, cfg: Config, checkpoint: str | Path, device: str, score_threshold: float
    ) -> None:
        super().__init__(cfg, checkpoint, device)
        self.score_threshold = score_threshold

    def _inferencer(self, cfg: Config, checkpoint: str, device: str) -> Any:
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(
            cfg, checkpoint, device=device, palette=self.palette, show_progress=False
        )
        inferencer.visualizer.dataset_meta = dict(classes=self.classes, palette=self.palette)
        return inferencer

    def predict(self, image: np.ndarray) -> tuple[Any, np.ndarray]:
        """A list of objects, most certain first, their boxes as x1, y1, x2, y2 in pixels."""
        results = self.inferencer(image, return_datasamples=True, no_save_vis=True)
        (sample,) = results['predictions']
        instances = self.inferencer.pred2dict(sample)
        objects = []
        for i, (label, score) in enumerate(
            zip(instances['labels'], instances['scores'], strict=True)
        ):
            if score > self.score_threshold:
                box = [round(value, 1) for value in instances['bboxes'][i]]
                entry = {'class': self._name(label), 'score': round(score, 4), 'box': box}
                if 'masks' in instances:
                    entry['mask'] = instances['masks'][i]
                objects.append(entry)
        self.inferencer.visualizer.add_datasample(
            'prediction',
            as_rgb(image),
            sample,
            draw_gt=False,
            pred_score_thr=self.score_threshold,
        )
        return objects, self.inferencer.visualizer.get_image()


class SegmentationPredictor(Predictor):
    """A class for each pixel."""

    def _inferencer(self, cfg: Config, checkpoint: str, device: str) -> Any:
        from mmseg.apis import MMSegInferencer

        from overlock_mm.visualization.seg_visualizer import EnlargingSegVisualizer

        inferencer = MMSegInferencer(
            cfg,
            checkpoint,
            classes=self.classes,
            palette=self.palette,
            device=device,
        )
        inferencer.show_progress = False  # no argument of mmsegmentation 1.2.2
        inferencer.visualizer = EnlargingSegVisualizer(alpha=0.5)
        inferencer.visualizer.dataset_meta = dict(classes=self.classes, palette=self.palette)
        return inferencer

    def predict(self, image: np.ndarray) -> tuple[Any, np.ndarray]:
        """The share of the picture that each class found has, largest first."""
        sample = self.inferencer(image, return_datasamples=True)
        labels = sample.pred_sem_seg.data
        present, counts = labels.unique(return_counts=True)
        shares = sorted(
            (count / labels.numel(), self._name(label))
            for label, count in zip(present.tolist(), counts.tolist(), strict=True)
        )
        visualizer = self.inferencer.visualizer
        visualizer.factor = _enlarging_factor(image)
        visualizer.add_datasample('prediction', as_rgb(image), sample, draw_gt=False)
        return {name: round(share, 4) for share, name in reversed(shares)}, visualizer.get_image()


class ClassificationPredictor(Predictor):
    """The most probable classes of a picture."""

    def _inferencer(self, cfg: Config, checkpoint: str, device: str) -> Any:
        from mmpretrain import ImageClassificationInferencer
        from mmpretrain.utils import progress
        from mmpretrain.visualization import UniversalVisualizer

        # One bar for all pictures is enough.
        progress.disable_progress_bar = True
        inferencer = ImageClassificationInferencer(
            cfg, checkpoint, device=device, classes=self.classes
        )
        inferencer.visualizer = UniversalVisualizer()
        return inferencer

    def predict(self, image: np.ndarray) -> tuple[Any, np.ndarray]:
        """Up to five classes with their probabilities, most probable first."""
        (sample,) = self.inferencer(image, return_datasamples=True)
        best = sample.pred_score.topk(min(5, len(sample.pred_score)))
        visualizer = self.inferencer.visualizer
        visualizer.visualize_cls(
            as_rgb(image),
            sample,
            classes=self.classes or None,
            draw_gt=False,
            rescale_factor=_enlarging_factor(image),
        )
        classes = [
            {'class': self._name(label), 'score': round(score, 4)}
            for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        return classes, visualizer.get_image()


def loads_common_images(cfg: Config) -> bool:
    """Whether the test pipeline of a config loads pictures of three channels, as is usual."""
    first = _first_transform(cfg)
    colour = str(first.get('color_type') or 'color').startswith('color')
    return not first or (_is_file_loader(first) and colour and _backend(first) != 'tifffile')


def _loads_as_opencv(cfg: Config) -> bool:
    first = _first_transform(cfg)
    usual = first.get('color_type') in (None, 'color') and _backend(first) == 'cv2'
    return not first or (_is_file_loader(first) and usual)


def _is_file_loader(transform: Any) -> bool:
    kind = transform['type']
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2] == 'LoadImageFromFile'


def _backend(transform: Any) -> str:
    return transform.get('imdecode_backend') or 'cv2'


def _first_transform(cfg: Config) -> Any:
    loader = cfg.get('test_dataloader')
    return innermost_dataset(loader.dataset).pipeline[0] if loader else {}


def as_rgb(image: np.ndarray) -> np.ndarray:
    """A picture to draw on, uint8 [H, W, 3].

    Args:
        image: [H, W, C]; three channels are blue, green and red, of more the first three count.
            What is not uint8 is scaled to its range.
    """
    image = image[..., 2::-1] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
        image = (image - image.min()) / max(float(np.ptp(image)), 1e-12) * 255
    return np.ascontiguousarray(image.astype(np.uint8))


def load_predictor(
    config: str | Path | Config,
    checkpoint: str | Path,
    device: str = 'cpu',
    score_threshold: float = 0.3,
) -> Predictor:
    """The predictor for the task of a config.

    Args:
        config: Config of a detector, segmentor or classifier: a file, or its content.
        checkpoint: A checkpoint of exactly this model.
        device: Where it runs.
        score_threshold: Lowest score of detections.

    Raises:
        FileNotFoundError: There is no such config or checkpoint.
        ValueError: The config is of none of the three tasks.
        CheckpointError: The checkpoint cannot be read.
        CheckpointMismatchError: It belongs to another model.
    """
    cfg = config if isinstance(config, Config) else load_config(config)
    task = task_of(cfg)
    # That of an earlier predictor may be in force; mmpretrain's inferencer does not look.
    init_default_scope(cfg.default_scope)
    if task == 'detection':
        return DetectionPredictor(cfg, checkpoint, device, score_threshold)
    kind = SegmentationPredictor if task == 'segmentation' else ClassificationPredictor
    return kind(cfg, checkpoint, device)


def predict_images(
    predictor: Predictor, paths: list[Path], names: list[str], out_dir: str | Path
) -> Iterator[tuple[Path, Any]]:
    """Predict pictures one by one and write each as drawn.

    Args:
        predictor: A predictor for any task.
        paths: Image files.
        names: Names of the drawn pictures, without their suffix ``.png``.
        out_dir: Their folder.

    Yields:
        The path and its prediction.

    Raises:
        DataError: A picture cannot be loaded, or is so narrow that it cannot be resized.
    """
    for path, name in zip(paths, names, strict=True):
        image = predictor.read(path)
        try:
            prediction, drawn = predictor.predict(image)
        except cv2.error as error:
            height, width = image.shape[:2]
            raise DataError(
                f'{path} is {width} x {height} pixels, and the test pipeline of the config cannot '
                f'resize it ({error.err}). Cut it, or pad its short side.'
            ) from error
        with replacing(Path(out_dir, f'{name}.png')) as partial:
            mmcv.imwrite(drawn[..., ::-1], str(partial))
        yield path, prediction


def open_video(path: str | Path) -> Any:
    """Open a video as a sequence of frames, uint8 BGR [H, W, 3] each.

    Raises:
        ValueError: OpenCV cannot read it as a video.
    """
    video = mmcv.VideoReader(str(path))
    if not video.opened or video.frame_cnt < 1:
        raise ValueError(f'{path} cannot be read as a video. Convert it to H.264 in an .mp4 file.')
    return video


def predict_video(predictor: Predictor, video: Any, out_file: str | Path) -> Iterator[Any]:
    """Predict a video frame by frame and write it as drawn, in MPEG-4.

    Args:
        predictor: A predictor for any task.
        video: The result of :func:`open_video`.
        out_file: Ends in ``.mp4``; complete or not there.

    Yields:
        The prediction of each frame.

    Raises:
        ValueError: This OpenCV cannot write videos.
    """
    with replacing(out_file) as partial:
        writer = None
        try:
            for frame in video:
                # Files may promise more frames than they hold.
                if frame is None:
                    break
                prediction, drawn = predictor.predict(frame)
                # The codec wants even sides.
                height, width = (side - side % 2 for side in drawn.shape[:2])
                if writer is None:
                    code = cv2.VideoWriter_fourcc(*'mp4v')  # type: ignore[attr-defined]
                    rate = video.fps if video.fps > 0 else 25.0
                    writer = cv2.VideoWriter(str(partial), code, rate, (width, height))
                    if not writer.isOpened():
                        raise ValueError(
                            'OpenCV cannot write MPEG-4 videos here. Install '
                            'opencv-python-headless from the package index, which can.'
                        )
                writer.write(np.ascontiguousarray(drawn[:height, :width, ::-1]))
                yield prediction
        finally:
            if writer is not None:
                writer.release()


def _enlarging_factor(image: np.ndarray) -> int:
    """How many times as large a picture is drawn: more than once if it is small."""
    short, long = sorted(image.shape[:2])
    return max(1, min(round(_DRAWN_SIDE / short), _LONGEST_DRAWN_SIDE // long))
