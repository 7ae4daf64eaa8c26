"""Whatever a test imports first, mmcv then has its operators."""

import overlock_mm  # noqa: F401
