# Lets `read_base()` inherit one of the shipped configs, which are written in mmengine's text style:
#
#     with read_base():
#         from overlock_mm.configs.detection.cascade_overlock_s import *
#
# Every file beside this folder's `__init__.py` that carries the name of a config is this file.
# Nothing here is imported: mmengine reads it as a config, with `__file__` set to the name asked for.
from mmengine.config import Config

globals().update(
    Config.fromfile(
        '/.mim/configs/'.join(__file__.replace('\\', '/').rsplit('/configs/', 1))
    ).to_dict()
)
