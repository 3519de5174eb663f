"""What a model decides on every image of a split: evaluated, kept in small files, exported, tabulated.

``python -m common.evaluation DIR`` evaluates the training runs below DIR (:mod:`common.evaluation.runner`),
``python -m common.evaluation.registry ROOT OUT.csv`` lists them (:mod:`common.evaluation.registry`).
"""

from common.evaluation.evaluate import evaluate_model
from common.evaluation.export import export_cls, export_json
from common.evaluation.names import run_key
from common.evaluation.record import Record, Setting, Stage
