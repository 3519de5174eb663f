"""Vision transformers that run on fewer tokens; the public calls are in ``common``.

Importing this package adds its own backbones (:mod:`common.models.registered`) to timm's registry.
"""

from common.models import registered
