"""Owns the dry run: what a training command would do, told without doing it."""

import logging
import math

from torch import nn

from qwenvl.data.data_processor import DataModule
from qwenvl.train.argument import TrainingArguments
from qwenvl.train.memory import Sharding, estimate_memory
from qwenvl.train.param_groups import format_table

logger = logging.getLogger(__name__)
