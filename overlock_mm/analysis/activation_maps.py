"""Class activation maps of any stage, by the methods of pytorch-grad-cam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_grad_cam as library
from torch import Tensor, nn

from overlock_mm.analysis.targets import Score

#: The library's methods that need a score, an image and a layer and nothing else.
METHODS: dict[str, Any] = {
    'gradcam': library.GradCAM,
    'gradcam++': library.GradCAMPlusPlus,
    'hirescam': library.HiResCAM,
    'layercam': library.LayerCAM,
    'xgradcam': library.XGradCAM,
    'eigencam': library.EigenCAM,
    'eigengradcam': library.EigenGradCAM,
    'scorecam': library.ScoreCAM,
}
#: By task. A pixel's class or a box's depends on a place, and Grad-CAM, which averages gradients
#: over all places, loses it; LayerCAM weights each place by its own gradient.
DEFAULT_METHODS = {
    'classification': 'gradcam',
    'segmentation': 'layercam',
    'detection': 'layercam',
}


def activation_map(score: Score, module: nn.Module, inputs: Tensor, method: str) -> np.ndarray:
    """Return how much each position of a stage's activations supports a score.

    Args:
        score: What is to be explained, with the model in it.
        module: The stage: a module within the model whose output is [1, C, h, w].
        inputs: The image [1, 3, H, W], normalised.
        method: One of :data:`METHODS`. ``eigencam`` uses only activations, not the score.

    Returns:
        float32 [H, W] from 0 to 1, the largest value being 1; all zero where no activation speaks
        for the score.

    Raises:
        ValueError: An unknown method, a score without the gradient that the method needs, or a
            result that is not finite.
    """
    if method not in METHODS:
        raise ValueError(f'The method must be one of {", ".join(METHODS)}, got {method!r}.')
    cam = METHODS[method](model=score, target_layers=[module])
    try:
        heat = cam(input_tensor=inputs, targets=[lambda output: output[0]])[0]
    except Exception as error:
        if 'does not require grad' in str(error):
            raise ValueError(
                f'{method} needs the gradient of the score, and this model gives its scores '
                'without, as the one-stage detectors of mmdet do. Use --method scorecam or '
                '--method eigencam.'
            ) from error
        if cam.uses_gradients and not cam.activations_and_grads.gradients:
            raise ValueError(
                f'No gradient of the score reaches the stage, so {method} has nothing to show: no '
                'head reads what comes of it. Choose a stage before it.'
            ) from error
        raise
    finally:
        cam.activations_and_grads.release()
    if not np.isfinite(heat).all():
        raise ValueError(
            f'The activation map by {method} is not finite. Look at the weights: a run that '
            'diverged leaves NaN in them.'
        )
    return heat
