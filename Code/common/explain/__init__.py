"""Explanations: which patches speak for a class, and how good an answer that is."""

from common.explain import gradients, metrics, mutex, rollout, simple
from common.explain.base import Explainer, Explanation, create_explainer, list_explainers, register_explainer
from common.explain.metrics import insertion_deletion
from common.explain.mutex import Mutex
