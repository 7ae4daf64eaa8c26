"""Installation; the version lives in overlock_mm/version.py."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# mmcv, mmengine, mmdet, mmsegmentation and mmpretrain are no hard requirements, because each
# exists as two distributions (mmcv and onedl-mmcv, say) under one import name: naming one here
# would make pip install it over the other.
MAINTAINED_STACK = [
    'onedl-mmengine>=0.10.12',
    'onedl-mmcv>=2.3.6',
    'onedl-mmdetection>=3.5.1',
    'onedl-mmsegmentation>=1.4.2',
    'onedl-mmpretrain>=1.3.6',
    'faster-coco-eval>=1.8.0',
]


def read_version() -> str:
    """The version, without importing the package (torch may be missing yet)."""
    text = (ROOT / 'overlock_mm' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE).group(1)


def read_description() -> str:
    """The README, if this copy has one."""
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


setup(
    name='overlock_mm',
    version=read_version(),
    description='The OverLoCK backbone (CVPR 2025) for the OpenMMLab 2.x stack',
    long_description=read_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['overlock_mm', 'overlock_mm.*']),
    # The configs, where mmengine and mim look for them (links to configs/ in the sources), and
    # their bridges to mmengine's pure-Python style.
    package_data={
        'overlock_mm': [
            '.mim/model-index.yml',
            '.mim/configs/**/*.py',
            '.mim/configs/**/*.yml',
            'configs/*/*.py',
        ]
    },
    python_requires='>=3.10',
    install_requires=['torch>=2.0', 'numpy>=1.22', 'pillow>=9'],
    extras_require={'openmmlab': MAINTAINED_STACK},
    zip_safe=False,
)
