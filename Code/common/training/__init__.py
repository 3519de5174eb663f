"""Training and evaluation under one protocol object, for every model of this package.

``train`` runs a :class:`TrainConfig`; :class:`common.training.experiment.Experiment` is a run with its model and data,
``python -m common.training CONFIG.yaml`` the same from the command line, also under ``torchrun``.
"""

from common.devices import torch_device
from common.training.config import TrainConfig, protocol
from common.training.engine import Epoch, train
from common.training.losses import asymmetric_loss, distillation_loss
from common.training.metrics import accuracies, accuracy, cross_entropy, mean_average_precision
from common.training.optim import learning_rate, parameter_groups
from common.training.prediction import Prediction, evaluate, inference_pass, predict
