"""Vision transformers that run on fewer tokens; the public calls are in ``common``."""
