"""What a model decides on every image of a split: evaluated, kept in small files, exported, tabulated.

``python -m common.evaluation DIR`` evaluates the training runs below DIR (:mod:`common.evaluation.runner`),
``python -m common.evaluation off_the_shelf OUT ...`` models that nobody trained
(:mod:`common.evaluation.shelf_command`),
``python -m common.evaluation.registry ROOT OUT.csv`` lists runs (:mod:`common.evaluation.registry`).
"""

from common.evaluation.evaluate import evaluate_model
from common.evaluation.export import export_cls, export_json
from common.evaluation.names import run_key, unique_key
from common.evaluation.record import Record, Setting, Stage
from common.evaluation.shelf import off_the_shelf
