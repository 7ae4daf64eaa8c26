"""What is wrong with a data set, asked of the data set that the run will use."""

from .errors import DataError
from .files import watch_files
from .report import DataSets, check_data_sets

__all__ = ['DataError', 'DataSets', 'check_data_sets', 'watch_files']
