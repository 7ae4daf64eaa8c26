"""An annotation file in the format of COCO, parsed once for the checks and for mmdet."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from mmengine.registry import DATASETS

from .errors import DataError


class CocoFile:
    """What is in the file.

    Args:
        path: A local file.
        where: The setting that names it.

    Raises:
        DataError: It is not in the format of COCO's instances.
    """

    def __init__(self, path: str | Path, where: str) -> None:
        self.path = Path(path)
        self.head = f'{path} ({where})'
        try:
            self.content = json.loads(self.path.read_bytes())
            self.categories = [(c['id'], c['name']) for c in self.content['categories']]
            self.images = self.content['images']
            for image in self.images:
                image['id'], image['file_name']
            #: None in the files of COCO's test server.
            self.annotations: list[dict] | None = self.content.get('annotations')
            self.names = dict(self.categories)
            self.image_ids = {image['id'] for image in self.images}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f'{self.head} is not in the format of COCO: {type(error).__name__}: {error}. '
                'Restore the file or name another.'
            ) from error

    def check_ids(self) -> None:
        """Demand that images, categories and annotations have ids of their own.

        Raises:
            DataError: Names an id that is used twice.
        """
        for kind in ('images', 'categories', 'annotations'):
            ids = Counter(entry.get('id') for entry in self.content.get(kind) or ())
            shared = [number for number, count in ids.items() if count > 1]
            if shared:
                raise DataError(
                    f'{self.head}: {len(shared)} ids of {kind} are used more than once, for '
                    f'example {shared[0]!r}; what belongs to them would be lost or mixed up. Give '
                    'each an id of its own.'
                )

    def check_classes(self, classes: list[str], measured: bool) -> list[str]:
        """Demand that label ``i`` will be the class ``i``.

        mmdet's ``CocoDataset`` numbers the categories that are classes in the order of the file.

        Args:
            classes: Names of the data set's classes.
            measured: Whether a metric translates labels back; else only the categories that
                annotations use are looked at.

        Returns:
            What is odd, but can be trained on.

        Raises:
            DataError: A name and its label do not fit.
        """
        listed = [name for _, name in self.categories]
        ids = [number for number, name in self.categories if name in classes]
        lacking = [name for name in classes if name not in listed]
        # Test-time labels of a missing class have no category.
        if not ids or (lacking and measured):
            raise DataError(self._lacking(lacking))
        used = {a.get('category_id') for a in self.annotations or ()}
        wrong = [
            number
            for label, number in enumerate(ids)
            if (measured or number in used) and classes[label : label + 1] != [self.names[number]]
        ]
        if wrong:
            twice = [name for name, count in Counter(listed).items() if count > 1]
            twice = [name for name in twice if name in classes]
            if twice:
                raise DataError(self._doubled(twice[0]))
            if lacking:
                raise DataError(self._lacking(lacking))
            raise DataError(
                f'{self.head} lists its categories in another order than metainfo.classes; labels '
                'follow the file, so that objects would get wrong names. Set the classes '
                f'of train, val and test to {tuple(n for n in listed if n in classes)}, and let '
                'all files list the categories in this order.'
            )
        return [f'{self.head} has no category {_quoted(lacking)}.'] if lacking else []

    def _lacking(self, names: list[str]) -> str:
        return (
            f'{self.head} has no category {_quoted(names)}; it has '
            f"{', '.join(name for _, name in self.categories)}. Set the data set's "
            'metainfo.classes to the names in the file, and num_classes of the model to their '
            'number.'
        )

    def _doubled(self, name: str) -> str:
        same = [str(number) for number, other in self.categories if other == name]
        return (
            f'{self.head}: the categories {", ".join(same)} are all called {name!r}, so labels and '
            'classes do not fit together. Remove the category that no annotation uses (some '
            'exports add one with the name of the project), or rename it.'
        )

    def build_dataset(self, config: ConfigDict) -> Any:
        """Build mmdet's data set of this file without parsing it again, which takes a while."""
        from mmdet.datasets.api_wrappers import COCO

        def parsed(path: str) -> Any:
            api = COCO()
            api.dataset = self.content
            api.createIndex()
            api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs
            return api

        dataset = DATASETS.build(dict(config, lazy_init=True))
        dataset.COCOAPI = parsed
        try:
            dataset.full_init()
        finally:
            del dataset.COCOAPI
        return dataset


def _quoted(names: list[str], shown: int = 5) -> str:
    return ', '.join(map(repr, names[:shown])) + (' ...' if len(names) > shown else '')
