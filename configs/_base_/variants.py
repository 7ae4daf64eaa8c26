# What configs repeat of each variant: the widths of its outputs, from stride 4 to 32, and the
# authors' ImageNet weights.
variants = {
    name: dict(
        pyramid_channels=widths,
        weights='https://github.com/LMMMEng/OverLoCK/releases/download/v1/'
        f'overlock_{name}_in1k_224.pth',
    )
    for name, widths in dict(
        xt=[56, 112, 340, 420],
        t=[64, 128, 384, 640],
        s=[64, 128, 448, 640],
        b=[80, 160, 528, 720],
    ).items()
}
