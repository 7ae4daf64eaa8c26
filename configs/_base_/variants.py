# What configs repeat of each variant: the widths of its outputs, from stride 4 to 32, what its
# classifiers read, and the authors' ImageNet weights.
variants = {
    name: dict(
        pyramid_channels=widths,
        # Output 3, and the Overview-Net's output.
        classifier_channels=[widths[3], overview],
        weights='https://github.com/LMMMEng/OverLoCK/releases/download/v1/'
        f'overlock_{name}_in1k_224.pth',
    )
    for name, (widths, overview) in dict(
        xt=([56, 112, 340, 420], 336),
        t=([64, 128, 384, 640], 512),
        s=([64, 128, 448, 640], 512),
        b=([80, 160, 528, 720], 576),
    ).items()
}
