# The network of the demo configs, which two CPU cores train in minutes on drawn shapes. It is as
# its parents' but smaller.
shapes_variant = dict(
    arch=dict(channels=(24, 48, 96, 128), depths=(1, 1, 1, 1, 2, 1), groups=(2, 4)),
    pyramid_channels=[24, 48, 128, 160],
    classifier_channels=[160, 128],
)
